"""What is each number of an observation or action called, and in what unit?

Names come from the simulation's own (sensors, joints, bodies, actuators), so that an engineer finds
them in the robot's model file; units are SI, "1" where there is none.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium
import mujoco
import numpy as np

from kcpr_safety.contract import Entry

_SENSOR_UNITS = {
    "accelerometer": "m/s^2",
    "velocimeter": "m/s",
    "gyro": "rad/s",
    "magnetometer": "T",
    "touch": "N",
    "jointvel": "rad/s",
    "ballangvel": "rad/s",
}
# As plain numbers: MuJoCo 4's enumerations no longer equal a model's own integers in every order.
_FREE, _BALL, _SLIDE = (
    int(kind)
    for kind in (
        mujoco.mjtJoint.mjJNT_FREE,
        mujoco.mjtJoint.mjJNT_BALL,
        mujoco.mjtJoint.mjJNT_SLIDE,
    )
)
_INERTIA = ("xx", "yy", "zz", "xy", "xz", "yz")
_XYZ = ("x", "y", "z")
_INERTIA_PARTS = (
    *((f"inertia_{k}", "kg m^2") for k in _INERTIA),
    *((f"moment_{k}", "kg m") for k in _XYZ),
    ("mass", "kg"),
)
_RATE_PARTS = (
    *((f"rotation_rate_{k}", "rad/s") for k in _XYZ),
    *((f"linear_rate_{k}", "m/s") for k in _XYZ),
)
_CONTACT_PARTS = (
    *((f"contact_torque_{k}", "N m") for k in _XYZ),
    *((f"contact_force_{k}", "N") for k in _XYZ),
)
_WXYZ = ("w", "x", "y", "z")


def sensed_entries(groups: dict[str, gymnasium.spaces.Box], task: Any) -> tuple[Entry, ...]:
    """Entries of a navigation task: sensors, then lidars, in the order of the observation."""
    agent = task.agent.sensor_info
    entries: list[Entry] = []
    for name, space in groups.items():
        low = float(np.min(space.low)) if np.isfinite(space.low).all() else -np.inf
        high = float(np.max(space.high)) if np.isfinite(space.high).all() else np.inf
        size = int(np.prod(space.shape))
        suffixes: tuple[str, ...]
        if name in agent.hinge_pos_names:
            suffixes, unit = ("sin", "cos"), "1"
        elif name in agent.ballquat_names:
            suffixes, unit = tuple(f"mat{i}{j}" for i in range(3) for j in range(3)), "1"
        elif name == agent.freejoint_pos_name:
            suffixes, unit = ("z",), "m"
        elif name == agent.freejoint_qvel_name:
            suffixes, unit = _XYZ, "m/s"
        elif name.endswith("_lidar") or size > 3:
            width = len(str(size - 1))
            suffixes, unit = tuple(f"{i:0{width}d}" for i in range(size)), "1"
        elif name.endswith("_comp"):
            suffixes, unit = _XYZ[:size], "1"
        else:
            unit = next((u for k, u in _SENSOR_UNITS.items() if name.startswith(k)), "1")
            suffixes = ("",) if size == 1 else _XYZ[:size]
        entries += [Entry(f"{name}_{s}" if s else name, unit, low, high) for s in suffixes]
    return tuple(entries)


def state_entries(model: Any, skipped_positions: int, forces: bool) -> tuple[Entry, ...]:
    """Entries of a velocity task: joint positions and velocities, for Humanoid also body terms."""
    positions = list(_positions(model))[skipped_positions:]
    entries = positions + list(_velocities(model))
    if forces:
        bodies = [model.body(i).name for i in range(model.nbody)]
        entries += _of_bodies(bodies, _INERTIA_PARTS)
        entries += _of_bodies(bodies, _RATE_PARTS)
        for entry in _velocities(model):
            unit = "N" if entry.unit == "m/s" else "N m"
            entries.append(Entry(f"actuation_{entry.name}", unit))
        entries += _of_bodies(bodies, _CONTACT_PARTS)
    return tuple(entries)


def action_entries(model: Any) -> tuple[Entry, ...]:
    """Entries of an action: the actuators, with the ranges to which the simulation clips them.

    A motor's unit is "1": its share of the torque that the model's gear allows.
    """
    entries = []
    for i in range(model.nu):
        low, high = (float(bound) for bound in model.actuator_ctrlrange[i])
        named = model.actuator(i).name or model.joint(int(model.actuator_trnid[i, 0])).name
        servo = int(model.actuator_biastype[i]) == int(mujoco.mjtBias.mjBIAS_AFFINE)
        holds_position = servo and bool(model.actuator_biasprm[i, 1])
        unit = "rad" if holds_position else "rad/s" if servo else "1"
        entries.append(Entry(named, unit, low, high))
    return tuple(entries)


_STRUCTURE = {"qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"}


def is_structured(parts: dict[str, int]) -> bool:
    """Does an environment say what its observation is made of, in parts that are known here?"""
    return {name for name, size in parts.items() if size} - {"skipped_qpos"} <= _STRUCTURE


def structured_entries(model: Any, parts: dict[str, int]) -> tuple[Entry, ...]:
    """Entries of one of Gymnasium's own bodies (their version 5): positions, velocities, forces.

    `parts` is its `observation_structure`: how many numbers of each of MuJoCo's arrays.
    """
    bodies = [model.body(i).name or f"body_{i:02d}" for i in range(1, model.nbody)]
    rates = list(_velocities(model))
    forces = [Entry(f"actuation_{e.name}", "N" if e.unit == "m/s" else "N m") for e in rates]
    entries = list(_positions(model))[parts["skipped_qpos"] :]
    entries += rates
    entries += _of_bodies(bodies, _INERTIA_PARTS) if parts.get("cinert") else []
    entries += _of_bodies(bodies, _RATE_PARTS) if parts.get("cvel") else []
    entries += forces[6:] if parts.get("qfrc_actuator") else []
    entries += _of_bodies(bodies, _CONTACT_PARTS) if parts.get("cfrc_ext") else []
    return tuple(entries)


def _of_bodies(bodies: list[str], parts: tuple[tuple[str, str], ...]) -> list[Entry]:
    return [Entry(f"{body}_{part}", unit) for body in bodies for part, unit in parts]


def keyed_entries(space: Any, body: tuple[Entry, ...] = ()) -> tuple[Entry, ...]:
    """Entries of a dictionary of spaces, as Gymnasium flattens it: `desired_goal_0`, ...

    `body` is what the robot in it observes, if that is known: where `observation` is all of it but
    the achieved goal, which it then begins with, the numbers are called as the robot's are.
    """
    entries: list[Entry] = []
    achieved = space.spaces.get("achieved_goal")
    skipped = 0 if achieved is None else gymnasium.spaces.flatdim(achieved)
    for name, part in space.spaces.items():
        flat = gymnasium.spaces.flatten_space(part)
        if not isinstance(flat, gymnasium.spaces.Box):
            continue  # `promises.spaces` says so
        if name == "observation" and body and flat.shape == (len(body) - skipped,):
            entries += body[skipped:]
        else:
            entries += numbered_entries(flat, str(name))
    return tuple(entries)


def numbered_entries(space: gymnasium.spaces.Box, stem: str) -> tuple[Entry, ...]:
    """Entries of an environment that says nothing about them: `obs_00`, `obs_01`, ..."""
    low, high = space.low.ravel(), space.high.ravel()
    width = len(str(max(len(low) - 1, 0)))
    return tuple(
        Entry(f"{stem}_{i:0{width}d}", "1", float(low[i]), float(high[i])) for i in range(len(low))
    )


def choices(
    space: gymnasium.spaces.Discrete[Any],
) -> tuple[tuple[Entry, ...], tuple[tuple[float, ...], ...]]:
    """A choice as one number, and the table of all that it may be."""
    first = int(space.start)
    last = first + int(space.n) - 1
    table = tuple((float(number),) for number in range(first, last + 1))
    return (Entry("choice", "1", float(first), float(last)),), table


def _positions(model: Any) -> Iterator[Entry]:
    for i in range(model.njnt):
        name, kind = model.joint(i).name, int(model.jnt_type[i])
        if kind == _FREE:
            yield from (Entry(f"{name}_position_{k}", "m") for k in _XYZ)
            yield from (Entry(f"{name}_quaternion_{k}", "1") for k in _WXYZ)
        elif kind == _BALL:
            yield from (Entry(f"{name}_quaternion_{k}", "1") for k in _WXYZ)
        elif kind == _SLIDE:
            yield Entry(f"{name}_position", "m")
        else:
            yield Entry(f"{name}_angle", "rad")


def _velocities(model: Any) -> Iterator[Entry]:
    for i in range(model.njnt):
        name, kind = model.joint(i).name, int(model.jnt_type[i])
        if kind == _FREE:
            yield from (Entry(f"{name}_velocity_{k}", "m/s") for k in _XYZ)
        if kind in (_FREE, _BALL):
            yield from (Entry(f"{name}_rotation_rate_{k}", "rad/s") for k in _XYZ)
        elif kind == _SLIDE:
            yield Entry(f"{name}_velocity", "m/s")
        else:
            yield Entry(f"{name}_rate", "rad/s")
