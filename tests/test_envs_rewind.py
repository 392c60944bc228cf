"""Does a world come back exactly, on every path, and say so where it cannot?"""

from typing import Any

import numpy as np
import pytest
from toys import Sprint

from kcpr_safety import envs
from kcpr_safety.envs.official import OfficialWorld
from kcpr_safety.errors import EnvironmentFault, FileFault
from kcpr_safety.seeds import training_seeds

FAST = ["SafetyPointGoal1-v0", "SafetyHopperVelocity-v1", "MazeL-v0"]
MORE = [
    "SafetyPointButton2-v0",
    "SafetyCarPush1-v0",
    "SafetyAntCircle1-v0",
    "SafetyHumanoidVelocity-v1",
    "SafetyAntVelocity-v1",
    "SafetySwimmerVelocity-v1",
    "MazeLargeDiscrete-v0",
]


def fast(task: str, num_envs: int = 3) -> Any:
    return envs.make_world(envs.resolve(task), num_envs, episode_seeds=training_seeds(3), threads=1)


def official(task: str, num_envs: int = 2) -> Any:
    return OfficialWorld(envs.resolve(task), num_envs, training_seeds(3))


def walk(world: Any, rng: np.random.Generator, steps: int) -> list[np.ndarray]:
    """Everything that some random steps give."""
    low, high = world.single_action_space.low, world.single_action_space.high
    seen = []
    for _ in range(steps):
        obs, reward, terminated, truncated, infos = world.step(
            rng.uniform(low, high, (world.num_envs, len(low)))
        )
        seen += [obs, reward, terminated, truncated, infos["punishment"], infos["final_obs"]]
    return [np.array(rows) for rows in seen]


def comes_back(make: Any, steps: int, more: int) -> None:
    world, other = make(), make()
    world.reset()
    other.reset()
    walk(other, np.random.default_rng(9), 20)  # another past must not matter
    walk(world, np.random.default_rng(0), steps)
    state = {key: value.copy() for key, value in world.snapshot().items()}
    assert np.array_equal(other.restore(state), state["obs"])
    for kept, again in zip(
        walk(world, np.random.default_rng(1), more),
        walk(other, np.random.default_rng(1), more),
        strict=True,
    ):
        assert np.array_equal(kept, again)
    for key, value in world.snapshot().items():
        assert np.array_equal(value, other.snapshot()[key]), key
    world.close()
    other.close()


@pytest.mark.parametrize("task", FAST)
def test_fast_worlds_come_back_exactly(task: str) -> None:
    comes_back(lambda: fast(task), 150, 80)


@pytest.mark.slow
@pytest.mark.parametrize("task", FAST + MORE)
def test_fast_worlds_come_back_over_whole_episodes(task: str) -> None:
    comes_back(lambda: fast(task), 1_390, 800)


@pytest.mark.parametrize("task", ["SafetyHopperVelocity-v1", "SafetyPointGoal1-v0"])
def test_official_worlds_come_back_exactly(task: str) -> None:
    comes_back(lambda: official(task), 60, 40)


def test_environments_in_different_places_of_their_episodes() -> None:
    """Ends by falling, by time, and none yet: every offset between the environments occurs."""
    comes_back(lambda: Sprint(7, training_seeds(0), limit=12, far=2.0), 100, 50)
    for steps in range(14):
        comes_back(lambda: Sprint(3, training_seeds(0), limit=12, far=1.6), steps, 5)


def test_an_environment_that_does_not_repeat_itself_is_refused() -> None:
    world = Sprint(2, training_seeds(0))
    world.reset()
    walk(world, np.random.default_rng(0), 5)
    state = world.snapshot()
    other = Sprint(2, training_seeds(0))
    original = other._advance

    def drifting(action: np.ndarray) -> Any:
        other.position[1] += 1e-12
        return original(action)

    other._advance = drifting  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFault, match=r"does not repeat its episode of seed \d+"):
        other.restore(state)
    with pytest.raises(EnvironmentFault, match="reset the world"):
        other.step(np.zeros((2, 2)))


@pytest.mark.parametrize(
    "damage",
    [
        {"elapsed": np.array([5, 21])},
        {"elapsed": np.array([5, -1])},
        {"elapsed": np.array([4, 4])},
        {"elapsed": np.array([5.0, 5.0])},
        {"seeds": np.zeros(3, dtype=np.int64)},
        {"actions": np.full((5, 2, 2), np.nan)},
        {"actions": np.zeros((5, 3, 2))},
        {"obs": np.zeros((3, 2))},
        {"obs": None},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_foreign_states_are_refused(damage: dict[str, Any]) -> None:
    world = Sprint(2, training_seeds(0))
    world.reset()
    walk(world, np.random.default_rng(0), 5)
    state = {k: v for k, v in {**world.snapshot(), **damage}.items() if v is not None}
    with pytest.raises(FileFault, match="state of the environments"):
        Sprint(2, training_seeds(0)).restore(state)
