"""What may a policy assume about its robot: names, units, order, bounds, period, budget?

A contract is made by the world that a policy was trained in, travels inside every checkpoint and
bundle, and is all that the deployed controller and its consumers know. JSON has no infinity: an
unbounded side is `null` there and `inf` here.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from kcpr_safety.errors import FileFault


@dataclass(frozen=True)
class Entry:
    """One scalar of an observation or action vector."""

    name: str
    unit: str
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Contract:
    """Everything that a controller and its robot must agree on."""

    task: str
    observation: tuple[Entry, ...]
    action: tuple[Entry, ...]
    period_s: float
    """Control period: simulated time between two actions [s]."""
    time_limit: int
    """Steps in a full episode."""
    budget: float
    """Allowed punishment (cost), summed over one full episode, undiscounted."""
    punishment: str
    """What one unit of punishment is, in words."""

    @property
    def obs_size(self) -> int:
        return len(self.observation)

    @property
    def action_size(self) -> int:
        return len(self.action)

    def to_json(self) -> str:
        """The contract as one JSON object, keys sorted, floats at round-trip precision."""
        record = asdict(self)
        for side in ("observation", "action"):
            for entry in record[side]:
                for bound in ("low", "high"):
                    entry[bound] = entry[bound] if math.isfinite(entry[bound]) else None
        return json.dumps(record, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`; anything else raises `FileFault`."""
        try:
            record: dict[str, Any] = json.loads(text)
            for side in ("observation", "action"):
                record[side] = tuple(_entry(item) for item in record[side])
            if set(record) != {field.name for field in fields(cls)}:
                raise ValueError("keys differ")
            return cls(**record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FileFault(f"not a contract of this package: {error}") from error


def _entry(item: dict[str, Any]) -> Entry:
    low = -math.inf if item["low"] is None else float(item["low"])
    high = math.inf if item["high"] is None else float(item["high"])
    return Entry(name=str(item["name"]), unit=str(item["unit"]), low=low, high=high)
