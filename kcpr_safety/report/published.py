"""What have others published on these tasks, and what may one make of it beside our rows?

`published.json` holds figures with their sources: means and standard deviations over seeds, without
episodes. So nothing can be said of shares or worst episodes, and no ranking mixes them with trials:
they stand in a table of their own, each with its steps and protocol. `read_progress` takes a
`progress.csv` as OmniSafe leaves it in the folder of a run, with the `config.json` beside it.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from kcpr_safety.errors import FileFault
from kcpr_safety.files import read_limited
from kcpr_safety.texts import json_object

MAX_BYTES = 64 * 2**20
LAST_SHARE = 0.05
"""Of an imported training, its last part is taken for its result."""

_COLUMNS = {
    "return": ("Metrics/TestEpRet", "Metrics/EpRet"),
    "punishment": ("Metrics/TestEpCost", "Metrics/EpCost"),
}


@dataclass(frozen=True)
class Published:
    """One agent's result on one task, as means."""

    task: str
    agent: str
    steps: int
    return_mean: float
    return_spread: float | None
    """Standard deviation over seeds."""
    punishment_mean: float
    punishment_spread: float | None
    seeds: int | None
    budget: float
    source: str
    protocol: str
    unequal: str = ""
    """Why its return cannot be measured on the task as we run it; empty: it can."""
    curve: tuple[tuple[float, float, float], ...] = ()
    """Steps, return and punishment, of what was imported."""

    @property
    def feasible(self) -> bool:
        return self.punishment_mean <= self.budget


@cache
def _data() -> Mapping[str, Any]:
    text = resources.files("kcpr_safety.report").joinpath("published.json").read_text("utf-8")
    record: Mapping[str, Any] = json.loads(text)
    return record


def sources() -> dict[str, str]:
    """Name of each source -> where and what it is."""
    return dict(_data()["sources"])


def published(task: str) -> list[Published]:
    """Published results on a task: within budget first, then by return."""
    found = []
    for of in _data()["tables"].values():
        steps = of["steps_of"].get(task, of["steps"])
        for row in of["rows"]:
            if row[0] == task:
                _, agent, returned, return_spread, punished, punished_spread = row[:6]
                found.append(
                    Published(
                        task=task,
                        agent=agent,
                        steps=row[6] if len(row) > 6 else steps,
                        return_mean=returned,
                        return_spread=return_spread,
                        punishment_mean=punished,
                        punishment_spread=punished_spread,
                        seeds=of["seeds"],
                        budget=of["budget"],
                        source=of["source"],
                        protocol=of["protocol"],
                        unequal=of.get("unequal", {}).get(task, ""),
                    )
                )
    found.sort(key=lambda p: (not p.feasible, -p.return_mean))
    return found


def references() -> dict[str, float]:
    """Task -> the best published return of an agent whose mean is within the budget; of equal
    tasks alone."""
    best: dict[str, float] = {}
    for task in {row[0] for of in _data()["tables"].values() for row in of["rows"]}:
        feasible = [p.return_mean for p in published(task) if p.feasible and not p.unequal]
        if feasible and max(feasible) > 0:
            best[task] = max(feasible)
    return best


def read_progress(path: Path) -> Published:
    """The training that an OmniSafe `progress.csv` tells of; its last twentieth is the result."""
    config = _config(path.with_name("config.json"))
    try:
        text = read_limited(path, MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFault(f"{path} is no text: {error.reason}") from error
    rows = list(csv.DictReader(io.StringIO(text)))
    columns = rows[0].keys() if rows else ()
    chosen = {
        key: next((c for c in names if c in columns), None) for key, names in _COLUMNS.items()
    }
    if "TotalEnvSteps" not in columns or None in chosen.values():
        raise FileFault(
            f"{path} is no progress.csv of OmniSafe: it needs TotalEnvSteps, Metrics/EpRet and "
            "Metrics/EpCost"
        )
    points = []
    for i, row in enumerate(rows, start=2):
        try:
            values = [float(row[c] or "") for c in ("TotalEnvSteps", *map(str, chosen.values()))]
        except (TypeError, ValueError) as error:
            raise FileFault(f"{path}, line {i}: {error}") from error
        if not all(map(math.isfinite, values)):
            raise FileFault(f"{path}, line {i} holds a number that is not finite")
        points.append((values[0], values[1], values[2]))
    last = points[-max(1, round(LAST_SHARE * len(points))) :]
    tested = chosen["return"] == _COLUMNS["return"][0]
    return Published(
        task=str(config["env_id"]),
        agent=str(config["algo"]),
        steps=int(points[-1][0]),
        return_mean=float(np.mean([p[1] for p in last])),
        return_spread=None,
        punishment_mean=float(np.mean([p[2] for p in last])),
        punishment_spread=None,
        seeds=1,
        budget=_limit(config),
        source=f"imported: {path.parent.name}/{path.name}",
        protocol=f"{'test' if tested else 'training'} episodes, mean of the last "
        f"{len(last)} of {len(points)} epochs",
        curve=tuple(points),
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json_object(read_limited(path, MAX_BYTES))
    except ValueError as error:
        raise FileFault(f"{path} is not JSON: {error}") from error
    names: Sequence[str] = ("env_id", "algo")
    if any(not isinstance(config.get(name), str) for name in names):
        raise FileFault(f"{path} does not say env_id and algo, as OmniSafe's configuration does")
    return config


def _limit(config: Mapping[str, Any]) -> float:
    """The cost limit stands in different places for different algorithms."""
    for part in ("lagrange_cfgs", "algo_cfgs"):
        of = config.get(part)
        if isinstance(of, dict) and isinstance(of.get("cost_limit"), int | float):
            return float(of["cost_limit"])
    return math.inf
