"""What can a robot's card pay and end an episode for?

Rewards, per step, each times its `weight`:

    speed      of a body along an axis (x, y or z) of the world [m/s]
    approach   metres by which a site came closer to a target site in this step
    near       exp(-distance / scale) of a site to a target site; scale [m], default 0.1
    upright    cosine of a body's tilt
    effort     minus the mean square of the commands, each as a share of the actuator's bound
    alive      1
    arrival    1 in the step that ends the episode by its [robot.ends] reach

Ends: `height` (body, low, high), `tilt` (body, most [deg]), `reach` (site, target, within [m]).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from kcpr_safety.envs import naming
from kcpr_safety.envs.robot_state import State
from kcpr_safety.envs.robot_words import Words
from kcpr_safety.errors import CardError

Array = np.ndarray
Values = Float[Array, " envs"]
Paid = Callable[[State, State, Array], Array]
"""(state before, state now, who arrived) -> [envs]."""

_AXES = ("x", "y", "z")


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


# ---------------------------------------------------------------------------------------- ends


def tilt(state: State, body: int) -> Values:
    """Of a body against the vertical [deg]."""
    angle: Array = np.degrees(np.arccos(np.clip(state.up(body)[:, 2], -1.0, 1.0)))
    return angle


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
