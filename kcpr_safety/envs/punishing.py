"""How are the punishments that a card declares read from simulations, all environments at once?

    punishment = Punishment(card.punish, model, "task card my_robot.toml")
    charge = punishment(models, datas, action, before)
    charge.total [envs], charge.terms [envs, terms], charge.streams [envs, streams]

Names become numbers once, when this is built; a name that the model does not have, or a table that
its term cannot use, is a `CardError`. Per step, each array that some term needs is gathered from
MuJoCo once for all terms; contacts are gone through where a term asks for them. What is measured,
and against what, says `terms`.
"""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from kcpr_safety.envs import terms
from kcpr_safety.envs.robot_words import names
from kcpr_safety.errors import CardError, UnknownNameError
from kcpr_safety.punishments import Punish

Array = np.ndarray
_SIMPLE = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
_IN_GAP = 1
"""A contact's `exclude` (mjdata.h); from 2 on things touch, though no constraint parts them."""
_KINDS = {"bodies": "body", "geoms": "geom", "joints": "joint", "actuators": "actuator"}


@dataclass(frozen=True)
class Charge:
    """What one step costs."""

    total: Float[Array, " envs"]
    terms: Float[Array, "envs terms"]
    """Weighted, in the card's order."""
    streams: Float[Array, "envs streams"]
    """Their sums by stream, in the order of `Punishment.streams`."""


class Scene:
    """All simulations as they are; an array is gathered when it is first asked for."""

    def __init__(
        self, models: Sequence[Any], datas: Sequence[Any], action: Array, before: Array
    ) -> None:
        self.models, self.datas = models, datas
        self.action, self.before = action, before
        self._arrays: dict[str, Array] = {}
        self._pairs: list[Array] | None = None

    def of(self, name: str) -> Array:
        """One of MuJoCo's arrays, of every environment: [envs, ...]."""
        if name not in self._arrays:
            self._arrays[name] = np.array([getattr(data, name) for data in self.datas])
        return self._arrays[name]

    @property
    def pairs(self) -> list[Array]:
        """Geoms that touch: [contacts, 2] of each environment.

        Without those that MuJoCo lists because they lie in a geom's `gap`, some way apart.
        """
        if self._pairs is None:
            contacts = [data.contact for data in self.datas]
            self._pairs = [each.geom[each.exclude != _IN_GAP].reshape(-1, 2) for each in contacts]
        return self._pairs


Measure = Callable[[Scene], Array]


class Punishment:
    """The terms of one card over one model."""

    def __init__(self, declared: Sequence[Punish], model: Any, where: str) -> None:
        self.declared = tuple(declared)
        self.names = tuple(row.term for row in declared)
        self.streams = tuple(dict.fromkeys(row.stream for row in declared))
        places = [f"{where}: [[punish]] {i} ({row.term})" for i, row in enumerate(declared, 1)]
        pairs = list(zip(declared, places, strict=True))
        self._rules = [_checked(row, place).rule for row, place in pairs]
        self._measures = [_MAKERS[row.term](model, row, place) for row, place in pairs]
        self._columns = [
            [i for i, row in enumerate(declared) if row.stream == stream] for stream in self.streams
        ]

    def __call__(
        self, models: Sequence[Any], datas: Sequence[Any], action: Array, before: Array
    ) -> Charge:
        """Of the step that just ended.

        `action` and `before` [envs, action] are its commands and those of the step before it, as
        shares of their range; equal in an episode's first step.
        """
        scene = Scene(models, datas, action, before)
        with np.errstate(all="ignore"):  # what is no number is charged the most
            found = [
                row.weight * terms.charge(measure(scene), rule, row.threshold, row.form)
                for row, rule, measure in zip(
                    self.declared, self._rules, self._measures, strict=True
                )
            ]
        each = np.stack(found, axis=1)
        streams = [each[:, columns].sum(axis=1) for columns in self._columns]
        return Charge(each.sum(axis=1), each, np.stack(streams, axis=1))


