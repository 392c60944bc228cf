"""What can a card punish, in which unit, and how much is too much?

Each term measures something of every environment at once, [envs, n] (n bodies, joints, actuators or
one), and is held against a threshold; what counts is the worst of the n, as a share x in [0, 1]:

    above    x = worst / threshold - 1      0 up to the threshold, 1 from twice the threshold on
    below    x = 1 - least / threshold      0 from the threshold up, 1 at 0 and under it
    beyond   x = worst / threshold          0 where nothing is, 1 from the threshold on
    touch    x = 1 where anything is, else 0; there is no threshold

A term of the form "step" charges 1 in every step with x > 0, one of the form "share" charges x;
each times its weight. So a charge is never negative and never more than the weight, and a measure
that is no number charges the most. Everything here is a pure function of arrays; `punishing` reads
the arrays from MuJoCo. Measures are those of the last physics step of a control period, as
`mj_step` left them: positions, contacts and forces belong to that step's beginning.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray
Values = Float[Array, "envs n"]
Shares = Float[Array, " envs"]

FORMS = ("share", "step")
RULES = ("above", "below", "beyond", "touch")


@dataclass(frozen=True)
class Term:
    """One line of the list of terms."""

    meaning: str
    unit: str
    """Of the threshold; empty where there is none."""
    rule: str
    """One of `RULES`."""
    takes: tuple[str, ...] = ()
    """What its card may name or must give: bodies, geoms, joints, actuators, low, high."""
    needs: tuple[str, ...] = ()
    """Those of them that it cannot do without."""


_JOINTS = ("joints",)
_BODIES = ("bodies",)
TERMS: Mapping[str, Term] = {
    "speed": Term("a body moves fast, in any direction", "m/s", "above", _BODIES, _BODIES),
    "joint_position": Term(
        "a joint comes near an end of its range (or of low .. high): its distance is too small",
        "rad, m",
        "below",
        ("joints", "low", "high"),
    ),
    "joint_velocity": Term("a joint moves fast", "rad/s, m/s", "above", _JOINTS),
    "joint_torque": Term(
        "a joint is driven hard (or the force of an actuator is large)",
        "N m, N",
        "above",
        ("joints", "actuators"),
    ),
    "contact_force": Term(
        "contacts press on a body: the sum of their forces' sizes", "N", "above", _BODIES, _BODIES
    ),
    "contact": Term("a body or geom touches anything", "", "touch", ("bodies", "geoms")),
    "tilt": Term("a body's own z axis leans from the vertical", "deg", "above", _BODIES, _BODIES),
    "height": Term("a body's origin is too low", "m", "below", _BODIES, _BODIES),
    "self_collision": Term("two parts of one robot touch each other", "", "touch", _BODIES),
    "energy": Term("actuators take or give much power, added up", "W", "above", ("actuators",)),
    "action_rate": Term(
        "a command changes much in one step: as a share of its range (another choice: all of it)",
        "1",
        "above",
    ),
    "region": Term(
        "a body's origin is outside of the box low .. high (x, y, z): how far",
        "m",
        "beyond",
        ("bodies", "low", "high"),
        ("bodies", "low", "high"),
    ),
}


def charge(values: Values, rule: str, threshold: float, form: str) -> Shares:
    """What one term charges each environment, before its weight: in [0, 1], also for NaN.

    `threshold` > 0 in the unit of the values; it means nothing to "touch".
    """
    if values.shape[1] == 0:
        return np.zeros(len(values))
    worst = values.min(axis=1) if rule == "below" else values.max(axis=1)
    if rule == "touch":
        share = np.where(worst == 0, 0.0, 1.0)
    elif rule == "below":
        share = 1.0 - worst / threshold
    elif rule == "beyond":
        share = worst / threshold
    else:
        share = worst / threshold - 1.0
    share = np.where(np.isnan(share), 1.0, np.clip(share, 0.0, 1.0))
    return (share > 0).astype(np.float64) if form == "step" else share


# ------------------------------------------------------------------------------------- measures


def speeds(
    cvel: Float[Array, "envs n 6"], place: Float[Array, "envs n 3"], com: Float[Array, "envs n 3"]
) -> Values:
    """Of body origins [m/s].

    `cvel` is MuJoCo's: rotation and translation as seen at the tree's centre of mass `com`; moved
    to the body's origin, v = v_com + w x (place - com).
    """
    velocity = cvel[..., 3:] + np.cross(cvel[..., :3], place - com)
    return _length(velocity)


def rooms(position: Values, low: Float[Array, " n"], high: Float[Array, " n"]) -> Values:
    """Distance of joints to the nearer end of their range, negative outside [rad, m]."""
    return np.asarray(np.minimum(position - low, high - position))


def tilts(xmat: Float[Array, "envs n 9"]) -> Values:
    """Angle between each body's z axis and the vertical [deg]; `xmat` by rows."""
    return np.asarray(np.degrees(np.arccos(np.clip(xmat[..., 8], -1.0, 1.0))))


def powers(force: Values, velocity: Values) -> Float[Array, "envs 1"]:
    """Sum over actuators of |force x velocity| [W]: braking costs as driving does."""
    return np.asarray(np.abs(force * velocity).sum(axis=1, keepdims=True))


def action_rates(action: Values, before: Values) -> Values:
    """Change of each command; both as shares of its range, 0 at the low end, 1 at the high."""
    return np.asarray(np.abs(action - before))


def outside(
    place: Float[Array, "envs n 3"], low: Float[Array, "3"], high: Float[Array, "3"]
) -> Values:
    """Distance of points to a box, 0 inside [m]."""
    return _length(place - np.clip(place, low, high))


def pressed(
    columns: Int[Array, "contacts 2"], sizes: Float[Array, " contacts"], bodies: int
) -> Float[Array, " bodies"]:
    """Sum of the sizes of the forces on each body [N].

    `columns` says whose the two geoms of a contact are, -1 where nobody's that counts; a contact
    of a body with itself counts once.
    """
    found = np.zeros(bodies)
    for (one, other), size in zip(columns.tolist(), sizes.tolist(), strict=True):
        for column in {one, other} - {-1}:
            found[column] += size
    return found


def touching(pairs: list[Array], wanted: Bool[Array, " geoms"]) -> Float[Array, "envs 1"]:
    """1 where any of an environment's contacts, pairs [contacts, 2] of geoms, is of a wanted one.

    The last entry of `wanted` stands for what is no geom (-1).
    """
    return np.array([[float(wanted[each].any())] for each in pairs])


def colliding(pairs: list[Array], tree: Float[Array, " geoms"]) -> Float[Array, "envs 1"]:
    """1 where two geoms of one tree are in contact; `tree` numbers them, 0 takes no part."""
    found = []
    for each in pairs:
        one, other = tree[each[:, 0]], tree[each[:, 1]]
        found.append([float(((one == other) & (one > 0)).any())])
    return np.array(found)


def _length(vectors: Float[Array, "envs n 3"]) -> Values:
    return np.asarray(np.sqrt(np.square(vectors).sum(axis=-1)))
