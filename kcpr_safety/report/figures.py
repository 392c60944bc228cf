"""How are numbers drawn so that they read alike on a phone, on paper, in the dark and by ear?

Figures are inline SVG made of plain strings: no drawing library, no random ids, the same numbers
give the same bytes. Colours and dashes are CSS classes of the page (`c0`, `d1`, ...), so light,
dark and print share one drawing. Every figure is an image with a text alternative.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from kcpr_safety.report.numbers import short, steps_label, thin, ticks
from kcpr_safety.stats import Interval

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 34
COLOURS, DASHES = 6, 4


@dataclass(frozen=True)
class Style:
    """Which colour and dash of the page's palette a run has."""

    colour: int
    dash: int = 0

    @property
    def css(self) -> str:
        return f"c{self.colour % COLOURS} d{self.dash % DASHES}"


@dataclass(frozen=True)
class Series:
    """One line; NaN breaks it. With `dots`, single points instead."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style
    dots: bool = False
    low: Sequence[float] = ()
    """With `high`, a band about the line; point by point, or none at all."""
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Scale:
    """Numbers to pixels."""

    low: float
    high: float
    first: float
    last: float
    knee: float = 0.0
    """Beyond it, if there is one, equal factors take equal space."""

    def __call__(self, value: float) -> float:
        low, high = self._bend(self.low), self._bend(self.high)
        share = (self._bend(value) - low) / ((high - low) or 1.0)
        return self.first + share * (self.last - self.first)

    def _bend(self, value: float) -> float:
        return math.asinh(value / self.knee) if self.knee else value


def line_chart(
    series: Sequence[Series],
    unit: str,
    alt: str,
    *,
    budget: float | None = None,
    zero: bool = False,
    x_name: str = "environment steps",
    x_label: Callable[[float], str] = steps_label,
) -> str:
    """Lines over environment steps (or what `x_name` says), with the budget if there is one.

    Where the largest value is far beyond the budget, the axis is compressed towards the top, so
    that the part that matters can still be read; the unit then says so.
    """
    xs = [x for s in series for x in s.x]
    ys = [y for s in series for y in (*s.y, *s.low, *s.high) if not math.isnan(y)]
    if not ys:
        return _frame([_text(WIDTH / 2, HEIGHT / 2, "no values", "tick", "middle")], alt)
    low, high = min(ys), max(ys)
    low = min(low, 0.0) if zero or budget is not None else low
    high = max(high, 1.4 * budget) if budget is not None else high
    pad = 0.05 * ((high - low) or abs(high) or 1.0)
    knee = 0.0
    if budget is not None and high > 5 * max(budget, 1.0):
        knee = max(budget, 1.0) / 2
        unit += " (axis compressed)"
    bottom = low if low == 0 else low - pad
    across = Scale(0.0, max(xs), LEFT, WIDTH - RIGHT)
    up = Scale(bottom, high + pad, HEIGHT - BOTTOM, TOP, knee)
    parts = _axes(across, up, unit, x_label, x_name)
    if budget is not None:
        y = up(budget)
        parts.append(
            f'<rect class="forbidden" x="{LEFT}" y="{TOP}" width="{WIDTH - RIGHT - LEFT}" '
            f'height="{_px(y - TOP)}"/>'
            f'<line class="budget" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_px(y)}" y2="{_px(y)}"/>'
        )
        parts.append(_text(WIDTH - RIGHT - 3, y - 5, f"budget {short(budget)}", "limit", "end"))
    parts += [_band(s, across, up) for s in series if s.low]
    parts += [_dots(s, across, up) if s.dots else _line(s, across, up) for s in series]
    return _frame(parts, alt)


def exceedance_chart(rows: Sequence[tuple[Sequence[float], Style]], budget: float, alt: str) -> str:
    """Share of episodes that are punished more than x, for each x; where a line crosses the budget
    stands the share over budget. Far beyond the budget the axis is compressed."""
    most = max([1.4 * budget, 1.0, *(max(values) for values, _ in rows)])
    knee = max(budget, 1.0) if most > 4 * max(budget, 1.0) else 0.0
    across = Scale(0.0, most, LEFT, WIDTH - RIGHT, knee)
    up = Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    name = "punishment of an episode" + (" (axis compressed)" if knee else "")
    parts = _axes(across, up, "share of episodes above", short, name)
    x = across(budget)
    parts.append(
        f'<rect class="forbidden" x="{_px(x)}" y="{TOP}" width="{_px(WIDTH - RIGHT - x)}" '
        f'height="{HEIGHT - BOTTOM - TOP}"/>'
        f'<line class="budget" x1="{_px(x)}" x2="{_px(x)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    )
    parts.append(_limit(x, budget))
    for values, style in rows:
        ordered, count = sorted(values), len(values)
        path = [f"M{_px(across(0.0))} {_px(up(1.0))}"]
        for i, value in enumerate(ordered, start=1):
            if i == count or ordered[i] != value:
                path.append(f"H{_px(across(value))}V{_px(up(1 - i / count))}")
        parts.append(f'<path class="line {style.css}" d="{"".join(path)}"/>')
    return _frame(parts, alt)


def scatter(series: Sequence[Series], x_name: str, y_name: str, alt: str) -> str:
    """Predicted against measured, with the diagonal of perfect prediction."""
    pairs = [
        (x, y)
        for s in series
        for x, y in zip(s.x, s.y, strict=True)
        if not (math.isnan(x) or math.isnan(y))
    ]
    if not pairs:
        return _frame([_text(WIDTH / 2, HEIGHT / 2, "no values", "tick", "middle")], alt)
    top = 1.06 * max(max(x for x, _ in pairs), max(y for _, y in pairs), 1e-9)
    low = min(0.0, min(y for _, y in pairs), min(x for x, _ in pairs))
    across = Scale(low, top, LEFT, WIDTH - RIGHT)
    up = Scale(low, top, HEIGHT - BOTTOM, TOP)
    parts = _axes(across, up, y_name, short, x_name)
    parts.append(
        f'<line class="diagonal" x1="{_px(across(low))}" y1="{_px(up(low))}" '
        f'x2="{_px(across(top))}" y2="{_px(up(top))}"/>'
    )
    parts.append(_text(LEFT + 8, TOP + 14, "predicts too much", "hint"))
    parts.append(
        _text(WIDTH - RIGHT - 6, HEIGHT - BOTTOM - 8, "predicts too little", "hint", "end")
    )
    parts += [_dots(s, across, up) for s in series]
    return _frame(parts, alt)


def episodes_chart(
    rows: Sequence[tuple[str, Sequence[float], Interval, Style]], budget: float, alt: str
) -> str:
    """Punishment of every evaluation episode: one dot each, mean and interval below."""
    top = 30
    # A few rows share the height of the other figures; many make a taller one.
    row_height = max(62, (HEIGHT - top - BOTTOM) // len(rows))
    height = top + row_height * len(rows) + BOTTOM
    largest = max([budget * 1.4, *(max(values) for _, values, _, _ in rows)])
    left = 16
    across = Scale(0.0, (largest or 1.0) * 1.03, left, WIDTH - RIGHT)
    parts = _ticks_below(across, height, short, "punishment of an episode", top)
    x = across(budget)
    parts.append(
        f'<rect class="forbidden" x="{_px(x)}" y="{top}" width="{_px(WIDTH - RIGHT - x)}" '
        f'height="{height - BOTTOM - top}"/>'
        f'<line class="budget" x1="{_px(x)}" x2="{_px(x)}" y1="{top}" y2="{height - BOTTOM}"/>'
    )
    parts.append(_text(x, top - 7, f"budget {short(budget)}", "limit", "middle"))
    for i, (label, values, mean, style) in enumerate(rows):
        base = top + row_height * i + (row_height - 62) // 2
        parts.append(_text(left + 2, base + 14, label, "row"))
        parts.append(_swarm(values, across, base + 43, style))
        low, high = (across(_within(v, across)) for v in (mean.low, mean.high))
        parts.append(
            f'<line class="interval {style.css}" x1="{_px(low)}" '
            f'x2="{_px(high)}" y1="{base + 52}" y2="{base + 52}"/>'
            f'<line class="mean {style.css}" x1="{_px(across(mean.value))}" '
            f'x2="{_px(across(mean.value))}" y1="{base + 47}" y2="{base + 57}"/>'
        )
    return _frame(parts, alt, height)


def trade_chart(
    rows: Sequence[tuple[Sequence[float], Sequence[float], Interval, Interval, Style]],
    budget: float,
    alt: str,
    of: str = "of an episode",
) -> str:
    """Return against punishment: a small dot each, a cross for the means' intervals."""
    xs = [x for punishments, _, _, _, _ in rows for x in punishments]
    ys = [y for _, returns, _, _, _ in rows for y in returns]
    pad = 0.08 * ((max(ys) - min(ys)) or abs(max(ys)) or 1.0)
    across = Scale(0.0, max([*xs, 1.4 * budget, 1.0]) * 1.03, LEFT, WIDTH - RIGHT)
    up = Scale(min(ys) - pad, max(ys) + pad, HEIGHT - BOTTOM, TOP)
    parts = _axes(across, up, f"return {of}", short, f"punishment {of}")
    x = across(budget)
    parts.append(
        f'<rect class="forbidden" x="{_px(x)}" y="{TOP}" width="{_px(WIDTH - RIGHT - x)}" '
        f'height="{HEIGHT - BOTTOM - TOP}"/>'
        f'<line class="budget" x1="{_px(x)}" x2="{_px(x)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    )
    parts.append(_limit(x, budget))
    for punishments, returns, punished, returned, style in rows:
        parts.append(_dots(Series("", punishments, returns, style), across, up))
        left, right = (across(_within(v, across)) for v in (punished.low, punished.high))
        low, high = (up(_within(v, up)) for v in (returned.low, returned.high))
        mid_x, mid_y = across(punished.value), up(returned.value)
        parts.append(
            f'<path class="cross {style.css}" d="M{_px(left)} {_px(mid_y)}L{_px(right)} '
            f'{_px(mid_y)}M{_px(mid_x)} {_px(low)}L{_px(mid_x)} {_px(high)}"/>'
        )
    return _frame(parts, alt)


def gauge(mean: Interval, budget: float, alt: str, verdict: str) -> str:
    """Mean punishment with its interval, against the budget, on one line."""
    width, height = 320, 46
    most = max(1.5 * budget, 1.1 * mean.value, 1.0)
    most = max(most, min(1.1 * mean.high, 2.5 * most)) if math.isfinite(mean.high) else most
    across = Scale(0.0, most, 4, width - 4)
    low, high = max(0.0, mean.low), min(mean.high, most)
    x = _px(across(budget))
    anchor = "middle" if 0.2 < budget / most < 0.8 else "start" if budget / most <= 0.2 else "end"
    parts = [
        f'<line class="track" x1="4" x2="{width - 4}" y1="15" y2="15"/>',
        f'<line class="spread {verdict}" x1="{_px(across(low))}" x2="{_px(across(high))}" '
        'y1="15" y2="15"/>',
        f'<circle class="spot {verdict}" cx="{_px(across(mean.value))}" cy="15" r="6"/>',
        f'<line class="budget" x1="{x}" x2="{x}" y1="4" y2="27"/>',
        _text(float(x), 41, f"budget {short(budget)}", "limit", anchor),
    ]
    return _frame(parts, alt, height, width, "gauge")


def swatch(style: Style) -> str:
    """A piece of the line for a legend; the words stand beside it."""
    return (
        '<svg class="swatch" viewBox="0 0 28 10" width="28" height="10" aria-hidden="true">'
        f'<line class="line {style.css}" x1="1" x2="27" y1="5" y2="5"/></svg>'
    )


# ------------------------------------------------------------------------------------------ parts


def _frame(
    parts: Sequence[str], alt: str, height: int = HEIGHT, width: int = WIDTH, css: str = "chart"
) -> str:
    return (
        f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(alt)}">{"".join(parts)}</svg>'
    )


