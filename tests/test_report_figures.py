"""Does a drawing put every number where it belongs?"""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcpr_safety.report.figures import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    Series,
    Style,
    episodes_chart,
    line_chart,
)
from kcpr_safety.report.numbers import short, span, steps_label, thin, ticks
from kcpr_safety.stats import Interval

BLUE = Style(0)


def points(svg: str) -> list[tuple[float, float]]:
    """Vertices of the first data line."""
    (path,) = re.findall(r'<path class="line[^"]*" d="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) ([\d.-]+)", path)]


def test_corners_of_a_chart() -> None:
    """0 to 100 steps, 0 to 10 with the budget at 10: the axis ends at 14 plus 5 %."""
    svg = line_chart([Series("a", [0, 100], [0, 10], BLUE)], "unit", "alt", budget=10.0)
    (x0, y0), (x1, y1) = points(svg)
    assert (x0, x1) == (LEFT, WIDTH - RIGHT)
    assert y0 == HEIGHT - BOTTOM
    height = HEIGHT - BOTTOM - TOP
    assert y1 == pytest.approx(HEIGHT - BOTTOM - height * 10 / 14.7, abs=0.06)
    budget = re.search(r'<line class="budget".*?y1="([\d.]+)"', svg)
    assert budget is not None
    assert float(budget[1]) == y1, "a value at the budget lies on its line"


def test_a_gap_stays_a_gap() -> None:
    svg = line_chart([Series("a", [1, 2, 3, 4, 5], [1, 2, math.nan, 4, 5], BLUE)], "u", "alt")
    path = re.findall(r' d="([^"]*)"', svg)[0]
    assert path.count("M") == 2
    assert path.count("L") == 2


def test_far_over_budget_the_axis_is_compressed_and_says_so() -> None:
    series = [Series("a", [0, 1, 2], [10, 25, 900], BLUE)]
    svg = line_chart(series, "punishment", "alt", budget=25.0)
    assert "axis compressed" in svg
    (_, y10), (_, y25), (_, y900) = points(svg)
    assert y10 - y25 > 20, "below the budget one can still read"
    assert y900 < y25 < y10 < HEIGHT - BOTTOM
    assert "axis compressed" not in line_chart(series, "punishment", "alt")


@given(
    low=st.floats(-1e6, 1e6),
    size=st.floats(1e-3, 1e6),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=5),
    knee=st.sampled_from([0.0, 1.0, 12.5]),
)
def test_scales_keep_order_and_stay_inside(
    low: float, size: float, shares: list[float], knee: float
) -> None:
    scale = Scale(low, low + size, 50.0, 400.0, knee)
    places = [scale(low + share * size) for share in sorted(shares)]
    assert places == sorted(places)
    assert all(50.0 - 1e-3 <= place <= 400.0 + 1e-3 for place in places)


@given(low=st.floats(-1e9, 1e9), size=st.floats(1e-3, 1e9))
def test_ticks_are_few_and_inside(low: float, size: float) -> None:
    high = low + size
    found = ticks(low, high)
    slack = 1e-6 * (abs(low) + size)
    assert 1 <= len(found) <= 7 or size < 1e-6 * abs(low)
    assert all(low - slack <= tick <= high + slack for tick in found)


def test_ticks_are_round() -> None:
    assert ticks(0, 100_000) == [0, 20_000, 40_000, 60_000, 80_000, 100_000]
    assert ticks(-3, 12) == [-2.5, 0, 2.5, 5, 7.5, 10] or ticks(-3, 12) == [0, 5, 10]
    assert ticks(5, 5) == [5]


def test_every_episode_is_a_dot() -> None:
    """Also where they would hide each other; an endless interval ends at the frame."""
    values = [3.0, 3.0, 3.0, 40.0, 12.0]
    row = ("a", values, Interval(12.2, -math.inf, math.inf), BLUE)
    svg = episodes_chart([row], 25.0, "alt")
    dots = re.findall(r'<circle class="dot[^"]*" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert len(dots) == len(set(dots)) == 5
    edge = re.search(r'<line class="budget".*?x1="([\d.]+)"', svg)
    assert edge is not None
    assert sum(float(x) > float(edge[1]) for x, _ in dots) == 1
    assert "inf" not in svg


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=2000))
def test_thinning_keeps_the_mean_and_the_ends(values: list[float]) -> None:
    x = [float(i) for i in range(len(values))]
    thin_x, thin_y = thin(x, values)
    assert len(thin_x) == len(thin_y) <= 300
    assert thin_x == sorted(thin_x)
    assert min(values) - 1e-6 <= min(thin_y) <= max(thin_y) <= max(values) + 1e-6
    if len(values) <= 300:
        assert thin_y == pytest.approx(values)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2512.4, "2,512"),
        (14.25, "14.2"),
        (25.0, "25"),
        (100.0, "100"),
        (0.0429, "0.043"),
        (-3.5, "−3.5"),
        (0.0, "0"),
        (-0.0, "0"),
        (1.2e-5, "1.2e−05"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_other_words() -> None:
    assert span(15.0, 20.61) == "15.0 to 20.6"
    assert span(-213.5, 2560.0) == "−214 to 2,560"
    assert [steps_label(x) for x in (0, 500, 80_000, 1_500_000)] == ["0", "500", "80k", "1.5M"]
