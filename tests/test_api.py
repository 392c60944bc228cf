"""Does the Python API find what is meant, keep its keys and never reuse a folder?"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kcpr_safety import api
from kcpr_safety.api import STABLE_KEYS, Result, locate
from kcpr_safety.errors import KcprError

KEYS = {
    *("task", "agent", "seed", "eval_seed", "steps", "wall_s", "return_mean"),
    *("punishment_mean", "episodes", "over_budget_share", "budget", "path"),
}
TASK = "SafetyHalfCheetahVelocity-v1"


def test_keys_are_those_that_were_promised() -> None:
    assert set(STABLE_KEYS) == KEYS


def test_record_and_back() -> None:
    record = {key: index for index, key in enumerate(STABLE_KEYS)} | {"path": "a/b", "returns": [1]}
    result = Result.from_record(record)
    assert result.path == Path("a/b")
    assert result.details == {"returns": [1]}
    assert json.loads(json.dumps(result.record())) == record


def test_place_that_exists_wins_over_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "data" / "policies" / "Runner"
    shipped.mkdir(parents=True)
    (shipped / "card.json").write_text("{}")
    monkeypatch.setattr(api, "data_root", lambda: tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert locate("Runner") == shipped
    with pytest.raises(KcprError, match=r"'Walker' is neither .* shipped policies: Runner"):
        locate("Walker")
    Path("Runner").mkdir()
    assert locate("Runner") == Path("Runner")


def test_new_runs_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        folder = api._fresh_folder(None, "task-kcpr-seed0")
        folder.mkdir(parents=True)
        names.append(str(folder))
    base = os.path.join("runs", "task-kcpr-seed0")
    assert names == [base, f"{base}-2", f"{base}-3"]


@pytest.mark.slow
def test_train_interrupt_resume_evaluate_export_report(tmp_path: Path) -> None:
    """The whole path by its commands, with a Ctrl-C on the way."""
    run = tmp_path / "run"

    def command(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kcpr_safety", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    training = command("train", TASK, "--steps", "12_000", "--out", str(run), "--json")
    deadline = time.monotonic() + 60
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        assert training.poll() is None
        time.sleep(0.1)
    training.send_signal(signal.SIGINT)
    out, err = training.communicate(timeout=60)
    assert out == ""
    assert f"kcpr-safety resume {run}" in err
    assert "Traceback" not in err
    assert training.returncode != 0
    for words in (
        ["resume", str(run)],
        ["evaluate", str(run), "--episodes", "2"],
        ["calibrate", str(run), "--episodes", "2"],
        ["export", str(run), "--out", str(tmp_path / "bundle")],
        ["evaluate", str(tmp_path / "bundle"), "--episodes", "2"],
    ):
        out, err = (done := command(*words, "--json")).communicate(timeout=300)
        assert done.returncode == 0, err
        record = json.loads(out)
        if words[0] == "calibrate":
            assert record["calibration"]["episodes"] == 2
            continue
        assert set(record) >= KEYS
        assert record["steps"] <= 12_000
    report = command("report", str(run), "--out", str(tmp_path / "page"), "--json")
    out, err = report.communicate(timeout=120)
    assert report.returncode == 0, err
    assert Path(json.loads(out)["path"]).is_file()
