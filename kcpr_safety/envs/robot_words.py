"""How do tables of a robot's card become names of its model and numbers, or one clear sentence?

A card names joints, bodies, sites, sensors and actuators; the model knows them by number. `Words`
takes one table apart: every key is asked for once, and `done` says which were not.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from kcpr_safety.errors import CardError

KINDS = {
    "joint": mujoco.mjtObj.mjOBJ_JOINT,
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "sensor": mujoco.mjtObj.mjOBJ_SENSOR,
    "actuator": mujoco.mjtObj.mjOBJ_ACTUATOR,
    "keyframe": mujoco.mjtObj.mjOBJ_KEY,
}
_COUNTS = {
    "joint": "njnt",
    "body": "nbody",
    "geom": "ngeom",
    "site": "nsite",
    "sensor": "nsensor",
    "actuator": "nu",
    "keyframe": "nkey",
}
ALL = "*"
"""Stands for every joint, sensor or actuator of a model."""


def names(model: Any, kind: str) -> list[str]:
    """All names of a kind, in the model's order; empty where one has no name."""
    count = getattr(model, _COUNTS[kind])
    return [mujoco.mj_id2name(model, KINDS[kind], i) or "" for i in range(count)]


def number_of(model: Any, kind: str, name: Any, where: str) -> int:
    """The model's number of what a card calls by its name."""
    known = names(model, kind)
    if not isinstance(name, str) or name not in known or not name:
        raise CardError(
            f"{where}: the model has no {kind} {name!r}; it has "
            f"{', '.join(filter(None, known)) or 'none with a name'}"
        )
    return known.index(name)


def _real(value: object) -> bool:
    """A number that physics may hold: neither NaN nor beyond all measure."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


class Words:
    """One table of a card, key by key."""

    def __init__(self, where: str, table: object, model: Any) -> None:
        if not isinstance(table, Mapping):
            raise CardError(f"{where} must be a table, not {table!r}")
        self.where, self.model = where, model
        self._left = dict(table)

    def has(self, key: str) -> bool:
        return key in self._left

    def taken(self, key: str) -> Any:
        if key not in self._left:
            raise CardError(f"{self.where} lacks '{key}'")
        return self._left.pop(key)

    def number(self, key: str, default: float | None = None, *, low: float = -math.inf) -> float:
        """A finite number of at least `low`."""
        value = self.taken(key) if default is None else self._left.pop(key, default)
        if not _real(value) or value < low:
            least = f" of at least {low:g}" if math.isfinite(low) else ""
            raise CardError(f"{self.where}: '{key}' must be a number{least}, not {value!r}")
        return float(value)

    def row(self, key: str, size: int) -> np.ndarray:
        """`size` finite numbers."""
        value = self.taken(key)
        plain = isinstance(value, Sequence) and not isinstance(value, str)
        if not plain or len(value) != size or not all(_real(x) for x in value):
            raise CardError(f"{self.where}: '{key}' must be {size} numbers, not {value!r}")
        return np.array(value, dtype=np.float64)

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        value = self._left.pop(key, default)
        if value not in choices:
            raise CardError(f"{self.where}: '{key}' is {value!r}; it may be {', '.join(choices)}")
        return str(value)

    def one(self, key: str, kind: str) -> int:
        """The number of one named thing."""
        return number_of(self.model, kind, self.taken(key), self.where)

    def some(self, key: str, kind: str) -> np.ndarray:
        """The numbers of some; of all where the card names none or says "*"."""
        value = self._left.pop(key, ALL)
        if value == ALL:
            return np.arange(getattr(self.model, _COUNTS[kind]))
        if not isinstance(value, list) or not value:
            raise CardError(f"{self.where}: '{key}' must be a list of names, not {value!r}")
        return np.array([number_of(self.model, kind, name, self.where) for name in value])

    def done(self) -> None:
        """Nothing may be left over: it would be a word that does nothing."""
        if self._left:
            raise CardError(f"{self.where} has unknown keys: {', '.join(sorted(self._left))}")
