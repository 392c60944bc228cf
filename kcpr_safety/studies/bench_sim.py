"""How fast is the simulator here, beside the official environment and beside bare physics?

Measured in one process, window by window in turn, so that a busy moment of the machine hits all
alike; the median of the windows counts:

    official        one official environment, shims alone: sky and arena as published
    official_fixed  the same with the sky and the arena left out
    ours            a world of `envs` environments on `threads` threads
    limit           mj_step (and mj_forward, where the official step ends with one) in a bare loop
                    over such a world's models and states, as they are, on one thread; gremlins
                    are put where they belong before each physics step, as they must be, and
                    quadrupeds that have fallen start anew (a heap on the floor is slower)

A step costs 1/speed; resets are timed apart and added at the rate of one per time limit, so that
episodes that random actions end early do not blur the comparison.

One thread beside the limit is also told in CPU time, which other processes on the core leave alone
but for its caches.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

from kcpr_safety import envs
from kcpr_safety.envs.crew import default_threads
from kcpr_safety.errors import SettingsError

DEFAULT_TASK = "SafetyPointGoal1-v0"
DEFAULT_ENVS = 32


@dataclass
class _Clock:
    """Seconds per environment step, window by window, and per reset: passed, and computed."""

    steps: list[np.ndarray] = field(default_factory=list)
    resets: list[np.ndarray] = field(default_factory=list)

    def rate(self, time_limit: int, resets: bool = True, cpu: bool = False) -> float:
        """Environment steps per second."""
        step = np.median(self.steps, axis=0)
        reset = np.median(self.resets, axis=0) if resets and self.resets else np.zeros(2)
        return float(1.0 / (step + reset / time_limit)[int(cpu)])

    def reset_ms(self) -> float:
        return 1e3 * float(np.median(self.resets, axis=0)[0])


def _now() -> np.ndarray:
    """Time passed, and CPU time of this thread [s]."""
    return np.array([time.perf_counter(), time.thread_time()])


class _Official:
    """One official environment under random actions."""

    def __init__(self, task: str, pictures: bool) -> None:
        self.env: Any = envs.make_official(task, pictures=pictures)
        self.clock = _Clock()
        self.seed = 0
        self.reset()

    def reset(self) -> None:
        start = _now()
        self.env.reset(seed=self.seed)
        self.clock.resets.append(_now() - start)
        self.seed += 1

    def window(self, seconds: float) -> None:
        stepping, count = np.zeros(2), 0
        while stepping[0] < seconds:
            action = self.env.action_space.sample()
            start = _now()
            *_, terminated, truncated, _ = self.env.step(action)
            stepping += _now() - start
            count += 1
            if terminated or truncated:
                self.reset()
        self.clock.steps.append(stepping / count)


class _Ours:
    """A world under random actions; what it spends on resets is timed apart."""

    def __init__(self, task: str, num_envs: int, threads: int) -> None:
        self.world: Any = envs.make_world(
            envs.resolve(task), num_envs, episode_seeds=lambda i, k: i + k, threads=threads
        )
        self.clock = _Clock()
        self._resetting = np.zeros(2)
        self._begin: Callable[..., Any] = self.world._begin
        self.world._begin = self._timed_begin  # type: ignore[method-assign]
        entries = self.world.contract.action
        self._low = np.array([entry.low for entry in entries])
        self._high = np.array([entry.high for entry in entries])
        self._rng = np.random.default_rng(0)
        self.world.reset()
        self.clock.resets.clear()  # the first one builds what later ones find

    def _timed_begin(self, indices: np.ndarray, given: list[int | None]) -> Any:
        start = _now()
        obs = self._begin(indices, given)
        spent = _now() - start
        self._resetting = self._resetting + spent
        self.clock.resets += [spent / len(indices)] * len(indices)
        return obs

    def window(self, seconds: float) -> None:
        num_envs = self.world.num_envs
        stepping, count = np.zeros(2), 0
        while stepping[0] < seconds:
            action = self._rng.uniform(self._low, self._high, (num_envs, len(self._low)))
            self._resetting = np.zeros(2)
            start = _now()
            self.world.step(action)
            stepping += _now() - start - self._resetting
            count += num_envs
        self.clock.steps.append(stepping / count)
        self.world.reset()


class _Limit:
    """Physics alone: a world's own models and states, stepped in a bare loop on one thread."""

    def __init__(self, task: str, num_envs: int) -> None:
        self.clock, self.task = _Clock(), task
        self.world: Any = envs.make_world(
            envs.resolve(task), num_envs, episode_seeds=lambda i, k: i + k, threads=1
        )
        self.world.reset()
        self._rng = np.random.default_rng(0)

    def window(self, seconds: float) -> None:
        bare = self.world.simulations()
        if bare is None:
            raise SettingsError(f"{self.task} has no MuJoCo model here: no bare physics to time")
        models, datas = bare.models, bare.datas
        low, high = models[0].actuator_ctrlrange.T
        stepping, count = np.zeros(2), 0
        while stepping[0] < seconds:
            controls = self._rng.uniform(low, high, (len(datas), len(low)))
            moved = bare.plan_moved()
            start = _now()
            for i, (model, data) in enumerate(zip(models, datas, strict=True)):
                data.ctrl[:] = controls[i]
                if moved is None:
                    mujoco.mj_step(model, data, nstep=bare.substeps)
                else:
                    for place in moved[i]:
                        data.mocap_pos[:] = place
                        mujoco.mj_step(model, data)
                if bare.ends_with_forward:
                    mujoco.mj_forward(model, data)
            stepping += _now() - start
            count += len(datas)
            bare.revive()
        self.clock.steps.append(stepping / count)
        self.world.reset()


