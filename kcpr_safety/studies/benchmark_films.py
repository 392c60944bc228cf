"""Which episodes of a benchmark are worth seeing, and what if nothing can be filmed here?

Of each agent on each task, its first training seed: the nominal episode (of median punishment) and
the worst one, both among the evaluated. `index.json` tells what each film shows, or in one sentence
why there is none. What is filmed already is not filmed again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from kcpr_safety.errors import KcprError
from kcpr_safety.files import atomic_write
from kcpr_safety.report.collection import INDEX
from kcpr_safety.training.video import best_format, record_video

SECONDS = 6.0
_KINDS = ("nominal", "worst")

Row = Mapping[str, Any]


def film_examples(folder: Path, trials: Sequence[tuple[Path, Row]]) -> None:
    """Film what is not filmed yet into `folder`, of runs with their rows, and write the index."""
    first: dict[tuple[str, str], tuple[Path, Row]] = {}
    for run, row in trials:
        first.setdefault((row["task"], row["label"]), (run, row))
    console = Console(stderr=True)
    films: list[dict[str, Any]] = []
    problem: str | None = None
    todo = [(run, row, kind) for run, row in first.values() for kind in _KINDS]
    quiet = not console.is_terminal
    for run, row, kind in track(todo, "filming", console=console, transient=True, disable=quiet):
        chosen = chosen_episode(row["punishments"], kind)
        seed = int(row["eval_seed"]) + chosen
        file = folder / f"{run.name}-{kind}{best_format()}"
        try:
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                record_video(run, file, seed, seconds=SECONDS)
        except KcprError as fault:
            problem = str(fault)
            break
        films.append(
            {
                "task": row["task"],
                "label": row["label"],
                "seed": row["seed"],
                "kind": kind,
                "eval_seed": seed,
                "punishment": row["punishments"][chosen],
                "return": row["returns"][chosen],
                "file": file.name,
            }
        )
    index = {"films": films, "problem": problem}
    atomic_write(folder / INDEX, json.dumps(index, indent=1).encode())


def chosen_episode(punishments: Sequence[float], kind: str) -> int:
    """Index of the episode of median punishment, or of the highest."""
    order = np.argsort(punishments, kind="stable")
    return int(order[-1] if kind == "worst" else order[len(order) // 2])
