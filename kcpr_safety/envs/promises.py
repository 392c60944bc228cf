"""What must an environment be and hand out, and how is a broken promise mended?

Each function looks at one thing (the spaces, an observation, a number, an end) and yields a `Fault`
for every promise that it breaks. `conformance` collects them all; a world in training raises the
first. So a check and a training never disagree about what is wrong.
"""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

SLACK = 1e-6
"""By so much of its size (or of 1) may a number lie outside of its bounds: float32 rounds."""

_RETURNED = "(obs, reward, terminated, truncated, info) with info['cost'], or Safety-Gymnasium's 6"
_WHOLE = (bool, np.bool_)


class Fault(NamedTuple):
    """One broken promise."""

    sentence: str
    mend: str
    """What to do about it."""
    seen: str = ""
    """The value at hand, where that helps."""

    @property
    def told(self) -> str:
        """The sentence with what was seen."""
        return f"{self.sentence} ({self.seen})" if self.seen else self.sentence


def raised(what: str, error: BaseException) -> Fault:
    """`what` ended in an exception; names the line of code that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())[:200]
    return Fault(
        f"{what} raised {type(error).__name__}{f': {text}' if text else ''}{place}",
        "call it by itself in Python to see the whole traceback",
    )


# -------------------------------------------------------------------------------------- spaces


def spaces(env: Any) -> Iterator[Fault]:
    """Of the two spaces; where one is missing, of nothing else."""
    for name in ("action_space", "observation_space"):
        if not isinstance(getattr(env, name, None), gymnasium.Space):
            yield Fault(f"it has no {name}", f"set self.{name} in the constructor, a gymnasium one")
            return
    yield from _actions(env.action_space)
    yield from _observations(env.observation_space)


def _actions(space: Any) -> Iterator[Fault]:
    if isinstance(space, gymnasium.spaces.Discrete):
        if int(space.n) < 2:
            yield Fault("its action space offers one choice", "a choice needs at least 2")
        return
    if not isinstance(space, gymnasium.spaces.Box):
        kind = type(space).__name__
        yield Fault(
            f"its actions are a {kind}", "make them a Box of bounded numbers, or a Discrete choice"
        )
        return
    if not np.issubdtype(space.dtype, np.floating):
        yield Fault(
            f"its actions have type {space.dtype}",
            "use gymnasium.spaces.Box(..., dtype=np.float32), or Discrete for a choice",
        )
    if not space.low.size:
        yield Fault("its actions hold no number", "give the policy something to move")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        yield Fault(
            "an action has no finite bounds",
            "give every action a low and a high: the policy squashes its output into them",
        )
    elif not (space.low < space.high).all():
        yield Fault("an action's low bound is not below its high", "give it room, or leave it out")


def _observations(space: Any) -> Iterator[Fault]:
    kind = type(space).__name__
    pictures = next(_pictures(space), None)
    if pictures is not None:
        yield Fault(
            f"pixels are not supported: its observations hold pictures of shape {pictures.shape}",
            "let it observe a row of numbers, such as features of the picture",
        )
        return
    try:
        flat: Any = gymnasium.spaces.flatten_space(space)
    except NotImplementedError:
        flat = None
    if not isinstance(flat, gymnasium.spaces.Box):
        yield Fault(
            f"its observations are a {kind}, which is no fixed row of numbers",
            "use a Box, or a Dict or Tuple of Boxes",
        )
    elif not flat.low.size:
        yield Fault("its observations hold no number", "show the policy something")


def _pictures(space: Any) -> Iterator[gymnasium.spaces.Box]:
    """Parts of a space that look like pictures: bytes in three dimensions or more."""
    if isinstance(space, gymnasium.spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) >= 3:
            yield space
    elif isinstance(space, gymnasium.spaces.Dict):
        for part in space.values():
            yield from _pictures(part)
    elif isinstance(space, gymnasium.spaces.Tuple):
        for part in space:
            yield from _pictures(part)


def same_spaces(one: Any, other: Any, when: str) -> Iterator[Fault]:
    """Of two pairs (observation space, action space) that should be one."""
    for name, a, b in zip(("observation", "action"), one, other, strict=True):
        if a != b:
            yield Fault(
                f"its {name} space is another one {when}",
                "keep both spaces as the constructor made them: a policy has one size",
                f"{a}, then {b}",
            )


# ------------------------------------------------------------------------------- what it returns


def reset(result: Any) -> Iterator[Fault]:
    """Of what `reset` returned."""
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    if not pair:
        yield Fault(
            "reset did not return an observation and a dictionary",
            "end it with: return observation, {}",
            _kind(result),
        )


def step(result: Any) -> Iterator[Fault]:
    """Of what `step` returned: how many values, and is there a cost?"""
    if not isinstance(result, tuple):
        yield Fault("step did not return a tuple", f"return {_RETURNED}", _kind(result))
        return
    if len(result) not in (5, 6):
        old = ": the old 'done' is now terminated and truncated" if len(result) == 4 else ""
        yield Fault(f"step returned {len(result)} values", f"return {_RETURNED}{old}")
        return
    info = result[-1]
    if not isinstance(info, dict):
        yield Fault("the last value of step is no dictionary", f"return {_RETURNED}", _kind(info))
    elif len(result) == 5 and "cost" not in info:
        yield Fault(
            "step reports no cost",
            "put the punishment of this step, a number >= 0, into info['cost']",
        )


def form(space: Any, obs: Any, when: str) -> Iterator[Fault]:
    """Of an observation's type and shape."""
    if not isinstance(space, gymnasium.spaces.Box):
        try:
            obs = gymnasium.spaces.flatten(space, obs)
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            yield Fault(
                f"{when} gave an observation that its space does not hold",
                f"return what {type(space).__name__} promises: the same keys, the same shapes",
                what,
            )
            return
        space = gymnasium.spaces.flatten_space(space)
    try:
        array = np.asarray(obs)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        yield Fault(
            f"{when} gave an observation that is no array of real numbers",
            "return np.asarray(observation, dtype=np.float32)",
            f"{_kind(obs)}, type {array.dtype}",
        )
    elif array.shape != space.shape:
        yield Fault(
            f"{when} gave {array.size} numbers of shape {array.shape}; its space has "
            f"{int(np.prod(space.shape))} of shape {space.shape}",
            "make the observation space and what is returned one shape",
        )


