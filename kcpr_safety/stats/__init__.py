"""How sure may one be of a mean, a share or a worst case that was seen in so few episodes?

    mean        Student's t interval, mean +- t(n-1) s / sqrt(n); or a percentile bootstrap
    difference  Welch's t interval: the two samples' variances need not be equal
    share       exact binomial interval (Clopper and Pearson, 1934): 0 of 50 still allows 7.1 %
    worst case  CVaR at level a: mean of the worst 1 - a of the episodes, the last one in part
                (Rockafellar and Uryasev, 2000)

All need independent episodes of one fixed policy: they say nothing about other training seeds.
numpy and the standard library only. What many trainings show together is in `stats.trainings`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

CONFIDENCE = 0.95
TENTHS = 10
CVAR_LEVEL = 0.9
RESAMPLES = 2000

Values = Sequence[float] | Float[ndarray, "n"]


@dataclass(frozen=True)
class Interval:
    """A value with the range that the data cannot rule out."""

    value: float
    low: float
    high: float


class Tenth(NamedTuple):
    """Steps whose predictions are much alike."""

    steps: int
    predicted: float
    """Mean of what was predicted there."""
    realised: float
    """Mean of what followed."""


def tenths(
    predicted: Float[ndarray, "n"], realised: Float[ndarray, "n"], parts: int = TENTHS
) -> tuple[Tenth, ...]:
    """Reliability: what was predicted beside what followed, by tenths of the prediction.

    The lowest predictions come first; fewer than ten steps give fewer parts, none give none.
    """
    order = np.array_split(np.argsort(predicted, kind="stable"), parts)
    return tuple(
        Tenth(len(rows), float(predicted[rows].mean()), float(realised[rows].mean()))
        for rows in order
        if len(rows)
    )


class Line(NamedTuple):
    """realised = offset + slope * predicted"""

    offset: float
    slope: float


def fitted_line(predicted: Float[ndarray, "n"], realised: Float[ndarray, "n"]) -> Line:
    """Least squares, so that both have the same mean on the line; it never falls.

    Predictions that are all alike say nothing of the slope, which is then 1; none give (0, 1).
    """
    if predicted.size == 0:
        return Line(0.0, 1.0)
    centred = predicted - predicted.mean()
    variance = float(np.mean(centred**2))
    slope = max(float(np.mean(centred * realised)) / variance, 0.0) if variance > 0.0 else 1.0
    return Line(float(realised.mean()) - slope * float(predicted.mean()), slope)


def mean_interval(values: Values, confidence: float = CONFIDENCE) -> Interval:
    """Mean with Student's t interval; of a single value the interval is the whole line."""
    array = _sample(values)
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, -math.inf, math.inf)
    error = float(array.std(ddof=1)) / math.sqrt(array.size)
    half = t_quantile((1 + confidence) / 2, array.size - 1) * error
    return Interval(mean, mean - half, mean + half)


def difference_interval(ours: Values, theirs: Values, confidence: float = CONFIDENCE) -> Interval:
    """Mean of ours less mean of theirs, with Welch's t interval (degrees of freedom after
    Satterthwaite); the whole line where either is a single value."""
    a, b = _sample(ours), _sample(theirs)
    value = float(a.mean() - b.mean())
    if min(a.size, b.size) == 1:
        return Interval(value, -math.inf, math.inf)
    parts = [float(x.var(ddof=1)) / x.size for x in (a, b)]
    total = sum(parts)
    if total == 0.0:
        return Interval(value, value, value)
    freedom = total**2 / sum(part**2 / (x.size - 1) for part, x in zip(parts, (a, b), strict=True))
    half = t_quantile((1 + confidence) / 2, freedom) * math.sqrt(total)
    return Interval(value, value - half, value + half)


def bootstrap_interval(
    values: Values,
    statistic: Callable[[Float[ndarray, "n"]], float],
    generator: np.random.Generator,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """`statistic` of the values with a percentile bootstrap interval."""
    array = _sample(values)
    draws = generator.integers(0, array.size, size=(resamples, array.size))
    spread = [statistic(array[draw]) for draw in draws]
    low, high = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(array)), float(low), float(high))


def share_interval(count: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """count / total with the exact binomial interval."""
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"{count} of {total} is no share")
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else beta_quantile(tail, count, total - count + 1)
    high = 1.0 if count == total else beta_quantile(1 - tail, count + 1, total - count)
    return Interval(count / total, low, high)


def over_budget(punishments: Values, budget: float) -> int:
    """How many episodes were punished more than the budget allows."""
    return int((_sample(punishments) > budget).sum())


def cvar(values: Values, level: float = CVAR_LEVEL) -> float:
    """Mean of the largest 1 - `level` of the values."""
    worst_first = -np.sort(-_sample(values))
    tail = (1 - level) * worst_first.size
    weights = np.clip(tail - np.arange(worst_first.size), 0.0, 1.0)
    return float((weights * worst_first).sum() / tail)


def t_quantile(probability: float, freedom: float) -> float:
    """Inverse of Student's t distribution function."""
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    # P(|T| > t) is the regularised incomplete beta function at freedom / (freedom + t^2).
    x = beta_quantile(2 * (1 - probability), freedom / 2, 0.5)
    return math.sqrt(freedom * (1 - x) / x)


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Inverse of `beta_cdf`, by bisection to the last bit that matters."""
    low, high = 0.0, 1.0
    while high - low > 1e-15 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if beta_cdf(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Continued fraction 1 + d1/(1 + d2/(1 + ...)) of I_x, by Lentz's method."""
    value = c = 1.0
    d = 0.0
    for i in range(1, 500):
        m = i // 2
        if i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + term * d)
        c = 1 + term / c
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _sample(values: Values) -> Float[ndarray, "n"]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError("statistics need a list of at least one finite number")
    return array
