"""How is the environment of an id built as its authors wrote it, and how is it made a world?

`make_official` gives what a benchmark's user meets (all wrappers, six values a step): for video,
for checks, and as the reference that every faster path must equal. `OfficialWorld` steps the same
classes without the wrappers (which check, but change no number) and counts the steps itself.
"""

import contextlib
import copy
import functools
import importlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from kcpr_safety.cards import TaskCard, card_names, find_card
from kcpr_safety.contract import Contract, Entry
from kcpr_safety.envs import naming, promises
from kcpr_safety.envs.compat import joints_by_name, safety_gymnasium
from kcpr_safety.envs.declared import DeclaredEnv
from kcpr_safety.envs.goals import goal_of
from kcpr_safety.envs.plainly import plain, refuse, said_plainly
from kcpr_safety.envs.world import Outcome, Simulations, World
from kcpr_safety.errors import AbsentTaskError, CardError, EnvironmentFault, UnknownNameError
from kcpr_safety.seeds import EpisodeSeeds

Step = tuple[Any, Any, Any, Any, Any, Any]
"""obs, reward, cost, terminated, truncated, info."""

ROBOTICS = "gymnasium_robotics"
"""The package whose import is mended and hushed."""

SLOW_S = 1.0
"""A step longer than this is worth a warning [s]."""


class SlowEnvironmentWarning(UserWarning):
    """A step took so long that a training would last for days."""


def registered_ids() -> list[str]:
    """Safety-Gymnasium's ids, without the keyboard variants, which ignore every action."""
    safety_gymnasium()
    registration = importlib.import_module("safety_gymnasium.utils.registration")
    return sorted(name for name in registration.safe_registry if "Debug" not in name)


def make_official(
    task: str, render_mode: str | None = None, *, pictures: bool | None = None, **options: Any
) -> Any:
    """The official environment; `step` gives obs, reward, cost, terminated, truncated, info.

    `pictures` keeps the sky and the full arena in its models; by default only where it renders.
    """
    own = drawn_spec(task)
    if own is not None:
        with said_plainly(task, "building it"):
            return _creator(own)(**own.kwargs, render_mode=render_mode, **options)
    if ":" in task:
        spec = find_spec(task)
        with said_plainly(task, "building it"):
            return ShownEnv(_creator(spec)(**spec.kwargs, render_mode=render_mode))
    package = safety_gymnasium()
    if task not in registered_ids():
        raise UnknownNameError("task", task, [*registered_ids(), *card_names()])
    with said_plainly(task, "building it"):
        env = package.make(task, render_mode=render_mode, **options)
    _choose_pictures(env, render_mode is not None if pictures is None else pictures)
    return env


def make_plain(task: str) -> tuple[Any, int]:
    """An environment without wrappers, and its time limit; `module:Id-v0` imports the module."""
    spec = find_spec(task)
    with said_plainly(task, "building it"):
        env = _creator(spec)(**copy.deepcopy(spec.kwargs))
    _choose_pictures(env, False)
    limit = spec.max_episode_steps or getattr(getattr(env, "task", None), "num_steps", None)
    if limit is None:
        raise EnvironmentFault(
            f"{task} has no time limit; give its registration one: "
            "gymnasium.register(..., max_episode_steps=1000)"
        )
    return env, min(int(limit), int(getattr(getattr(env, "task", None), "num_steps", limit)))


def _creator(spec: EnvSpec) -> Callable[..., Any]:
    """What builds the environment of a registration."""
    point = spec.entry_point
    if point is None:
        raise EnvironmentFault(f"{spec.id} is registered without an entry point")
    return point if callable(point) else load_env_creator(point)


class ShownEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A user's environment as Safety-Gymnasium's are: observations in a row, six values a step."""

    def reset(self, **given: Any) -> Any:
        obs, info = self.env.reset(**given)
        return self._row(obs), info

    def step(self, action: np.ndarray) -> Any:
        """obs, reward, cost, terminated, truncated, info."""
        obs, *rest = outcome_of(self.env.step(action_for(self.env, action)))
        return self._row(obs), *rest

    def _row(self, obs: Any) -> Any:
        return gymnasium.spaces.flatten(self.env.observation_space, obs)


def find_spec(task: str) -> EnvSpec:
    """The registration of an id, or what stands for one; names near it where there is none."""
    own, card = drawn_spec(task), find_card(task)
    return own or registered_spec(task if card is None else card.task)


def registered_spec(task: str) -> EnvSpec:
    """What is registered under an id, whatever a card makes of it."""
    safety_gymnasium()
    module, _, name = task.rpartition(":")
    if module:
        _import(task, module)
    spec = gymnasium.registry.get(name)
    if spec is None or "Debug" in name:
        if module:
            others = {*registered_ids()}
            theirs = [str(known) for known in gymnasium.registry if known not in others]
            raise UnknownNameError("task", name, theirs)
        raise UnknownNameError("task", name, [*registered_ids(), *card_names()])
    return spec


def _import(task: str, module: str) -> None:
    """A user's module, which registers its environments; also from the current folder."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        # Last, so that a file here never takes the place of an installed package.
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        with _quiet_robotics(module):
            importlib.import_module(module)
            if module.partition(".")[0] == ROBOTICS:
                joints_by_name()
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise EnvironmentFault(
                f"{task}: module '{module}' needs {error.name}, which is not installed"
            ) from error
        raise AbsentTaskError(
            f"{task}: module '{module}' cannot be imported; it is neither installed nor in {here}: "
            "go to the folder that holds it, or put that into PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:
        fault = promises.raised(f"importing module '{module}'", error)
        raise EnvironmentFault(f"{task}: {fault.told}") from error


@contextlib.contextmanager
def _quiet_robotics(module: str) -> Iterator[None]:
    """Without the one notice that gymnasium-robotics prints at import, about Adroit's rewards."""
    notices: dict[str, Any] = {}
    if module.partition(".")[0] == ROBOTICS:
        with contextlib.suppress(ModuleNotFoundError):
            notices = importlib.import_module("farama_notifications").notifications
    kept = notices.pop(ROBOTICS, None)
    try:
        yield
    finally:
        if kept is not None:
            notices[ROBOTICS] = kept


def drawn_spec(task: str) -> EnvSpec | None:
    """What stands for a registration where the task is made from its card."""
    card = find_card(task)
    if card is None:
        return None
    for kind, name, of in (
        ("maze", "MazeEnv", card.maze),
        ("quadruped", "QuadrupedEnv", card.quadruped),
        ("robot", "RobotEnv", card.robot),
    ):
        if of is not None:
            point = f"kcpr_safety.envs.{kind}:{name}"
            kwargs = {"card": card, kind: of}
            return EnvSpec(f"{name}-v0", point, max_episode_steps=of.time_limit, kwargs=kwargs)
    if not card.punish:
        return None
    spec = registered_spec(card.environment)
    make = functools.partial(_creator(spec), **spec.kwargs)
    return EnvSpec(
        "DeclaredEnv-v0",
        entry_point="kcpr_safety.envs.declared:DeclaredEnv",
        max_episode_steps=spec.max_episode_steps,
        kwargs={"card": card, "make": make},
    )


class OfficialWorld(World):
    """Any environment, as its authors step it, one after the other."""

    def __init__(self, card: TaskCard, num_envs: int, episode_seeds: EpisodeSeeds) -> None:
        self._envs: list[Any] = []  # first of all, as closing needs it even where building fails
        made = [make_plain(card.task) for _ in range(max(num_envs, 1))]
        self._envs = [env for env, _ in made]
        first, limit = made[0]
        refuse(card.task, promises.spaces(first))
        self._spaces = first.observation_space, first.action_space
        for env in self._envs[1:]:
            self._check_spaces(card.task, env, "in a second environment")
        super().__init__(describe(card, first, limit), num_envs, episode_seeds)
        self.goal = goal_of(card.task, first)
        self._flat_space = gymnasium.spaces.flatten_space(first.observation_space)
        self._warned = False
        self._over = np.zeros(num_envs, dtype=bool)
        """Whose episode has ended: until a reset they are not stepped, which many would refuse."""

    def _advance(self, action: np.ndarray) -> Outcome:
        obs = np.zeros((self.num_envs, self.contract.obs_size))
        scalars = np.zeros((2, self.num_envs))
        ends = np.zeros((2, self.num_envs), dtype=bool)
        unstable = np.zeros(self.num_envs, dtype=bool)
        for i, env in enumerate(self._envs):
            if self._over[i]:
                continue
            before = _clock(env)
            started = time.perf_counter()
            try:
                step = env.step(action_for(env, action[i]))
            except (Exception, SystemExit) as error:
                # Its own check of the observation; where physics blew up, that is the reason.
                if isinstance(error, AssertionError) and _blew_up(env, before):
                    unstable[i] = True
                    continue
                raise self._plain(i, "step", error) from error
            self._note_pace(time.perf_counter() - started)
            self._refuse(i, promises.step(step))
            row, reward, cost, terminated, truncated, _ = outcome_of(step)
            unstable[i] = _blew_up(env, before)
            if unstable[i]:
                continue
            self._refuse(i, _of_scalars(reward, cost, terminated, truncated))
            obs[i] = self._row(i, row, "step")
            scalars[:, i] = reward, cost
            ends[:, i] = terminated, truncated
        self._over |= ends.any(axis=0) | unstable
        return Outcome(obs, scalars[0], scalars[1], ends[0], ends[1], unstable)

    def _reset_rows(self, indices: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        rows = []
        for i, seed in zip(indices.tolist(), seeds.tolist(), strict=True):
            env = self._envs[i]
            try:
                result = env.reset(seed=seed)
            except (Exception, SystemExit) as error:
                raise self._plain(i, "reset", error) from error
            self._refuse(i, promises.reset(result))
            self._check_spaces(self.contract.task, env, "after a reset")
            rows.append(self._row(i, result[0], "reset"))
            self._over[i] = False
        return np.array(rows, dtype=np.float64)

    def _row(self, i: int, obs: Any, when: str) -> np.ndarray:
        """An observation as numbers of our own: environments use theirs again."""
        space = self._spaces[0]
        self._refuse(i, promises.form(space, obs, when))
        if not isinstance(space, gymnasium.spaces.Box):
            obs = gymnasium.spaces.flatten(space, obs)
        row = np.array(obs, dtype=np.float64).ravel()
        self._refuse(i, promises.inside(self._flat_space, row, when))
        return row

    def _check_spaces(self, task: str, env: Any, when: str) -> None:
        if env.observation_space is not self._spaces[0] or env.action_space is not self._spaces[1]:
            now = env.observation_space, env.action_space
            refuse(task, promises.same_spaces(self._spaces, now, when))

    def _where(self, i: int) -> str:
        step = self.elapsed[i] + 1
        return f"in environment {i}, episode seed {self.seeds[i]}, step {step}"

    def _refuse(self, i: int, faults: Iterable[promises.Fault]) -> None:
        refuse(self.contract.task, faults, self._where, i)

    def _plain(self, i: int, what: str, error: BaseException) -> Exception:
        return plain(self.contract.task, f"{what} {self._where(i)}", error)

    def simulations(self) -> Simulations | None:
        """Models and states as they are, where all environments show theirs."""
        datas = [_simulation(env) for env in self._envs]
        models = [_model(env) for env in self._envs]
        if None in models or None in datas:
            return None
        substeps = max(1, round(self.contract.period_s / models[0].opt.timestep))
        return Simulations(models, datas, substeps, ends_with_forward=False)

    def _note_pace(self, taken_s: float) -> None:
        if taken_s > SLOW_S and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.contract.task}: a step of one environment took {taken_s:.1f} s; a hundred "
                f"thousand such steps take {taken_s * 1e5 / 86_400:.1f} days "
                "(kcpr-safety check says more)",
                SlowEnvironmentWarning,
                stacklevel=4,
            )

    def close_extras(self, **_: Any) -> None:
        for env in self._envs:
            env.close()