def _checked(row: Punish, where: str) -> terms.Term:
    """The term of a declaration that gives it what it needs, and nothing else."""
    if row.term not in terms.TERMS:
        raise CardError(f"{where}: {UnknownNameError('term', row.term, terms.TERMS)}")
    term = terms.TERMS[row.term]
    if term.unit and not row.threshold > 0:
        raise CardError(f"{where} needs a 'threshold' above 0 [{term.unit}]")
    if not term.unit and row.threshold:
        raise CardError(f"{where} has no threshold: it charges 1 where anything is")
    for key in ("bodies", "geoms", "joints", "actuators", "low", "high"):
        given = getattr(row, key)
        if given and key not in term.takes:
            raise CardError(f"{where} takes {', '.join(term.takes) or 'no names'}, not '{key}'")
        if not given and key in term.needs:
            raise CardError(f"{where} needs '{key}'")
    if len(row.low) != len(row.high):
        raise CardError(f"{where}: 'low' and 'high' must hold equally many numbers")
    if any(low >= high for low, high in zip(row.low, row.high, strict=True)):
        raise CardError(f"{where}: every number of 'low' must be below that of 'high'")
    return term


def _numbers(model: Any, row: Punish, key: str, where: str) -> Array:
    """Numbers of what is named (`*` and `?` stand for letters), in the model's order."""
    word = _KINDS[key]
    known = names(model, word)
    found: set[int] = set()
    for pattern in getattr(row, key):
        hits = {i for i, name in enumerate(known) if name and fnmatch.fnmatchcase(name, pattern)}
        if not hits:
            raise CardError(f"{where}: {UnknownNameError(word, pattern, filter(None, known))}")
        found |= hits
    return np.array(sorted(found), dtype=np.int64)


def _joints(model: Any, row: Punish, where: str) -> Array:
    """Hinges and slides that are named, or all of them."""
    if not row.joints:
        return np.flatnonzero(np.isin(model.jnt_type, _SIMPLE))
    joints = _numbers(model, row, "joints", where)
    odd = [model.joint(int(j)).name for j in joints if int(model.jnt_type[j]) not in _SIMPLE]
    if odd:
        raise CardError(f"{where}: {', '.join(odd)} is neither a hinge nor a slide")
    return joints


def _actuators(model: Any, row: Punish, where: str) -> Array:
    return _numbers(model, row, "actuators", where) if row.actuators else np.arange(model.nu)


# ----------------------------------------------------------------------- one maker for each term


def _speed(model: Any, row: Punish, where: str) -> Measure:
    bodies = _numbers(model, row, "bodies", where)
    roots = model.body_rootid[bodies].copy()
    return lambda scene: terms.speeds(
        scene.of("cvel")[:, bodies], scene.of("xpos")[:, bodies], scene.of("subtree_com")[:, roots]
    )


def _joint_position(model: Any, row: Punish, where: str) -> Measure:
    joints = _joints(model, row, where)
    if row.low:
        if len(row.low) not in (1, len(joints)):
            raise CardError(
                f"{where}: 'low' needs 1 number, or one for each of {len(joints)} joints"
            )
        low, high = np.zeros((2, len(joints))) + np.array([row.low, row.high])
    else:
        limited = model.jnt_limited[joints].astype(bool)
        if row.joints and not limited.all():
            free = [model.joint(int(j)).name for j in joints[~limited]]
            raise CardError(f"{where}: {', '.join(free)} has no range; give 'low' and 'high'")
        joints = joints[limited]
        low, high = model.jnt_range[joints].copy().T
    columns = model.jnt_qposadr[joints].copy()
    return lambda scene: terms.rooms(scene.of("qpos")[:, columns], low, high)


def _joint_velocity(model: Any, row: Punish, where: str) -> Measure:
    columns = model.jnt_dofadr[_joints(model, row, where)].copy()
    return lambda scene: np.abs(scene.of("qvel")[:, columns])


