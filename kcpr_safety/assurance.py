"""Which ranges, thresholds and limits does the runtime assurance of a controller hold to?

Numbers only, made by a calibration run (`training.calibration`) or, for a policy that was not
calibrated, by `Assurance.none`: no range, no threshold, no limit. They travel as JSON in a run's
`calibration.json`, in a bundle's card and in the contract inside the controller. JSON has no
infinity: an open bound is `null` there and `inf` here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from kcpr_safety.errors import FileFault, SettingsError

SPANS = 3.0
"""The hard range is what training saw, widened on both sides by so many of its spans."""

CHECK_BITS: Mapping[str, int] = {
    "non_finite": 1,
    "out_of_hard_range": 2,
    "outside_training_range": 4,
}
MODE_BITS: Mapping[str, int] = {"avoiding": 1, "blended": 2, "invalid": 4}
STATE = ("steps", "weight", "engaged", "held")
"""Columns of `step`'s state, before the previous action."""


@dataclass(frozen=True)
class Assurance:
    """What `act` and `step` add to a policy; lists are by observation or by action entry."""

    seen_low: tuple[float, ...]
    seen_high: tuple[float, ...]
    """What training saw of each observation entry."""
    seen_in: str
    """Where that was seen, in words."""
    hard_low: tuple[float, ...]
    hard_high: tuple[float, ...]
    """Beyond, an observation is answered with the safe action."""
    safe_action: tuple[float, ...]
    """`Contract.rest`."""
    default_action: tuple[float, ...]
    """Where a soft start begins."""
    slew: tuple[float, ...]
    """Most change of each action entry in one control period, in its unit."""
    soft_start_steps: int
    """Control periods over which actions grow from the default to their full size."""
    gamma: float
    """Discount of the predicted punishment per control period."""
    risk_scale: float
    """What the critics' values are divided by to be punishment."""
    fallback: bool
    """Whether the punishment module may act at all."""
    release: float
    engage: float
    """Risk at which the fallback is let go and called; between the two `act` blends."""
    dwell_steps: int
    """Control periods that a fallback, once called, lasts at least."""
    blend_steps: int
    """Control periods from the nominal action to the fallback's, and back."""

    def __post_init__(self) -> None:
        for name in ("soft_start_steps", "dwell_steps", "blend_steps"):
            if getattr(self, name) < (0 if name == "dwell_steps" else 1):
                raise SettingsError(f"{name} is {getattr(self, name)}; it is a count of steps")
        if not 0.0 <= self.gamma < 1.0 or not 0.0 < self.risk_scale < math.inf:
            raise SettingsError("gamma must lie in [0, 1), and risk_scale above 0")
        if not self.release <= self.engage or math.isnan(self.release + self.engage):
            raise SettingsError(f"release ({self.release}) must not be above engage")
        if self.fallback and not math.isfinite(self.engage):
            raise SettingsError("a fallback needs a finite threshold")
        pairs = zip(self.hard_low + self.seen_low, self.hard_high + self.seen_high, strict=True)
        if not all(low <= high for low, high in pairs):
            raise SettingsError("a range of the observation has its low above its high")
        if not all(limit > 0 for limit in self.slew):
            raise SettingsError("every slew limit must be positive")

    @property
    def horizon_steps(self) -> float:
        """Effective horizon of the discounted sum [control periods]."""
        return 1.0 / (1.0 - self.gamma)

    @property
    def initial_state(self) -> tuple[float, ...]:
        """What `step` begins with."""
        return (*(0.0 for _ in STATE), *self.default_action)

    @classmethod
    def none(
        cls,
        sizes: tuple[int, int],
        bounds: Sequence[tuple[float, float]],
        *,
        rest: Sequence[float],
        gamma: float,
        risk_scale: float,
    ) -> Self:
        """No ranges, thresholds and limits; `sizes` are those of observation and action."""
        obs, _ = sizes
        safe = tuple(rest)
        return cls(
            seen_low=(-math.inf,) * obs,
            seen_high=(math.inf,) * obs,
            seen_in="nowhere: not calibrated",
            hard_low=(-math.inf,) * obs,
            hard_high=(math.inf,) * obs,
            safe_action=safe,
            default_action=safe,
            slew=tuple(2.0 * (high - low) for low, high in bounds),
            soft_start_steps=1,
            gamma=gamma,
            risk_scale=risk_scale,
            fallback=False,
            release=math.inf,
            engage=math.inf,
            dwell_steps=0,
            blend_steps=1,
        )

    def with_range(self, low: Sequence[float], high: Sequence[float], seen_in: str) -> Self:
        """The same with what was seen, and hard ranges `SPANS` wider.

        An entry that never moved has no span: 1 unit of its own stands in for it.
        """
        spans = [
            SPANS * (b - a if b > a else max(abs(a), 1.0)) for a, b in zip(low, high, strict=True)
        ]
        return replace(
            self,
            seen_low=tuple(low),
            seen_high=tuple(high),
            seen_in=seen_in,
            hard_low=tuple(a - span for a, span in zip(low, spans, strict=True)),
            hard_high=tuple(b + span for b, span in zip(high, spans, strict=True)),
        )

    def to_record(self) -> dict[str, Any]:
        """JSON values, with the facts that follow from them."""
        record = {name: _closed(value) for name, value in asdict(self).items()}
        return record | {
            "check_bits": dict(CHECK_BITS),
            "mode_bits": dict(MODE_BITS),
            "state": [*STATE, *(f"previous_action_{i}" for i in range(len(self.slew)))],
            "initial_state": list(self.initial_state),
            "horizon_steps": self.horizon_steps,
        }

    @classmethod
    def from_record(cls, record: Any, sizes: tuple[int, int], name: str) -> Self:
        """Inverse of `to_record`; anything else raises `FileFault`."""
        try:
            values = {field.name: record[field.name] for field in fields(cls)}
            for key, (kind, count) in _kinds(sizes).items():
                values[key] = _read(values[key], kind, count, key)
            return cls(**values)
        except (KeyError, TypeError, ValueError, SettingsError) as error:
            raise FileFault(f"{name} holds no runtime assurance: {error}") from error


def _kinds(sizes: tuple[int, int]) -> dict[str, tuple[type, int | None]]:
    """Field -> its type, and how many of them."""
    obs, action = sizes
    ranges = ("seen_low", "seen_high", "hard_low", "hard_high")
    kinds: dict[str, tuple[type, int | None]] = dict.fromkeys(ranges, (float, obs))
    kinds |= dict.fromkeys(("safe_action", "default_action", "slew"), (float, action))
    kinds |= dict.fromkeys(("gamma", "risk_scale", "release", "engage"), (float, None))
    kinds |= dict.fromkeys(("soft_start_steps", "dwell_steps", "blend_steps"), (int, None))
    return kinds | {"fallback": (bool, None), "seen_in": (str, None)}


def _read(value: Any, kind: type, count: int | None, key: str) -> Any:
    if count is not None:
        if not isinstance(value, list) or len(value) != count:
            raise ValueError(f"{key} must be a list of {count}")
        return tuple(_read(item, kind, None, key) for item in value)
    if kind is float:
        if value is None:
            return -math.inf if key.endswith("low") else math.inf
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"{key} holds {value!r:.40}, which is no number")
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key} is {value!r:.40}")
    return value


def _closed(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, tuple):
        return [_closed(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value
