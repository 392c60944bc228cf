"""How is the environment of an id built as its authors wrote it, and how is it made a world?

`make_official` gives what a benchmark's user meets (all wrappers, six values a step): for video,
for checks, and as the reference that every faster path must equal. `OfficialWorld` steps the same
classes without the wrappers (which check, but change no number) and counts the steps itself.
"""

import contextlib
import copy
import importlib
from collections.abc import Iterator
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from kcpr_safety.cards import TaskCard, card_names, load_card
from kcpr_safety.contract import Contract, Entry
from kcpr_safety.envs import naming
from kcpr_safety.envs.compat import safety_gymnasium
from kcpr_safety.envs.maze import MazeEnv
from kcpr_safety.envs.world import Outcome, World
from kcpr_safety.errors import EnvironmentFault, UnknownNameError
from kcpr_safety.seeds import EpisodeSeeds

Step = tuple[Any, float, float, bool, bool, dict[str, Any]]


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
        return MazeEnv(**own.kwargs, render_mode=render_mode, **options)
    package = safety_gymnasium()
    if task not in registered_ids():
        raise UnknownNameError("task", task, [*registered_ids(), *card_names()])
    with said_plainly(task):
        env = package.make(task, render_mode=render_mode, **options)
    _choose_pictures(env, render_mode is not None if pictures is None else pictures)
    return env


def make_plain(task: str) -> tuple[Any, int]:
    """An environment without wrappers, and its time limit; `module:Id-v0` imports the module."""
    spec = find_spec(task)
    if spec.entry_point is None:
        raise EnvironmentFault(f"{task} is registered without an entry point")
    point = spec.entry_point
    creator = point if callable(point) else load_env_creator(point)
    with said_plainly(task):
        env = creator(**copy.deepcopy(spec.kwargs))
    _choose_pictures(env, False)
    limit = spec.max_episode_steps or getattr(getattr(env, "task", None), "num_steps", None)
    if limit is None:
        raise EnvironmentFault(f"{task} has no time limit; register it with max_episode_steps")
    return env, min(int(limit), int(getattr(getattr(env, "task", None), "num_steps", limit)))


def find_spec(task: str) -> EnvSpec:
    """The registration of an id; names near it where there is none."""
    own = drawn_spec(task)
    if own is not None:
        return own
    safety_gymnasium()
    module, _, name = task.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise EnvironmentFault(f"{task}: module '{module}' cannot be imported") from error
    spec = gymnasium.registry.get(name)
    if spec is None or "Debug" in name:
        raise UnknownNameError("task", name, [*registered_ids(), *card_names()])
    return spec


def drawn_spec(task: str) -> EnvSpec | None:
    """What stands for a registration where the world is drawn in the task's card."""
    card = load_card(task) if task in card_names() else None
    if card is None or card.maze is None:
        return None
    kwargs = {"card": card, "maze": card.maze}
    return EnvSpec(
        task,
        entry_point="kcpr_safety.envs.maze:MazeEnv",
        max_episode_steps=card.maze.time_limit,
        kwargs=kwargs,
    )


