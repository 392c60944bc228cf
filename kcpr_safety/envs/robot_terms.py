"""What can a robot's card pay, punish and end an episode for?

Rewards, per step, each times its `weight`:

    speed      of a body along an axis (x, y or z) of the world [m/s]
    approach   metres by which a site came closer to a target site in this step
    near       exp(-distance / scale) of a site to a target site; scale [m], default 0.1
    upright    cosine of a body's tilt
    effort     minus the mean square of the commands, each as a share of the actuator's bound
    alive      1
    arrival    1 in the step that ends the episode by its [robot.ends] reach

Punishments, per step, each times its `weight`; never negative. `form = "share"` (default): by how
much the threshold is exceeded, as a share of it, at most 1; `form = "step"`: 1 where it is:

    speed            of a body, in any direction; threshold [m/s]
    height           of a body, below the threshold [m]
    tilt             of a body; threshold [deg]
    joint_position   nearness of joints to a limit of their range: 0 from `threshold` on, 1 at it
    joint_velocity   the fastest joint; threshold [rad/s, m/s]
    joint_torque     what actuators do to a joint, gears included; threshold [N m, N]
    region           a body outside of the box from `low` to `high`; threshold [m]: 1 so far out
    contact          1 where one of `bodies` touches anything

Ends: `height` (body, low, high), `tilt` (body, most [deg]), `reach` (site, target, within [m]).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from kcpr_safety.envs import naming
from kcpr_safety.envs.robot_senses import simple_joints
from kcpr_safety.envs.robot_state import State
from kcpr_safety.envs.robot_words import ALL, Words, names
from kcpr_safety.errors import CardError

Array = np.ndarray
Values = Float[Array, " envs"]
Paid = Callable[[State, State, Array], Array]
"""(state before, state now, who arrived) -> [envs]."""
Measured = Callable[[State, Array], Array]
"""(state, contacts of bodies [envs, bodies]) -> [envs]."""

_AXES = ("x", "y", "z")
_FORMS = ("share", "step")


# ------------------------------------------------------------------------------------- rewards


def rewards(where: str, rows: object, model: Any) -> Paid:
    """The weighted sum of a card's reward terms."""
    paid = [
        _weighted(_rewarded(words), words)
        for words in _tables(f"{where}: [[robot.reward]]", rows, model)
    ]
    if not paid:
        raise CardError(f"{where} pays nothing: it needs a [[robot.reward]]")

    def total(before: State, now: State, arrived: Array) -> Array:
        terms = np.array([term(before, now, arrived) for term in paid], dtype=np.float64)
        summed: Array = terms.sum(axis=0)
        return summed

    return total


def _weighted(term: Paid, words: Words) -> Paid:
    weight = words.number("weight", 1.0)
    words.done()
    return lambda before, now, arrived: weight * term(before, now, arrived)


def _rewarded(words: Words) -> Paid:
    kinds = ("speed", "approach", "near", "upright", "effort", "alive", "arrival")
    kind = words.choice("term", kinds, "")
    model = words.model
    if kind == "speed":
        body, axis = words.one("body", "body"), _AXES.index(words.choice("axis", _AXES, "x"))
        root = int(model.body_rootid[body])
        return lambda before, now, arrived: now.velocity(body, root)[:, axis]
    if kind in ("approach", "near"):
        site, target = words.one("site", "site"), words.one("target", "site")
        if kind == "approach":
            return lambda before, now, arrived: (
                distance(before, site, target) - distance(now, site, target)
            )
        scale = words.number("scale", 0.1, low=1e-6)
        return lambda before, now, arrived: np.exp(-distance(now, site, target) / scale)
    if kind == "upright":
        body = words.one("body", "body")
        return lambda before, now, arrived: now.up(body)[:, 2]
    if kind == "effort":
        bounds = np.array([max(abs(e.low), abs(e.high)) for e in naming.action_entries(model)])
        return lambda before, now, arrived: -np.mean(np.square(now.ctrl / bounds), axis=1)
    if kind == "alive":
        return lambda before, now, arrived: np.ones(len(arrived))
    return lambda before, now, arrived: arrived.astype(np.float64)


def distance(state: State, site: int, target: int) -> Values:
    """From a site to another [m]."""
    found: Array = np.linalg.norm(state.site_xpos[:, site] - state.site_xpos[:, target], axis=1)
    return found


# --------------------------------------------------------------------------------- punishments


@dataclass(frozen=True)
class Punished:
    """One term of the punishment: what is measured beyond a threshold, and what that weighs."""

    measured: Measured
    """Excess over the threshold as a share of it; not above 0 where all is well."""
    weight: float
    form: str

    def __call__(self, state: State, contacts: Array) -> Values:
        share = self.measured(state, contacts)
        if self.form == "step":
            return self.weight * (share > 0)
        return self.weight * np.clip(share, 0.0, 1.0)


def punishments(where: str, rows: object, model: Any) -> list[Punished]:
    """A card's punishment terms."""
    found = []
    for words in _tables(f"{where}: [[punish]]", rows, model):
        measured = _punished(words)
        weight = words.number("weight", 1.0, low=0.0)
        found.append(Punished(measured, weight, words.choice("form", _FORMS, "share")))
        words.done()
    if not found:
        raise CardError(f"{where} punishes nothing: it needs a [[punish]]")
    return found


