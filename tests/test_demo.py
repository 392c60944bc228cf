"""Does the demo go on where it stopped, lose nothing, and leave what it promises?

Training and judging are replaced by fakes that leave the files which the real ones leave.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kcpr_safety import api
from kcpr_safety.api import STABLE_KEYS, Result
from kcpr_safety.errors import KcprError
from kcpr_safety.studies import demo

RECORD: dict[str, Any] = {
    "task": demo.TASK,
    "agent": "kcpr",
    "seed": 0,
    "eval_seed": 10_000,
    "steps": demo.STEPS,
    "wall_s": 3.0,
    "return_mean": 2500.0,
    "punishment_mean": 11.5,
    "episodes": demo.EPISODES,
    "over_budget_share": 0.1,
    "budget": 25.0,
    "path": "runs/demo",
    "returns": [2500.0] * demo.EPISODES,
}


CHECKPOINT_FILE = "checkpoint-1.safetensors"

JUDGED = (f"evaluate {demo.EPISODES}", f"calibrate {demo.CALIBRATED}")


class Stage:
    """Stands in for the API; notes what it was asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.finished = False
        self.interrupt = False
        for name in ("train", "resume", "evaluate", "calibrate", "export", "report"):
            monkeypatch.setattr(api, name, getattr(self, name))
        monkeypatch.setattr(demo, "read_counters", self.read_counters)

    def read_counters(self, out: Path) -> SimpleNamespace:
        assert (out / CHECKPOINT_FILE).is_file()
        return SimpleNamespace(finished=self.finished, wall_s=99.0)

    def train(self, task: str, *, steps: int, seed: int, out: Path, progress: bool) -> Result:
        self.calls.append(f"train {seed} {steps}")
        assert progress
        out.mkdir(parents=True, exist_ok=True)
        assert not (out / CHECKPOINT_FILE).exists()
        (out / CHECKPOINT_FILE).write_text(f"{len(self.calls)}")
        if self.interrupt:
            raise KcprError("stopped")
        self.finished = True
        return Result.from_record(RECORD)

    def resume(self, out: Path, *, progress: bool) -> Result:
        self.calls.append("resume")
        self.finished = True
        return Result.from_record(RECORD)

    def evaluate(self, out: Path, *, episodes: int) -> Result:
        self.calls.append(f"evaluate {episodes}")
        return Result.from_record(RECORD)

    def calibrate(self, run: Path, *, episodes: int) -> dict[str, object]:
        self.calls.append(f"calibrate {episodes}")
        return {}

    def export(self, run: Path, out: Path) -> Result:
        self.calls.append("export")
        out.mkdir()
        return Result.from_record(RECORD)

    def report(self, runs: Path, out: Path) -> Path:
        self.calls.append("report")
        out.write_text("<html>")
        return out


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_whole_path_leaves_what_it_promises(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "demo"
    summary = demo.run(out, seed=3, steps=7_000)
    assert stage.calls == ["train 3 7000", *JUDGED, "export", "report"]
    assert json.loads((out / "summary.json").read_text()) == summary
    assert list(summary)[: len(STABLE_KEYS)] == list(STABLE_KEYS)
    assert summary["path"] == str(out)
    assert summary["train_wall_s"] == 99.0
    assert (out / "bundle").is_dir()
    assert (out / "report.html").is_file()


def test_finished_demo_is_kept_aside(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    for _ in range(3):
        demo.run(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "demo-1", "demo-2"]
    kept = [(tmp_path / name / CHECKPOINT_FILE).read_text() for name in ("demo-1", "demo-2")]
    assert kept == ["1", "6"]
    assert (tmp_path / "demo-1" / "summary.json").is_file()


def test_interrupted_demo_goes_on(stage: Stage, tmp_path: Path) -> None:
    stage.interrupt = True
    with pytest.raises(KcprError, match="stopped"):
        demo.run(tmp_path / "demo")
    demo.run(tmp_path / "demo")
    assert stage.calls[1:] == ["resume", *JUDGED, "export", "report"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_trained_demo_is_not_trained_twice(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Result:
        raise KcprError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(api, "export", fails)
        with pytest.raises(KcprError, match="full"):
            demo.run(tmp_path / "demo")
    stage.calls.clear()
    demo.run(tmp_path / "demo")
    assert stage.calls == [*JUDGED, "export", "report"]


@pytest.mark.parametrize("left", [["config.json"], ["notes.txt"], []])
def test_folder_without_a_checkpoint_is_kept_aside_unless_empty(
    stage: Stage, tmp_path: Path, left: list[str]
) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    for name in left:
        (out / name).write_text("keep me")
    demo.run(out)
    aside = tmp_path / "demo-1"
    assert aside.exists() == bool(left)
    for name in left:
        assert (aside / name).read_text() == "keep me"


def test_a_file_in_the_way_is_kept_aside_too(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    demo.run(tmp_path / "demo")
    assert (tmp_path / "demo-1").read_text() == "mine"
