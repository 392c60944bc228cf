"""Is every way in which a user's environment can be broken found, explained, and survived?

Each case spoils one thing of a sound environment. `check` must name it and say how to mend it; a
training must end with one sentence (or, where it cannot see the fault, train all the same).
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from fakes import fake_contract, fake_policy
from toys import Sprint

from kcpr_safety import api, envs
from kcpr_safety.cards import TaskCard
from kcpr_safety.cli import main
from kcpr_safety.contract import Contract
from kcpr_safety.envs import conformance, official
from kcpr_safety.envs.crew import Crew
from kcpr_safety.errors import EXIT_CODE, EnvironmentFault, KcprError
from kcpr_safety.policy_file import RUN_FILE, read_policy
from kcpr_safety.training import checkpoints, loop, validation
from kcpr_safety.training.options import RunSummary, TrainOptions
from kcpr_safety.training.runs import resume_run, train_run

ID = "KcprTestSound-v0"
LIMIT = 8
FEW = {"width": 8, "batch": 16, "random_steps": 40, "num_envs": 4, "updates_per_step": 0.05}
"""Settings with which a run takes a moment."""


class Sound(gymnasium.Env[Any, Any]):
    """A point on a line: it is paid for going right and punished beyond 0.5."""

    observation_space: Any = gymnasium.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space: Any = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    total = 0
    """Steps that all environments of a test have taken."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        self.x = float(self.np_random.uniform(-1.0, 1.0))
        return self.obs(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        type(self).total += 1
        force = float(np.asarray(action).ravel()[0])
        self.x = float(np.clip(self.x + 0.1 * force, -5.0, 5.0))
        cost = float(self.x > 0.5)
        return self.spoiled(self.obs(), force, False, False, {"cost": cost})

    def obs(self) -> Any:
        return np.array([self.x, self.steps / LIMIT], dtype=np.float32)

    def spoiled(self, *values: Any) -> Any:
        return values


def spoils(change: Callable[..., Any]) -> dict[str, Any]:
    """An environment whose third step and later return what `change(self, *values)` makes."""

    def spoiled(self: Sound, *values: Any) -> Any:
        return change(self, *values) if self.steps >= 3 else values

    return {"spoiled": spoiled}


def fails(*_: Any) -> Any:
    raise ValueError("the gripper is stuck")


def with_cost(cost: Any) -> dict[str, Any]:
    return spoils(lambda self, obs, reward, end, cut, info: (obs, reward, end, cut, {"cost": cost}))


def with_obs(change: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    return spoils(lambda self, obs, *rest: (change(obs), *rest))


def with_reward(reward: Any) -> dict[str, Any]:
    return spoils(lambda self, obs, _, *rest: (obs, reward, *rest))


def grown(self: Sound, obs: Any, *rest: Any) -> Any:
    self.observation_space = gymnasium.spaces.Box(-10.0, 10.0, (3,), np.float32)
    return np.append(obs, 0.0), *rest


def renewed(self: Sound, *values: Any) -> Any:
    self.action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)
    return values


def slow(self: Sound, *values: Any) -> Any:
    time.sleep(0.03)
    return values


def unseeded(self: Sound, **_: Any) -> Any:
    self.steps, self.x = 0, float(np.random.default_rng().uniform())
    return self.obs(), {}


def shared(self: Sound, action: Any) -> Any:
    """The position is the class's: a second environment moves it too."""
    type(self).x = self.x
    result = Sound.step(self, action)
    type(self).x = self.__dict__.pop("x")
    return result


def shared_reset(self: Sound, **given: Any) -> Any:
    result = Sound.reset(self, **given)
    type(self).x = self.__dict__.pop("x")
    return result


BUFFER = np.zeros(2, dtype=np.float32)


def buffered(self: Sound) -> Any:
    BUFFER[:] = self.x, self.steps / LIMIT
    return BUFFER


def stays_ended(self: Sound, obs: Any, reward: float, end: bool, cut: bool, info: Any) -> Any:
    self.over = getattr(self, "over", False) or self.steps >= 4
    return obs, reward, self.over, cut, info


def never_after_end(self: Sound, obs: Any, reward: float, _: Any, cut: Any, info: Any) -> Any:
    """Ends itself at the fourth step, and takes none after."""
    if self.steps > 4:
        raise AssertionError("stepped after the end")
    return obs, reward, self.steps == 4, cut, info


def ends_by_time(self: Sound, obs: Any, reward: Any, _: Any, cut: Any, info: Any) -> Any:
    return obs, reward, self.steps == LIMIT, cut, info


PIXELS = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)


