"""What does a walking robot observe, what is it paid and what is it punished for?

Pure functions of arrays [envs, ...]; the feet are in the order FL, FR, RL, RR.

    reward      1 - e / 0.5 + 0.5 exp(-(e / 0.2)^2) + 0.2 exp(-(r - r*)^2 / 0.25) + 0.5 gait
                - costs, at least 0; e = |(v, w) - (v*, 0)|; v, w: forward and sideways speed over
                the control period [m/s], r: rate of turn [rad/s], *: commanded; costs: vertical
                speed, tilt, roll and pitch rates, change of the targets, torque. The first term
                leads from afar, the second makes the last 0.1 m/s dear. Who stands still at
                0.5 m/s gets 0.2 of 2.2
    gait        share of the standing feet that touch the floor, times the height of the swinging
                feet (mean, each in multiples of 5 cm and at most 1); by the clock, FL and RR stand
                in one half of the cycle, FR and RL in the other: a trot. After Siekmann et al. 2021
                (arXiv:2011.01387)
    punishment  the largest torque beyond 80 % of its limit, the largest joint speed beyond 80 %
                of its limit, tilt beyond 0.25 rad, a trunk below 0.20 m, another part than a foot
                on the floor, feet that slip faster than 0.3 m/s: shares that grow from 0 to 1,
                added up, at most 1; a fall counts 1
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from kcpr_safety.contract import Entry
from kcpr_safety.envs.unitree import JOINTS, PERIOD_S

Array = np.ndarray
PerEnv = Float[np.ndarray, " envs"]

CYCLE_STEPS = 25
"""Control periods of one cycle of the gait: 0.5 s."""
TOUCHES = 0.001  # a foot lower than this touches the floor [m]
FALL_HEIGHT = 0.13  # [m]
FALL_TILT = 1.0  # [rad]

_OFFSETS = np.array([0.0, 0.5, 0.5, 0.0])
_SWING_HEIGHT = 0.05  # [m]

OBSERVATION = (
    *(Entry(f"gravity_{axis}", "1", -1.5, 1.5) for axis in "xyz"),
    *(Entry(f"gyro_{axis}", "rad/s") for axis in "xyz"),
    Entry("command_forward", "m/s"),
    Entry("command_turn", "rad/s"),
    *(Entry(f"{joint}_angle", "rad") for joint in JOINTS),
    *(Entry(f"{joint}_rate", "rad/s") for joint in JOINTS),
    *(Entry(f"{joint}_previous_target", "rad") for joint in JOINTS),
    Entry("clock_sin", "1", -1.0, 1.0),
    Entry("clock_cos", "1", -1.0, 1.0),
)
"""Gravity: its direction in the trunk's frame, as an IMU tells it. Clock: of the gait."""

NOISE = np.repeat([0.02, 0.1, 0.01, 0.3], [3, 3, 12, 12])
"""Standard deviation of gravity [1], gyro [rad/s], angles [rad] and rates [rad/s]."""


@dataclass(frozen=True)
class Motion:
    """What a control period was like, for all environments."""

    forward: PerEnv
    sideways: PerEnv
    climb: PerEnv
    """Speed of the trunk over the period: along and across its heading, and up [m/s]."""
    spin: Float[Array, "envs 3"]
    """Angular velocity in the trunk's frame [rad/s]."""
    height: PerEnv
    """Of the trunk's origin [m]."""
    tilt: PerEnv
    """Angle between the trunk's up and the world's [rad]."""
    torque: Float[Array, "envs 12"]
    """Share of each motor's limit, signed."""
    speed: Float[Array, "envs 12"]
    """Share of each joint's speed limit, signed."""
    change: Float[Array, "envs 12"]
    """Of the targets since the period before [rad]."""
    clearance: Float[Array, "envs 4"]
    """Of the feet above the floor [m]."""
    slip: Float[Array, "envs 4"]
    """Speed along the floor of feet that touch it, else 0 [m/s]."""
    body_contact: Bool[Array, " envs"]
    """Does anything but a foot touch the floor?"""


def gravity_of(quaternion: Float[Array, "envs 4"]) -> Float[Array, "envs 3"]:
    """Direction of gravity in the frame of a body of this attitude."""
    w, x, y, z = quaternion.T
    return np.stack([2 * (w * y - x * z), -2 * (w * x + y * z), 2 * (x * x + y * y) - 1.0], axis=1)