def _simulation(env: Any) -> Any:
    """The MuJoCo state of an environment, where it has one."""
    data = getattr(_holder(env), "data", None)
    return data if hasattr(data, "qpos") and hasattr(data, "time") else None


def _model(env: Any) -> Any:
    """Its MuJoCo model, where it has one."""
    model = getattr(_holder(env), "model", None)
    return model if hasattr(model, "body_mass") and hasattr(model, "geom_friction") else None


def _holder(env: Any) -> Any:
    """Who holds model and state: Safety-Gymnasium's task, or the environment itself."""
    return getattr(env.unwrapped, "task", env.unwrapped)


def _clock(env: Any) -> float:
    data = _simulation(env)
    return 0.0 if data is None else float(data.time)


def _blew_up(env: Any, before: float) -> bool:
    """MuJoCo starts over, clock and all, where a position or velocity is no number any more."""
    data = _simulation(env)
    return data is not None and not (data.time > before and np.isfinite(data.qpos).all())


def outcome_of(step: tuple[Any, ...]) -> Step:
    """Safety-Gymnasium's six values of a step that `promises.step` found nothing wrong with."""
    if len(step) == 6:
        return step
    obs, reward, terminated, truncated, info = step
    return obs, reward, info["cost"], terminated, truncated, info


def _of_scalars(
    reward: Any, cost: Any, terminated: Any, truncated: Any
) -> Iterator[promises.Fault]:
    yield from promises.number("reward", reward)
    yield from promises.number("cost", cost)
    yield from promises.cost(cost)
    yield from promises.ending("terminated", terminated)
    yield from promises.ending("truncated", truncated)