def box(*bounds: float, dtype: Any = np.float32) -> Any:
    return gymnasium.spaces.Box(*bounds, (1,), dtype)


UNSEEN = ""
"""Training cannot see it, or can live with it."""
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # what is broken: (how, what `check` says, what a training says)
    "observation too long": (with_obs(lambda o: np.zeros(3)), "3 numbers of shape (3,)", "shape"),
    "observation a column": (with_obs(lambda o: o[:, None]), "shape (2, 1)", "shape (2, 1)"),
    "observation of text": (with_obs(lambda o: ["a", "b"]), "no array of real", "no array of real"),
    "observation None": (with_obs(lambda o: None), "no array of real numbers", "no array"),
    "observation ragged": (with_obs(lambda o: [[1.0], [1.0, 2.0]]), "no array", "no array of real"),
    "observation NaN": (with_obs(lambda o: o * np.nan), "step is not finite", "'obs_0' is not fin"),
    "observation inf": (
        with_obs(lambda o: o + np.inf),
        "step is not finite",
        "is not finite in env",
    ),
    "observation outside": (
        with_obs(lambda o: o + 99),
        "outside its space",
        "bounds are [-10, 10]",
    ),
    "observation not in Dict": (
        {"observation_space": gymnasium.spaces.Dict({"x": box(-1.0, 1.0)})},
        "observation that its space does not hold",
        "does not hold",
    ),
    "observations of a Sequence": (
        {"observation_space": gymnasium.spaces.Sequence(box(-1.0, 1.0))},
        "no fixed row of numbers",
        "no fixed row of numbers",
    ),
    "reward an array": (with_reward(np.zeros(1)), "array of shape (1,)", "return one number"),
    "reward NaN": (with_reward(float("nan")), "a reward is not finite", "reward is not finite"),
    "reward None": (with_reward(None), "one number, not None", "one number, not None"),
    "cost missing": (
        spoils(lambda self, *values: (*values[:4], {})),
        "step reports no cost",
        "into info['cost']",
    ),
    "cost negative": (with_cost(-0.5), "a cost is negative (-0.5)", "number >= 0"),
    "cost text": (with_cost("much"), "cost must be one number, not str", "not str"),
    "cost true": (with_cost(True), "cost must be one number, not bool", "return float(cost)"),
    "cost inf": (with_cost(float("inf")), "a cost is not finite", "(cost) is not finite"),
    "four values": (
        spoils(lambda self, obs, reward, end, cut, info: (obs, reward, end, info)),
        "step returned 4 values",
        "old 'done'",
    ),
    "seven values": (spoils(lambda self, *v: (*v, 1, 2)), "7 values", "step returned 7 values"),
    "six in another order": (spoils(lambda self, *v: (*v, 0.0)), "no dictionary", "Safety-Gymnas"),
    "a list": (spoils(lambda self, *v: list(v)), "did not return a tuple", "a list of 5"),
    "end a number": (
        spoils(lambda self, obs, reward, end, cut, info: (obs, reward, 0, cut, info)),
        "'terminated' must be true or false",
        "return bool(terminated)",
    ),
    "cut None": (
        spoils(lambda self, obs, reward, end, cut, info: (obs, reward, end, None, info)),
        "'truncated' must be true or false, not None",
        "return bool(truncated)",
    ),
    "reset without info": (
        {"reset": lambda self, **k: Sound.reset(self, **k)[0]},
        "reset did not return an observation and a dictionary",
        "return observation, {}",
    ),
    "reset takes no seed": (
        {"reset": lambda self: Sound.reset(self)},
        "reset raised TypeError",
        "reset in environment 0",
    ),
    "exception in step": (spoils(fails), "step raised ValueError: the gripper", "gripper is stuck"),
    "exception in reset": (
        {"reset": lambda self, **_: fails()},
        "reset raised ValueError",
        "stuck",
    ),
    "exception when built": (
        {"__init__": fails},
        "building it raised ValueError: the gripper is stuck (test_broken_environments.py, line",
        "building it raised ValueError",
    ),
    "exit in step": (spoils(lambda *_: sys.exit(1)), "step raised SystemExit", "raised SystemExit"),
    "observation space changes": (spoils(grown), "observation space is another", "of shape (3,)"),
    "action space changes": (spoils(renewed), "action space is another", "after a reset"),
    "actions unbounded": (
        {"action_space": box(-np.inf, np.inf)},
        "no finite bounds",
        "low and a h",
    ),
    "actions without room": ({"action_space": box(1.0, 1.0)}, "not below its high", "give it room"),
    "actions of integers": (
        {"action_space": box(0, 5, dtype=np.int64)},
        "actions have type int64",
        "or Discrete for a choice",
    ),
    "actions of another kind": (
        {"action_space": gymnasium.spaces.MultiBinary(3)},
        "actions are a MultiBinary",
        "Box of bounded numbers",
    ),
    "no action space": ({"action_space": None}, "has no action_space", "self.action_space"),
    "seed ignored": ({"reset": unseeded}, "runs cannot be reproduced", UNSEEN),
    "state shared": ({"step": shared, "reset": shared_reset}, "disturb each other", UNSEEN),
    "observation reused": ({"obs": buffered}, "one observation array", UNSEEN),
    "end outlives reset": (
        {"spoiled": stays_ended},
        "ends at its fi",
        UNSEEN,
    ),
    "ends by its time": (
        {"spoiled": ends_by_time},
        "reports 'terminated' exactly at its time limit of 8 steps",
        UNSEEN,
    ),
    "pixels": (
        {"observation_space": PIXELS},
        "pixels are not supported: its observations hold pictures of shape (4, 4, 3)",
        "pixels are not supported",
    ),
    "pixels among others": (
        {"observation_space": gymnasium.spaces.Dict({"x": gymnasium.spaces.Tuple([PIXELS])})},
        "pixels are not supported",
        "pixels are not supported",
    ),
    "slow": ({"spoiled": slow}, "would take 0.1 days", UNSEEN),
}


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., type[Sound]]]:
    """Registers a Sound that is changed as told."""
    monkeypatch.setattr(conformance, "PATIENCE_S", 5.0)
    monkeypatch.setattr(conformance, "SLOW_S", 0.02)

    def make(limit: int | None = LIMIT, **changes: Any) -> type[Sound]:
        kind: type[Sound] = type("Spoilt", (Sound,), changes)
        gymnasium.register(ID, entry_point=kind, max_episode_steps=limit)
        return kind

    yield make
    del gymnasium.registry[ID]


