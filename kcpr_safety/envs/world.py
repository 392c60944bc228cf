"""What does training see of an environment? Rows of observation, reward, punishment, and two ends.

A `World` is a gymnasium vector environment with SAME_STEP autoreset: where an episode ends, the
observation returned is already the first of the next one and `infos["final_obs"]` holds the true
last. Every episode starts from an explicit seed, `episode_seeds(environment, episode)`; the world
only counts. "cost" is Safety-Gymnasium's word: from here on it is punishment.

A world never passes on a NaN: where the simulation itself blew up, the episode ends there as
unstable, with a warning that counts them; anything else that is not finite is an error.
"""

import itertools
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float

from kcpr_safety.contract import Contract
from kcpr_safety.envs import rewind
from kcpr_safety.errors import EnvironmentFault, NonFiniteError, SettingsError
from kcpr_safety.goals import Goal
from kcpr_safety.seeds import EpisodeSeeds

Rows = Float[np.ndarray, "envs obs"]
PerEnv = Float[np.ndarray, " envs"]
Flags = Bool[np.ndarray, " envs"]


class UnstablePhysicsWarning(UserWarning):
    """A simulation produced numbers that are none; its episode was ended."""


@dataclass(frozen=True)
class Outcome:
    """What one step of all environments gave, before any of them is reset."""

    obs: Rows
    reward: PerEnv
    punishment: PerEnv
    terminated: Flags
    truncated: Flags
    unstable: Flags | None = None
    """Where the simulation blew up, if anywhere; the other rows there mean nothing."""
    collision: Flags | None = None
    """Who is in contact with what must not be touched, where the world knows."""
    streams: Float[np.ndarray, "envs streams"] | None = None
    """Parts of the punishment, in the contract's order, where it has any."""


@dataclass(frozen=True)
class Simulations:
    """What a world simulates with, for measurements of bare physics."""

    models: list[Any]
    datas: list[Any]
    substeps: int
    """Physics steps in one control period."""
    ends_with_forward: bool
    """Does an official step end with `mj_forward`?"""
    plan_moved: Callable[[], np.ndarray | None] = lambda: None
    """Positions of moved obstacles before each of the coming physics steps, where there are any."""
    revive: Callable[[], None] = lambda: None
    """Begins anew what has ended, where what comes after the end is not physics like before."""


