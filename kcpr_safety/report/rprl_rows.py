"""What do the rows of many seeds say of each agent, and of klDMP beside each baseline?

Every mean and spread has a percentile bootstrap interval over training seeds, which are what was
drawn. A difference counts as shown only where its interval leaves zero out; with so many of them
side by side, about one in twenty would by chance.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kcpr_safety.stats import CONFIDENCE, RESAMPLES, bootstrap_interval

Row = Mapping[str, Any]

FIGURES = ("return_mean", "punishment_mean", "punishment_training", "success")
OURS = "kldmp"
_ZERO = 1e-9
BASELINES = ("dqn", "sql", "dmp", "softdmp")


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """`agents` over the grid-worlds, `worlds` each alone, `comparisons` of klDMP and baselines."""
    grouped = by_world(rows)
    grids = {world: of for world, of in grouped.items() if not is_maze(world)}
    everywhere = [
        variant
        for variant in ordered({row["variant"] for row in rows})
        if grids and all(variant in of for of in grids.values())
    ]
    agents = {}
    for variant in everywhere:
        # One number a seed: its mean over the worlds.
        merged = [
            {key: float(np.mean([row[key] for row in same])) for key in FIGURES}
            for same in zip(*(of[variant] for of in grids.values()), strict=True)
        ]
        agents[variant] = figures(merged)
    return {
        "agents": agents,
        "worlds": {
            world: {variant: figures(of[variant]) | stability(of[variant]) for variant in of}
            for world, of in grouped.items()
        },
        "comparisons": [
            compare(world, baseline, of[OURS], of[baseline])
            for world, of in grouped.items()
            for baseline in BASELINES
            if OURS in of and baseline in of
        ],
        "seeds": {world: len(next(iter(of.values()))) for world, of in grouped.items()},
        "confidence": CONFIDENCE,
    }


def by_world(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """world -> variant -> rows by seed; continuous mazes stand with their discrete twins."""
    grouped: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        world = row["world"].replace("Discrete-", "-") if is_maze(row["world"]) else row["world"]
        grouped[world][row["variant"]].append(row)
    return {
        world: {
            variant: sorted(of[variant], key=lambda row: int(row["seed"]))
            for variant in ordered(of)
        }
        for world, of in grouped.items()
    }


def is_maze(world: str) -> bool:
    return world.startswith("Maze")


def ordered(variants: Iterable[str]) -> list[str]:
    """Baselines first, then klDMP and its designs, then ablations."""
    known = [*BASELINES, OURS]
    return sorted(
        variants, key=lambda name: (known.index(name) if name in known else len(known), name)
    )


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean of each figure over seeds, with its interval; of collisions where rows tell of them."""
    keys = (*FIGURES, *(["collision"] if all("collision" in row for row in rows) else []))
    return {key: interval([float(row[key]) for row in rows]) for key in keys}


def interval(values: Sequence[float]) -> dict[str, float]:
    found = bootstrap_interval(values, lambda x: float(np.mean(x)), _generator())
    return {"value": found.value, "low": found.low, "high": found.high}


def stability(rows: Sequence[Row]) -> dict[str, float]:
    """Spread of the return over seeds (standard deviation), and the worst seed's figures."""
    returns = [float(row["return_mean"]) for row in rows]
    return {
        "return_spread": float(np.std(returns, ddof=1)) if len(returns) > 1 else 0.0,
        "return_worst": min(returns),
        "punishment_worst": max(float(row["punishment_mean"]) for row in rows),
    }


def compare(
    world: str, baseline: str, ours: Sequence[Row], theirs: Sequence[Row]
) -> dict[str, Any]:
    """klDMP minus a baseline: means and spread, with intervals."""
    record: dict[str, Any] = {"world": world, "baseline": baseline}
    for key in FIGURES:
        record[key] = difference(
            [float(row[key]) for row in ours], [float(row[key]) for row in theirs], np.mean
        )
    record["return_spread"] = difference(
        [float(row["return_mean"]) for row in ours],
        [float(row["return_mean"]) for row in theirs],
        np.std,
    )
    return record


def difference(
    ours: Sequence[float], theirs: Sequence[float], statistic: Any
) -> dict[str, float | str]:
    """statistic(ours) - statistic(theirs); "lower" or "higher" where zero is outside."""
    generator = _generator()
    drawn = [
        np.asarray(values)[generator.integers(0, len(values), (RESAMPLES, len(values)))]
        for values in (ours, theirs)
    ]
    spread = statistic(drawn[0], axis=1) - statistic(drawn[1], axis=1)
    low, high = np.quantile(spread, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # Deterministic worlds give equal numbers, whose means differ in the last bit.
    verdict = "higher" if low > _ZERO else "lower" if high < -_ZERO else "not shown to differ"
    value = float(statistic(ours)) - float(statistic(theirs))
    return {"value": value, "low": float(low), "high": float(high), "verdict": verdict}


def _generator() -> np.random.Generator:
    return np.random.default_rng(0)
