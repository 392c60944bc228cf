"""How do results look to a person, and how to a machine?"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH = 200
"""Columns where no terminal says how many it has."""


def console() -> Console:
    """Standard output: in colour and fitted where that is a terminal, else plain and wide."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time that is left, on stderr; yields (done, total) -> None."""
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers stand to the right."""
    shown = [[text(cell) for cell in row] for row in rows]
    drawn = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        show_header=any(columns),
    )
    for index, column in enumerate(columns):
        numeric = bool(shown) and all(_is_number(row[index]) for row in shown)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        drawn.add_row(*map(Text, row))
    console().print(drawn)


def text(value: object) -> str:
    """A cell: floats with few digits, nothing as a dash, yes and no in words."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def interval(value: Mapping[str, float]) -> str:
    """A mean with the range that its episodes cannot rule out."""
    return f"{text(value['value'])} [{text(value['low'])}, {text(value['high'])}]"


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "").replace("%", ""))
    except ValueError:
        return cell == "-"
    return True


def result_rows(record: dict[str, Any]) -> list[tuple[str, object]]:
    """The lines of one result, as people read them."""
    share = record.get("over_budget_share")
    told = {"success": "success_share", "episodes with a collision": "collision_share"}
    return [
        ("task", record["task"]),
        ("agent, seed", f"{record['agent']}, {record['seed']}"),
        ("environment steps", record["steps"]),
        ("episodes", record["episodes"]),
        ("return", record["return_mean"]),
        ("punishment (cost)", record["punishment_mean"]),
        ("budget", record["budget"]),
        ("episodes over budget", None if share is None else f"{share:.0%}"),
        *((words, f"{record[key]:.0%}") for words, key in told.items() if key in record),
        *(
            (
                f"punishment: {part['name']}",
                f"{text(part['punishment_mean'])} of {part['budget']:g}",
            )
            for part in record.get("streams", ())
        ),
        ("time [s]", record["wall_s"]),
        ("path", record["path"]),
    ]


def emit_json(record: dict[str, Any], descriptor: int) -> None:
    """One JSON object and a newline; paths become text, NaN is refused."""
    line = json.dumps(record, default=_plain, allow_nan=False) + "\n"
    with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as stream:
        stream.write(line)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")
