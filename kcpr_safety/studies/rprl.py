"""How is the comparison of `reproduce rprl` run to its end, in the background, killed and resumed?

Finished cells stand as JSON lines in `rows.jsonl` of the output folder, written whole, one cell at
a time; a cell whose very numbers are there is not repeated. On a maze a cell is one run of the
training loop in a folder of its own, which resumes from its checkpoint. At the end stand
`summary.json` and one self-contained page.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kcpr_safety import api
from kcpr_safety.errors import FileFault
from kcpr_safety.files import atomic_write, faults_of
from kcpr_safety.report.rprl_page import rprl_page
from kcpr_safety.report.rprl_rows import summarise
from kcpr_safety.studies.rprl_cells import Cell, train_cell
from kcpr_safety.studies.rprl_plan import MazeCell, maze_cells, plan
from kcpr_safety.studies.trained import train_to_end
from kcpr_safety.training.evaluation import torch_threads
from kcpr_safety.training.sinks import read_rows

ROWS_FILE, PAGE_FILE, SUMMARY_FILE = "rows.jsonl", "report.html", "summary.json"
MAZE_EPISODES = 100


def run(out: Path, *, quick: bool, maze: bool) -> dict[str, Any]:
    """Train what is not yet trained, then write page and summary; returns the summary."""
    cells: list[Cell | MazeCell] = [*plan(quick), *(maze_cells() if maze and not quick else [])]
    rows = read_cells(out / ROWS_FILE)
    wanted = [canonical(cell.key) for cell in cells]
    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.1f} of {task.total:.0f} cells"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar, torch_threads(1):
        task = bar.add_task("", total=float(sum(cell.weight for cell in cells)))
        for cell, key in zip(cells, wanted, strict=True):
            bar.update(task, description=f"{cell.variant}, {cell.world}")
            if any(row["cell"] == key for row in rows):
                bar.advance(task, cell.weight)
                continue
            done = float(bar.tasks[0].completed)

            def show(share: float, done: float = done, weight: int = cell.weight) -> None:
                bar.update(task, completed=done + share * weight)

            found = train_cell(cell, show) if isinstance(cell, Cell) else run_maze(cell, out)
            rows += [
                {"cell": key, "world": cell.world, "variant": cell.variant, **row} for row in found
            ]
            write_cells(out / ROWS_FILE, rows)
            show(1.0)
            if not console.is_terminal:
                console.print(f"{cell.variant} on {cell.world}: done")
    shown = [row for row in rows if row["cell"] in wanted]
    summary = summarise(shown) | {"quick": quick, "page": str(out / PAGE_FILE)}
    atomic_write(out / PAGE_FILE, rprl_page(shown, summary).encode())
    atomic_write(out / SUMMARY_FILE, json.dumps(summary, indent=1, allow_nan=False).encode())
    return summary


def run_maze(cell: MazeCell, out: Path) -> list[dict[str, Any]]:
    """One training run on a maze: from nothing, from its checkpoint, or already there; judged."""
    folder = out / "runs" / f"{cell.world}-{cell.variant}-seed{cell.seed}"
    train_to_end(folder, cell.world, agent=cell.variant, steps=cell.steps, seed=cell.seed)
    judged = api.evaluate(folder, episodes=MAZE_EPISODES).record()
    metrics = read_rows(folder)
    trained = [row for row in metrics if row["kind"] == "train"]
    validated = [row for row in metrics if row["kind"] == "validation"]
    totals = {row["steps"]: row["punishment_total"] for row in trained}
    return [
        {
            "seed": cell.seed,
            "return_mean": judged["return_mean"],
            "punishment_mean": judged["punishment_mean"],
            "success": judged["success_share"],
            "collision": judged["collision_share"],
            "punishment_training": trained[-1]["punishment_total"],
            "episodes": MAZE_EPISODES,
            "curve": [
                [
                    row["steps"],
                    row["return_mean"],
                    row["punishment_mean"],
                    None,
                    max((t for s, t in totals.items() if s <= row["steps"]), default=0.0),
                ]
                for row in validated
            ],
            "cell_wall_s": metrics[-1]["wall_s"],
        }
    ]


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Rows of finished cells; none where there is no file yet."""
    if not path.exists():
        return []
    with faults_of(f"cannot read {path}"):
        lines = path.read_text(encoding="utf-8").splitlines()
    try:
        rows = [json.loads(line) for line in lines]
        if not all(isinstance(row["cell"], dict) for row in rows):
            raise ValueError("a row names no cell")
    except (ValueError, TypeError, KeyError) as error:
        raise FileFault(f"{path} does not hold rows of this comparison: {error}") from error
    return rows


def write_cells(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace the file by all rows."""
    text = "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows)
    atomic_write(path, text.encode())


def canonical(key: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    record: dict[str, Any] = json.loads(json.dumps(key, allow_nan=False))
    return record
