"""What can a robot's card let a policy observe?

    "joint_position NAME ..."    angle [rad] of hinges, place [m] of slides; * for all of them
    "joint_velocity NAME ..."    their rates [rad/s, m/s]
    "joint_circle NAME ..."      sine and cosine of hinges that may turn round and round
    "sensor NAME ..."            what the model's own sensors give
    "gravity BODY"               the direction of gravity in the body's frame, as an IMU has it
    "velocity BODY"              of its origin, in its own frame [m/s]
    "height BODY"                above the world's origin [m]
    "offset SITE SITE"           from the first to the second, along the world's axes [m]
    "command"                    the last command of every actuator

Each line is one group; the observation holds them in the card's order.
"""

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np

from kcpr_safety.contract import Entry
from kcpr_safety.envs import naming
from kcpr_safety.envs.robot_state import State
from kcpr_safety.envs.robot_words import ALL, names, number_of
from kcpr_safety.errors import CardError

Array = np.ndarray
Sense = tuple[tuple[Entry, ...], Callable[[State], Array]]
"""Names of a group's numbers, and the numbers [envs, group]."""

_XYZ = ("x", "y", "z")
_HINGE, _SLIDE = int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)
_SENSOR_UNITS = {
    "ACCELEROMETER": "m/s^2",
    "VELOCIMETER": "m/s",
    "GYRO": "rad/s",
    "FORCE": "N",
    "TORQUE": "N m",
    "TOUCH": "N",
    "RANGEFINDER": "m",
    "FRAMEPOS": "m",
    "FRAMELINVEL": "m/s",
    "FRAMEANGVEL": "rad/s",
    "JOINTPOS": "rad",
    "JOINTVEL": "rad/s",
    "ACTUATORFRC": "N m",
}


