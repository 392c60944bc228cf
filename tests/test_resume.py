"""Does a run that was stopped, killed or hurt end as if nothing had happened, or say why not?"""

import errno
import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults import KINDS, Died, Disk
from toys import Sprint

from kcpr_safety import envs
from kcpr_safety.cards import TaskCard
from kcpr_safety.errors import FileFault, TrainingFault
from kcpr_safety.policy_file import RUN_FILE
from kcpr_safety.training import checkpoints, loop, validation
from kcpr_safety.training.checkpoints import checkpoint_files, read_counters
from kcpr_safety.training.lock import locked
from kcpr_safety.training.options import TrainOptions
from kcpr_safety.training.runs import resume_run, train_run
from kcpr_safety.training.sinks import read_rows
from kcpr_safety.training.stopping import Interrupted

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "kill_resume.py"))
CARD = TaskCard("SafetySprint-v0", "sprint", "", "one fast step", budget=5.0)
FEW = {
    "width": 8,
    "batch": 16,
    "random_steps": 200,
    "num_envs": 10,
    "updates_per_step": 0.03,
    "capacity": 1_500,
}
"""A moment's run, whose replay is overwritten more than once."""
STEPS = 6_000


class Killed(BaseException):
    """Stands for SIGKILL: nothing that handles errors handles it, and nothing more is saved."""


