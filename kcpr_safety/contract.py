"""What may a policy assume about its robot: names, units, order, bounds, period, budget?

A contract is made by the world that a policy was trained in, travels inside every checkpoint and
bundle, and is all that the deployed controller and its consumers know. JSON has no infinity: an
unbounded side is `null` there and `inf` here. Commands, streams, servos and a hold are in JSON only
where there are any, so that contracts written before there were some are still the same bytes.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import zip_longest
from typing import Any, Self

from kcpr_safety.errors import FileFault, SettingsError
from kcpr_safety.punishments import Stream
from kcpr_safety.texts import json_object


@dataclass(frozen=True)
class Entry:
    """One scalar of an observation or action vector."""

    name: str
    unit: str
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Servo:
    """What holds an actuator's target: torque = kp (target - angle) - kd rate, limited."""

    joint: str
    kp: float  # [N m/rad]
    kd: float  # [N m s/rad]
    rest: float
    """Angle in the pose that the robot rests in: where to start from, and to return to [rad]."""
    torque: float
    """Its limit [N m]."""
    speed: float
    """The joint's limit [rad/s]."""


@dataclass(frozen=True)
class Contract:
    """Everything that a controller and its robot must agree on."""

    task: str
    observation: tuple[Entry, ...]
    action: tuple[Entry, ...]
    period_s: float
    """Control period: simulated time between two actions [s]."""
    time_limit: int
    """Actions in a full episode."""
    budget: float
    """Allowed punishment (cost), summed over one full episode, undiscounted."""
    punishment: str
    """What one unit of punishment is, in words."""
    commands: tuple[tuple[float, ...], ...] = ()
    """Discrete actions: the actuator commands (rows, actuator units) that a policy chooses among.
    Empty where any command within the bounds may be given."""
    streams: tuple[Stream, ...] = ()
    """Parts of the punishment with a budget each; empty where only their sum has one."""
    servos: tuple[Servo, ...] = ()
    """Where actions are targets of joints: who holds each, in the action's order; else empty."""
    hold: int = 1
    """Steps of the task that each action is held for; `period_s` is that of all of them."""

    def __post_init__(self) -> None:
        if self.commands:
            self._check_commands()
        if self.servos:
            self._check_servos()

    @property
    def rest(self) -> tuple[float, ...]:
        """The safe action: the rest pose; without servos no command, or the bound next to it."""
        if self.servos:
            return tuple(servo.rest for servo in self.servos)
        return tuple(min(max(0.0, entry.low), entry.high) for entry in self.action)

    @property
    def steps(self) -> int:
        """Steps of the task in a full episode."""
        return self.time_limit * self.hold

    def held(self, hold: int) -> "Contract":
        """The same with each action held for so many times as long; `SettingsError` where a full
        episode does not end with an action."""
        if hold < 1 or self.time_limit % hold:
            raise SettingsError(
                f"{self.task} has {self.time_limit} steps an episode, which is not a whole number "
                f"of actions held for {hold}"
            )
        return replace(
            self,
            period_s=self.period_s * hold,
            time_limit=self.time_limit // hold,
            hold=self.hold * hold,
        )

    @property
    def obs_size(self) -> int:
        return len(self.observation)

    @property
    def action_size(self) -> int:
        return len(self.action)

    @property
    def closeness(self) -> tuple[bool, ...]:
        """Which observations are bounded to [0, 1], as a lidar's closeness is: 1 at the object, 0
        at the end of its range."""
        return tuple(entry.low == 0.0 and entry.high == 1.0 for entry in self.observation)

    def _check_commands(self) -> None:
        """A world must be able to execute every row."""
        what = f"{self.task}: commands"
        if len(self.commands) < 2:
            raise SettingsError(f"{what} has one row; a choice needs at least 2")
        for i, row in enumerate(self.commands):
            if len(row) != self.action_size:
                raise SettingsError(
                    f"{what}, row {i} has {len(row)} numbers; the robot has {self.action_size} "
                    f"actuators ({', '.join(entry.name for entry in self.action)})"
                )
            for value, entry in zip(row, self.action, strict=True):
                if not (math.isfinite(value) and entry.low <= value <= entry.high):
                    raise SettingsError(
                        f"{what}, row {i}: {entry.name} is {value}; it must lie in "
                        f"[{entry.low:g}, {entry.high:g}] {entry.unit}"
                    )

    def _check_servos(self) -> None:
        if len(self.servos) != self.action_size:
            raise SettingsError(
                f"{self.task} has {len(self.servos)} servos for {self.action_size} actions"
            )
        for servo, entry in zip(self.servos, self.action, strict=True):
            numbers = (servo.kp, servo.kd, servo.torque, servo.speed)
            if not all(math.isfinite(value) and value >= 0 for value in numbers):
                raise SettingsError(f"{self.task}: a number of the servo of {servo.joint} is none")
            if not entry.low <= servo.rest <= entry.high:
                raise SettingsError(
                    f"{self.task}: {servo.joint} rests at {servo.rest}, outside of its bounds"
                )

    def to_json(self) -> str:
        """The contract as one JSON object, keys sorted, floats at round-trip precision."""
        record = asdict(self)
        for optional in ("commands", "streams", "servos"):
            if not record[optional]:
                del record[optional]
        if self.hold == 1:
            del record["hold"]
        for side in ("observation", "action"):
            for entry in record[side]:
                for bound in ("low", "high"):
                    entry[bound] = entry[bound] if math.isfinite(entry[bound]) else None
        return json.dumps(record, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`; anything else raises `FileFault`."""
        try:
            record = json_object(text)
            for side in ("observation", "action"):
                record[side] = tuple(_entry(item) for item in record[side])
            rows = record.setdefault("commands", ())
            record["commands"] = tuple(tuple(float(value) for value in row) for row in rows)
            streams = record.setdefault("streams", ())
            record["streams"] = tuple(_stream(item) for item in streams)
            servos = record.setdefault("servos", ())
            record["servos"] = tuple(_servo(item) for item in servos)
            record.setdefault("hold", 1)
            if set(record) != {field.name for field in fields(cls)}:
                raise ValueError("keys differ")
            _check(record)
            return cls(**record)
        except (ValueError, TypeError, KeyError, AttributeError, SettingsError) as error:
            raise FileFault(f"not a contract of this package: {error}") from error


def differences(own: Contract, here: Contract) -> Iterator[str]:
    """What a policy's contract has otherwise than that of its task, one sentence each.

    Words (what a punishment means) may change, and so may budgets, which are the policy's.
    """
    task = f"{own.task} here"
    for side in ("observation", "action", "commands"):
        mine, theirs = getattr(own, side), getattr(here, side)
        if mine != theirs:
            pairs = zip_longest(mine, theirs)
            odd = next((str(one) for one, other in pairs if one != other), "nothing more")
            yield (
                f"the policy's {side} contract ({len(mine)} entries) is not that of {task} "
                f"({len(theirs)} entries): the policy has {odd}"
            )
    yield from _servo_differences(own, here)
    if not math.isclose(own.period_s, here.period_s, rel_tol=1e-6):
        yield f"the policy acts every {own.period_s} s, but {task} takes {here.period_s} s a step"
    if own.time_limit != here.time_limit:
        yield (
            f"the policy's episodes have {own.time_limit} steps, those of {task} {here.time_limit}"
        )
    mine, theirs = (
        ", ".join(stream.name for stream in contract.streams) for contract in (own, here)
    )
    if mine and mine != theirs:
        yield f"the policy was held to the streams {mine}, and {task} has {theirs or 'none'}"


def _servo_differences(own: Contract, here: Contract) -> Iterator[str]:
    """The first servo that differs, for each of their numbers."""
    task = f"{own.task} here"
    if len(own.servos) != len(here.servos):
        yield f"the policy has {len(own.servos)} servos, {task} has {len(here.servos)}"
        return
    for key in (each.name for each in fields(Servo)):
        for mine, theirs in zip(own.servos, here.servos, strict=True):
            one, other = getattr(mine, key), getattr(theirs, key)
            if one != other:
                yield (
                    f"the policy's servo of {mine.joint} has {key} {one}, that of {task} {other}"
                )
                break


def _check(record: dict[str, Any]) -> None:
    """Raise `ValueError` unless every value is of its kind."""
    for key in ("task", "punishment"):
        if not isinstance(record[key], str):
            raise ValueError(f"{key} is no text")
    for key, lowest in (("period_s", 0.0), ("budget", 0.0), ("time_limit", 1), ("hold", 1)):
        value = record[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} is no number")
        if not (math.isfinite(value) and value >= lowest):
            raise ValueError(f"{key} is {value}")
    for key in ("time_limit", "hold"):
        if not isinstance(record[key], int):
            raise ValueError(f"{key} is no count of steps")


def _entry(item: dict[str, Any]) -> Entry:
    low = -math.inf if item["low"] is None else float(item["low"])
    high = math.inf if item["high"] is None else float(item["high"])
    return Entry(name=str(item["name"]), unit=str(item["unit"]), low=low, high=high)


def _stream(item: dict[str, Any]) -> Stream:
    budget = float(item["budget"])
    if not (math.isfinite(budget) and budget >= 0):
        raise ValueError(f"a stream's budget is {budget}")
    return Stream(name=str(item["name"]), budget=budget, meaning=str(item["meaning"]))


def _servo(item: dict[str, Any]) -> Servo:
    numbers = {key: float(item[key]) for key in ("kp", "kd", "rest", "torque", "speed")}
    return Servo(joint=str(item["joint"]), **numbers)