def senses(where: str, rows: object, model: Any) -> list[Sense]:
    """What the lines of a card's `observe` stand for."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, str) for row in rows):
        raise CardError(f"{where}: 'observe' must be a list of lines such as 'joint_position *'")
    return [_sense(f"{where}: observe '{row}'", row.split(), model) for row in rows]


def _sense(where: str, words: list[str], model: Any) -> Sense:
    kind, given = (words[0], words[1:]) if words else ("", [])
    if kind not in _KINDS:
        raise CardError(f"{where}: unknown; a line begins with {', '.join(_KINDS)}")
    needs, build = _KINDS[kind]
    if (needs is None and not given) or (needs is not None and len(given) != needs):
        counted = "a name, or * for all" if needs is None else f"{needs} names"
        raise CardError(f"{where}: '{kind}' takes {counted}, not {len(given)}")
    return build(where, given, model)


def simple_joints(where: str, given: list[str], model: Any) -> list[int]:
    """Hinges and slides by name; * for all of them."""
    kinds = model.jnt_type
    if given == [ALL]:
        found = [i for i in range(model.njnt) if kinds[i] in (_HINGE, _SLIDE)]
        if not found:
            raise CardError(f"{where}: the model has neither a hinge nor a slide")
        return found
    joints = [number_of(model, "joint", name, where) for name in given]
    for i, name in zip(joints, given, strict=True):
        if kinds[i] not in (_HINGE, _SLIDE):
            raise CardError(
                f"{where}: {name} is neither hinge nor slide; observe gravity, velocity and height "
                "of its body"
            )
    return joints


def _positions(where: str, given: list[str], model: Any) -> Sense:
    joints = simple_joints(where, given, model)
    columns = model.jnt_qposadr[joints]
    units = ["rad" if model.jnt_type[i] == _HINGE else "m" for i in joints]
    entries = _named(model, joints, "position", units)
    return entries, lambda state: state.qpos[:, columns]


def _velocities(where: str, given: list[str], model: Any) -> Sense:
    joints = simple_joints(where, given, model)
    columns = model.jnt_dofadr[joints]
    units = ["rad/s" if model.jnt_type[i] == _HINGE else "m/s" for i in joints]
    entries = _named(model, joints, "velocity", units)
    return entries, lambda state: state.qvel[:, columns]


def _circles(where: str, given: list[str], model: Any) -> Sense:
    joints = simple_joints(where, given, model)
    columns = model.jnt_qposadr[joints]
    known = names(model, "joint")
    entries = [
        Entry(f"{known[i] or f'joint_{i}'}_{f}", "1", -1.0, 1.0)
        for f in ("sin", "cos")
        for i in joints
    ]

    def observed(state: State) -> Array:
        angles = state.qpos[:, columns]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return tuple(entries), observed


def _named(model: Any, joints: list[int], what: str, units: list[str]) -> tuple[Entry, ...]:
    known = names(model, "joint")
    return tuple(
        Entry(f"{known[i] or f'joint_{i}'}_{what}", unit)
        for i, unit in zip(joints, units, strict=True)
    )


def _sensors(where: str, given: list[str], model: Any) -> Sense:
    known = names(model, "sensor")
    chosen = known if given == [ALL] else given
    columns: list[int] = []
    entries: list[Entry] = []
    for name in chosen:
        i = number_of(model, "sensor", name, where)
        kind = mujoco.mjtSensor(int(model.sensor_type[i])).name.removeprefix("mjSENS_")
        size, start = int(model.sensor_dim[i]), int(model.sensor_adr[i])
        columns += range(start, start + size)
        ends = [""] if size == 1 else [f"_{k}" for k in (_XYZ if size == 3 else range(size))]
        entries += [Entry(f"{name}{end}", _SENSOR_UNITS.get(kind, "1")) for end in ends]
    if not columns:
        raise CardError(f"{where}: the model has no sensor")
    return tuple(entries), lambda state: state.sensordata[:, columns]


def _gravity(where: str, given: list[str], model: Any) -> Sense:
    body = number_of(model, "body", given[0], where)
    entries = tuple(Entry(f"{given[0]}_gravity_{k}", "1", -1.0, 1.0) for k in _XYZ)
    return entries, lambda state: np.clip(-state.up(body), -1.0, 1.0)


def _velocity(where: str, given: list[str], model: Any) -> Sense:
    body = number_of(model, "body", given[0], where)
    root = int(model.body_rootid[body])

    def observed(state: State) -> Array:
        frame = state.xmat[:, body].reshape(-1, 3, 3)
        seen: Array = np.einsum("eij,ei->ej", frame, state.velocity(body, root))
        return seen

    return tuple(Entry(f"{given[0]}_velocity_{k}", "m/s") for k in _XYZ), observed


def _height(where: str, given: list[str], model: Any) -> Sense:
    body = number_of(model, "body", given[0], where)
    return (Entry(f"{given[0]}_height", "m"),), lambda state: state.xpos[:, body, 2:]


def _offset(where: str, given: list[str], model: Any) -> Sense:
    start, stop = (number_of(model, "site", name, where) for name in given)
    entries = tuple(Entry(f"{given[0]}_to_{given[1]}_{k}", "m") for k in _XYZ)
    return entries, lambda state: state.site_xpos[:, stop] - state.site_xpos[:, start]


def _command(where: str, given: list[str], model: Any) -> Sense:
    entries = naming.action_entries(model)
    low = np.array([entry.low for entry in entries])
    high = np.array([entry.high for entry in entries])
    renamed = tuple(Entry(f"command_{e.name}", e.unit, e.low, e.high) for e in entries)
    return renamed, lambda state: np.clip(state.ctrl, low, high)


_KINDS: dict[str, tuple[int | None, Callable[[str, list[str], Any], Sense]]] = {
    "joint_position": (None, _positions),
    "joint_velocity": (None, _velocities),
    "joint_circle": (None, _circles),
    "sensor": (None, _sensors),
    "gravity": (1, _gravity),
    "velocity": (1, _velocity),
    "height": (1, _height),
    "offset": (2, _offset),
    "command": (0, _command),
}
"""Kind: how many names follow (None: at least one), and what it stands for."""
