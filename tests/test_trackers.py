"""Do the services that watch a training get its numbers, and is their absence one sentence?"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kcpr_safety.errors import MissingPackageError, UnknownNameError
from kcpr_safety.training.trackers import MLflow, WeightsAndBiases, identity, trackers

ROW = {"kind": "train", "steps": 4_000, "return_mean": 12.5, "health": "ok", "updates": 3}
NUMBERS = {"train/return_mean": 12.5, "train/updates": 3.0}


class Recorder:
    """A module that writes down how it is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> "Recorder":
            self.calls.append((name, args, kwargs))
            return self

        return call


def test_wandb_gets_numbers_by_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=module.init))
    sink = WeightsAndBiases()
    sink.open(tmp_path / "run", "Task-v0", 9_000, 25.0)
    sink.write(ROW)
    sink.close()
    (_, _, begun), logged, ended = module.calls
    assert begun["config"] == {"task": "Task-v0", "steps": 9_000, "budget": 25.0}
    assert (begun["name"], begun["id"], begun["resume"]) == (
        "run",
        identity(tmp_path / "run"),
        "allow",
    )
    assert logged == ("log", (NUMBERS,), {"step": 4_000})
    assert ended[0] == "finish"


def test_mlflow_gets_numbers_by_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    sink = MLflow()
    sink.open(tmp_path / "run", "Task-v0", 9_000, 25.0)
    sink.write(ROW)
    sink.close()
    names = [name for name, _, _ in module.calls]
    assert names == ["set_experiment", "start_run", "log_params", "log_metrics", "end_run"]
    assert module.calls[3][1:] == ((NUMBERS,), {"step": 4_000})


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_absence_is_one_sentence_and_closing_harmless(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    (sink,) = trackers([name])
    with pytest.raises(MissingPackageError, match=f"{name} is not installed; install it with"):
        sink.open(tmp_path, "Task-v0", 9_000, 25.0)
    sink.close()


def test_names_are_known_and_counted_once() -> None:
    assert [type(sink) for sink in trackers(["wandb", "mlflow", "wandb"])] == [
        WeightsAndBiases,
        MLflow,
    ]
    with pytest.raises(UnknownNameError, match="unknown tracker 'wandv'; did you mean wandb"):
        trackers(["wandv"])


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    assert identity(tmp_path / "a") == identity(tmp_path / "b" / ".." / "a")
    assert identity(tmp_path / "a") != identity(tmp_path / "b")
