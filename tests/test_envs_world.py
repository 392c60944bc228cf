"""Does a world count episodes, reset itself, name its numbers and refuse to pass on a NaN?"""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from kcpr_safety import envs
from kcpr_safety.cards import TaskCard, card_names
from kcpr_safety.contract import Contract
from kcpr_safety.envs.official import OfficialWorld
from kcpr_safety.errors import EnvironmentFault, MissingPackageError, NonFiniteError, SettingsError

FAKE = "KcprTestBench-v0"


class Bench(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observes (seed, step); breaks in the way and at the step that its class is told."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)
    breaks: str = ""
    at = 3
    ends_at = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seed, self.steps = seed, 0
        return np.array([float(seed or 0), 0.0]), {}

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        obs = np.array([float(self.seed or 0), float(self.steps)])
        reward, cost = 1.0, 0.5
        if self.steps == self.at:
            if self.breaks == "obs":
                obs[1] = np.nan
            reward = np.inf if self.breaks == "reward" else reward
            cost = np.nan if self.breaks == "cost" else cost
        return obs, reward, cost, self.steps == self.ends_at, False, {}


@pytest.fixture
def bench() -> Iterator[type[Bench]]:
    class Local(Bench):
        pass

    gymnasium.register(FAKE, entry_point=Local, max_episode_steps=5)
    yield Local
    del gymnasium.registry[FAKE]


def make(num_envs: int = 2, task: str = FAKE) -> envs.World:
    return envs.make_world(
        envs.resolve(task), num_envs, episode_seeds=lambda i, k: 100 + 10 * i + k
    )


def go(world: envs.World, action: float = 0.0) -> Any:
    return world.step(np.full((world.num_envs, world.contract.action_size), action))


def test_autoreset_shows_the_true_last_observation(bench: type[Bench]) -> None:
    world = make()
    obs, _ = world.reset()
    assert obs.tolist() == [[100, 0], [110, 0]]
    for step in range(1, 5):
        obs, reward, terminated, truncated, infos = go(world)
        assert obs.tolist() == [[100, step], [110, step]]
        assert infos["final_obs"].tolist() == obs.tolist()
        assert not np.any([terminated, truncated, infos["_final_obs"]])
        assert reward.tolist() == [1, 1]
        assert infos["punishment"].tolist() == [0.5, 0.5]
    obs, _, terminated, truncated, infos = go(world)
    assert truncated.all()
    assert not terminated.any()
    assert infos["_final_obs"].all()
    assert infos["final_obs"].tolist() == [[100, 5], [110, 5]]
    assert obs.tolist() == [[101, 0], [111, 0]]
    assert world.episodes.tolist() == [1, 1]
    assert world.seeds.tolist() == [101, 111]


def test_termination_is_not_truncation(bench: type[Bench]) -> None:
    bench.ends_at = 2
    world = make()
    world.reset()
    go(world)
    obs, _, terminated, truncated, infos = go(world)
    assert terminated.all()
    assert not truncated.any()
    assert infos["final_obs"][:, 1].tolist() == [2, 2]
    assert obs[:, 1].tolist() == [0, 0]


def test_rows_handed_out_are_never_written_again(bench: type[Bench]) -> None:
    world = make()
    world.reset()
    kept = [go(world) for _ in range(6)]
    steps = [infos["final_obs"][0, 1] for *_, infos in kept]
    assert steps == [1, 2, 3, 4, 5, 1]
    assert [row[0][0, 1] for row in kept] == [1, 2, 3, 4, 0, 1]


def test_seeds_follow_the_schedule_or_the_caller(bench: type[Bench]) -> None:
    world = make()
    world.reset()
    obs, _ = world.reset()
    assert obs[:, 0].tolist() == [101, 111]
    obs, _ = world.reset(options={"episodes": [7, 9]})
    assert obs[:, 0].tolist() == [107, 119]
    obs, _ = world.reset(seed=5)
    assert obs[:, 0].tolist() == [5, 6]
    with pytest.raises(SettingsError):
        world.reset(options={"episodes": [1]})


@pytest.mark.parametrize(
    ("breaks", "entry"), [("obs", "obs_1"), ("reward", "reward"), ("cost", "punishment (cost)")]
)
def test_a_nan_names_environment_seed_step_and_entry(
    bench: type[Bench], breaks: str, entry: str
) -> None:
    bench.breaks = breaks
    world = make()
    world.reset()
    go(world)
    go(world)
    with pytest.raises(NonFiniteError) as raised:
        go(world)
    message = str(raised.value)
    for part in (FAKE, entry, "environment 0", "episode seed 100", "step 3"):
        assert part in message


def test_actions_are_checked(bench: type[Bench]) -> None:
    world = make()
    with pytest.raises(EnvironmentFault, match="reset"):
        go(world)
    world.reset()
    with pytest.raises(EnvironmentFault, match=r"\(2, 1\)"):
        world.step(np.zeros((1, 1)))
    with pytest.raises(NonFiniteError, match="action"):
        go(world, np.nan)
    with pytest.raises(SettingsError):
        make(0)


def test_an_environment_without_cost_is_refused(bench: type[Bench]) -> None:
    def step(self: Bench, action: np.ndarray) -> Any:
        return np.zeros(2), 0.0, False, False, {}

    bench.step = step  # type: ignore[method-assign]
    world = make()
    world.reset()
    with pytest.raises(EnvironmentFault, match="cost"):
        go(world)


def test_a_vector_env_of_gymnasium(bench: type[Bench]) -> None:
    world = make(3)
    assert isinstance(world, gymnasium.vector.VectorEnv)
    assert world.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP
    assert world.observation_space.shape == (3, 2)
    assert world.action_space.shape == (3, 1)


@pytest.mark.parametrize(
    ("task", "some"),
    [
        (
            "SafetyPointGoal1-v0",
            {"accelerometer_x": "m/s^2", "gyro_z": "rad/s", "goal_lidar_03": "1"},
        ),
        ("SafetyCarGoal1-v0", {"ballangvel_rear_x": "rad/s", "ballquat_rear_mat20": "1"}),
        ("SafetyDoggoGoal0-v0", {"touch_ankle_1a": "N", "jointpos_hip_1_z_sin": "1"}),
        ("SafetyHalfCheetahVelocity-v1", {"rootx_velocity": "m/s", "bfoot_angle": "rad"}),
        ("SafetyHumanoidVelocity-v1", {"torso_mass": "kg", "right_foot_contact_force_z": "N"}),
    ],
)
def test_contracts_name_every_number(task: str, some: dict[str, str]) -> None:
    world = make(1, task)
    obs, _ = world.reset()
    units = {entry.name: entry.unit for entry in world.contract.observation}
    assert len(units) == obs.shape[1]
    assert units.items() >= some.items()
    assert world.contract == Contract.from_json(world.contract.to_json())
    covered = sorted(i for part in world.slices.values() for i in range(part.start, part.stop))
    assert covered == list(range(obs.shape[1]))
    world.close()


def test_names_point_at_the_numbers_they_name() -> None:
    """Point's gyro turns about z when it is told to turn; the velocimeter sees it drive."""
    world = make(1, "SafetyPointGoal0-v0")
    assert [entry.name for entry in world.contract.action] == ["x", "z"]
    names = [entry.name for entry in world.contract.observation]
    world.reset()
    for _ in range(20):
        obs, *_ = world.step(np.array([[0.0, 1.0]]))
    assert obs[0, names.index("gyro_z")] > 0.1
    assert abs(obs[0, names.index("velocimeter_x")]) < 0.05
    world.reset()
    for _ in range(20):
        obs, *_ = world.step(np.array([[1.0, 0.0]]))
    assert obs[0, names.index("velocimeter_x")] > 0.1
    assert abs(obs[0, names.index("velocimeter_z")]) < 0.05
    assert world.contract.period_s == pytest.approx(0.02)
    world.close()


def test_action_bounds_are_the_actuators() -> None:
    world = make(1, "SafetyRacecarGoal0-v0")
    bounds = {entry.name: (entry.low, entry.high, entry.unit) for entry in world.contract.action}
    assert bounds == {
        "diff_ring": (-20.0, 20.0, "rad/s"),
        "steering_hinge": (-0.785, 0.785, "rad"),
    }
    world.close()


@pytest.mark.parametrize("task", card_names())
def test_every_card_builds_conforms_and_steps(task: str) -> None:
    card = envs.resolve(task)
    try:
        world = envs.make_world(card, 2, episode_seeds=lambda i, k: 10 * i + k)
    except MissingPackageError as missing:
        pytest.skip(str(missing))
    findings = envs.check_environment(task, steps=30)
    assert [finding.severity for finding in findings] == ["ok"], findings
    obs, _ = world.reset()
    rng = np.random.default_rng(0)
    for _ in range(5):
        low, high = world.action_space.low, world.action_space.high  # type: ignore[attr-defined]
        obs, _, _, _, infos = world.step(rng.uniform(low, high))
        assert world.observation_space.contains(obs)
        assert (infos["punishment"] >= 0).all()
    assert world.contract.budget == card.budget
    assert world.contract.punishment == card.punishment
    world.close()


def test_ids_without_a_card_have_the_defaults() -> None:
    card = envs.resolve("SafetyAntRun0-v0")
    assert card.sha256 == ""
    assert card.budget == TaskCard.budget
    world = make(1, "SafetyAntRun0-v0")
    assert isinstance(world, OfficialWorld)
    world.reset()
    assert np.isfinite(go(world)[0]).all()


def test_registered_tasks_say_card_family_and_path() -> None:
    rows = {row.task: row for row in envs.registered_tasks()}
    assert set(card_names()) <= set(rows)
    assert rows["SafetyHalfCheetahVelocity-v1"].path == "fast"
    assert rows["SafetyHalfCheetahVelocity-v1"].family == "velocity"
    assert rows["SafetyPointGoal1Vision-v0"].family == "vision"
    assert rows["SafetyPointGoal1Vision-v0"].path == "official"
    assert rows["SafetyAntRun0-v0"].has_card is False
    assert not any("Debug" in task for task in rows)


def test_conformance_finds_what_is_broken(bench: type[Bench]) -> None:
    assert envs.check_environment(FAKE)[0].severity == "ok"
    bench.breaks, bench.at = "obs", 2
    assert any("not finite" in f.sentence for f in envs.check_environment(FAKE))
    bench.breaks = ""
    original = bench.step

    def negative(self: Bench, action: np.ndarray) -> Any:
        obs, reward, _, *rest = original(self, action)
        return obs, reward, -1.0, *rest

    bench.step = negative  # type: ignore[method-assign]
    assert any("negative" in f.sentence for f in envs.check_environment(FAKE))

    def unseeded(self: Bench, action: np.ndarray) -> Any:
        obs, *rest = original(self, action)
        return obs + np.random.default_rng().random(2), *rest

    bench.step = unseeded  # type: ignore[method-assign]
    assert any("reproduced" in f.sentence for f in envs.check_environment(FAKE))

    def discrete(self: Bench, action: np.ndarray) -> Any:
        return np.zeros(3), *original(self, action)[1:]

    bench.step = discrete  # type: ignore[method-assign]
    assert any("3 numbers" in f.sentence for f in envs.check_environment(FAKE))
