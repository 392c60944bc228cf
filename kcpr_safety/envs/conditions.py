"""What differs from one walk to the next: command, floor, body, motors, delay, pushes, noise?

Everything is drawn from the episode's seed before its first step, so that an episode is a function
of its seed and its actions.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from kcpr_safety.cards import Quadruped
from kcpr_safety.envs.unitree import JOINTS, PERIOD_S, SUBSTEPS
from kcpr_safety.envs.walking import NOISE

FRICTION = (0.5, 1.1)
LOAD = (-0.5, 2.0)  # [kg]
STRENGTH = (0.85, 1.15)
KICK = 0.3  # most, of a push: a jump of the trunk's speed [m/s]
KICK_EVERY_S = 5.0
"""One push in each such stretch of time, at any moment in it."""
_JOINT_SPREAD = 0.05  # [rad]


@dataclass(frozen=True)
class Conditions:
    """One episode's."""

    command: Float[np.ndarray, " 2"]
    """Forward speed [m/s] and rate of turn [rad/s]."""
    friction: float
    load_kg: float
    strength: float
    """Share of the torque that motors give."""
    late: int
    """Physics steps of a control period for which motors still hold the old target."""
    heading: float
    joints: Float[np.ndarray, " 12"]
    """Where joints begin beside the rest pose [rad]."""
    phase: float
    kick_steps: Int[np.ndarray, " kicks"]
    kicks: Float[np.ndarray, "kicks 2"]
    """Pushes: before which control period, and by how much [m/s]."""
    noise: Float[np.ndarray, "steps 30"]
    """Of what is sensed at the beginning and after each control period."""


def drawn(quadruped: Quadruped, seed: int) -> Conditions:
    """The conditions of the episode of this seed."""
    rng = np.random.default_rng(seed)
    usual = rng.random(2) < 0.5
    command = np.array([rng.uniform(*quadruped.speed), rng.uniform(*quadruped.turn)])
    stretch = round(KICK_EVERY_S / PERIOD_S)
    count = quadruped.time_limit // stretch
    directions = rng.uniform(-np.pi, np.pi, count)
    sizes = rng.uniform(0.0, KICK, count)
    return Conditions(
        command=np.where(usual, (quadruped.usual_speed, 0.0), command),
        friction=rng.uniform(*FRICTION),
        load_kg=rng.uniform(*LOAD),
        strength=rng.uniform(*STRENGTH),
        late=int(rng.integers(SUBSTEPS)),
        heading=rng.uniform(-np.pi, np.pi),
        joints=rng.uniform(-_JOINT_SPREAD, _JOINT_SPREAD, len(JOINTS)),
        phase=rng.random(),
        kick_steps=stretch * np.arange(count) + rng.integers(0, stretch, count),
        kicks=sizes[:, None] * np.stack([np.cos(directions), np.sin(directions)], axis=1),
        noise=NOISE * rng.standard_normal((quadruped.time_limit + 1, len(NOISE))),
    )