def _punished(words: Words) -> Measured:
    kind = words.choice("term", (*_MEASURES, "contact", "region", "joint_position"), "")
    model = words.model
    if kind == "contact":
        bodies = words.some("bodies", "body")
        return lambda state, contacts: contacts[:, bodies].any(axis=1).astype(np.float64)
    threshold = words.number("threshold", low=1e-9)
    if kind == "region":
        body, low, high = words.one("body", "body"), words.row("low", 3), words.row("high", 3)

        def outside(state: State, contacts: Array) -> Array:
            place = state.xpos[:, body]
            out: Array = np.linalg.norm(place - np.clip(place, low, high), axis=1)
            return out / threshold

        return outside
    if kind == "joint_position":
        joints = _limited(words)
        columns, (low, high) = model.jnt_qposadr[joints], model.jnt_range[joints].T

        def near_limit(state: State, contacts: Array) -> Array:
            place = state.qpos[:, columns]
            room: Array = np.minimum(place - low, high - place).min(axis=1)
            return 1.0 - room / threshold

        return near_limit
    return _MEASURES[kind](words, threshold)


def _limited(words: Words) -> list[int]:
    given = _listed(words)
    joints = simple_joints(words.where, given, words.model)
    limited = words.model.jnt_limited
    if given == [ALL]:
        joints = [i for i in joints if limited[i]]
    without = [names(words.model, "joint")[i] for i in joints if not limited[i]]
    if without or not joints:
        raise CardError(f"{words.where}: no range limits {', '.join(without) or 'any joint'}")
    return joints


def _listed(words: Words) -> list[str]:
    given = words.taken("joints") if words.has("joints") else [ALL]
    return given if isinstance(given, list) else [str(given)]


def _speed(words: Words, threshold: float) -> Measured:
    body = words.one("body", "body")
    root = int(words.model.body_rootid[body])

    def too_fast(state: State, contacts: Array) -> Array:
        speed: Array = np.linalg.norm(state.velocity(body, root), axis=1)
        return speed / threshold - 1.0

    return too_fast


def _height(words: Words, threshold: float) -> Measured:
    body = words.one("body", "body")
    return lambda state, contacts: 1.0 - state.xpos[:, body, 2] / threshold


def _tilt(words: Words, threshold: float) -> Measured:
    body = words.one("body", "body")
    return lambda state, contacts: tilt(state, body) / threshold - 1.0


def _joint_velocity(words: Words, threshold: float) -> Measured:
    columns = words.model.jnt_dofadr[simple_joints(words.where, _listed(words), words.model)]

    def too_fast(state: State, contacts: Array) -> Array:
        most: Array = np.abs(state.qvel[:, columns]).max(axis=1)
        return most / threshold - 1.0

    return too_fast


def _joint_torque(words: Words, threshold: float) -> Measured:
    columns = words.model.jnt_dofadr[simple_joints(words.where, _listed(words), words.model)]

    def too_strong(state: State, contacts: Array) -> Array:
        most: Array = np.abs(state.qfrc_actuator[:, columns]).max(axis=1)
        return most / threshold - 1.0

    return too_strong


_MEASURES: dict[str, Callable[[Words, float], Measured]] = {
    "speed": _speed,
    "height": _height,
    "tilt": _tilt,
    "joint_velocity": _joint_velocity,
    "joint_torque": _joint_torque,
}


def tilt(state: State, body: int) -> Values:
    """Of a body against the vertical [deg]."""
    angle: Array = np.degrees(np.arccos(np.clip(state.up(body)[:, 2], -1.0, 1.0)))
    return angle


# ---------------------------------------------------------------------------------------- ends


Ended = Callable[[State], Bool[Array, " envs"]]


def ends(where: str, table: object, model: Any) -> tuple[Ended, Ended]:
    """(who failed, who arrived) of a card's [robot.ends]; nobody, where there is none."""
    words = Words(f"{where}: [robot.ends]", table, model)
    failing: list[Ended] = []
    reached: list[Ended] = []
    if words.has("height"):
        inner = Words(f"{where}: ends by height", words.taken("height"), model)
        body, low, high = inner.one("body", "body"), inner.number("low"), inner.number("high", 1e6)
        inner.done()
        failing.append(
            lambda state: (state.xpos[:, body, 2] < low) | (state.xpos[:, body, 2] > high)
        )
    if words.has("tilt"):
        inner = Words(f"{where}: ends by tilt", words.taken("tilt"), model)
        leaning, most = inner.one("body", "body"), inner.number("most", low=0.0)
        inner.done()
        failing.append(lambda state: tilt(state, leaning) > most)
    if words.has("reach"):
        inner = Words(f"{where}: ends by reach", words.taken("reach"), model)
        site, target = inner.one("site", "site"), inner.one("target", "site")
        within = inner.number("within", low=1e-9)
        inner.done()
        reached.append(lambda state: distance(state, site, target) <= within)
    words.done()
    return _any(failing), _any(reached)


def _any(found: list[Ended]) -> Ended:
    def ended(state: State) -> Array:
        who = np.zeros(len(state.flat), dtype=bool)
        for end in found:
            who |= end(state)
        return who

    return ended


def _tables(where: str, rows: object, model: Any) -> list[Words]:
    if not isinstance(rows, list | tuple):
        raise CardError(f"{where} must be tables in double brackets")
    return [Words(f"{where} {i + 1}", row, model) for i, row in enumerate(rows)]
