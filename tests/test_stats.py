"""Do the intervals agree with published tables, and do they cover what they promise to?"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcpr_safety.stats import (
    beta_cdf,
    beta_quantile,
    bootstrap_interval,
    cvar,
    difference_interval,
    fitted_line,
    mean_interval,
    over_budget,
    share_interval,
    t_quantile,
)


@pytest.mark.parametrize(
    ("probability", "freedom", "table"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 9, 2.26216),
        (0.975, 30, 2.04227),
        (0.995, 5, 4.03214),
        (0.95, 120, 1.65765),
        (0.5, 7, 0.0),
        (0.025, 9, -2.26216),
    ],
)
def test_student_table(probability: float, freedom: int, table: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(table, abs=1e-4)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 50, 0.0, 0.0711),
        (0, 10, 0.0, 0.3085),
        (1, 10, 0.0025, 0.4450),
        (5, 10, 0.1871, 0.8129),
        (10, 10, 0.6915, 1.0),
        (4, 20, 0.0573, 0.4366),
    ],
)
def test_clopper_pearson_table(count: int, total: int, low: float, high: float) -> None:
    share = share_interval(count, total)
    assert share.value == count / total
    assert share.low == pytest.approx(low, abs=1e-4)
    assert share.high == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.35, 0.5])
def test_exact_interval_covers_for_every_count(share: float) -> None:
    """Summed over all outcomes with their exact probabilities: never below the promise."""
    total = 20
    covered = sum(
        math.comb(total, k) * share**k * (1 - share) ** (total - k)
        for k in range(total + 1)
        if share_interval(k, total).low <= share <= share_interval(k, total).high
    )
    assert covered >= 0.95


def test_no_share_of_nothing() -> None:
    for count, total in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="no share"):
            share_interval(count, total)


@given(k=st.integers(1, 30), n=st.integers(1, 30), x=st.floats(0.01, 0.99))
def test_beta_is_a_binomial_tail(k: int, n: int, x: float) -> None:
    """I_x(k, n - k + 1) = P(Binomial(n, x) >= k), an independent way to the same number."""
    n = n + k
    tail = sum(math.comb(n, i) * x**i * (1 - x) ** (n - i) for i in range(k, n + 1))
    assert beta_cdf(x, k, n - k + 1) == pytest.approx(tail, rel=1e-10, abs=1e-13)


@given(a=st.floats(0.5, 200), b=st.floats(0.5, 200), probability=st.floats(1e-6, 1 - 1e-6))
def test_quantile_inverts(a: float, b: float, probability: float) -> None:
    x = beta_quantile(probability, a, b)
    assert beta_cdf(x, a, b) == pytest.approx(probability, rel=1e-6, abs=1e-9)


def test_mean_interval_by_hand() -> None:
    """1, 2, 3, 4, 5: s = 1.5811, s / sqrt(5) = .70711, t(4) = 2.77645."""
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.value == 3
    assert interval.high - 3 == pytest.approx(1.96324, abs=1e-4)
    assert 3 - interval.low == pytest.approx(1.96324, abs=1e-4)
    assert mean_interval([7.0]).low == -math.inf


def test_difference_interval_by_hand() -> None:
    """Of equal sizes and variances it is Student's with 2 n - 2 degrees of freedom."""
    interval = difference_interval([1, 2, 3], [11, 12, 13])
    assert interval.value == -10.0
    half = t_quantile(0.975, 4) * math.sqrt(2 / 3)
    assert interval.low == pytest.approx(-10.0 - half)
    assert interval.high == pytest.approx(-10.0 + half)
    one_varies = difference_interval([1, 2, 3], [5, 5, 5])
    assert one_varies.high - one_varies.value == pytest.approx(t_quantile(0.975, 2) / math.sqrt(3))
    assert difference_interval([4.0], [1.0, 2.0]).high == math.inf
    same = difference_interval([4.0, 4.0], [1.0, 1.0])
    assert (same.low, same.value, same.high) == (3.0, 3.0, 3.0)


def test_difference_interval_covers() -> None:
    """Three trainings beside three, of which one kind varies five times as much."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        ours, theirs = generator.normal(0.0, 1.0, size=3), generator.normal(7.0, 5.0, size=3)
        interval = difference_interval(ours, theirs)
        held += interval.low <= -7.0 <= interval.high
    assert 0.94 <= held / 2000 <= 0.98


def test_mean_interval_covers() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        interval = mean_interval(generator.normal(3.0, 2.0, size=10))
        hits += interval.low <= 3.0 <= interval.high
    assert 0.935 <= hits / 2000 <= 0.965


def test_bootstrap_repeats_and_contains_its_value() -> None:
    values = np.random.default_rng(0).exponential(10.0, size=50)
    one, two = (bootstrap_interval(values, cvar, np.random.default_rng(1)) for _ in range(2))
    assert one == two
    assert one.low < one.value <= one.high
    assert one.value == cvar(values)


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [
        (range(1, 11), 0.9, 10.0),  # the worst one of ten
        (range(1, 11), 0.8, 9.5),
        (range(1, 11), 0.0, 5.5),  # all: the mean
        ([1, 2, 3, 4, 5], 0.9, 5.0),  # half an episode
        (range(1, 16), 0.9, (15 + 0.5 * 14) / 1.5),
    ],
)
def test_cvar_by_hand(values: list[float], level: float, expected: float) -> None:
    assert cvar(list(values), level) == pytest.approx(expected)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0.0, 0.99))
def test_cvar_lies_between_mean_and_worst(values: list[float], level: float) -> None:
    slack = 1e-6 * (1 + max(map(abs, values)))
    assert np.mean(values) - slack <= cvar(values, level) <= max(values) + slack


def test_budget_itself_is_allowed() -> None:
    assert over_budget([24.9, 25.0, 25.1, 60.0], 25.0) == 2


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_nothing_is_averaged_over_what_is_not_finite(values: list[float]) -> None:
    for statistic in (mean_interval, cvar):
        with pytest.raises(ValueError, match="finite"):
            statistic(values)


def test_a_fitted_line_has_the_same_mean_and_never_falls() -> None:
    predicted, noise = np.random.default_rng(0).normal(size=(2, 400))
    line = fitted_line(predicted, 3.0 + 0.5 * predicted + 0.1 * noise)
    assert line == pytest.approx((3.0, 0.5), abs=0.02)
    slope, offset = np.polyfit(predicted, 3.0 + 0.5 * predicted + 0.1 * noise, 1)
    assert line == pytest.approx((offset, slope))
    assert fitted_line(predicted, 3.0 - predicted) == pytest.approx((3.0 - predicted.mean(), 0.0))
    assert fitted_line(np.ones(3), np.full(3, 4.0)) == (3.0, 1.0)
    assert fitted_line(np.empty(0), np.empty(0)) == (0.0, 1.0)
