"""How does a Gymnasium environment with a MuJoCo model get the punishment that a card declares?

Any environment whose `unwrapped` has a `model` and a `data` of MuJoCo: Gymnasium's own bodies,
Gymnasium-Robotics, one of yours. Its reward, ends and starts stay as they are; observations become
one row of numbers (dictionaries in Gymnasium's order of keys), and each step is charged what the
card's terms say (`punishing`).
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import numpy as np

from kcpr_safety.cards import TaskCard
from kcpr_safety.contract import Entry
from kcpr_safety.envs import naming
from kcpr_safety.envs.punishing import Punishment
from kcpr_safety.errors import EnvironmentFault


class DeclaredEnv(gymnasium.Env[np.ndarray, Any]):
    """One such environment; `step` gives six values, as others do here."""

    def __init__(
        self,
        card: TaskCard,
        make: Callable[..., Any],
        render_mode: str | None = None,
        **size: Any,
    ) -> None:
        """`make` builds the environment that is punished; `size` is that of its pictures."""
        shown = {} if render_mode is None else {"render_mode": render_mode, **size}
        self.inner: Any = make(**card.options, **shown)
        bare = self.inner.unwrapped
        if not isinstance(getattr(bare, "model", None), mujoco.MjModel):
            self.inner.close()
            raise EnvironmentFault(
                f"{card.task}: {card.environment} has no MuJoCo model, so no term can punish it"
            )
        self.model, self.data = bare.model, bare.data
        self.dt = float(bare.dt) if hasattr(bare, "dt") else self._period()
        self.render_mode = render_mode
        self.action_space: Any = self.inner.action_space
        self.observation_space: Any = gymnasium.spaces.flatten_space(self.inner.observation_space)
        self.punishment = Punishment(card.punish, self.model, f"task card {card.task}")
        self.charges = True
        """Whether `step` works out the cost; a world that does so for all at once says no."""
        self._before: np.ndarray | None = None

    def _period(self) -> float:
        """Simulated time of one step [s], of an environment that does not say; by a trial."""
        self.inner.reset(seed=0)
        before = self.data.time
        space = self.inner.action_space
        self.inner.step(space.low if isinstance(space, gymnasium.spaces.Box) else space.sample())
        return float(self.data.time - before)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.inner.reset(seed=seed, options=options)
        self._before = None
        return self._row(obs), info

    def step(self, action: Any) -> Any:
        """obs, reward, cost, terminated, truncated, info."""
        obs, reward, terminated, truncated, info = self.inner.step(self._command(action))
        cost = self._cost(np.asarray(action)) if self.charges else 0.0
        return self._row(obs), float(reward), cost, bool(terminated), bool(truncated), info

    def _command(self, action: Any) -> Any:
        space = self.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            return int(np.asarray(action).ravel()[0])
        return np.clip(np.asarray(action), space.low, space.high).astype(space.dtype)

    def _cost(self, action: np.ndarray) -> float:
        share = shares(self.action_space, action.reshape(1, -1))
        before = share if self._before is None else self._before
        self._before = share
        return float(self.punishment([self.model], [self.data], share, before).total[0])

    def _row(self, obs: Any) -> np.ndarray:
        space = self.inner.observation_space
        return np.asarray(gymnasium.spaces.flatten(space, obs), dtype=np.float64)

    def entries(self) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
        """What the numbers of an observation, and those of an action, are called."""
        bare, space = self.inner.unwrapped, self.inner.observation_space
        body = self._body_entries(bare)
        if isinstance(space, gymnasium.spaces.Dict):
            robots = (part for part in vars(bare).values() if isinstance(part, gymnasium.Env))
            carried = next(filter(None, map(self._body_entries, robots)), ())
            named = naming.keyed_entries(space, carried)
        elif body:
            named = body
        else:
            named = naming.numbered_entries(self.observation_space, "obs")
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            return named, naming.choices(self.action_space)[0]
        size = int(np.prod(self.action_space.shape))
        drives = naming.action_entries(self.model) if size == self.model.nu else ()
        low, high = self.action_space.low.ravel(), self.action_space.high.ravel()
        own = [(e.low, e.high) for e in drives] == list(
            zip(low.tolist(), high.tolist(), strict=True)
        )
        return named, drives if own else naming.numbered_entries(self.action_space, "action")

    def _body_entries(self, env: Any) -> tuple[Entry, ...]:
        """Entries of an environment that says what its observation is made of; else none."""
        parts = getattr(env, "observation_structure", None)
        if parts is None or not naming.is_structured(parts):
            return ()
        return naming.structured_entries(self.model, parts)

    def render(self) -> Any:
        return self.inner.render()

    def close(self) -> None:
        self.inner.close()


def shares(space: Any, action: np.ndarray) -> np.ndarray:
    """Commands [envs, action] as shares of their range: 0 at the low end, 1 at the high.

    A choice becomes a column for each that there is, 1 for the one that is made: no choice is
    nearer to another than a third.
    """
    if isinstance(space, gymnasium.spaces.Discrete):
        made = action.astype(np.int64) - int(space.start)
        return np.asarray(made == np.arange(int(space.n)), dtype=np.float64)
    low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
    return np.asarray(np.clip((action - low) / (high - low), 0.0, 1.0))