def heading_of(quaternion: Float[Array, "envs 4"]) -> PerEnv:
    """Angle of a body's forward axis about the vertical [rad]."""
    w, x, y, z = quaternion.T
    return np.asarray(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def clock_of(step: Array, begin: PerEnv) -> PerEnv:
    """Phase of the gait in [0, 1), so many control periods after it was at `begin`."""
    return (begin + step / CYCLE_STEPS) % 1.0


def observed(
    sensed: Float[Array, "envs 30"],
    command: Float[Array, "envs 2"],
    target: Float[Array, "envs 12"],
    phase: PerEnv,
) -> Float[Array, "envs 46"]:
    """A row of `OBSERVATION`; `sensed` are gravity, gyro, angles and rates."""
    angle = 2 * math.pi * phase
    clock = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return np.concatenate([sensed[:, :6], command, sensed[:, 6:], target, clock], axis=1)


def gait_of(clearance: Float[Array, "envs 4"], phase: PerEnv) -> PerEnv:
    """How well the feet keep time, from 0 to 1."""
    standing = (phase[:, None] + _OFFSETS) % 1.0 < 0.5
    stood = (standing & (clearance < TOUCHES)).sum(axis=1) / 2
    lifted = _share(clearance, 0.0, _SWING_HEIGHT)
    return np.asarray(stood * np.where(standing, 0.0, lifted).sum(axis=1) / 2)


def reward_of(motion: Motion, command: Float[Array, "envs 2"], phase: PerEnv) -> PerEnv:
    """Reward of one control period, from 0 to 2.2."""
    missed = np.hypot(motion.forward - command[:, 0], motion.sideways)
    turned = np.square(motion.spin[:, 2] - command[:, 1])
    costs = (
        0.5 * np.square(motion.climb)
        + np.square(motion.tilt)
        + 0.02 * np.square(motion.spin[:, :2]).sum(axis=1)
        + 0.2 * (np.square(motion.change).sum(axis=1) / len(JOINTS))
        + 0.1 * (np.square(motion.torque).sum(axis=1) / len(JOINTS))
    )
    earned = 1.0 - missed / 0.5 + 0.5 * np.exp(-np.square(missed / 0.2))
    earned = earned + 0.2 * np.exp(-turned / 0.25)
    earned = earned + 0.5 * gait_of(motion.clearance, phase)
    return np.asarray(np.maximum(earned - costs, 0.0))


def punishments_of(motion: Motion) -> Mapping[str, PerEnv]:
    """Each term's share, from 0 to 1."""
    return {
        "torque": _share(np.abs(motion.torque).max(axis=1), 0.8, 1.0),
        "joint_speed": _share(np.abs(motion.speed).max(axis=1), 0.8, 1.0),
        "tilt": _share(motion.tilt, 0.25, 0.6),
        "height": _share(-motion.height, -0.20, -FALL_HEIGHT),
        "body_contact": motion.body_contact.astype(np.float64),
        "slip": _share(motion.slip, 0.3, 1.3).mean(axis=1),
    }


def fallen(height: PerEnv, tilt: PerEnv) -> Bool[Array, " envs"]:
    """Who has fallen: the trunk is too low [m], or too far from upright [rad]."""
    return (height < FALL_HEIGHT) | (tilt > FALL_TILT)


def tilt_of(gravity: Float[Array, "envs 3"]) -> PerEnv:
    """Angle between a trunk's up and the world's [rad]."""
    return np.asarray(np.arccos(np.minimum(np.maximum(-gravity[:, 2], -1.0), 1.0)))


def punishment_of(motion: Motion) -> PerEnv:
    """Punishment of one control period, from 0 to 1."""
    total = np.minimum(sum(punishments_of(motion).values()), 1.0)
    return np.where(fallen(motion.height, motion.tilt), 1.0, total)


def speed_over(place: Float[Array, "envs 3"], before: Array, heading: PerEnv) -> Array:
    """Forward, sideways and upward speed [envs, 3] between two places a period apart [m/s]."""
    x, y, z = ((place - before) / PERIOD_S).T
    cos, sin = np.cos(heading), np.sin(heading)
    return np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=1)


def _share(value: Array, low: float, high: float) -> Array:
    """0 up to `low`, 1 from `high` on."""
    # `np.clip` takes three times as long for as few numbers.
    return np.minimum(np.maximum((value - low) / (high - low), 0.0), 1.0)