class World(VectorEnv[Rows, Float[np.ndarray, "envs action"], Rows]):
    """Environments of one task, side by side; children know how to reset and advance them."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (gymnasium's own form)
    path: str = "official"
    goal: Goal | None = None
    """What its episodes are after, where observations say so."""

    def __init__(self, contract: Contract, num_envs: int, episode_seeds: EpisodeSeeds) -> None:
        if num_envs < 1:
            raise SettingsError(f"a world needs at least 1 environment, not {num_envs}")
        self.contract = contract
        self.num_envs = num_envs
        self.single_observation_space = _box(contract.observation)
        self.single_action_space = _box(contract.action)
        batch = gymnasium.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, num_envs)
        self.action_space = batch(self.single_action_space, num_envs)
        self.episodes = np.full(num_envs, -1)
        """Index of the episode that each environment is in; a resumed run hands them to `reset`."""
        self.seeds = np.zeros(num_envs, dtype=np.int64)
        """Seed that each environment's current episode was reset with."""
        self.elapsed = np.zeros(num_envs, dtype=np.int64)
        """Steps taken in it."""
        self.unstable_episodes = 0
        self._episode_seeds = episode_seeds
        self._last_obs = np.zeros((num_envs, contract.obs_size))
        self._memory = rewind.Memory()
        self._started = False

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Rows, dict[str, Any]]:
        """Start the next episode everywhere, from the schedule of seeds unless told otherwise.

        `options={"episodes": [...]}` says which episode each environment is to start; a `seed`
        (or one per environment) takes the place of the schedule for this one reset.
        """
        everyone = np.arange(self.num_envs)
        if options and "episodes" in options:
            self.episodes = np.array(options["episodes"], dtype=np.int64) - 1
            if self.episodes.shape != (self.num_envs,):
                raise SettingsError(f"'episodes' must hold {self.num_envs} numbers")
        given: list[int | None] = [None] * self.num_envs
        if isinstance(seed, int):
            given = [seed + i for i in range(self.num_envs)]
        elif seed is not None:
            given = list(seed)
        obs = self._begin(everyone, given)
        self._last_obs, self._started = obs, True
        return obs, {}

    def step(
        self, actions: Float[np.ndarray, "envs action"]
    ) -> tuple[Rows, PerEnv, Flags, Flags, dict[str, Any]]:
        """Advance every environment by one control period; see the module's first lines."""
        action = np.asarray(actions, dtype=np.float64)
        self._check_action(action)
        self._memory.note(action, self.elapsed, self.contract.time_limit)
        outcome = self._held(action)
        self.elapsed += 1
        terminated = outcome.terminated
        truncated = outcome.truncated | (self.elapsed >= self.contract.time_limit)
        obs, reward, punishment = outcome.obs, outcome.reward, outcome.punishment
        if outcome.unstable is not None and outcome.unstable.any():
            unstable = outcome.unstable
            obs = np.where(unstable[:, None], self._last_obs, obs)
            reward = np.where(unstable, 0.0, reward)
            punishment = np.where(unstable, 0.0, punishment)
            terminated, truncated = terminated & ~unstable, truncated | unstable
            self._count_unstable(unstable)
        self._check_finite(obs, reward, punishment)
        done = terminated | truncated
        infos = {"punishment": punishment, "final_obs": obs, "_final_obs": done}
        if outcome.collision is not None:
            infos["collision"] = outcome.collision
        if outcome.streams is not None:
            lost = outcome.unstable is not None and outcome.unstable[:, None]
            infos["streams"] = np.where(lost, 0.0, outcome.streams)
        if done.any():
            ended = np.flatnonzero(done)
            obs = obs.copy()
            obs[ended] = self._begin(ended, [None] * len(ended))
        self._last_obs = obs
        return obs, reward, terminated, truncated, infos

    def snapshot(self) -> dict[str, np.ndarray]:
        """All that `restore` needs to continue from here; empty before the first `reset`."""
        if not self._started:
            return {}
        return {
            "episodes": self.episodes.copy(),
            "seeds": self.seeds.copy(),
            "elapsed": self.elapsed.copy(),
            "unstable": np.array([self.unstable_episodes]),
            "obs": self._last_obs.copy(),
            "actions": self._memory.taken(self.elapsed),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> Rows:
        """Come back to a snapshot of a world of this task; the observations that it was left with.

        Raises `FileFault` for a foreign state, and `EnvironmentFault` where the environments do not
        repeat themselves; then, `reset` before stepping.
        """
        limit = self.contract.time_limit
        held = rewind.checked(state, self.num_envs, limit)
        self._started = False
        self.episodes, self.seeds = held["episodes"].copy(), held["seeds"].copy()
        self.elapsed = held["elapsed"].copy()
        self.unstable_episodes = int(held["unstable"][0])
        self._memory.hold(held["actions"], limit)
        obs, same = rewind.replay(
            held["actions"],
            self.elapsed,
            self._held,
            lambda indices: self._reset_rows(indices, self.seeds[indices]),
        )
        equal = (obs == held["obs"]).all(axis=1)
        rewind.compare(self.contract.task, self.seeds, same, equal)
        self._last_obs, self._started = obs, True
        return obs

    def hold(self, steps: int) -> "World":
        """Keep every action for so many of the task's steps, from the next reset on; itself.

        Rewards and punishments are then sums over them, observations those after the last, and the
        contract says so. Raises `SettingsError` where a full episode does not end with an action.
        """
        self.contract = self.contract.held(steps)
        return self

    def simulations(self) -> Simulations | None:
        """What it simulates with; None where that is not MuJoCo, or not known."""
        return None

    @property
    def slices(self) -> dict[str, slice]:
        """Where each group of observation entries lies: `goal_lidar`, `accelerometer`, ..."""
        names = [entry.name for entry in self.contract.observation]
        groups: dict[str, slice] = {}
        start = 0
        for stem, run in itertools.groupby(names, key=lambda name: name.rpartition("_")[0]):
            stop = start + len(list(run))
            alone = stop - start == 1 or not stem
            groups[names[start] if alone else stem] = slice(start, stop)
            start = stop
        return groups

    def _held(self, action: Float[np.ndarray, "envs action"]) -> Outcome:
        """What the steps gave for which an action is held; of each environment up to its end."""
        total = self._advance(action)
        for _ in range(1, self.contract.hold):
            total = _sum(total, self._advance(action))
        return total

    @abstractmethod
    def _advance(self, action: Float[np.ndarray, "envs action"]) -> Outcome:
        """One step of every environment; rows must be new arrays. Where an episode has ended within
        a held action, anything may come."""

    @abstractmethod
    def _reset_rows(self, indices: np.ndarray, seeds: np.ndarray) -> Float[np.ndarray, "some obs"]:
        """Reset some environments with their seeds; their first observations."""

    def _begin(self, indices: np.ndarray, given: list[int | None]) -> Float[np.ndarray, "some obs"]:
        self.episodes[indices] += 1
        self.elapsed[indices] = 0
        for i, seed in zip(indices, given, strict=True):
            chosen = self._episode_seeds(int(i), int(self.episodes[i])) if seed is None else seed
            self.seeds[i] = chosen
        obs = self._reset_rows(indices, self.seeds[indices])
        if not np.isfinite(obs).all():
            row, column = np.argwhere(~np.isfinite(obs))[0]
            self._fail(int(indices[row]), f"observation '{self._entry(int(column))}'")
        return obs

    def _check_action(self, action: np.ndarray) -> None:
        if not self._started:
            raise EnvironmentFault(f"{self.contract.task}: reset the world before stepping it")
        expected = (self.num_envs, self.contract.action_size)
        if action.shape != expected:
            raise EnvironmentFault(
                f"{self.contract.task} takes actions of shape {expected}, not {action.shape}"
            )
        if not np.isfinite(action).all():
            row, column = np.argwhere(~np.isfinite(action))[0]
            self._fail(int(row), f"action '{self.contract.action[column].name}'")

    def _check_finite(self, obs: Rows, reward: PerEnv, punishment: PerEnv) -> None:
        """One pass in the good case; the search for the culprit only in the bad one."""
        if np.isfinite(obs).all() and np.isfinite(reward).all() and np.isfinite(punishment).all():
            return
        named = (("reward", reward), ("punishment (cost)", punishment))
        for what, values in named:
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                self._fail(int(bad[0]), what)
        row, column = np.argwhere(~np.isfinite(obs))[0]
        self._fail(int(row), f"observation '{self._entry(int(column))}'")

    def _fail(self, environment: int, what: str) -> NoReturn:
        raise NonFiniteError(
            f"{self.contract.task}: {what} is not finite in environment {environment}, episode "
            f"seed {self.seeds[environment]}, step {self.elapsed[environment]}"
        )

    def _entry(self, column: int) -> str:
        return self.contract.observation[column].name

    def _count_unstable(self, unstable: Flags) -> None:
        for i in np.flatnonzero(unstable):
            self.unstable_episodes += 1
            warnings.warn(
                f"{self.contract.task}: physics became unstable in environment {i}, episode seed "
                f"{self.seeds[i]}, step {self.elapsed[i]}; the episode ends there "
                f"({self.unstable_episodes} so far)",
                UnstablePhysicsWarning,
                stacklevel=4,
            )


def _sum(before: Outcome, after: Outcome) -> Outcome:
    """Two consecutive steps as one; where the first ended an episode, that one alone."""
    over = before.terminated | before.truncated
    if before.unstable is not None:
        over = over | before.unstable

    def added(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        total: np.ndarray = one + np.where(over.reshape(-1, *[1] * (one.ndim - 1)), 0.0, other)
        return total

    def either(one: Flags, other: Flags) -> Flags:
        flags: Flags = one | (other & ~over)
        return flags

    def known(one: Any, other: Any, what: Callable[[Any, Any], Any]) -> Any:
        return None if one is None or other is None else what(one, other)

    return Outcome(
        obs=np.where(over[:, None], before.obs, after.obs),
        reward=added(before.reward, after.reward),
        punishment=added(before.punishment, after.punishment),
        terminated=either(before.terminated, after.terminated),
        truncated=either(before.truncated, after.truncated),
        unstable=known(before.unstable, after.unstable, either),
        collision=known(before.collision, after.collision, either),
        streams=known(before.streams, after.streams, added),
    )


def _box(entries: tuple[Any, ...]) -> gymnasium.spaces.Box:
    low = np.array([entry.low for entry in entries])
    high = np.array([entry.high for entry in entries])
    return gymnasium.spaces.Box(low=low, high=high, dtype=np.float64)
