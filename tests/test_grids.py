"""Are the grid-worlds what their drawings say, and their tensors what their steps do?"""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from kcpr_safety import envs
from kcpr_safety.agents.tabular import MDP
from kcpr_safety.envs.grids import GRIDS, MOVE_NAMES, Grid, grid_of, read_drawing
from kcpr_safety.envs.gridworld import COMMANDS, TASKS, GridEnv, GridWorld
from kcpr_safety.errors import EnvironmentFault, SettingsError, UnknownNameError

UP, RIGHT, DOWN, LEFT = range(4)


def mdp_of(grid: Grid) -> MDP:
    transition, reward, punishment = (torch.tensor(part) for part in grid.tensors)
    return MDP(transition, reward, punishment, grid.gamma)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
def test_every_grid_is_an_mdp_whose_goal_is_worth_nothing_more(grid: Grid) -> None:
    mdp = mdp_of(grid)
    goal = grid.goal
    assert mdp.transition[goal, :, goal].tolist() == [1.0] * 4
    assert not mdp.reward[goal].any() and not mdp.punishment[goal].any()
    assert (mdp.punishment > 0).any()


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_accepts_it(task: str) -> None:
    env = gymnasium.make(task, render_mode="ansi")
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=1)
    drawn = env.render()
    assert isinstance(drawn, str) and drawn.count("@") == 1


def test_corridor_step_by_step() -> None:
    env = GridEnv("corridor")
    state, _ = env.reset(seed=0)
    assert env.grid.cells[state] == (1, 1)
    assert env.step(UP)[0] == state  # a wall
    rewards, costs = [], []
    for _ in range(8):
        state, reward, ended, truncated, info = env.step(RIGHT)
        rewards.append(reward)
        costs.append(info["cost"])
    assert ended and not truncated and state == env.grid.goal
    assert rewards == pytest.approx([-0.02] * 7 + [0.98])
    assert costs == [0.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.0, 0.0]


def test_the_long_route_is_longer_and_safe() -> None:
    env = GridEnv("corridor")
    env.reset(seed=0)
    total = 0.0
    for action in [DOWN] * 2 + [RIGHT] * 8 + [UP] * 2:
        _, _, ended, _, info = env.step(action)
        total += info["cost"]
    assert ended and total == 0.0


def test_a_pit_is_punished_and_sends_back() -> None:
    env = GridEnv("cliff")
    start, _ = env.reset(seed=0)
    state, _, ended, _, info = env.step(RIGHT)
    assert (state, ended, info["cost"]) == (start, False, 1.0)


@pytest.mark.parametrize("name", ["windy-cliff", "rooms"])
def test_steps_follow_the_tensors(name: str) -> None:
    """Frequencies, mean reward and mean punishment of many steps from every state and action."""
    grid = grid_of(name)
    transition, reward, punishment = grid.tensors
    count = 2_000
    world = GridWorld(grid, count, lambda i, k: 10_000 + i)
    world.reset()
    generator = np.random.default_rng(0)
    for state in generator.choice(grid.states, 6, replace=False):
        for action, command in enumerate(COMMANDS):
            world.state[:] = state
            world.elapsed[:] = generator.integers(grid.time_limit - 1, size=count)
            outcome = world._advance(np.tile(command, (count, 1)))
            seen = outcome.obs.mean(0)
            error = 5 * np.sqrt(transition[state, action] / count) + 1e-12
            assert (abs(seen - transition[state, action]) <= error).all(), MOVE_NAMES[action]
            assert outcome.reward.mean() == pytest.approx(reward[state, action], abs=0.05)
            assert outcome.punishment.mean() == pytest.approx(punishment[state, action], abs=0.05)


def test_as_a_world_it_takes_commands_and_repeats() -> None:
    card = envs.resolve("GridWindyCliff-v0")
    seen = []
    for _ in range(2):
        world = envs.make_world(card, 3, episode_seeds=lambda i, k: 100 * i + k)
        obs, _ = world.reset()
        generator = np.random.default_rng(4)
        rows = [obs]
        for _ in range(150):
            action = np.array(COMMANDS)[generator.integers(4, size=3)]
            obs, reward, _, _, infos = world.step(action)
            rows += [obs, reward[:, None], infos["punishment"][:, None]]
        assert world.episodes.min() >= 1
        seen.append(np.concatenate([row.ravel() for row in rows]))
    assert np.array_equal(seen[0], seen[1])
    assert world.contract.commands == COMMANDS
    assert world.observation_space.contains(obs)


def test_grids_are_listed_as_tasks() -> None:
    rows = {row.task: row for row in envs.registered_tasks()}
    assert rows["GridCorridor-v0"].family == "grid"


@pytest.mark.parametrize(
    ("drawing", "sentence"),
    [
        (["#####", "#S#G#", "#####"], "goal cannot be reached from the start in row 1, column 1"),
        (["#####", "#S..#", "#####"], "needs a start S and one goal G"),
        (["#####", "#.GG#", "#####"], "needs a start S and one goal G"),
        (["####", "#S.G#", "#####"], "every row of the drawing must be as long"),
        (["#####", "#S?G#", "#####"], r"'\?' means nothing"),
    ],
)
def test_drawings_that_are_no_world_are_refused(drawing: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        read_drawing(drawing, "mine.txt", grid_of("corridor"))


def test_other_bad_input() -> None:
    with pytest.raises(SettingsError, match="slip is 1"):
        Grid("mine", "mine", ("SG",), slip=1.0)
    with pytest.raises(UnknownNameError, match="did you mean corridor"):
        grid_of("coridor")
    with pytest.raises(EnvironmentFault, match="reset before stepping"):
        GridEnv("cliff").step(0)
