"""What does a card say about punishments that are made from terms?

    [[punish]]
    term = "tilt"
    threshold = 30.0          # in the term's unit
    weight = 1.0
    form = "share"            # or "step": 1 for each step beyond the threshold
    bodies = ["torso"]        # or geoms, joints, actuators, low and high, as the term takes them
    stream = "fall"           # where punishments are kept apart, each with a budget
    [streams.fall]
    budget = 5.0
    meaning = "..."

Here is only what is written, checked by itself; whether there is such a term, and the model has
these names, say `envs.terms` and `envs.punishing`, which know them.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from kcpr_safety.errors import CardError


@dataclass(frozen=True)
class Stream:
    """A part of the punishment that is kept apart, with its own budget."""

    name: str
    budget: float
    """Allowed in one full episode, undiscounted."""
    meaning: str


@dataclass(frozen=True)
class Punish:
    """One term of a declared punishment; what it measures is in `envs.terms`."""

    term: str
    threshold: float = 0.0
    """In the term's unit; 0 where it has none."""
    weight: float = 1.0
    form: str = "share"
    """How much too much, as a share; or 1 in each "step" beyond the threshold."""
    stream: str = ""
    """With which others it is added up apart."""
    bodies: tuple[str, ...] = ()
    geoms: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    actuators: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


def declared(where: str, record: dict[str, Any]) -> dict[str, Any]:
    """What is said about a punishment by declaration; nothing, where there is none."""
    rows = record.get("punish", [])
    if not rows:
        for key in ("environment", "options", "streams", "punish"):
            if key in record:
                raise CardError(f"{where}: '{key}' needs a [[punish]]")
        return {}
    punish = tuple(_punish(f"{where}: [[punish]] {i}", row) for i, row in enumerate(rows, 1))
    names = tuple(dict.fromkeys(row.stream for row in punish))
    return {
        "environment": record.get("environment") or record["task"],
        "options": record.get("options", {}),
        "punish": punish,
        "streams": _streams(where, names, record.get("streams", {})),
    }


def _punish(where: str, item: object) -> Punish:
    """Only what is written; `envs.punishing` says whether term and names exist."""
    if not isinstance(item, dict) or not isinstance(item.get("term"), str):
        raise CardError(f"{where} must be a table with a 'term' (kcpr-safety tasks --terms)")
    row = dict(item)
    if "body" in row:
        row["bodies"] = row.pop("body")
    kinds = {field.name: field for field in fields(Punish)}
    for key, value in row.items():
        if key not in kinds:
            raise CardError(f"{where} has an unknown key '{key}'; known keys: {', '.join(kinds)}")
        if key in ("threshold", "weight"):
            row[key] = _non_negative(where, key, value)
        elif key in ("low", "high"):
            row[key] = tuple(_finite(where, key, x) for x in _listed(value))
        elif key in ("bodies", "geoms", "joints", "actuators"):
            row[key] = tuple(_listed(value))
            if not row[key] or not all(isinstance(name, str) and name for name in row[key]):
                raise CardError(f"{where}: '{key}' must be names, not {value!r}")
        elif not isinstance(value, str):
            raise CardError(f"{where}: '{key}' must be text, not {value!r}")
    if row.get("form", "share") not in ("share", "step"):
        raise CardError(f"{where}: 'form' must be share or step, not {row['form']!r}")
    return Punish(**row)


def _streams(where: str, names: tuple[str, ...], tables: dict[str, Any]) -> tuple[Stream, ...]:
    """One for each name that terms give, with its budget."""
    if names == ("",) and not tables:
        return ()
    odd = sorted({*names} ^ {*tables})
    if odd:
        lacks = odd[0] in names
        raise CardError(
            f"{where}: a [[punish]] without 'stream' stands beside others that name one"
            if odd[0] == ""
            else f"{where}: stream '{odd[0]}' needs a [streams.{odd[0]}] with its budget"
            if lacks
            else f"{where}: no [[punish]] belongs to stream '{odd[0]}'"
        )
    streams = []
    for name in names:
        place, table = f"{where}: [streams.{name}]", tables[name]
        if not isinstance(table, dict) or set(table) != {"budget", "meaning"}:
            raise CardError(f"{place} must have a 'budget' and a 'meaning' only")
        if not isinstance(table["meaning"], str) or not table["meaning"].strip():
            raise CardError(f"{place}: 'meaning' must be text")
        budget = _non_negative(place, "budget", table["budget"])
        streams.append(Stream(name, budget, table["meaning"]))
    return tuple(streams)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _finite(where: str, key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise CardError(f"{where}: '{key}' must be a finite number, not {value!r}")
    return float(value)


def _non_negative(where: str, key: str, value: object) -> float:
    number = _finite(where, key, value)
    if number < 0:
        raise CardError(f"{where}: '{key}' must be at least 0, not {value!r}")
    return number
