"""Does a benchmark come to its end with every cell exactly once, wherever and however it ran?"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import fake_contract, fake_policy

from kcpr_safety import envs
from kcpr_safety.cli import main
from kcpr_safety.errors import EXIT_CODE, FileFault, SettingsError, UnknownNameError
from kcpr_safety.policy_file import write_policy
from kcpr_safety.report.trials import read_rows, untimed
from kcpr_safety.studies import benchmark, benchmark_films, benchmark_places
from kcpr_safety.studies.benchmark_cell import row_path
from kcpr_safety.studies.benchmark_films import chosen_episode
from kcpr_safety.studies.suites import Suite, load_suite, narrowed, suite_names
from kcpr_safety.training.stopping import Interrupted
from kcpr_safety.training.video import film, most_punished

SUITE = """
title = "Small"
description = "A grid-world that trains in a second."
tasks = ["GridCorridor-v0"]
agents = ["kldmp", "dqn"]
seeds = [0, 1]
steps = 2_400
episodes = 4
"""


@pytest.fixture
def small(tmp_path: Path) -> Suite:
    (tmp_path / "small.toml").write_text(SUITE)
    return load_suite(str(tmp_path / "small.toml"))


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """Cell -> row, without what the clock says; each exactly once."""
    rows, problems = read_rows(out / "rows.jsonl")
    assert not problems
    named = {f"{row['task']} {row['label']} {row['seed']}": untimed(row) for _, row in rows}
    assert len(named) == len(rows)
    return named


class Pretend:
    """A place whose jobs end at once, in ways that a test says."""

    def __init__(self, reasons: dict[str, str] | None = None, slots: int = 1) -> None:
        self.reasons, self.slots, self.started = reasons or {}, slots, list[str]()

    def start(self, cell: Any, out: Path) -> Any:
        self.started.append(cell.name)
        reason = next((r for part, r in self.reasons.items() if part in cell.name), "")
        if not reason:
            path = row_path(out, cell.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"name": cell.name}) + "\n")
        return PretendJob(reason)

    def close(self) -> None:
        pass


class PretendJob:
    def __init__(self, reason: str) -> None:
        self.reason, self.stopped = reason, False

    def ended(self) -> str | None:
        return None if self.reason == "never" else self.reason

    def stop(self) -> None:
        self.stopped = True


class TestSuites:
    @pytest.mark.parametrize("name", suite_names())
    def test_shipped_suites_are_whole(self, name: str) -> None:
        suite = load_suite(name)
        cells = suite.cells()
        assert len(cells) == len(suite.tasks) * len(suite.variants) * len(suite.seeds)
        assert len({cell.name for cell in cells}) == len(cells)
        assert suite.episodes >= 50
        assert name in ("quick", "demo") or len(suite.seeds) >= 5

    def test_a_changed_number_is_another_cell(self, small: Suite) -> None:
        names = {cell.name for cell in small.cells()}
        for changed in (
            narrowed(small, (), (), 2_401),
            narrowed(small, (), (7,), None),
            narrowed(small, ("sql",), (), None),
        ):
            assert not names & {cell.name for cell in changed.cells()}
        assert names == {cell.name for cell in narrowed(small, (), (), 2_400).cells()}

    def test_an_ablation_is_told_from_its_agent(self, tmp_path: Path) -> None:
        more = SUITE + '[[ablations]]\nlabel = "less"\nagent = "kldmp"\nset = { softening = 0.3 }\n'
        (tmp_path / "more.toml").write_text(more)
        cells = load_suite(str(tmp_path / "more.toml")).cells()
        assert [c.overrides for c in cells if c.label == "less"] == [{"softening": 0.3}] * 2
        assert len({cell.numbers for cell in cells}) == 3

    @pytest.mark.parametrize(
        ("change", "fault", "sentence"),
        [
            (("[0, 1]", "[]"), SettingsError, "has no seed"),
            (("[0, 1]", "[0, 0]"), SettingsError, "names a seed twice"),
            (("2_400", "0"), SettingsError, "whole numbers >= 1"),
            (("2_400", "'many'"), FileFault, "'steps' must be a whole number"),
            (("episodes = 4", ""), FileFault, "lacks episodes"),
            (("title", "titel"), FileFault, "unknown key 'titel'"),
            (("kldmp", "kldmq"), UnknownNameError, "kldmp"),
            (("GridCorridor", "GridKorridor"), UnknownNameError, "unknown task"),
            (("= 4", "= 4\nsteps_of = { x = 3 }"), SettingsError, "names x, no task of it"),
            (("= 4", "= 4\nablations = [3]"), FileFault, "a label, an agent and a set"),
        ],
    )
    def test_bad_suites_are_one_sentence(
        self, tmp_path: Path, change: tuple[str, str], fault: type[Exception], sentence: str
    ) -> None:
        (tmp_path / "bad.toml").write_text(SUITE.replace(*change))
        with pytest.raises(fault, match=sentence):
            load_suite(str(tmp_path / "bad.toml"))

    def test_an_unknown_suite_is_one_sentence(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["benchmark", "velocty"]) == EXIT_CODE
        assert "unknown suite 'velocty'; did you mean velocity?" in capfd.readouterr().err


class TestGrid:
    @pytest.fixture(autouse=True)
    def _no_page(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(benchmark.api, "report", lambda out, _: out / "report.html")

    def test_failures_are_told_with_their_reason_and_tried_again(
        self, small: Suite, tmp_path: Path
    ) -> None:
        place = Pretend({"dqn": "the disk is full"})
        record = benchmark.run(small, tmp_path, place, videos=False)
        assert (record["cells"], record["done"]) == (4, 2)
        assert {f["reason"] for f in record["failed"]} == {"the disk is full"}
        again = Pretend()
        assert benchmark.run(small, tmp_path, again, videos=False)["done"] == 4
        assert len(again.started) == 2 and all("dqn" in name for name in again.started)

    def test_a_stop_ends_what_runs_and_says_how_to_go_on(
        self, small: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jobs = list[PretendJob]()
        place = Pretend(slots=3)

        def start(cell: Any, out: Path) -> PretendJob:
            jobs.append(PretendJob("never"))
            if len(jobs) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return jobs[-1]

        monkeypatch.setattr(place, "start", start)
        with pytest.raises(Interrupted, match=r"0 of 4 cells done.*the same command goes on"):
            benchmark.run(small, tmp_path, place, videos=False)
        assert len(jobs) == 3 and all(job.stopped for job in jobs)

    def test_time_left_is_judged_by_this_session_alone(self, small: Suite, tmp_path: Path) -> None:
        cells = small.cells()
        metrics = tmp_path / "runs" / cells[0].name / "metrics.jsonl"
        metrics.parent.mkdir(parents=True)
        metrics.write_text('{"steps": 1200}\n')
        board = benchmark.Board(cells, cells, tmp_path)
        board._started = time.perf_counter() - 10.0
        assert board.left_s(1200.0) is None  # an earlier session's steps
        left = board.left_s(2400.0)  # 1,200 steps in 10 s; 7,200 are left
        assert left == pytest.approx(60.0, rel=0.01)
        assert benchmark.clock(left + 0.5) == "0:01:00" and benchmark.clock(None) == "?"


@pytest.mark.parametrize("content", ["", '{"steps": 12', "{}", '{"kind": "train"}', "[3]"])
def test_a_log_that_was_cut_off_is_no_progress(small: Suite, tmp_path: Path, content: str) -> None:
    cell = small.cells()[0]
    metrics = tmp_path / "runs" / cell.name / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text(content)
    assert benchmark.Board([cell], [cell], tmp_path).left_s(0.0) is None


def test_films_show_the_median_and_the_worst_episode() -> None:
    punishments = [5.0, 80.0, 1.0, 9.0, 7.0]
    assert chosen_episode(punishments, "worst") == 1
    assert chosen_episode(punishments, "nominal") == 4


def test_a_film_shows_the_stretch_with_most_punishment() -> None:
    assert most_punished([0, 0, 1, 0, 0, 0, 2, 2, 0, 0], 3) == range(5, 8)
    assert most_punished([0.0] * 10, 3) == range(3)
    assert most_punished([0.0] * 10, 30) == range(10)


class Stage:
    """Forty steps, punished from the twentieth to the twenty-third; remembers when it was drawn."""

    def __init__(self) -> None:
        self.now = 0
        self.drawn: list[int] = []

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.now = 0
        return np.zeros(5), {}

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        cost = float(20 <= self.now < 24)
        self.now += 1
        return np.zeros(5), 0.0, cost, False, self.now == 40, {}

    def render(self) -> np.ndarray:
        self.drawn.append(self.now)
        return np.full((4, 4, 3), self.now, dtype=np.uint8)


@pytest.mark.parametrize(("seconds", "shown"), [(0.32, range(20, 24)), (None, range(40))])
def test_only_what_is_shown_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float | None, shown: range
) -> None:
    policy = fake_policy(contract=replace(fake_contract(), period_s=0.08, time_limit=40))
    write_policy(tmp_path / "policy.safetensors", policy)
    stage = Stage()
    monkeypatch.setattr(envs, "make_official", lambda *_, **__: stage)
    film(tmp_path / "policy.safetensors", tmp_path / "film.gif", 10_000, seconds)
    assert stage.drawn == list(shown)
    assert (tmp_path / "film.gif").read_bytes()[:3] == b"GIF"


def test_where_nothing_can_be_filmed_the_index_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise FileFault("no driver")

    monkeypatch.setattr(benchmark_films, "record_video", broken)
    benchmark_films.film_examples(tmp_path / "videos", [(tmp_path / "run", FILMED)])
    index = json.loads((tmp_path / "videos" / "index.json").read_text())
    assert index == {"films": [], "problem": "no driver"}


FILMED = {
    "task": "Task-v0",
    "label": "kcpr",
    "seed": 0,
    "punishments": [0.0, 3.0, 1.0],
    "returns": [1.0, 2.0, 3.0],
    "eval_seed": 10_000,
}


def test_only_the_first_seed_of_each_agent_is_filmed_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filmed: list[tuple[str, int]] = []

    def record(run: Path, file: Path, seed: int, seconds: float) -> None:
        filmed.append((run.name, seed))
        file.write_bytes(b"film")

    monkeypatch.setattr(benchmark_films, "record_video", record)
    trials = [(tmp_path / "a", FILMED), (tmp_path / "b", {**FILMED, "seed": 1})]
    for _ in range(2):
        benchmark_films.film_examples(tmp_path / "videos", trials)
    assert filmed == [("a", 10_002), ("a", 10_001)]
    index = json.loads((tmp_path / "videos" / "index.json").read_text())
    assert [film["punishment"] for film in index["films"]] == [1.0, 3.0]


def test_the_absence_of_ray_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["benchmark", "quick", "--ray", "auto"]) == EXIT_CODE
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "ray is not installed; install it with: pip" in error


def command(suite: Path, out: Path, *more: str) -> list[str]:
    words = ["benchmark", str(suite), "--out", str(out), "--no-videos", *more]
    return [sys.executable, "-m", "kcpr_safety", *words]


def finish(suite: Path, out: Path, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [*command(suite, out, *more), "--json"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def test_a_real_cell_becomes_a_row_and_a_bad_one_a_reason(tmp_path: Path) -> None:
    """kldmp on a grid-world trains; its neighbour's run folder has been spoilt."""
    suite = tmp_path / "small.toml"
    suite.write_text(SUITE.replace("[0, 1]", "[0]"))
    cells = load_suite(str(suite)).cells()
    spoilt = tmp_path / "out" / "runs" / cells[1].name / "config.json"
    spoilt.parent.mkdir(parents=True)
    spoilt.write_text("{}")
    done = subprocess.run(
        [*command(suite, tmp_path / "out"), "--json"], capture_output=True, text=True, timeout=120
    )
    record = json.loads(done.stdout)
    assert done.returncode == 1 and record["done"] == 1
    (failure,) = record["failed"]
    assert failure["cell"] == cells[1].name and "has no checkpoint" in failure["reason"]
    (row,) = rows_of(tmp_path / "out").values()
    assert row["label"] == "kldmp" and row["episodes"] == len(row["returns"]) == 4
    assert row["eval_seed"] >= 10_000 and row["steps"] == 2_400
    assert row["punishment_training"] >= 0 and len(row["config_sha256"]) == 64


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """SIGKILL at random moments, to the benchmark alone or to its whole family."""
    suite = tmp_path / "small.toml"
    suite.write_text(SUITE.replace("[0, 1]", str(list(range(8)))))
    finish(suite, tmp_path / "whole", "--jobs", "2")
    cells, written = tmp_path / "killed" / "cells", dict[str, int]()
    dice = random.Random(0)
    for kill in range(20):
        process = subprocess.Popen(
            command(suite, tmp_path / "killed", "--jobs", "2"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if kill % 3 == 0:  # soon after a cell is done, however slow the machine is
            deadline = time.monotonic() + 90
            while len(list(cells.glob("*.json"))) <= len(written) and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(dice.uniform(0.0, 1.0))
        else:  # while it imports, trains, judges
            time.sleep(dice.uniform(0.3, 2.5))
        assert process.poll() is None, f"all was done before kill {kill}; ask for more cells"
        family = children(process.pid) if dice.random() < 0.5 else []
        process.kill()
        process.wait()
        for child in family:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for path in cells.glob("*.json"):
            stamp = path.stat().st_mtime_ns
            assert written.setdefault(path.name, stamp) == stamp, "a finished cell was made again"
    finish(suite, tmp_path / "killed", "--jobs", "2")
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    assert 0 < len(written) < 16, "kills fell before anything was done, or after all was"


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@pytest.mark.slow
def test_a_cluster_gives_the_same_rows(tmp_path: Path) -> None:
    """`ray start --head` on this machine."""
    pytest.importorskip("ray", reason="pip install 'kcpr-safety[ray]' to test it")
    suite = tmp_path / "small.toml"
    suite.write_text(SUITE)
    ray = str(Path(sys.executable).parent / "ray")
    address = "127.0.0.1:6399"
    folder = tempfile.mkdtemp(prefix="kr", dir="/tmp")  # sockets have short names
    start = [ray, "start", "--head", "--block", "--port", "6399", "--num-cpus", "2"]
    quiet = ["--temp-dir", folder, "--include-dashboard", "false", "--disable-usage-stats"]
    head = subprocess.Popen(
        [*start, *quiet],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "RAY_worker_niceness": "0"},
    )
    try:
        time.sleep(15)
        finish(suite, tmp_path / "ray", "--ray", address)
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
    finish(suite, tmp_path / "local", "--jobs", "2")
    assert rows_of(tmp_path / "ray") == rows_of(tmp_path / "local")
    assert benchmark_places.Here(3).slots == 3