def train(out: Path, **changed: Any) -> RunSummary:
    values = {"task": ID, "out": out, "steps": 80, "overrides": FEW, "threads": 1, **changed}
    return train_run(TrainOptions(**values))


@pytest.mark.parametrize("case", CASES)
def test_check_names_the_fault_and_how_to_mend_it(
    case: str, register: Callable[..., type[Sound]]
) -> None:
    changes, said, _ = CASES[case]
    register(**changes)
    findings = envs.check_environment(ID, steps=LIMIT + 2)
    named = [finding for finding in findings if said in finding.sentence]
    assert named, findings
    assert named[0].severity != "ok"
    assert all(finding.mend for finding in findings)
    assert all("\n" not in finding.sentence + finding.mend for finding in findings)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][2] != UNSEEN])
def test_training_ends_with_one_sentence(
    case: str, register: Callable[..., type[Sound]], tmp_path: Path
) -> None:
    changes, _, said = CASES[case]
    register(**changes)
    with pytest.raises(EnvironmentFault) as fault:
        train(tmp_path / "run")
    assert said in str(fault.value)
    assert "\n" not in str(fault.value)
    assert str(fault.value).startswith(f"{ID}: ")


@pytest.mark.parametrize("case", ["observation reused", "state shared", "seed ignored"])
def test_what_training_cannot_see_does_not_stop_it(
    case: str, register: Callable[..., type[Sound]], tmp_path: Path
) -> None:
    register(**CASES[case][0])
    assert train(tmp_path / "run").record()["kept_steps"] == 80


