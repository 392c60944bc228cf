"""How does a world come back exactly to where it was, in another process?

Every episode is a function of its seed and of the actions since: a world notes the actions, and a
fresh world is reset to the same episodes and given them again. So whatever an environment keeps in
Python or C (physics, solver's memory, timers, random numbers) comes back without being known here,
also in an environment of your own, as long as it repeats itself for a seed. That it did is checked:
the observation at the end must be the one that was left, to the last bit.

    state = world.snapshot()            # arrays: a few numbers per environment and step
    obs = fresh_world.restore(state)    # as `reset`; costs the steps of the longest open episode

Environments whose episode is shorter than the longest one wait in it, and are reset when it is
their turn; what they do meanwhile is thrown away.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kcpr_safety.errors import EnvironmentFault, FileFault

KEYS = ("episodes", "seeds", "elapsed", "unstable", "obs", "actions")

Advance = Callable[[np.ndarray], Any]
Reset = Callable[[np.ndarray], np.ndarray]


class Memory:
    """The actions of every environment's open episode, as they were given to the world."""

    def __init__(self) -> None:
        self._actions: np.ndarray | None = None

    def note(self, action: np.ndarray, elapsed: np.ndarray, longest: int) -> None:
        """`action` is taken now, `elapsed` steps into each episode."""
        if self._actions is None:
            # Untouched pages cost nothing, so the longest episode that may come is prepared for.
            self._actions = np.empty((longest, *action.shape), dtype=action.dtype)
        self._actions[elapsed, np.arange(len(elapsed))] = action

    def taken(self, elapsed: np.ndarray) -> np.ndarray:
        """Actions [longest open episode, envs, ...]; rows after an environment's last are 0."""
        longest = int(elapsed.max(initial=0))
        if self._actions is None or longest == 0:
            return np.zeros((0, len(elapsed)))
        actions = self._actions[:longest].copy()
        actions[np.arange(longest)[:, None] >= elapsed] = 0
        return actions

    def hold(self, actions: np.ndarray, longest: int) -> None:
        """Begin with these."""
        self._actions = None
        if len(actions):
            self._actions = np.empty((longest, *actions.shape[1:]), dtype=actions.dtype)
            self._actions[: len(actions)] = actions


def replay(
    actions: np.ndarray, elapsed: np.ndarray, advance: Advance, reset: Reset
) -> tuple[np.ndarray, np.ndarray]:
    """Take the actions again; (observations, which environments did not end on the way).

    `reset(indices)` begins these environments' episodes and gives their first observations,
    `advance(action)` steps all of them.
    """
    everyone = np.arange(len(elapsed))
    longest = int(elapsed.max(initial=0))
    obs = np.array(reset(everyone))
    same = np.ones(len(elapsed), dtype=bool)
    for step in range(longest):
        # Aligned at the end: each environment's own first step is this many before the last one.
        turn = step - (longest - elapsed)
        action = actions[np.maximum(turn, 0), everyone]
        action[turn < 0] = 0
        outcome = advance(action)
        ended = outcome.terminated | outcome.truncated
        if outcome.unstable is not None:
            ended = ended | outcome.unstable
        obs = np.array(outcome.obs)
        same &= ~(ended & (turn >= 0))
        again = np.flatnonzero((turn == -1) | (ended & (turn < 0)))
        if len(again):
            obs[again] = reset(again)
    return obs, same


def checked(state: Mapping[str, np.ndarray], num_envs: int, longest: int) -> dict[str, np.ndarray]:
    """The arrays of a snapshot that fits a world; anything else raises `FileFault`."""
    arrays = {key: np.asarray(state[key]) for key in KEYS if key in state}
    if set(arrays) != set(KEYS):
        missing = ", ".join(sorted(set(KEYS) - set(arrays)))
        raise FileFault(f"the state of the environments lacks {missing}")
    elapsed, actions = arrays["elapsed"], arrays["actions"]
    whole = all(arrays[key].dtype == np.int64 for key in ("episodes", "seeds", "elapsed"))
    fits = (
        whole
        and all(arrays[key].shape == (num_envs,) for key in ("episodes", "seeds", "elapsed"))
        and arrays["obs"].shape[:1] == (num_envs,)
        and actions.ndim >= 2
        and actions.shape[1] == num_envs
        and 0 <= elapsed.min(initial=0) <= elapsed.max(initial=0) <= longest
        and elapsed.max(initial=0) == len(actions)
        and bool(np.isfinite(actions).all())
    )
    if not fits:
        raise FileFault("the state of the environments does not fit this task")
    return arrays


def compare(task: str, seeds: np.ndarray, same: np.ndarray, equal: np.ndarray) -> None:
    """Raise `EnvironmentFault` unless every environment came back to what it was."""
    lost = np.flatnonzero(~(same & equal))
    if len(lost):
        raise EnvironmentFault(
            f"{task} does not repeat its episode of seed {seeds[lost[0]]} here: another version of "
            "its packages, another machine, or an environment that seeds do not determine"
        )