@pytest.fixture(autouse=True)
def toy_world(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_world(card: TaskCard, num_envs: int, *, episode_seeds: Any, **_: Any) -> Sprint:
        world = Sprint(num_envs, episode_seeds, far=3.0, limit=30)
        world.contract = replace(world.contract, budget=card.budget)
        return world

    monkeypatch.setattr(envs, "resolve", lambda task: CARD)
    monkeypatch.setattr(envs, "make_world", make_world)
    monkeypatch.setattr(validation, "EPISODES", 2)
    monkeypatch.setattr(loop, "_LOG_EVERY", 500)


def options(out: Path, **changed: Any) -> TrainOptions:
    values = {"task": CARD.task, "out": out, "steps": STEPS, "overrides": FEW, "threads": 1}
    return TrainOptions(**values | changed)


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The next run that reaches `step` is killed there."""
    original = loop.Training._store

    def store(self: Any, *given: Any) -> Any:
        if self.steps >= step:
            monkeypatch.setattr(loop.Training, "_store", original)
            raise Killed
        return original(self, *given)

    monkeypatch.setattr(loop.Training, "_store", store)


def saved_every(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Checkpoints by steps instead of the clock, so that tests repeat."""
    original = loop.Training._save
    clock = {"now": 0.0}
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(loop, "CHECKPOINT_PERIOD_S", 0.5)
    store = loop.Training._store

    def ticking(self: Any, *given: Any) -> Any:
        obs = store(self, *given)
        clock["now"] = float(self.steps // steps)
        return obs

    monkeypatch.setattr(loop.Training, "_store", ticking)
    monkeypatch.setattr(loop.Training, "_save", original)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        toy_world.__wrapped__(patch)  # type: ignore[attr-defined]
        train_run(options(folder))
    return folder


def assert_same(run: Path, whole: Path) -> None:
    assert SCRIPT["differences"](run, whole) == []


# ------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("step", [0, 210, 1_510, 5_210, 5_990])
def test_a_killed_run_ends_like_one_that_was_not(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    saved_every(monkeypatch, 470)
    killed_at(monkeypatch, step)
    with pytest.raises(Killed):
        train_run(options(tmp_path / "run"))
    resume_run(tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_a_run_that_is_killed_again_and_again(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_every(monkeypatch, 600)
    go: Any = lambda run: train_run(options(run))  # noqa: E731
    for step in range(700, STEPS, 1_710):
        killed_at(monkeypatch, step)
        with pytest.raises(Killed):
            go(tmp_path / "run")
        go = resume_run
    resume_run(tmp_path / "run")
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_like_one_that_was_not(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    original = loop.Training._store

    def store(self: Any, *given: Any) -> Any:
        if self.steps == 4_000:
            os.kill(os.getpid(), number)
        return original(self, *given)

    monkeypatch.setattr(loop.Training, "_store", store)
    with pytest.raises(Interrupted, match=r"stopped at 4,0\d\d of 6,000 steps"):
        train_run(options(tmp_path / "run"))
    monkeypatch.setattr(loop.Training, "_store", original)
    resume_run(tmp_path / "run")
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("agent", ["sac", "sac-lag"])
def test_other_agents_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str) -> None:
    train_run(options(tmp_path / "whole", agent=agent, steps=3_000))
    saved_every(monkeypatch, 600)
    killed_at(monkeypatch, 1_990)
    with pytest.raises(Killed):
        train_run(options(tmp_path / "run", agent=agent, steps=3_000))
    resume_run(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_warm_start_survives_a_kill_before_the_first_checkpoint(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = options(tmp_path / "run", init=whole, steps=1_000, seed=1)
    train_run(replace(warm, out=tmp_path / "whole"))
    killed_at(monkeypatch, 300)
    with pytest.raises(Killed):
        train_run(warm)
    resume_run(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(TrainingFault, match="cannot start from that policy"):
        train_run(options(tmp_path / "run", init=whole, overrides=FEW | {"width": 9}))
    assert not (tmp_path / "run").exists()


def test_sigkill_in_a_real_process_and_a_real_world(tmp_path: Path) -> None:
    """The script's own trial, on short runs; `scripts/kill_resume.py` is the long one."""
    words = [sys.executable, str(ROOT / "scripts" / "kill_resume.py"), "--out", str(tmp_path)]
    words += ["--kills", "1", "--config", "velocity", "--steps", "2000", "--period", "0.2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 runs" in done.stdout


# --------------------------------------------------------------------------------------- damage


def test_a_damaged_newest_checkpoint_costs_only_time(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_every(monkeypatch, 470)
    killed_at(monkeypatch, 2_000)
    with pytest.raises(Killed):
        train_run(options(tmp_path / "run"))
    newest, before = checkpoint_files(tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert checkpoints._read(before)[0].counters.steps < 1_900
    resume_run(tmp_path / "run")
    (told,) = [row for row in read_rows(tmp_path / "run") if row["kind"] == "fault"]
    assert newest.name in told["fault"] and "the checkpoint before it is taken" in told["fault"]
    rest = [d for d in SCRIPT["differences"](tmp_path / "run", whole) if "metrics" not in d]
    assert rest == []


def test_rows_that_were_lost_are_not_made_up(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metrics file shorter than the checkpoint remembers is cut at its last whole row."""
    saved_every(monkeypatch, 470)
    killed_at(monkeypatch, 3_000)
    with pytest.raises(Killed):
        train_run(options(tmp_path / "run"))
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:700])
    resume_run(tmp_path / "run")
    rows = read_rows(tmp_path / "run")
    assert rows[-1]["steps"] == STEPS


def test_a_policy_from_the_future_is_taken_back(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a validation that no checkpoint knows of yet."""
    saved_every(monkeypatch, 5_300)
    killed_at(monkeypatch, 5_850)
    with pytest.raises(Killed):
        train_run(options(tmp_path / "run"))
    kept = (tmp_path / "run" / RUN_FILE).read_bytes()
    (tmp_path / "run" / RUN_FILE).write_bytes(b"something later")
    seen: list[bytes] = []
    original = loop.Training._loop

    def spy(self: Any, *given: Any) -> Any:
        seen.append((tmp_path / "run" / RUN_FILE).read_bytes())
        return original(self, *given)

    monkeypatch.setattr(loop.Training, "_loop", spy)
    resume_run(tmp_path / "run")
    assert seen == [kept]
    assert_same(tmp_path / "run", whole)


def test_a_world_that_does_not_repeat_itself_is_said_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(monkeypatch, 1_000)
    saved_every(monkeypatch, 470)
    with pytest.raises(Killed):
        train_run(options(tmp_path / "run", steps=2_000))
    original = Sprint._reset_rows

    def elsewhere(self: Any, indices: Any, seeds: Any) -> Any:
        return original(self, indices, seeds + 1)

    monkeypatch.setattr(Sprint, "_reset_rows", elsewhere)
    resume_run(tmp_path / "run")
    rows = read_rows(tmp_path / "run")
    (told,) = [row["fault"] for row in rows if row["kind"] == "fault"]
    assert "does not repeat its episode" in told and "the next episodes begin instead" in told
    assert rows[-1]["steps"] == 2_000


def test_two_processes_do_not_train_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(monkeypatch, 300)
    with pytest.raises(Killed):
        train_run(options(tmp_path / "run", steps=1_000))
    with locked(tmp_path / "run"):
        for again in (
            lambda: resume_run(tmp_path / "run"),
            lambda: train_run(options(tmp_path / "run", steps=1_000)),
        ):
            with pytest.raises(FileFault, match="is being trained by process"):
                again()
    resume_run(tmp_path / "run")


def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, few in (("a", FEW), ("b", FEW | {"num_envs": 5}), ("c", FEW | {"width": 9})):
        killed_at(monkeypatch, 300)
        with pytest.raises(Killed):
            train_run(options(tmp_path / name, overrides=few))
    for other in "bc":
        (path,) = checkpoint_files(tmp_path / other)
        (tmp_path / "a" / "checkpoint-9.safetensors").write_bytes(path.read_bytes())
        with pytest.raises(FileFault, match="does not fit"):
            resume_run(tmp_path / "a")


# ------------------------------------------------------------------------- refused and torn writes


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_write_fails_the_run_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Every operation of a whole run: metrics, policy, checkpoints, transitions, lock, config."""
    steps = 5_600
    few = FEW | {"updates_per_step": 0.003, "num_envs": 100}
    with Disk(tmp_path) as disk:
        saved_every(monkeypatch, 1_400)
        train_run(options(tmp_path / "whole", steps=steps, overrides=few))
    for turn in range(len(disk.operations)):
        run = tmp_path / f"run-{turn}"
        saved_every(monkeypatch, 1_400)
        with suppress(FileFault, Died), Disk(run, turn, kind):
            train_run(options(run, steps=steps, overrides=few))
        if not (run / "config.json").exists():
            train_run(options(run, steps=steps, overrides=few))
        elif not read_counters(run).finished:
            resume_run(run)
        assert_same(run, tmp_path / "whole")
        assert not list(run.glob("checkpoint.damaged"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_stops_the_run_with_a_sentence(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    saved_every(monkeypatch, 470)
    real, store = os.fsync, loop.Training._store

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    def late(self: Any, *given: Any) -> Any:
        if self.steps > 2_000:
            monkeypatch.setattr(os, "fsync", refuse)
        return store(self, *given)

    monkeypatch.setattr(loop.Training, "_store", late)
    with pytest.raises(FileFault, match=r"intact: mend that, then kcpr-safety resume") as fault:
        train_run(options(tmp_path / "run"))
    assert "\n" not in str(fault.value)
    monkeypatch.setattr(loop.Training, "_store", store)
    monkeypatch.setattr(os, "fsync", real)
    assert 0 < read_counters(tmp_path / "run").steps <= 2_000
    resume_run(tmp_path / "run")
    assert_same(tmp_path / "run", whole)