class OfficialWorld(World):
    """Any environment, as its authors step it, one after the other."""

    def __init__(self, card: TaskCard, num_envs: int, episode_seeds: EpisodeSeeds) -> None:
        self._envs: list[Any] = []  # first of all, as closing needs it even where building fails
        made = [make_plain(card.task) for _ in range(max(num_envs, 1))]
        self._envs = [env for env, _ in made]
        first, limit = made[0]
        super().__init__(describe(card, first, limit), num_envs, episode_seeds)
        self._box = isinstance(first.observation_space, gymnasium.spaces.Box)
        self._shape = cast(tuple[int, ...], first.action_space.shape)
        self._action_type = first.action_space.dtype

    def _advance(self, action: np.ndarray) -> Outcome:
        obs = np.zeros((self.num_envs, self.contract.obs_size))
        scalars = np.zeros((2, self.num_envs))
        ends = np.zeros((2, self.num_envs), dtype=bool)
        unstable = np.zeros(self.num_envs, dtype=bool)
        for i, env in enumerate(self._envs):
            before = _clock(env)
            try:
                step = env.step(action[i].reshape(self._shape))
            except AssertionError:
                # Its own check of the observation; where physics blew up, that is the reason.
                if not _blew_up(env, before):
                    raise
                unstable[i] = True
                continue
            row, reward, cost, terminated, truncated, _ = six(self.contract.task, step)
            obs[i] = self._flat(row)
            scalars[:, i] = reward, cost
            ends[:, i] = terminated, truncated
            unstable[i] = _blew_up(env, before)
        return Outcome(obs, scalars[0], scalars[1], ends[0], ends[1], unstable)

    def _reset_rows(self, indices: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        rows = []
        for i, seed in zip(indices, seeds, strict=True):
            with said_plainly(self.contract.task):
                obs, _ = self._envs[i].reset(seed=int(seed))
            rows.append(self._flat(obs))
        return np.array(rows, dtype=np.float64)

    def _flat(self, obs: Any) -> Any:
        if self._box:
            return np.asarray(obs).ravel()
        return gymnasium.spaces.flatten(self._envs[0].observation_space, obs)

    def close_extras(self, **_: Any) -> None:
        for env in self._envs:
            env.close()


def _simulation(env: Any) -> Any:
    """The MuJoCo state of an environment, where it has one."""
    holder = getattr(env.unwrapped, "task", env.unwrapped)
    data = getattr(holder, "data", None)
    return data if hasattr(data, "qpos") and hasattr(data, "time") else None


def _clock(env: Any) -> float:
    data = _simulation(env)
    return 0.0 if data is None else float(data.time)


def _blew_up(env: Any, before: float) -> bool:
    """MuJoCo starts over, clock and all, where a position or velocity is no number any more."""
    data = _simulation(env)
    return data is not None and not (data.time > before and np.isfinite(data.qpos).all())


def six(task: str, step: tuple[Any, ...]) -> Step:
    """Safety-Gymnasium's six values of a step; Gymnasium's five with the cost in `info` will do."""
    if len(step) == 6:
        return cast(Step, step)
    if len(step) == 5 and "cost" in step[4]:
        obs, reward, terminated, truncated, info = step
        return obs, reward, float(info["cost"]), terminated, truncated, info
    raise EnvironmentFault(
        f"{task} reports no cost: step must return (obs, reward, cost, terminated, truncated, info)"
        " or five values with info['cost']"
    )


def describe(card: TaskCard, env: Any, time_limit: int) -> Contract:
    """The contract of an environment: what its numbers are called, bounded by and measured in."""
    task = getattr(env, "task", None)
    if not isinstance(env.action_space, gymnasium.spaces.Box):
        raise EnvironmentFault(
            f"{card.task} has actions of type {type(env.action_space).__name__}; only Box is known"
        )
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
    else:
        space = gymnasium.spaces.flatten_space(env.observation_space)
        observation = naming.numbered_entries(cast(gymnasium.spaces.Box, space), "obs")
        action = naming.numbered_entries(env.action_space, "action")
        period = float(getattr(env, "dt", 1.0))
    return Contract(
        task=card.task,
        observation=_sized(card.task, observation, env.observation_space),
        action=action,
        period_s=float(period),
        time_limit=time_limit,
        budget=card.budget,
        punishment=card.punishment,
        commands=card.commands,
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


@contextlib.contextmanager
def said_plainly(task: str) -> Iterator[None]:
    """Faults of this machine leave the block as one sentence."""
    try:
        yield
    except Exception as error:
        fault = translated(task, error)
        if fault is error:
            raise
        raise fault from error


def translated(task: str, error: Exception) -> Exception:
    """What this machine lacks, in one sentence; any other error as it is, for that is a defect."""
    text = " ".join(str(error).split())
    if any(sign in text.lower() for sign in ("resource not found", "error opening file")):
        missing = text.rsplit("'", 2)[-2] if text.count("'") > 1 else text
        return EnvironmentFault(f"{task} needs a file that this machine does not have: {missing}")
    gl_words = (
        "gladLoadGL",
        "OpenGL",
        "EGL",
        "GLContext",
        "glGetError",
        "OSMesa",
        "GLFW",
        "glfw",
        "libGL",
    )
    if any(word in text for word in gl_words) or type(error).__module__.startswith("OpenGL"):
        return EnvironmentFault(
            f"{task} takes pictures and needs OpenGL: install libegl1 and set MUJOCO_GL=egl, or "
            f"libosmesa6 and MUJOCO_GL=osmesa ({text[:120]})"
        )
    return error
