"""Do the statistics over seeds and tasks agree with rliable's, and with counting by hand?"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcpr_safety.stats import Interval, cvar
from kcpr_safety.stats.trainings import (
    calibration,
    cluster_interval,
    first_feasible,
    improvement_interval,
    iqm,
    largest_fall,
    probability_of_improvement,
    profile,
    seed_interval,
    stratified_interval,
)

SHAPES = [(3, 1), (5, 10), (10, 4), (7, 3)]


def scores(runs: int, tasks: int, seed: int = 0) -> np.ndarray:
    """Rounded, so that ties occur."""
    return np.random.default_rng(seed).normal(0.5, 0.4, (runs, tasks)).round(1)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


class TestAgainstRliable:
    """The library of the paper's authors, on shared data (extra `oracles`)."""

    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("rliable", reason="pip install rliable to compare with it")

    @pytest.mark.parametrize("shape", SHAPES)
    def test_iqm(self, shape: tuple[int, int]) -> None:
        from rliable import metrics

        data = scores(*shape)
        assert float(iqm(data.ravel())) == pytest.approx(metrics.aggregate_iqm(data), abs=1e-9)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_probability_of_improvement(self, shape: tuple[int, int]) -> None:
        from rliable import metrics

        ours, theirs = scores(*shape), scores(shape[0] + 2, shape[1], seed=1)
        expected = metrics.probability_of_improvement(ours, theirs)
        found = probability_of_improvement(list(ours.T), list(theirs.T))
        assert found == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_profile(self, shape: tuple[int, int]) -> None:
        from rliable import library

        data, taus = scores(*shape), np.linspace(-0.5, 1.5, 21).round(1)
        expected = [library.run_score_deviation(data, tau) for tau in taus]
        found = [point.value for point in profile(list(data.T), taus, generator(), resamples=10)]
        np.testing.assert_allclose(found, expected, atol=1e-9)

    def test_interval_of_the_same_draws(self) -> None:
        """With rliable's own resamples in place of ours the interval is rliable's."""
        from rliable import library, metrics

        data = scores(5, 6)
        # Whatever it is given, it draws from numpy's global generator.
        np.random.seed(3)  # noqa: NPY002
        _, theirs = library.get_interval_estimates(
            {"agent": data}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=200
        )
        np.random.seed(3)  # noqa: NPY002
        drawn = library.StratifiedBootstrap(data)
        spread = [float(iqm(sample[0][0].ravel())) for sample in drawn.bootstrap(200)]
        low, high = np.quantile(spread, [0.025, 0.975])
        np.testing.assert_allclose([low, high], theirs["agent"][:, 0], atol=1e-9)

    def test_interval_of_our_draws_is_close(self) -> None:
        """Same distribution, other draws: the ends agree to within the noise of many resamples."""
        from rliable import library, metrics

        data = np.random.default_rng(5).normal(0.5, 0.4, (5, 6))
        _, theirs = library.get_interval_estimates(
            {"agent": data},
            lambda x: np.array([metrics.aggregate_iqm(x)]),
            reps=3000,
        )
        ours = stratified_interval(list(data.T), iqm, generator(), resamples=3000)
        np.testing.assert_allclose([ours.low, ours.high], theirs["agent"][:, 0], atol=0.02)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], 1.0),
        ([1, 2, 3], 2.0),  # a quarter of three is no run: nothing is cut
        ([0, 1, 2, 100], 1.5),
        ([0, 0, 1, 2, 3, 4, 50, 90], 2.5),
    ],
)
def test_iqm_by_hand(values: list[float], expected: float) -> None:
    assert iqm(np.array(values, dtype=float)) == expected


def test_one_wild_run_does_not_move_the_iqm() -> None:
    calm = np.arange(8.0)
    wild = calm.copy()
    wild[-1] = 1e9
    assert iqm(calm) == iqm(wild)


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=6), st.lists(st.integers(-3, 3), min_size=1)
)
def test_improvement_counts_pairs(x: list[int], y: list[int]) -> None:
    pairs = list(itertools.product(x, y))
    counted = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert probability_of_improvement([x], [y]) == pytest.approx(counted)
    assert probability_of_improvement([y], [x]) == pytest.approx(1 - counted)


def test_improvement_averages_tasks_not_runs() -> None:
    """One task is won by nine runs, one lost by one: even."""
    assert probability_of_improvement([[2.0] * 9, [0.0]], [[1.0], [1.0]]) == 0.5