def inside(space: Any, flat: np.ndarray, when: str) -> Iterator[Fault]:
    """Of an observation's numbers, as one row; those that are none are not judged here."""
    if isinstance(space, gymnasium.spaces.Box):
        low, high = space.low.ravel(), space.high.ravel()
        slack = SLACK * np.maximum(np.abs(flat), 1.0)
        out = ((flat < low - slack) | (flat > high + slack)) & np.isfinite(flat)
        if out.any():
            i = int(out.argmax())
            yield Fault(
                f"an observation of {when} lies outside its space",
                "widen the space, or clip the observation: a deployed controller takes its bounds "
                "for true",
                f"number {i} is {flat[i]:g}, its bounds are [{low[i]:g}, {high[i]:g}]",
            )


def number(name: str, value: Any) -> Iterator[Fault]:
    """Of a reward or a cost: one real number."""
    if type(value) in (float, int, np.float64, np.float32):
        return
    array = np.asarray(value)
    if array.ndim:
        yield Fault(
            f"the {name} is an array of shape {array.shape}", f"return one number: float({name})"
        )
    elif array.dtype.kind not in "fiu":
        yield Fault(f"the {name} must be one number, not {_kind(value)}", f"return float({name})")


def cost(value: float) -> Iterator[Fault]:
    """Of a cost that is a number."""
    if value < 0:
        yield Fault(
            "a cost is negative",
            "return what is bad as a number >= 0, and pay for what is good in the reward",
            f"{value:g}",
        )


def ending(name: str, value: Any) -> Iterator[Fault]:
    """Of `terminated` or `truncated`."""
    if not isinstance(value, _WHOLE):
        yield Fault(f"'{name}' must be true or false, not {_kind(value)}", f"return bool({name})")


def _kind(value: Any) -> str:
    """What a value is, in a word or two."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return "None" if value is None else type(value).__name__
