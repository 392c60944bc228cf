"""What do several trainings of an agent show together, over training seeds and over tasks?

    IQM           mean of the middle half of all runs (a quarter is cut off at either end)
    P(X > Y)      chance that a run of X scores higher than one of Y on the same task, ties as half,
                  averaged over tasks
    profile       share of runs that score above tau, for each tau
    intervals     stratified bootstrap: runs are drawn anew within each task; or cluster bootstrap:
                  training seeds are drawn anew, each with all of its episodes

Definitions after Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical
Precipice (2021), whose library the tests compare with. Percentile intervals of so few seeds are
too narrow: `scripts/coverage.py` measures by how much, and the report says so. `seed_interval`
(Student's t over the seeds' means) keeps its promise where the means are about normal.

A stratum is the list of one task's runs; a cluster the list of one seed's episodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from kcpr_safety.stats import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    Values,
    _sample,
    mean_interval,
)

Strata = Sequence[Values]
Statistic = Callable[[ndarray], ndarray]
"""From values along the last axis, whatever stands before it, to one number each."""


def iqm(values: Float[ndarray, "*draws n"]) -> Float[ndarray, "*draws"]:
    """Mean of the middle half along the last axis."""
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    middle: ndarray = ordered[..., cut : ordered.shape[-1] - cut].mean(-1)
    return middle


def stratified_interval(
    strata: Strata,
    statistic: Statistic,
    generator: np.random.Generator,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """`statistic` of all runs of all tasks, with a stratified percentile bootstrap interval."""
    spread = statistic(_redrawn(strata, generator, resamples))
    found = _percentiles(statistic(_pooled(strata)), spread, confidence)
    return found if _drawable(strata) else _open(found)


def probability_of_improvement(ours: Strata, theirs: Strata) -> float:
    """Chance that a run of ours scores higher than one of theirs, averaged over tasks."""
    return float(np.mean([_beats(x, y) for x, y in _pairs(ours, theirs)]))


def improvement_interval(
    ours: Strata,
    theirs: Strata,
    generator: np.random.Generator,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """Probability of improvement; both agents' runs are drawn anew within each task."""
    spread = np.zeros(resamples)
    for x, y in _pairs(ours, theirs):
        drawn_x, drawn_y = (_redrawn([z], generator, resamples) for z in (x, y))
        spread += _beats(drawn_x, drawn_y) / len(ours)
    found = _percentiles(probability_of_improvement(ours, theirs), spread, confidence)
    return found if _drawable([*ours, *theirs]) else _open(found)


def profile(
    strata: Strata, taus: Values, generator: np.random.Generator, resamples: int = RESAMPLES
) -> list[Interval]:
    """Share of runs above each tau, with pointwise intervals."""
    pooled, redrawn = _pooled(strata), _redrawn(strata, generator, resamples)
    points = [
        _percentiles((pooled > tau).mean(), (redrawn > tau).mean(-1), CONFIDENCE) for tau in taus
    ]
    return points if _drawable(strata) else [_open(point) for point in points]


def cluster_interval(
    clusters: Strata,
    statistic: Callable[[ndarray], float],
    generator: np.random.Generator,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """`statistic` of all episodes of all seeds; whole seeds are drawn anew.

    Episodes of one policy are alike, so that fifty of them are no fifty trainings. Of a single seed
    nothing can be said about others: the interval is the whole line.
    """
    each = [_sample(cluster) for cluster in clusters]
    value = float(statistic(np.concatenate(each)))
    if len(each) == 1:
        return _open(Interval(value, value, value))
    draws = generator.integers(0, len(each), size=(resamples, len(each)))
    spread = [statistic(np.concatenate([each[i] for i in draw])) for draw in draws]
    return _percentiles(value, np.asarray(spread), confidence)


def seed_interval(clusters: Strata, confidence: float = CONFIDENCE) -> Interval:
    """Mean over training seeds of each seed's mean, with Student's t interval over seeds."""
    return mean_interval([float(_sample(cluster).mean()) for cluster in clusters], confidence)


def first_feasible(punishments: Values, budget: float) -> int | None:
    """Index of the first policy on the way whose mean punishment is within the budget."""
    within: Bool[ndarray, n] = np.asarray(punishments, dtype=np.float64) <= budget
    return int(within.argmax()) if within.any() else None


def largest_fall(returns: Values, punishments: Values, budget: float) -> float | None:
    """How far a later return fell below that of the best policy within the budget so far; 0 where
    none did, None where no policy was within."""
    best, fall, met = -np.inf, 0.0, False
    for returned, punished in zip(returns, punishments, strict=True):
        if met:
            fall = max(fall, float(best - returned))
        if punished <= budget:
            best, met = max(best, returned), True
    return fall if met else None


@dataclass(frozen=True)
class Calibration:
    """How far predicted punishment is from what followed."""

    bias: float
    """Mean of predicted - realised; below zero danger is underestimated."""
    error: float
    """Root of the mean squared difference."""
    ratio: float | None
    """Sum of all predictions over the sum of what followed; None where nothing followed."""


def calibration(predicted: Values, realised: Values) -> Calibration:
    """Predictions beside what followed, pair by pair."""
    p, r = _sample(predicted), _sample(realised)
    if p.size != r.size:
        raise ValueError(f"{p.size} predictions cannot be held against {r.size} outcomes")
    total = float(r.sum())
    return Calibration(
        bias=float((p - r).mean()),
        error=float(np.sqrt(((p - r) ** 2).mean())),
        ratio=float(p.sum()) / total if total > 0 else None,
    )


def _drawable(strata: Strata) -> bool:
    """Whether drawing anew can give anything but the same: some task has more than one run."""
    return any(np.size(stratum) > 1 for stratum in strata)


def _open(found: Interval) -> Interval:
    """The value alone, for there is nothing to draw from: the interval is the whole line."""
    return Interval(found.value, -np.inf, np.inf)


def _pairs(ours: Strata, theirs: Strata) -> list[tuple[ndarray, ndarray]]:
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"{len(ours)} tasks cannot be held against {len(theirs)}")
    return [(_sample(x), _sample(y)) for x, y in zip(ours, theirs, strict=True)]


def _beats(x: Float[ndarray, "*draws n"], y: Float[ndarray, "*draws m"]) -> ndarray:
    """Share of pairs in which x is higher; ties count half."""
    left, right = x[..., :, None], y[..., None, :]
    share: ndarray = ((left > right) + 0.5 * (left == right)).mean((-2, -1))
    return share


def _pooled(strata: Strata) -> Float[ndarray, "n"]:
    return np.concatenate([_sample(stratum) for stratum in strata])


def _redrawn(
    strata: Strata, generator: np.random.Generator, resamples: int
) -> Float[ndarray, "resamples n"]:
    parts = []
    for stratum in strata:
        values = _sample(stratum)
        parts.append(values[generator.integers(0, values.size, size=(resamples, values.size))])
    return np.concatenate(parts, axis=-1)


def _percentiles(value: float | ndarray, spread: ndarray, confidence: float) -> Interval:
    low, high = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))