def test_improvement_interval_contains_its_value_and_knows_certainty() -> None:
    sure = improvement_interval([[2.0, 3.0]], [[0.0, 1.0]], generator())
    assert sure == Interval(1.0, 1.0, 1.0)
    ours, theirs = scores(5, 3), scores(5, 3, seed=1)
    found = improvement_interval(list(ours.T), list(theirs.T), generator())
    assert found.low < found.value < found.high


def test_strata_are_drawn_apart() -> None:
    """Tasks of one value each: drawing within tasks changes nothing, drawing across would."""
    found = stratified_interval(
        [[0.0, 0.0], [1.0, 1.0], [8.0, 8.0]], lambda x: x.mean(-1), generator()
    )
    assert found == Interval(3.0, 3.0, 3.0)


def test_profile_falls_from_all_to_none() -> None:
    points = profile(list(scores(5, 4).T), [-9.0, 0.3, 0.5, 0.7, 9.0], generator())
    values = [point.value for point in points]
    assert values[0] == 1.0 and values[-1] == 0.0
    assert values == sorted(values, reverse=True)
    assert all(point.low <= point.value <= point.high for point in points)


def test_clusters_are_drawn_whole() -> None:
    """Two seeds, one safe in every episode and one in none: the share may be 0, 1/2 or 1 alone."""

    seen: set[float] = set()

    def share(values: np.ndarray) -> float:
        seen.add(float((values > 25).mean()))
        return float((values > 25).mean())

    found = cluster_interval([[0.0] * 50, [60.0] * 50], share, generator())
    assert seen == {0.0, 0.5, 1.0}
    assert found == Interval(0.5, 0.0, 1.0)


def test_fifty_episodes_of_one_seed_say_nothing_of_others() -> None:
    found = cluster_interval([list(range(50))], cvar, generator())
    assert found.value == cvar(list(range(50)))
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_single_runs_leave_everything_open() -> None:
    """Drawn anew they are the same: no width would look like certainty."""
    ours, theirs = [[1.0], [2.0]], [[0.0], [3.0]]
    for found in (
        stratified_interval(ours, iqm, generator()),
        improvement_interval(ours, theirs, generator()),
        *profile(ours, [0.5, 1.5], generator()),
    ):
        assert (found.low, found.high) == (-np.inf, np.inf)
    assert improvement_interval(ours, theirs, generator()).value == 0.5


def test_clusters_may_differ_in_size() -> None:
    found = cluster_interval([[1.0], [2.0, 3.0, 4.0]], lambda x: float(x.mean()), generator())
    assert found.value == 2.5 and found.low <= 2.5 <= found.high


def test_seed_interval_by_hand() -> None:
    """Seed means 1, 2, 3: s = 1, 1 / sqrt(3) = .57735, t(2) = 4.30265."""
    found = seed_interval([[0.0, 2.0], [2.0], [3.0, 3.0]])
    assert found.value == 2.0
    assert found.high - 2.0 == pytest.approx(2.48413, abs=1e-4)


@pytest.mark.parametrize(
    ("punishments", "expected"),
    [([30, 26, 25, 40, 3], 2), ([30, 31], None), ([], None), ([0.0], 0), ([np.nan, 3], 1)],
)
def test_first_feasible(punishments: list[float], expected: int | None) -> None:
    assert first_feasible(punishments, 25.0) == expected


def test_calibration_by_hand() -> None:
    found = calibration([1.0, 3.0], [2.0, 6.0])
    assert found.bias == -2.0
    assert found.error == pytest.approx(5**0.5)
    assert found.ratio == 0.5
    assert calibration([0.2], [0.0]).ratio is None


def test_what_does_not_fit_together_is_refused() -> None:
    for call in (
        lambda: probability_of_improvement([[1.0]], [[1.0], [2.0]]),
        lambda: probability_of_improvement([], []),
        lambda: calibration([1.0], [1.0, 2.0]),
        lambda: stratified_interval([[1.0], [np.nan]], iqm, generator()),
        lambda: cluster_interval([[1.0], []], cvar, generator()),
    ):
        with pytest.raises(ValueError, match=r"cannot be held against|finite"):
            call()


@pytest.mark.parametrize(
    ("returns", "punishments", "fall"),
    [
        ([5.0, 9.0, 2.0, 8.0], [0.0, 99.0, 0.0, 0.0], 3.0),  # 9 was over: nothing to fall from
        ([5.0, 9.0, 2.0, 8.0], [0.0, 25.0, 99.0, 0.0], 7.0),  # the fall counts, whatever it suffers
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], 0.0),
        ([1.0, 2.0], [30.0, 30.0], None),
    ],
)
def test_the_largest_fall_is_from_the_best_policy_within(
    returns: list[float], punishments: list[float], fall: float | None
) -> None:
    assert largest_fall(returns, punishments, 25.0) == fall