def _axes(
    across: Scale,
    up: Scale,
    unit: str,
    x_label: Callable[[float], str] = steps_label,
    x_name: str = "environment steps",
) -> list[str]:
    parts = _ticks_below(across, HEIGHT, x_label, x_name, TOP)
    last = math.inf
    for value in _bent_ticks(up) if up.knee else ticks(up.low, up.high):
        y = up(value)
        if last - y < 16:
            continue
        last = y
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_px(y)}" y2="{_px(y)}"/>'
        )
        parts.append(_text(LEFT - 7, y + 4, short(value), "tick", "end"))
    parts.append(_text(4, 14, unit, "unit"))
    return parts


def _bent_ticks(up: Scale) -> list[float]:
    """0 and 1, 2, 5 times powers of ten."""
    powers = [m * 10.0**p for p in range(-1, 7) for m in (1, 2, 5)]
    return [value for value in (0.0, *powers) if up.low <= value <= up.high]


def _ticks_below(
    across: Scale, height: int, label: Callable[[float], str], name: str, top: float
) -> list[str]:
    parts = []
    base = height - BOTTOM
    last = -math.inf
    for value in _bent_ticks(across) if across.knee else ticks(across.low, across.high, 4):
        x = across(value)
        if x - last < 34:
            continue
        last = x
        parts.append(f'<line class="grid" x1="{_px(x)}" x2="{_px(x)}" y1="{top}" y2="{base}"/>')
        parts.append(_text(x, base + 15, label(value), "tick", "middle"))
    parts.append(_text(WIDTH - RIGHT, height - 4, name, "unit", "end"))
    return parts


