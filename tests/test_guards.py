"""Is a number that is none caught where it arises, and is divergence shown?"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import Sprint, only_sprints

from kcpr_safety.cards import TaskCard
from kcpr_safety.errors import NonFiniteError, TrainingFault
from kcpr_safety.tensor_file import unpack
from kcpr_safety.training import guards, loop, validation
from kcpr_safety.training.checkpoints import read_counters
from kcpr_safety.training.guards import HEALTHY, PINNED_STEPS, Broken, Guard, most_value
from kcpr_safety.training.options import TrainOptions
from kcpr_safety.training.runs import resume_run, train_run
from kcpr_safety.training.sinks import Live, read_rows
from kcpr_safety.transition import Batch

CARD = TaskCard("SafetySprint-v0", "sprint", "", "one fast step", budget=5.0)
FEW = {"width": 8, "batch": 16, "random_steps": 200, "num_envs": 10, "updates_per_step": 0.05}


@pytest.fixture(autouse=True)
def toy_world(monkeypatch: pytest.MonkeyPatch) -> None:
    only_sprints(monkeypatch, CARD)
    monkeypatch.setattr(validation, "EPISODES", 2)
    monkeypatch.setattr(loop, "_LOG_EVERY", 500)
    monkeypatch.setattr(loop, "CHECKPOINT_PERIOD_S", 0.05)


def options(out: Path) -> TrainOptions:
    return TrainOptions(task=CARD.task, out=out, steps=2_000, overrides=FEW, threads=1)


def poison(monkeypatch: pytest.MonkeyPatch, what: str, times: int) -> None:
    """From step 1,000 on, `times` times, something is infinite."""
    left = {"times": times}

    def now(self: Any) -> bool:
        if self.steps < 1_000 or not left["times"]:
            return False
        left["times"] -= 1
        return True

    learn, store = loop.Training._learn, loop.Training._store

    def learned(self: Any, **given: Any) -> Any:
        if self.steps < 1_000:
            return learn(self, **given)
        if what == "gradient":
            original = self.learner._step

            def step() -> None:
                original()
                self.learner.gradient[3] = math.inf

            if now(self):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(self.learner, "_step", step)
                    self.owed = 1.0
                    return learn(self, **given)
        if what == "loss" and now(self):
            self.replay.rows[:, self.replay.layout.obs_size + 2] = math.nan
            self.owed = 1.0
        return learn(self, **given)

    def stored(self: Any, obs: Any, action: Any, stepped: Any) -> Any:
        if what in ("reward", "punishment") and now(self):
            next_obs, reward, *ends, infos = stepped
            huge = np.full_like(reward, 1e300)  # a number in float64, none in float32
            reward = huge if what == "reward" else reward
            infos = infos | ({"punishment": huge} if what == "punishment" else {})
            stepped = (next_obs, reward, *ends, infos)
        return store(self, obs, action, stepped)

    def advance(self: Any, action: np.ndarray) -> Any:
        outcome = original(self, action)
        if what == "world" and runs and now(runs[-1]):
            outcome.reward[2] = np.nan
        return outcome

    runs: list[Any] = []
    original, begin = Sprint._advance, loop.Training._begin
    monkeypatch.setattr(Sprint, "_advance", advance)
    monkeypatch.setattr(loop.Training, "_begin", lambda self: runs.append(self) or begin(self))
    monkeypatch.setattr(loop.Training, "_learn", learned)
    monkeypatch.setattr(loop.Training, "_store", stored)


NAMES = {
    "gradient": "gradient",
    "loss": "reward, gradient",
    "reward": "reward",
    "punishment": "punishment",
    "world": "reward",
}


@pytest.mark.parametrize("what", NAMES)
def test_once_the_run_goes_back_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run = tmp_path / "run"
    poison(monkeypatch, what, times=1)
    train_run(options(run))
    (told,) = [row for row in read_rows(run) if row["kind"] == "fault"]
    assert told["fault"].startswith(f"{NAMES[what]} became not finite at 1,") or what == "world"
    assert "taken back to" in told["fault"]
    assert read_rows(run)[-1]["steps"] == 2_000
    assert read_counters(run).guard["rollbacks"] == 1
    (dumped,) = run.glob("fault-*.safetensors")
    tensors, header = unpack(dumped.read_bytes(), str(dumped))
    assert header["fault"] in told["fault"]
    assert json.loads(header["versions"])["torch"].startswith("2.")
    assert {"learner.parameters", "world.actions", "world.seeds"} <= set(tensors)
    batch = [tensor for key, tensor in tensors.items() if key.startswith("batch.")]
    if what in ("loss", "reward", "punishment"):
        assert any(not torch.isfinite(tensor).all() for tensor in batch)
    assert bool(batch) == (what != "world")


@pytest.mark.parametrize("what", NAMES)
def test_twice_it_stops_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run = tmp_path / "run"
    poison(monkeypatch, what, times=10**9)
    kind = NonFiniteError if what == "world" else TrainingFault
    with pytest.raises(kind, match="had been taken back once already and stops") as fault:
        train_run(options(run))
    assert "\n" not in str(fault.value)
    assert "is intact" in str(fault.value)
    assert read_counters(run).steps < 1_100
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        toy_world.__wrapped__(patch)  # type: ignore[attr-defined]
        resume_run(run)
    assert read_rows(run)[-1]["steps"] == 2_000


def test_a_spoiled_learner_never_becomes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no loss shows it: here a moment of Adam."""
    run = tmp_path / "run"
    original = loop.Training._save
    spoiled = {"left": 1}

    def save(self: Any, *given: Any, **named: Any) -> None:
        if self.steps > 1_000 and spoiled["left"]:
            spoiled["left"] = 0
            self.learner.adam[1][5] = math.nan
        original(self, *given, **named)

    monkeypatch.setattr(loop.Training, "_save", save)
    train_run(options(run))
    (told,) = [row["fault"] for row in read_rows(run) if row["kind"] == "fault"]
    assert told.startswith("adam_second became not finite")


