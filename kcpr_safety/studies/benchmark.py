"""How does a benchmark run to its end, whatever interrupts it, and become a page?

    OUT/suite.json     what was asked for, with the names of all cells
    OUT/cells/         one row for each finished cell (`report.trials`), written in one piece
    OUT/runs/          the runs; an unfinished one resumes from its checkpoint
    OUT/logs/          what each cell's process said last
    OUT/videos/        episodes of trained policies
    OUT/rows.jsonl, report.html, report.json, report.csv, report.md

A finished cell is never trained again, an unfinished one never lost: the same command goes on.
"""

import json
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from kcpr_safety import api
from kcpr_safety.files import atomic_write
from kcpr_safety.report.collection import SUITE_FILE, VIDEOS
from kcpr_safety.studies.benchmark_cell import RUNS, row_path
from kcpr_safety.studies.benchmark_films import film_examples
from kcpr_safety.studies.benchmark_places import Job, Place
from kcpr_safety.studies.suites import Cell, Suite
from kcpr_safety.texts import json_object
from kcpr_safety.training.sinks import METRICS_FILE
from kcpr_safety.training.stopping import Interrupted, stop_requests

ROWS_FILE = "rows.jsonl"
_LOOK_S = 0.25
"""Between two looks at the running cells."""
_TAIL_BYTES = 8192


def run(suite: Suite, out: Path, place: Place, *, videos: bool = True) -> dict[str, Any]:
    """Train and judge what is missing, then write the page; returns the summary."""
    cells = suite.cells()
    plan = {**asdict(suite), "cells": {cell.name: asdict(cell) for cell in cells}}
    atomic_write(out / SUITE_FILE, json.dumps(plan, indent=1, allow_nan=False).encode())
    failed = _work_off([cell for cell in cells if not _done(out, cell)], cells, out, place)
    rows = {c.name: row_path(out, c.name).read_bytes() for c in cells if _done(out, c)}
    atomic_write(out / ROWS_FILE, b"".join(rows.values()))
    if videos and rows:
        trials = [(out / RUNS / name, json_object(row)) for name, row in rows.items()]
        film_examples(out / VIDEOS, trials)
    return {
        "suite": suite.name,
        "path": str(out),
        "cells": len(cells),
        "done": len(rows),
        "failed": [{"cell": name, "reason": reason} for name, reason in failed.items()],
        "report": str(api.report(out, out)) if rows else None,
    }


def _done(out: Path, cell: Cell) -> bool:
    return row_path(out, cell.name).is_file()


def _work_off(
    todo: Sequence[Cell], cells: Sequence[Cell], out: Path, place: Place
) -> dict[str, str]:
    """Run what is to do; the reasons of what failed, by name."""
    waiting, running = deque(todo), dict[str, tuple[Cell, Job]]()
    board = Board(cells, todo, out)
    with stop_requests() as stop, board:
        try:
            while (waiting or running) and not stop.is_set():
                while waiting and len(running) < place.slots:
                    cell = waiting.popleft()
                    running[cell.name] = cell, place.start(cell, out)
                for name, (cell, job) in list(running.items()):
                    if (reason := job.ended()) is not None:
                        del running[name]
                        board.ended(cell, reason)
                board.show([cell for cell, _ in running.values()])
                stop.wait(_LOOK_S)
        finally:
            for _, job in running.values():
                job.stop()
    if waiting or running:
        done = sum(_done(out, cell) for cell in cells)
        raise Interrupted(
            f"stopped with {done} of {len(cells)} cells done; all is saved in {out}, and the same "
            "command goes on"
        )
    return board.failed


class Board:
    """What a person sees meanwhile: how much is done, what runs, what failed and why."""

    def __init__(self, cells: Sequence[Cell], todo: Sequence[Cell], out: Path) -> None:
        self.failed: dict[str, str] = {}
        self._out, self._total = out, len(cells)
        self._work = float(sum(cell.steps for cell in todo)) or 1.0
        self._over, self._done = 0.0, len(cells) - len(todo)
        self._begun = {cell.name: _share(out, cell) * cell.steps for cell in todo}
        """Steps that earlier sessions made."""
        self._started = time.perf_counter()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Board":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self._live.stop()

    def ended(self, cell: Cell, reason: str) -> None:
        self._over += cell.steps
        if reason:
            self.failed[cell.name] = reason
            self._console.print(f"[red]failed[/red] {escape(cell.name)}: {escape(reason)}")
        else:
            self._done += 1
            if not self._console.is_terminal:
                self._console.print(f"done {self._done} of {self._total}: {cell.name}")

    def show(self, running: Sequence[Cell]) -> None:
        if not self._console.is_terminal:
            return
        shares = [_share(self._out, cell) for cell in running]
        steps = self._over + sum(s * c.steps for s, c in zip(shares, running, strict=True))
        self._live.update(Group(self._headline(steps), self._table(running, shares)))

    def _headline(self, steps: float) -> Progress:
        bar = Progress(
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} steps"),
            BarColumn(bar_width=24),
            TextColumn(self._words(steps)),
            console=self._console,
        )
        bar.add_task("", total=self._work, completed=int(min(steps, self._work)))
        return bar

    def _words(self, steps: float) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{self._done} of {self._total} cells{failed}, left {clock(self.left_s(steps))}"

    def left_s(self, steps: float) -> float | None:
        """Time that the rest takes at the rate of this session [s]; None before there is one."""
        made = steps - sum(self._begun.values())
        if made <= 0:
            return None
        return (self._work - steps) * (time.perf_counter() - self._started) / made

    def _table(self, running: Sequence[Cell], shares: Sequence[float]) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("task", "agent", "seed", "trained"):
            table.add_column(column)
        for cell, share in zip(running, shares, strict=True):
            told = f"{share:.0%}" if share < 1 else "being judged"
            table.add_row(cell.task, cell.label, str(cell.seed), told)
        return table


def clock(seconds: float | None) -> str:
    """1:02:03, or a question mark."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _share(out: Path, cell: Cell) -> float:
    """How much of a cell's training is done, by its last row."""
    with suppress(OSError, ValueError, LookupError, TypeError):  # none yet, or half a line
        with open(out / RUNS / cell.name / METRICS_FILE, "rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL_BYTES))
            lines = stream.read().splitlines()
        return min(1.0, float(json_object(lines[-1])["steps"]) / cell.steps)
    return 0.0
