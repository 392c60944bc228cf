"""Is the field in which an ant learns to walk to goals AntMaze's own, but for what it pays?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcpr_safety import envs
from kcpr_safety.cards import load_card
from kcpr_safety.envs.official import make_plain
from kcpr_safety.seeds import training_seeds

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "antmaze"
CALMLY = "./AntToGoalsCalmly-v0.toml"


@pytest.fixture(autouse=True)
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(FOLDER)


def test_a_policy_of_the_field_knows_all_that_the_maze_observes() -> None:
    contracts = [
        envs.make_world(envs.resolve(task), 1, episode_seeds=training_seeds(0)).contract
        for task in ("./AntToGoals-v0.toml", CALMLY, "AntMaze_OpenDense-v5")
    ]
    field, calm, maze = contracts
    assert field.observation == calm.observation == maze.observation
    assert field.action == calm.action == maze.action
    assert field.punishment == maze.punishment
    assert calm.time_limit == maze.time_limit
    assert envs.resolve("./AntToGoals-v0.toml").punish == load_card("AntMaze_OpenDense-v5").punish


def distance(env: Any, goal: np.ndarray) -> float:
    return float(np.hypot(*(env.data.qpos[:2] - goal)))


def test_beyond_what_the_maze_pays_a_walk_earns_the_way_that_it_gained() -> None:
    env = make_plain("ant_to_goals:AntToGoals-v0")[0]
    env.reset(seed=3)
    goal, before = env.goal.copy(), distance(env, env.goal)
    beyond = 0.0
    for command in np.sin(np.arange(240.0)).reshape(30, 8):
        obs, reward, terminated, _, _ = env.step(command)
        beyond += reward - env.compute_reward(obs["achieved_goal"], goal, {})
        assert not terminated
    assert distance(env, goal) != before
    assert (beyond - 30 * 0.2) * 0.05 == pytest.approx(before - distance(env, goal))


def test_lying_on_its_back_ends_it() -> None:
    env = make_plain("ant_to_goals:AntToGoals-v0")[0]
    env.reset(seed=3)
    assert not env.step(np.zeros(8))[2]
    env.data.qpos[3:7] = 0.0, 1.0, 0.0, 0.0
    assert env.step(np.zeros(8))[2]


def test_a_goal_that_is_reached_moves_on_in_half_of_the_episodes() -> None:
    env = make_plain("ant_to_goals:AntToGoals-v0")[0]
    moved = 0
    for seed in range(20):
        env.reset(seed=seed)
        goal = env.goal = env.data.qpos[:2] + np.array([0.3, 0.0])
        obs, *_ = env.step(np.zeros(8))
        assert obs["desired_goal"].tolist() == goal.tolist()
        moved += distance(env, env.goal) > 0.45
    assert 4 < moved < 16


def test_haste_is_not_paid_where_an_ant_is_to_be_calm() -> None:
    fields = [make_plain(f"ant_to_goals:AntToGoals{how}-v0")[0] for how in ("", "Calmly")]
    for env in fields:
        env.reset(seed=3)
        env.goal = np.array([50.0, 0.0])
    paid = np.zeros((200, 2))
    for step, command in enumerate(np.sin(np.arange(1600.0)).reshape(200, 8)):
        paid[step] = [env.step(command)[1] for env in fields]
    hasty, calm = paid.T - 0.2
    assert (hasty > 0.8).any()
    assert (hasty < 0.8).any()
    assert calm == pytest.approx(np.minimum(hasty, 0.8))


def test_a_fall_is_charged_a_hundred_where_an_ant_is_to_be_calm() -> None:
    world = envs.make_world(envs.resolve(CALMLY), 1, episode_seeds=training_seeds(0))
    world.reset()
    simulations = world.simulations()
    assert simulations is not None
    assert world.step(np.zeros((1, 8)))[4]["punishment"] < 1.5
    simulations.datas[0].qpos[3:7] = 0.0, 1.0, 0.0, 0.0
    _, _, terminated, _, info = world.step(np.zeros((1, 8)))
    assert terminated.all()
    assert info["punishment"] >= 100.0
