"""What did the deterministic evaluation of one policy show, episode by episode?

Written as `evaluation.json` into a run folder, read by the exporter (no bundle without it) and by
the report. Lists, not only means: every interval is computed from the episodes themselves. What is
missing, not finite or contradicts itself is refused by name. Neither torch nor a simulator.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kcpr_safety.errors import FileFault
from kcpr_safety.files import read_limited
from kcpr_safety.stats import Tenth
from kcpr_safety.texts import json_value

EVIDENCE_FILE = "evaluation.json"
CALIBRATION_FILE = "calibration.json"
STRESS_FILE = "stress.json"
LATENCY_FILE = "latency.json"
MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Part:
    """One stream of the punishment, over the same episodes."""

    name: str
    budget: float
    punishments: tuple[float, ...]

    @property
    def punishment_mean(self) -> float:
        return float(np.mean(self.punishments))


@dataclass(frozen=True)
class Evidence:
    """Full episodes of one deterministic policy on evaluation seeds."""

    task: str
    agent: str
    seed: int
    """Training seed."""
    eval_seed: int
    """First evaluation seed; episode i starts from eval_seed + i."""
    steps: int
    """Environment steps that training took in all."""
    budget: float
    returns: tuple[float, ...]
    punishments: tuple[float, ...]
    lengths: tuple[int, ...]
    predicted_punishment: float | None = None
    """What the evaluation critic expected, discounted, on average over the steps."""
    realised_punishment: float | None = None
    """The discounted punishment that followed, on average over the same steps."""
    reliability: tuple[Tenth, ...] = ()
    """Both by tenths of the prediction; empty where that was not measured."""
    policy_sha256: str | None = None
    """Hash of the policy file that was judged."""
    kept_steps: int | None = None
    """Environment steps after which the judged policy was kept."""
    successes: tuple[bool, ...] | None = None
    """Which episodes succeeded, where the task says what success is."""
    collisions: tuple[int, ...] | None = None
    """Steps in contact with what must not be touched, where the world tells."""
    streams: tuple[Part, ...] = ()
    """Parts of the punishment that have budgets of their own."""

    @property
    def budgets(self) -> tuple[tuple[str, float], ...]:
        """Names and budgets of the streams."""
        return tuple((part.name, part.budget) for part in self.streams)

    @property
    def means_within(self) -> bool:
        """Whether the mean punishment is within the budget, and each stream's within its own."""
        judged: tuple[Evidence | Part, ...] = (self, *self.streams)
        return all(of.punishment_mean <= of.budget for of in judged)

    @property
    def episodes(self) -> int:
        return len(self.returns)

    @property
    def return_mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def punishment_mean(self) -> float:
        return float(np.mean(self.punishments))


def read_evidence(path: Path) -> Evidence:
    """Read an `evaluation.json`, or the one in a run folder."""
    path = Path(path)
    if path.is_dir():
        path = path / EVIDENCE_FILE
    return evidence_from_json(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file."""
    try:
        record = json_value(read_limited(path, MAX_BYTES))
    except ValueError as error:
        raise FileFault(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise FileFault(f"{path} must hold one JSON object")
    return record


def evidence_from_json(record: Mapping[str, Any], name: str) -> Evidence:
    """The evidence in an evaluation's result; `name` is what a fault calls it."""
    try:
        evidence = Evidence(
            task=str(record["task"]),
            agent=str(record["agent"]),
            seed=int(record["seed"]),
            eval_seed=int(record["eval_seed"]),
            steps=int(record["steps"]),
            budget=float(record["budget"]),
            returns=tuple(float(x) for x in record["returns"]),
            punishments=tuple(float(x) for x in record["punishments"]),
            lengths=tuple(int(x) for x in record["lengths"]),
            predicted_punishment=_optional(record.get("predicted_punishment")),
            realised_punishment=_optional(record.get("realised_punishment")),
            reliability=tuple(_tenth(part) for part in record.get("reliability", ())),
            policy_sha256=record.get("policy_sha256"),
            kept_steps=_whole(record.get("kept_steps")),
            successes=_flags(record.get("successes")),
            collisions=_counts(record.get("collisions")),
            streams=tuple(_part(part) for part in record.get("streams", ())),
        )
    except KeyError as error:
        raise FileFault(f"{name} is no evaluation of a policy: it lacks {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise FileFault(f"{name} is no evaluation of a policy: {error}") from error
    _check(evidence, record, name)
    return evidence


def _part(record: Mapping[str, Any]) -> Part:
    punishments = tuple(float(x) for x in record["punishments"])
    return Part(str(record["name"]), float(record["budget"]), punishments)


def _tenth(record: Mapping[str, Any]) -> Tenth:
    return Tenth(int(record["steps"]), float(record["predicted"]), float(record["realised"]))


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _flags(value: Any) -> tuple[bool, ...] | None:
    if value is None:
        return None
    if not all(isinstance(x, bool) for x in value):
        raise ValueError("successes are not all true or false")
    return tuple(value)


def _counts(value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(int(x) for x in value)


def _check(evidence: Evidence, record: Mapping[str, Any], name: str) -> None:
    count = evidence.episodes
    if count == 0:
        raise FileFault(f"{name} holds no episode")
    if len(evidence.punishments) != count or len(evidence.lengths) != count:
        raise FileFault(f"{name}: returns, punishments and lengths differ in number")
    for key in ("successes", "collisions"):
        told = getattr(evidence, key)
        if told is not None and len(told) != count:
            raise FileFault(f"{name}: returns and {key} differ in number")
    if record.get("episodes", count) != count:
        raise FileFault(f"{name} promises {record['episodes']} episodes and lists {count}")
    calibration = (evidence.predicted_punishment, evidence.realised_punishment)
    numbers = (*evidence.returns, *evidence.punishments, evidence.budget)
    parts = [part.punishments for part in evidence.streams]
    for part in evidence.streams:
        if len(part.punishments) != count:
            raise FileFault(f"{name}: returns and stream {part.name} differ in number")
        numbers += (*part.punishments, part.budget)
    numbers += tuple(x for x in calibration if x is not None)
    numbers += tuple(x for tenth in evidence.reliability for x in tenth)
    if not all(math.isfinite(x) for x in numbers):
        raise FileFault(f"{name} holds a number that is not finite")
    if any(min(each) < 0 for each in (evidence.punishments, *parts)):
        raise FileFault(f"{name} holds a negative punishment")
    if len({part.name for part in evidence.streams}) < len(evidence.streams):
        raise FileFault(f"{name} names a stream twice")
    for key in ("return_mean", "punishment_mean"):
        _agree(record, key, getattr(evidence, key), name)
    for part, told in zip(evidence.streams, record.get("streams", ()), strict=True):
        _agree(told, "punishment_mean", part.punishment_mean, f"{name}: stream {part.name}")


def _agree(record: Mapping[str, Any], key: str, mean: float, name: str) -> None:
    stated = record.get(key, mean)
    if not isinstance(stated, int | float) or not math.isclose(
        stated, mean, rel_tol=1e-6, abs_tol=1e-6
    ):
        raise FileFault(f"{name}: {key} is {stated}, but its episodes give {mean:.6g}")