def test_a_sound_environment_is_found_sound(register: Callable[..., type[Sound]]) -> None:
    register()
    assert [finding.severity for finding in envs.check_environment(ID)] == ["ok"]


def test_check_finds_all_faults_not_only_the_first(register: Callable[..., type[Sound]]) -> None:
    def bad(self: Sound, obs: Any, *_: Any) -> Any:
        return obs + 99, float("nan"), False, False, {"cost": -1.0}

    register(**spoils(bad))
    told = " ".join(finding.sentence for finding in envs.check_environment(ID))
    for part in ("outside its space", "a reward is not finite", "a cost is negative"):
        assert part in told


def test_no_time_limit_is_one_sentence(register: Callable[..., type[Sound]]) -> None:
    register(limit=None)
    assert "max_episode_steps" in envs.check_environment(ID)[0].sentence


@pytest.mark.parametrize(
    ("env_id", "said", "mend"),
    [
        ("KcprTestSond-v0", "unknown task", "kcpr-safety tasks lists"),
        ("nowhere_to_be_found:A-v0", "cannot be imported", "where Python finds"),
        ("no_card.toml", "no_card.toml", "correct the card"),
        (ID, "has no time limit", "mend what is named"),
    ],
)
def test_what_cannot_even_be_built_has_a_way_out(
    env_id: str, said: str, mend: str, register: Callable[..., type[Sound]]
) -> None:
    register(limit=None)
    (finding,) = envs.check_environment(env_id)
    assert finding.severity == "error"
    assert said in finding.sentence
    assert mend in finding.mend


@pytest.mark.parametrize(("limit", "told"), [(25, True), (1_000, False)])
def test_an_end_by_time_is_found_a_while_after_the_other_steps(
    limit: int, told: bool, register: Callable[..., type[Sound]]
) -> None:
    def late(self: Sound, obs: Any, reward: Any, _: Any, cut: Any, info: Any) -> Any:
        return obs / 1e3, reward, self.steps == limit, cut, info

    register(limit=limit, spoiled=late)
    (finding,) = envs.check_environment(ID, steps=10)
    assert (finding.severity == "warning") == told
    assert ("use truncated" in finding.mend) == told


@pytest.mark.parametrize(
    ("limit", "ended"),
    [
        (1, lambda self: True),
        (LIMIT, lambda self: self.steps == LIMIT - (self.np_random_seed == conformance.SEEDS[1])),
        (LIMIT, lambda self: self.steps == LIMIT - 1),
    ],
    ids=["an episode of one step", "one of two seeds earlier", "one step before"],
)
def test_an_end_of_the_tasks_own_is_none_by_time(
    limit: int, ended: Callable[[Sound], bool], register: Callable[..., type[Sound]]
) -> None:
    def own(self: Sound, obs: Any, reward: Any, _: Any, cut: Any, info: Any) -> Any:
        return obs, reward, ended(self), cut, info

    register(limit=limit, spoiled=own)
    told = " ".join(finding.sentence for finding in envs.check_environment(ID))
    assert "exactly at its time limit" not in told


def test_no_step_is_taken_after_an_end(
    register: Callable[..., type[Sound]], tmp_path: Path
) -> None:
    register(spoiled=never_after_end)
    assert train(tmp_path / "run").record()["kept_steps"] == 80
    assert envs.check_environment(ID)[0].severity == "ok"