def _line(series: Series, across: Scale, up: Scale) -> str:
    path, pen = [], "M"
    for x, y in zip(*thin(series.x, series.y), strict=True):
        if math.isnan(y):
            pen = "M"
            continue
        path.append(f"{pen}{_px(across(x))} {_px(up(y))}")
        pen = "L"
    return f'<path class="line {series.style.css}" d="{"".join(path)}"/>'


def _band(series: Series, across: Scale, up: Scale) -> str:
    """Between low and high; NaN begins a new piece."""
    pieces: list[list[tuple[float, float, float]]] = [[]]
    for x, low, high in zip(series.x, series.low, series.high, strict=True):
        if math.isnan(low + high):
            pieces.append([])
        else:
            pieces[-1].append((across(x), up(_within(low, up)), up(_within(high, up))))
    path = ""
    for piece in pieces:
        there = "L".join(f"{_px(x)} {_px(y)}" for x, _, y in piece)
        back = "L".join(f"{_px(x)} {_px(y)}" for x, y, _ in reversed(piece))
        path += f"M{there}L{back}Z" if piece else ""
    return f'<path class="band {series.style.css}" d="{path}"/>'


def _dots(series: Series, across: Scale, up: Scale) -> str:
    return "".join(
        f'<circle class="dot {series.style.css}" cx="{_px(across(x))}" cy="{_px(up(y))}" r="3.2"/>'
        for x, y in zip(series.x, series.y, strict=True)
        if not (math.isnan(x) or math.isnan(y))
    )


