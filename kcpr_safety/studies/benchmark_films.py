"""Which episodes of a benchmark are worth seeing, and what if nothing can be filmed here?

Of each agent on each task, its first training seed: the nominal episode (of median punishment) and
the worst one, both among the evaluated. `videos/index.json` tells what each film shows, or in one
sentence why there is none. What is filmed already is not filmed again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from kcpr_safety.errors import KcprError
from kcpr_safety.files import atomic_write
from kcpr_safety.report.collection import INDEX, VIDEOS
from kcpr_safety.studies.benchmark_cell import RUNS, row_path
from kcpr_safety.studies.suites import Cell
from kcpr_safety.texts import json_object
from kcpr_safety.training.video import best_format, record_video

SECONDS = 6.0
_KINDS = ("nominal", "worst")


def film_examples(out: Path, cells: Sequence[Cell]) -> None:
    """Film what is not filmed yet, and write the index."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        if row_path(out, cell.name).is_file():
            first.setdefault((cell.task, cell.label), cell)
    console = Console(stderr=True)
    films: list[dict[str, Any]] = []
    problem: str | None = None
    todo = [(cell, kind) for cell in first.values() for kind in _KINDS]
    quiet = not console.is_terminal
    for cell, kind in track(todo, "filming", console=console, transient=True, disable=quiet):
        row = json_object(row_path(out, cell.name).read_bytes())
        chosen = chosen_episode(row["punishments"], kind)
        seed = int(row["eval_seed"]) + chosen
        file = out / VIDEOS / f"{cell.name}-{kind}{best_format()}"
        try:
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                record_video(out / RUNS / cell.name, file, seed, seconds=SECONDS)
        except KcprError as fault:
            problem = str(fault)
            break
        films.append(
            {
                "task": cell.task,
                "label": cell.label,
                "seed": cell.seed,
                "kind": kind,
                "eval_seed": seed,
                "punishment": row["punishments"][chosen],
                "return": row["returns"][chosen],
                "file": file.name,
            }
        )
    index = {"films": films, "problem": problem}
    atomic_write(out / VIDEOS / INDEX, json.dumps(index, indent=1).encode())


def chosen_episode(punishments: Sequence[float], kind: str) -> int:
    """Index of the episode of median punishment, or of the highest."""
    order = np.argsort(punishments, kind="stable")
    return int(order[-1] if kind == "worst" else order[len(order) // 2])