def action_for(env: Any, action: np.ndarray) -> Any:
    """An action as the environment's own space has it: a number of choices, or its type and shape.

    Safety-Gymnasium's own get all 64 bits, as their fast paths do.
    """
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(action[0])
    row = action.reshape(space.shape)
    if type(env).__module__.startswith("safety_gymnasium."):
        return row
    return np.clip(row.astype(space.dtype), space.low, space.high)


def describe(card: TaskCard, env: Any, time_limit: int) -> Contract:
    """The contract of an environment: what its numbers are called, bounded by and measured in."""
    task = getattr(env, "task", None)
    commands = card.commands
    if task is not None and hasattr(task, "obs_info"):
        model = task.agent.engine.model
        observation = naming.sensed_entries(task.obs_info.obs_space_dict.spaces, task)
        period = model.opt.timestep * task.sim_conf.frameskip_binom_n
        action = naming.action_entries(model)
    elif type(env).__module__.startswith("safety_gymnasium.tasks.safe_velocity"):
        model = env.model
        skipped = 1 if model.joint(1).name == "rootz" else 2
        forces = env.observation_space.shape[0] > model.nq + model.nv
        observation = naming.state_entries(model, skipped, forces)
        period = env.dt
        action = naming.action_entries(model)
    elif isinstance(env, DeclaredEnv):
        observation, action = env.entries()
        period = env.dt
    else:
        space = gymnasium.spaces.flatten_space(env.observation_space)
        observation = naming.numbered_entries(cast(gymnasium.spaces.Box, space), "obs")
        action = ()
        period = float(getattr(env, "dt", 1.0))
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        if commands:
            raise CardError(
                f"task card {card.task}: 'commands' is for actions that are numbers; those of this "
                "environment are a choice already"
            )
        action, commands = naming.choices(env.action_space)
    elif not action:
        action = naming.numbered_entries(env.action_space, "action")
    return Contract(
        task=card.task,
        observation=_sized(card.task, observation, env.observation_space),
        action=action,
        period_s=float(period),
        time_limit=time_limit,
        budget=card.budget,
        punishment=card.punishment,
        commands=commands,
        streams=card.streams,
    )


def _sized(task: str, entries: tuple[Entry, ...], space: gymnasium.Space[Any]) -> tuple[Entry, ...]:
    """Names must fit numbers one to one, or every reading of them would be wrong."""
    size = gymnasium.spaces.flatdim(space)
    if len(entries) != size:
        raise EnvironmentFault(f"{task} observes {size} numbers but {len(entries)} have names")
    return entries


def _choose_pictures(env: Any, wanted: bool) -> None:
    task = getattr(env.unwrapped, "task", None)
    if task is not None:
        task.takes_pictures = wanted
