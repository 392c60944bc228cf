"""Is the field in which an ant learns to turn AntMaze's own, but for what it pays?"""

from pathlib import Path

import numpy as np
import pytest

from kcpr_safety import envs
from kcpr_safety.cards import load_card
from kcpr_safety.envs.official import make_plain
from kcpr_safety.seeds import training_seeds

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "antmaze"


@pytest.fixture(autouse=True)
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(FOLDER)


def test_a_policy_of_the_field_knows_all_that_the_maze_observes() -> None:
    contracts = [
        envs.make_world(envs.resolve(task), 1, episode_seeds=training_seeds(0)).contract
        for task in ("./AntToGoals-v0.toml", "AntMaze_OpenDense-v5")
    ]
    field, maze = contracts
    assert field.observation == maze.observation
    assert field.action == maze.action
    assert field.punishment == maze.punishment
    assert envs.resolve("./AntToGoals-v0.toml").punish == load_card("AntMaze_OpenDense-v5").punish


def test_it_pays_for_speed_towards_the_goal_and_ends_on_the_back() -> None:
    env = make_plain("ant_to_goals:AntToGoals-v0")[0]
    env.reset(seed=3)
    action = np.array([1.0, -1.0, 0.5, 0.5, -0.5, 1.0, -1.0, 0.2])
    for _ in range(30):
        goal, before = env.goal.copy(), env.data.qpos[:2].copy()
        _, reward, terminated, _, _ = env.step(action)
        left = np.hypot(*(env.data.qpos[:2] - goal))
        gained = np.hypot(*(before - goal)) - left
        assert reward == pytest.approx(0.2 + np.exp(-left) + gained / 0.05)
        assert not terminated
        action = -action
    env.data.qpos[3:7] = 0.0, 1.0, 0.0, 0.0
    assert env.step(np.zeros(8))[2]


def test_a_goal_that_is_reached_moves_on_in_half_of_the_episodes_after_it_was_paid() -> None:
    env = make_plain("ant_to_goals:AntToGoals-v0")[0]
    moved = 0
    for seed in range(20):
        env.reset(seed=seed)
        goal = env.goal = env.data.qpos[:2] + np.array([0.3, 0.0])
        before = env.data.qpos[:2].copy()
        obs, reward, *_ = env.step(np.zeros(8))
        left = np.hypot(*(env.data.qpos[:2] - goal))
        assert reward == pytest.approx(
            0.2 + np.exp(-left) + (np.hypot(*(before - goal)) - left) / 0.05
        )
        assert obs["desired_goal"].tolist() == goal.tolist()
        moved += np.hypot(*(env.goal - env.data.qpos[:2])) > 0.45
    assert 4 < moved < 16