def _joint_torque(model: Any, row: Punish, where: str) -> Measure:
    if row.actuators:
        if row.joints:
            raise CardError(f"{where}: name 'joints' or 'actuators', not both")
        chosen = _actuators(model, row, where)
        return lambda scene: np.abs(scene.of("actuator_force")[:, chosen])
    columns = model.jnt_dofadr[_joints(model, row, where)].copy()
    return lambda scene: np.abs(scene.of("qfrc_actuator")[:, columns])


def _contact_force(model: Any, row: Punish, where: str) -> Measure:
    bodies = _numbers(model, row, "bodies", where)
    column = np.full(model.ngeom + 1, -1)
    for i, body in enumerate(bodies):
        column[:-1][model.geom_bodyid == body] = i
    wrench = np.zeros(6)

    def forces(scene: Scene) -> Array:
        found = []
        for one, data in zip(scene.models, scene.datas, strict=True):
            columns = column[data.contact.geom.reshape(-1, 2)]
            sizes = np.zeros(len(columns))
            for k in np.flatnonzero((columns >= 0).any(axis=1)):
                mujoco.mj_contactForce(one, data, int(k), wrench)
                sizes[k] = np.sqrt(np.square(wrench[:3]).sum())
            found.append(terms.pressed(columns, sizes, len(bodies)))
        return np.array(found)

    return forces


def _contact(model: Any, row: Punish, where: str) -> Measure:
    if not row.bodies and not row.geoms:
        raise CardError(f"{where} needs 'bodies' or 'geoms'")
    wanted = np.zeros(model.ngeom + 1, dtype=bool)
    wanted[:-1] = np.isin(model.geom_bodyid, _numbers(model, row, "bodies", where))
    wanted[_numbers(model, row, "geoms", where)] = True
    return lambda scene: terms.touching(scene.pairs, wanted)


def _self_collision(model: Any, row: Punish, where: str) -> Measure:
    tree = np.zeros(model.ngeom + 1)
    tree[:-1] = model.body_rootid[model.geom_bodyid]
    if row.bodies:
        tree[:-1][~np.isin(model.geom_bodyid, _numbers(model, row, "bodies", where))] = 0
    return lambda scene: terms.colliding(scene.pairs, tree)


def _tilt(model: Any, row: Punish, where: str) -> Measure:
    bodies = _numbers(model, row, "bodies", where)
    return lambda scene: terms.tilts(scene.of("xmat")[:, bodies])


def _height(model: Any, row: Punish, where: str) -> Measure:
    bodies = _numbers(model, row, "bodies", where)
    return lambda scene: scene.of("xpos")[:, bodies, 2]


def _energy(model: Any, row: Punish, where: str) -> Measure:
    chosen = _actuators(model, row, where)
    return lambda scene: terms.powers(
        scene.of("actuator_force")[:, chosen], scene.of("actuator_velocity")[:, chosen]
    )


def _action_rate(model: Any, row: Punish, where: str) -> Measure:
    return lambda scene: terms.action_rates(scene.action, scene.before)


def _region(model: Any, row: Punish, where: str) -> Measure:
    if len(row.low) != 3:
        raise CardError(f"{where}: 'low' and 'high' must each be x, y and z [m]")
    bodies = _numbers(model, row, "bodies", where)
    low, high = np.array(row.low, dtype=np.float64), np.array(row.high, dtype=np.float64)
    return lambda scene: terms.outside(scene.of("xpos")[:, bodies], low, high)


_MAKERS: dict[str, Callable[[Any, Punish, str], Measure]] = {
    "speed": _speed,
    "joint_position": _joint_position,
    "joint_velocity": _joint_velocity,
    "joint_torque": _joint_torque,
    "contact_force": _contact_force,
    "contact": _contact,
    "tilt": _tilt,
    "height": _height,
    "self_collision": _self_collision,
    "energy": _energy,
    "action_rate": _action_rate,
    "region": _region,
}
