"""How are numbers written and rounded for a human eye?"""

import math
from collections.abc import Sequence

_MOST_POINTS = 300


def short(value: float) -> str:
    """A number for a human eye: 2,512 · 14.2 · 0.043."""
    if not math.isfinite(value):
        return "–"
    if value and abs(value) < 0.001:
        return f"{value:.1e}".replace("-", "−")
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    text = f"{value:,.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return ("0" if text in ("-0", "") else text).replace("-", "−")


def span(low: float, high: float) -> str:
    """ "15.0 to 20.6": both ends with the same number of decimals."""
    size = max(abs(low), abs(high))
    digits = 3 if size < 1 else 2 if size < 10 else 1 if size < 1000 else 0
    return " to ".join(f"{value:,.{digits}f}".replace("-", "−") for value in (low, high))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def steps_label(value: float) -> str:
    """Environment steps: 80k, 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `_MOST_POINTS` points: means over equal numbers of neighbours; a gap stays one."""
    size = math.ceil(len(x) / _MOST_POINTS) or 1
    blocks = [slice(i, i + size) for i in range(0, len(x), size)]
    return (
        [math.fsum(x[b]) / len(x[b]) for b in blocks],
        [math.fsum(y[b]) / len(y[b]) for b in blocks],
    )