def test_after_going_back_other_numbers_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ones would meet the same end; and a run taken back repeats itself, too."""
    train_run(options(tmp_path / "whole"))
    for name in ("one", "two"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "CHECKPOINT_PERIOD_S", 1e9)
            poison(patch, "gradient", times=1)
            train_run(options(tmp_path / name))
    policies = [(tmp_path / n / "policy.safetensors").read_bytes() for n in ("one", "two", "whole")]
    assert policies[0] == policies[1] != policies[2]


def test_the_checks_cost_less_than_a_hundredth_of_an_update() -> None:
    """By counting: one sum over the gradient and a few scalars, of an update's many passes."""
    calls: list[str] = []

    class Counted(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            calls.append(function.__name__)
            return super().__torch_function__(function, types, args, kwargs or {})

    guard = Guard("task", None, 1e3)
    metrics = {"critic_loss": torch.tensor(1.0), "entropy": torch.tensor(1.0)}
    batch = Batch(*(torch.ones(3, 2) for _ in range(6)))
    guard.learned(metrics, torch.ones(10).as_subclass(Counted), batch, 0)
    assert calls.count("sum") == 1
    assert "isfinite" not in calls


# ------------------------------------------------------------------------------------ divergence


def row(**changed: Any) -> dict[str, Any]:
    values = {"steps": 0, "reward_q": 3.0, "punishment_q": 1.0, "deviation": 0.3, "coupling_m": 0.4}
    return values | changed


def test_health_says_what_is_wrong() -> None:
    guard = Guard("task", (0.05, 3.0), most_value(1_000, 25.0))
    assert guard.health(row()) == HEALTHY
    assert guard.health(row(reward_q=-2e3)) == "critics exploding (value 2e+03)"
    assert guard.health(row(punishment_q=2e3)) == "critics exploding (value 2e+03)"
    assert guard.health(row(deviation=0.0068)) == "policy collapsed (deviation 0.0068)"
    assert guard.health({"steps": 5, "loss": 1.0}) == HEALTHY, "a learner without these figures"


@pytest.mark.parametrize(("m", "bound"), [(3.0, "cap"), (0.05, "floor")])
def test_a_pinned_coupling_is_told_once_it_lasts(m: float, bound: str) -> None:
    guard = Guard("task", (0.05, 3.0), 1e3)
    assert guard.health(row(steps=1_000, coupling_m=m)) == HEALTHY
    assert guard.health(row(steps=PINNED_STEPS, coupling_m=m)) == HEALTHY
    other = Guard("task", (0.05, 3.0), 1e3)
    other.take(guard.counts())
    for told in (guard, other):
        said = told.health(row(steps=1_000 + PINNED_STEPS, coupling_m=m))
        assert said == f"coupling pinned at its {bound}"
    assert guard.health(row(steps=30_000)) == HEALTHY
    assert guard.health(row(steps=40_000, coupling_m=m)) == HEALTHY, "the count starts anew"
    assert Guard("task", None, 1e3).health(row(steps=10**6, coupling_m=m)) == HEALTHY


def test_the_coupling_of_a_stream_is_looked_at_too() -> None:
    guard = Guard("task", (0.05, 3.0), 1e3)

    def told(steps: int, **m: float) -> str:
        return guard.health(row(steps=steps, **{f"coupling_m_{k}": v for k, v in m.items()}))

    assert told(1_000, force=3.0, speed=0.4) == HEALTHY
    other = Guard("task", (0.05, 3.0), 1e3)
    other.take(guard.counts())
    pinned = row(steps=1_000 + PINNED_STEPS, coupling_m_force=3.0, coupling_m_speed=0.05)
    for one in (guard, other):
        assert one.health(pinned) == "coupling of force pinned at its cap"
    assert told(2_000 + PINNED_STEPS, force=1.0, speed=0.05) == HEALTHY
    assert told(1_000 + 2 * PINNED_STEPS, force=3.0, speed=0.05) == (
        "coupling of speed pinned at its floor"
    )
    assert set(Guard("task", None, 1e3).counts()) == {"rollbacks", "pinned"}


def test_a_budget_of_nothing_allows_larger_values() -> None:
    assert most_value(1_000, 25.0) == guards.MOST_VALUE
    assert most_value(1_000, 0.0) == 2_000.0


def test_the_display_shows_faults_and_health(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = Live()
    live.open(tmp_path, "task", 100, 25.0)
    live.write({"kind": "fault", "steps": 7, "fault": "critic_loss [x] became not finite"})
    live.write({"kind": "train", "steps": 8, "health": "policy collapsed (deviation 0.01)"})
    assert "policy collapsed" in live._figures({"health": "policy collapsed (deviation 0.01)"})
    assert "ok" not in live._figures({"health": HEALTHY})
    live.close()
    assert "critic_loss [x] became not finite" in capsys.readouterr().err


def test_a_sum_that_overflows_is_said_as_what_it_is() -> None:
    big = torch.full((2, 2), 3e38)
    batch = Batch(big, big, torch.ones(2), torch.ones(2), torch.ones(2), big)
    with pytest.raises(Broken, match="sum of an observation"):
        Guard("task", None, 1e3).stored(batch, 5)