def _swarm(values: Sequence[float], across: Scale, base: float, style: Style) -> str:
    """Dots that would hide each other are stacked."""
    heights: dict[int, int] = {}
    tallest = max(sum(round(across(v) / 6) == round(across(w) / 6) for w in values) for v in values)
    rise = min(5.5, 22 / max(tallest - 1, 1))
    parts = []
    for value in sorted(values):
        x = across(value)
        level = heights.get(round(x / 6), 0)
        heights[round(x / 6)] = level + 1
        y = _px(base - rise * level)
        parts.append(f'<circle class="dot {style.css}" cx="{_px(x)}" cy="{y}" r="2.8"/>')
    return "".join(parts)


def _text(x: float, y: float, words: str, css: str, anchor: str = "start") -> str:
    return (
        f'<text class="{css}" x="{_px(x)}" y="{_px(y)}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def _limit(x: float, budget: float) -> str:
    """The budget's name beside its upright line, where there is room for it."""
    room = x < 0.75 * WIDTH
    return _text(
        x + 5 if room else x - 5,
        TOP + 13,
        f"budget {short(budget)}",
        "limit",
        "start" if room else "end",
    )


def _within(value: float, scale: Scale) -> float:
    """An interval's end may lie beyond the drawing."""
    return min(max(value, scale.low), scale.high)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
