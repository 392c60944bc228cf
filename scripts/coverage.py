"""How often do the report's intervals hold the truth, where there is a truth to hold?

    python scripts/coverage.py             measure, print the table, keep it beside the report
    python scripts/coverage.py --worlds 200    a quicker look; nothing is kept

A made-up agent is trained on 3, 5 or 10 seeds, `--worlds` times. Its seeds differ, as trained
policies do: each has its own mean punishment, drawn log-normally (median 15, spread 0.5) or, as a
hard case, one seed in five fails outright (mean 150). Its 50 episodes spread about that mean
(gamma, shape 2). What is estimated is what infinitely many seeds would give, found from 200,000
of them; tasks in IQM and probability of improvement are four, each with its own level. An interval
that promises 95 % and holds the truth less often than 93 % is too narrow; the report repeats it.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kcpr_safety.files import atomic_write
from kcpr_safety.stats import Interval, cvar, share_interval
from kcpr_safety.stats.trainings import (
    cluster_interval,
    improvement_interval,
    iqm,
    seed_interval,
    stratified_interval,
)

KEPT = Path(__file__).resolve().parent.parent / "kcpr_safety" / "report" / "coverage.json"
SEEDS = (3, 5, 10)
EPISODES, BUDGET, TASKS = 50, 25.0, 4
RESAMPLES = 500
WORLDS = 1000
_TRUTH = 200_000

Draw = Callable[[np.random.Generator, int], np.ndarray]


def steady(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """Punishments [seeds, episodes] of an agent whose seeds differ moderately."""
    means = 15.0 * np.exp(0.5 * generator.standard_normal((seeds, 1)))
    return generator.gamma(2.0, means / 2.0, (seeds, EPISODES))


def fragile(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """The same, but one seed in five fails outright."""
    means = 15.0 * np.exp(0.2 * generator.standard_normal((seeds, 1)))
    means = np.where(generator.random((seeds, 1)) < 0.2, 150.0, means)
    return generator.gamma(2.0, means / 2.0, (seeds, EPISODES))


def share(values: np.ndarray) -> float:
    return float((values > BUDGET).mean())


def scores(generator: np.random.Generator, seeds: int, shift: float = 0.0) -> list[np.ndarray]:
    """Normalised scores of four tasks."""
    return [generator.normal(0.5 + 0.1 * i + shift, 0.15, seeds) for i in range(TASKS)]


def punishment_truths(draw: Draw) -> dict[str, float]:
    everything = draw(np.random.default_rng(1), _TRUTH // EPISODES * 10)
    pooled = everything.ravel()
    return {"mean": float(pooled.mean()), "share": share(pooled), "cvar": cvar(pooled)}


def punishment_intervals(
    draw: Draw, generator: np.random.Generator, seeds: int
) -> dict[str, Interval]:
    data = list(draw(generator, seeds))
    return {
        "mean": seed_interval(data),
        "mean (bootstrap)": cluster_interval(
            data, lambda x: float(x.mean()), generator, resamples=RESAMPLES
        ),
        "share": cluster_interval(data, share, generator, resamples=RESAMPLES),
        "cvar": cluster_interval(data, cvar, generator, resamples=RESAMPLES),
    }


def measure(worlds: int) -> dict[str, dict[str, float]]:
    """Statistic -> number of seeds -> share of worlds whose interval held the truth."""
    found: dict[str, dict[str, float]] = {}

    def note(name: str, seeds: int, hits: list[bool]) -> None:
        found.setdefault(name, {})[str(seeds)] = round(float(np.mean(hits)), 4)

    for draw in (steady, fragile):
        truths = punishment_truths(draw)
        for seeds in SEEDS:
            generator = np.random.default_rng(seeds)
            hits: dict[str, list[bool]] = {}
            for _ in range(worlds):
                for name, held in punishment_intervals(draw, generator, seeds).items():
                    truth = truths[name.split(" ")[0]]
                    hits.setdefault(name, []).append(held.low <= truth <= held.high)
            for name, seen in hits.items():
                note(f"{name}, {draw.__name__} seeds", seeds, seen)
    true_iqm = float(iqm(np.concatenate(scores(np.random.default_rng(1), _TRUTH))))
    true_better = _true_improvement()
    for seeds in SEEDS:
        generator = np.random.default_rng(100 + seeds)
        middle, better, exact = [], [], []
        for _ in range(worlds):
            ours, theirs = scores(generator, seeds, 0.05), scores(generator, seeds)
            held = stratified_interval(theirs, iqm, generator, resamples=RESAMPLES)
            middle.append(held.low <= true_iqm <= held.high)
            held = improvement_interval(ours, theirs, generator, resamples=RESAMPLES)
            better.append(held.low <= true_better <= held.high)
            counted = share_interval(int(generator.binomial(EPISODES, 0.1)), EPISODES)
            exact.append(counted.low <= 0.1 <= counted.high)
        note("IQM over 4 tasks", seeds, middle)
        note("probability of improvement over 4 tasks", seeds, better)
        note("exact share of one policy (any seeds)", seeds, exact)
    return found


def _true_improvement() -> float:
    generator = np.random.default_rng(2)
    pairs = zip(scores(generator, _TRUTH, 0.05), scores(generator, _TRUTH), strict=True)
    return float(np.mean([(x > y).mean() for x, y in pairs]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int)
    worlds = parser.parse_args().worlds
    found = measure(worlds or WORLDS)
    for name, row in found.items():
        told = "  ".join(
            f"{n:>2} seeds {100 * row[n]:5.1f} %{' *' if row[n] < 0.93 else '  '}" for n in row
        )
        print(f"{name:45} {told}")
    print("* under 93 %: the interval is too narrow")
    if worlds is None:
        text = json.dumps({"worlds": WORLDS, "promised": 0.95, "held": found}, indent=1)
        atomic_write(KEPT, (text + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