def test_a_slow_step_is_told_once_in_training(
    register: Callable[..., type[Sound]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official, "SLOW_S", 0.02)
    register(**spoils(slow))
    world = envs.make_world(envs.resolve(ID), 1, episode_seeds=lambda i, k: k)
    world.reset()
    for _ in range(2):
        world.step(np.zeros((1, 1)))
    with pytest.warns(official.SlowEnvironmentWarning, match="days"):
        world.step(np.zeros((1, 1)))
    world.step(np.zeros((1, 1)))  # a second warning would be an error here


def test_check_loses_its_patience(
    register: Callable[..., type[Sound]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "PATIENCE_S", 0.3)
    register(spoiled=slow)
    began = time.perf_counter()
    findings = envs.check_environment(ID)
    assert time.perf_counter() - began < 2.0
    assert [finding.severity for finding in findings] == ["warning"], findings


def test_check_takes_one_step_where_each_costs_all_its_patience(
    register: Callable[..., type[Sound]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "PATIENCE_S", 0.02)
    kind = register(spoiled=slow)
    (finding,) = envs.check_environment(ID)
    assert (finding.severity, kind.total) == ("warning", 1)
    monkeypatch.setattr(conformance, "SLOW_S", 1.0)
    (finding,) = envs.check_environment(ID)
    assert finding.sentence.endswith("(episodes: 1, steps: 1; after 0.02 s the rest was left out)")


# ----------------------------------------------------------------- what a broken run leaves behind


def test_a_mended_environment_resumes_to_the_same_bits(
    register: Callable[..., type[Sound]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_PERIOD_S", 0.0)
    kind = register()
    train(tmp_path / "whole")

    def worn(self: Sound, *values: Any) -> Any:
        return fails() if type(self).total > 150 else values

    kind.total, kind.spoiled = 0, worn  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFault, match="intact") as fault:
        train(tmp_path / "run")
    assert f"kcpr-safety resume {tmp_path / 'run'}" in str(fault.value)
    assert checkpoints.read_counters(tmp_path / "run").steps > 0
    kind.spoiled = Sound.spoiled  # type: ignore[method-assign]
    resume_run(tmp_path / "run")
    one, other = ((tmp_path / name / RUN_FILE).read_bytes() for name in ("whole", "run"))
    assert one == other


@pytest.mark.parametrize("threads", [1, 2])
def test_a_crash_in_a_worker_thread_leaves_the_checkpoints_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """A defect of a world, on one of its crew's threads; on a learner's thread or beside it."""
    crashes = [True]

    class Crewed(Sprint):
        steps = 0

        def _advance(self, action: np.ndarray) -> Any:
            self.steps += 1
            crew = Crew(2)
            try:
                crew.each(self._work, self.num_envs)
            finally:
                crew.close()
            return super()._advance(action)

        def _work(self, i: int) -> None:
            trained_in = self.num_envs < validation.EPISODES
            if crashes and trained_in and self.steps == 12 and i == self.num_envs - 1:
                raise MemoryError("a worker is out of memory")

    monkeypatch.setattr(loop, "CHECKPOINT_PERIOD_S", 0.0)
    monkeypatch.setattr(envs, "resolve", lambda _: TaskCard("SafetySprint-v0", "", "", "", 5.0))
    monkeypatch.setattr(
        envs, "make_world", lambda _, n, *, episode_seeds, **__: Crewed(n, episode_seeds)
    )
    with pytest.raises(MemoryError) as crash:
        train(tmp_path / "run", threads=threads)
    (note,) = crash.value.__notes__
    assert "is intact" in note
    assert note.endswith(f"kcpr-safety resume {tmp_path / 'run'}")
    assert 0 < checkpoints.read_counters(tmp_path / "run").steps < 80
    crashes.clear()
    assert resume_run(tmp_path / "run").record()["kept_steps"] == 80


# --------------------------------------------------------------------- from a module of the user's

MODULE = """
import gymnasium
import numpy as np


class Line(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict({
        "place": gymnasium.spaces.Box(-10, 10, (1,), np.float32),
        "time": gymnasium.spaces.Box(0, 1, (1,), np.float32),
    })

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, discrete=False, render_mode=None):
        self.discrete, self.render_mode = discrete, render_mode
        bounds = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3, start=5) if discrete else bounds

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.uniform(-1, 1)), 0
        return self.obs(), {}

    def render(self):
        return np.full((8, 8, 3), 10 * self.steps, np.uint8)

    def obs(self):
        time = np.array([self.steps / 20], np.float32)
        return {"place": np.array([self.x], np.float32), "time": time}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        self.x += 0.1 * (action - 6 if self.discrete else float(action[0]))
        return self.obs(), self.x, False, False, {"cost": float(self.x > 0.5)}


class Six(Line):
    def step(self, action):
        obs, reward, end, cut, info = super().step(action)
        return obs, reward, info["cost"], end, cut, info


for name, kind, kwargs in ("Five", Line, {}), ("Six", Six, {}), ("Three", Line, {"discrete": True}):
    gymnasium.register(f"Kcpr{name}-v0", entry_point=kind, kwargs=kwargs, max_episode_steps=20)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the current folder, which is not on Python's path."""
    name = "kcpr_line_world"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield name
    sys.modules.pop(name, None)
    for known in [known for known in gymnasium.registry if known.startswith("Kcpr")]:
        del gymnasium.registry[known]


FLAGS = [f"--set={key}={value}" for key, value in FEW.items() if key != "num_envs"]


def test_an_environment_of_ones_own_goes_all_the_way(
    module: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = f"{module}:KcprFive-v0"
    assert main(["check", task]) == 0
    assert main(["train", task, "--steps", "80", "--envs", "4", "--threads", "1", *FLAGS]) == 0
    run = "runs/KcprFive-v0-kcpr-seed0"
    assert main(["evaluate", run, "--episodes", "3", "--video", "episode.gif"]) == 0
    assert (tmp_path / "episode.gif").stat().st_size > 0
    assert main(["calibrate", run, "--episodes", "3"]) == 0
    assert main(["export", run, "--out", "bundle"]) == 0
    assert main(["report", run, "--out", "page"]) == 0
    capfd.readouterr()
    assert main(["verify", "bundle", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["task_contract"] == "the same as the task's"
    policy = api.load_policy("bundle")
    assert np.abs(policy.act(np.zeros(2, dtype=np.float32))).max() <= 1.0


def test_six_values_a_step_will_do(module: str, tmp_path: Path) -> None:
    assert envs.check_environment(f"{module}:KcprSix-v0")[0].severity == "ok"
    train(tmp_path / "run", task=f"{module}:KcprSix-v0")
    assert api.evaluate(tmp_path / "run", episodes=2).episodes == 2


def test_a_card_gives_an_environment_its_budget(module: str, tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text(
        f'task = "{module}:KcprFive-v0"\ntitle = "A line"\ndescription = "Go right."\n'
        'punishment = "a step beyond 0.5 m"\nbudget = 3.0\n'
    )
    train(tmp_path / "run", task=str(tmp_path / "line.toml"))
    (tmp_path / "line.toml").unlink()
    result = api.evaluate(tmp_path / "run", episodes=2)
    assert (result.task, result.budget) == (f"{module}:KcprFive-v0", 3.0)
    contract = read_policy(tmp_path / "run" / RUN_FILE).contract
    assert contract.punishment == "a step beyond 0.5 m"


def test_a_discrete_environment_of_ones_own(module: str, tmp_path: Path) -> None:
    task = f"{module}:KcprThree-v0"
    findings = envs.check_environment(task)
    assert findings[0].severity == "ok", findings
    with pytest.raises(KcprError, match="asks for a choice among 3 commands"):
        train(tmp_path / "run", task=task)
    few = {key: value for key, value in FEW.items() if key != "updates_per_step"}
    train(tmp_path / "run", task=task, agent="kldmp", overrides=few)
    contract: Contract = read_policy(tmp_path / "run" / RUN_FILE).contract
    assert contract.commands == ((5.0,), (6.0,), (7.0,))
    assert api.evaluate(tmp_path / "run", episodes=2).episodes == 2


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("nowhere_to_be_found:A-v0", "neither installed nor in"),
        ("kcpr_line_world:KcprFife-v0", "did you mean KcprFive-v0"),
        ("kcpr_broken:A-v0", "ZeroDivisionError: division by zero (kcpr_broken.py, line 1)"),
        ("kcpr_needy:A-v0", "needs kcpr_no_such_package, which is not installed"),
        ("kcpr_quits:A-v0", "raised SystemExit"),
    ],
)
def test_a_module_that_does_not_serve(
    module: str, task: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kcpr_broken.py").write_text("1 / 0\n")
    (tmp_path / "kcpr_needy.py").write_text("import kcpr_no_such_package\n")
    (tmp_path / "kcpr_quits.py").write_text("raise SystemExit\n")
    for command in ("check", "train"):
        assert main([command, task]) == EXIT_CODE
        error = capfd.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_elsewhere_a_bundle_is_verified_without_its_task() -> None:
    policy = fake_policy(contract=fake_contract(task="kcpr_absent_module:A-v0"))
    assert api._check_task(policy) == "not checked: there is no kcpr_absent_module:A-v0 here"