def bench_sim(
    task: str = DEFAULT_TASK,
    *,
    num_envs: int = DEFAULT_ENVS,
    threads: int | None = None,
    windows: int = 7,
    seconds: float = 1.0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Steps per second and their ratios; resets included unless a key says otherwise."""
    threads = default_threads(num_envs) if threads is None else threads
    progress(f"building {task}")
    ours = _Ours(task, num_envs, threads)
    alone = _Ours(task, num_envs, 1)
    limit = _Limit(task, num_envs)
    official, fixed = _Official(task, pictures=True), _Official(task, pictures=False)
    for env in (official, fixed):
        for _ in range(2):
            env.reset()
    for k in range(windows):
        for side in (official, fixed, ours, alone, limit):
            side.window(seconds)
        progress(f"window {k + 1} of {windows}")
    ours.world.close()
    alone.world.close()
    steps = ours.world.contract.time_limit
    rates = {
        name: side.clock.rate(steps)
        for name, side in (("official", official), ("fixed", fixed), ("ours", ours))
    }
    bare = limit.clock.rate(steps)
    return {
        "task": task,
        "path": ours.world.path,
        "envs": num_envs,
        "threads": threads,
        "official_steps_per_s": rates["official"],
        "official_fixed_steps_per_s": rates["fixed"],
        "ours_steps_per_s": rates["ours"],
        "limit_steps_per_s": bare,
        "ratio_official": rates["ours"] / rates["official"],
        "ratio_limit": rates["ours"] / bare,
        "one_thread_steps_per_s": alone.clock.rate(steps),
        "one_thread_ratio_limit": alone.clock.rate(steps) / bare,
        "one_thread_ratio_limit_cpu": alone.clock.rate(steps, cpu=True)
        / limit.clock.rate(steps, cpu=True),
        "without_resets": {
            "official_steps_per_s": official.clock.rate(steps, resets=False),
            "official_fixed_steps_per_s": fixed.clock.rate(steps, resets=False),
            "ours_steps_per_s": ours.clock.rate(steps, resets=False),
            "one_thread_steps_per_s": alone.clock.rate(steps, resets=False),
        },
        "reset_ms": {
            "official": official.clock.reset_ms(),
            "official_fixed": fixed.clock.reset_ms(),
            "ours": ours.clock.reset_ms(),
        },
        "load_average": os.getloadavg()[0],
    }
