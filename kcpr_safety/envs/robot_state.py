"""What do the numbers of many simulations look like as a few arrays?

`Gathered` keeps views into every simulation's memory and reads all of them in one pass. A `State`
gives the parts their shapes: `state.qpos` is [envs, nq], `state.xpos` [envs, bodies, 3], ...
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

FIELDS = (
    "qpos",
    "qvel",
    "ctrl",
    "qfrc_actuator",
    "sensordata",
    "xpos",
    "xmat",
    "cvel",
    "subtree_com",
    "site_xpos",
)
Array = np.ndarray


class State:
    """All environments at one moment; the parts are views into `flat` [envs, numbers]."""

    def __init__(self, flat: Array, parts: dict[str, tuple[slice, tuple[int, ...]]]) -> None:
        self.flat = flat
        self._parts = parts

    def __getattr__(self, name: str) -> Array:
        if name not in FIELDS:
            raise AttributeError(name)
        where, shape = self._parts[name]
        part: Array = self.flat[:, where].reshape(len(self.flat), *shape)
        return part

    def up(self, body: int) -> Float[Array, "envs 3"]:
        """The world's upward direction in a body's own frame."""
        axes: Array = self.xmat[:, body].reshape(-1, 3, 3)[:, 2]
        return axes

    def velocity(self, body: int, root: int) -> Float[Array, "envs 3"]:
        """Of a body's origin, along the world's axes [m/s]; `root` is its tree's first body.

        MuJoCo's `cvel` (rotation, then translation) is that of the point of the body that is at
        the tree's centre of mass.
        """
        offset = self.xpos[:, body] - self.subtree_com[:, root]
        moving = self.cvel[:, body]
        turned: Array = np.cross(moving[:, :3], offset)
        speed: Array = moving[:, 3:] + turned
        return speed


class Gathered:
    """Reads simulations of one model."""

    def __init__(self, datas: Sequence[Any]) -> None:
        first = datas[0]
        self._parts: dict[str, tuple[slice, tuple[int, ...]]] = {}
        start = 0
        for name in FIELDS:
            shape = getattr(first, name).shape
            stop = start + int(np.prod(shape))
            self._parts[name] = (slice(start, stop), shape)
            start = stop
        self._views = [getattr(data, name).reshape(-1) for data in datas for name in FIELDS]
        self._count = len(datas)

    def read(self) -> State:
        """As they are now, in arrays of their own."""
        return State(np.concatenate(self._views).reshape(self._count, -1), self._parts)
