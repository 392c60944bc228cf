"""Where do the rows of a running training go: a file, TensorBoard, a person's eyes?

A sink takes one row (a flat dict of numbers and texts) at a time; `kind` says what it is:

    untaught     first of all: what is suffered in the time of an episode by who has learned nothing
    train        every few thousand steps: speed, recent training episodes, coupling, values
    validation   deterministic episodes on validation seeds: what the kept policy is chosen by
    fault        what went wrong, and what was done about it

Algorithms never write anywhere: they return metrics, the loop makes rows, sinks show them.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from kcpr_safety.errors import FileFault, MissingPackageError
from kcpr_safety.files import faults_of, read_limited, without_links
from kcpr_safety.texts import json_object

METRICS_FILE = "metrics.jsonl"
MAX_METRICS_BYTES = 512 * 2**20

Row = Mapping[str, Any]


class Sink(Protocol):
    """Anything that rows can be given to."""

    def open(self, run: Path, task: str, total_steps: int, budget: float) -> None:
        """Called once, before the first row."""
        ...

    def write(self, row: Row) -> None:
        """Take one row."""
        ...

    def close(self) -> None:
        """Called once, however training ended."""
        ...


class JsonLines:
    """`metrics.jsonl` in the run folder: one JSON object a line."""

    def __init__(self, keep_bytes: int = 0) -> None:
        self._keep = keep_bytes
        """What a resumed run keeps of the file: later lines were written after its checkpoint."""

    def open(self, run: Path, task: str, total_steps: int, budget: float) -> None:
        self._path = run / METRICS_FILE
        with faults_of(f"cannot write {self._path}"):
            self._stream = open(self._path, "ab", opener=without_links)  # noqa: SIM115 (open while training runs)
            # Never half a line, even where the file is shorter than its run remembers.
            whole = self._path.read_bytes()[: self._keep].rfind(b"\n") + 1
            self.rewind(whole)

    def write(self, row: Row) -> None:
        line = json.dumps({key: _plain(value) for key, value in row.items()}) + "\n"
        with faults_of(f"cannot write {self._path}"):
            self._stream.write(line.encode())
            self._stream.flush()

    def rewind(self, size: int) -> None:
        """Forget what was written after the first `size` bytes."""
        with faults_of(f"cannot write {self._path}"):
            self._stream.truncate(size)

    def flushed(self) -> int:
        """Bytes written so far, all of them on the disk: a checkpoint counts on them."""
        with faults_of(f"cannot write {self._path}"):
            os.fsync(self._stream.fileno())
        return self.size

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._stream.fileno()).st_size

    def close(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.close()


class TensorBoard:
    """Scalars for TensorBoard in the run folder; needs the extra `tensorboard`."""

    def open(self, run: Path, task: str, total_steps: int, budget: float) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError("tensorboard", "pip install tensorboard") from error
        self._writer = SummaryWriter(str(run / "tensorboard"))

    def write(self, row: Row) -> None:
        for key, value in row.items():
            if isinstance(value, int | float) and key != "steps":
                name = f"{row['kind']}/{key}"
                self._writer.add_scalar(name, value, int(row["steps"]))

    def close(self) -> None:
        if hasattr(self, "_writer"):
            self._writer.close()


class Live:
    """A progress bar with the figures that matter, on stderr; plain lines where no terminal is."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._latest: dict[str, Any] = {}

    def open(self, run: Path, task: str, total_steps: int, budget: float) -> None:
        self._budget, self._total = budget, total_steps
        self._console.print(f"training [bold]{task}[/bold] in {run}")
        self._progress = Progress(
            TextColumn("{task.fields[speed]}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            transient=True,
        )
        self._bar = self._progress.add_task(
            "", total=total_steps, speed="", figures="untaught robots first"
        )
        if self._console.is_terminal:
            self._progress.start()

    def write(self, row: Row) -> None:
        self._latest.update(row)
        if row["kind"] == "fault":
            self._console.print(f"{row['steps']:>9,} steps  [red]{escape(row['fault'])}[/red]")
        elif row["kind"] == "untaught":
            self._console.print(
                f"    untaught robots ({row['untaught_episodes']} episodes)  punishment "
                f"{row['untaught_punishment']:6.1f} / {self._budget:g}"
            )
        elif row["kind"] == "validation":
            self._console.print(self._validation(row))
        elif row["kind"] == "train":
            speed = f"{row.get('steps_per_s', 0):,.0f} steps/s"
            self._progress.update(
                self._bar, completed=row["steps"], speed=speed, figures=self._figures(row)
            )

    def close(self) -> None:
        if hasattr(self, "_progress"):
            self._progress.stop()

    def _validation(self, row: Row) -> str:
        mark = "[red]over budget[/red]"
        over = [p for p in row.get("streams", ()) if p["punishment_mean"] > p["budget"]]
        if row["punishment_mean"] <= self._budget and not over:
            # Feasible asks for a margin: few episodes prove little.
            mark = "[green]within budget[/green]" if row["feasible"] else "[yellow]close[/yellow]"
        kept = ", kept" if row.get("kept") else ""
        wall = row["wall_s"]
        left = wall / max(row["steps"], 1) * (self._total - row["steps"])
        return (
            f"{row['steps']:>9,} steps {wall:5.0f} s (left {left:.0f} s)  return "
            f"{row['return_mean']:8.1f}  punishment {row['punishment_mean']:6.1f} / "
            f"{self._budget:g}  {mark}"
            + "".join(f" {escape(p['name'])} {p['punishment_mean']:.3g}" for p in over)
            + kept
        )

    def _figures(self, row: Row) -> str:
        return (
            f"return {_short(row.get('return_mean'))}  punishment "
            f"{_short(row.get('punishment_mean'))} of {self._budget:g} "
            f"(predicted {_short(row.get('predicted_punishment'))})  "
            f"lambda {_short(row.get('lambda'))}"
            + ("" if row.get("health", "ok") == "ok" else f"  [red]{row['health']}[/red]")
        )


def live_sinks(progress: bool) -> list[Sink]:
    """The display that a person wants, or none."""
    return [Live()] if progress else []


def read_rows(run: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics file."""
    path = Path(run) / METRICS_FILE
    lines = read_limited(path, MAX_METRICS_BYTES).splitlines()
    try:
        return [json_object(line) for line in lines]
    except ValueError as error:
        raise FileFault(f"{path} is damaged: {error}") from error


def _plain(value: Any) -> Any:
    """JSON has no NaN; a number that is none is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    return (
        "-" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.3g}"
    )
