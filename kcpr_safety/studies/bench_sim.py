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

DEFAULT_TASK = "SafetyPointGoal1-v0"
DEFAULT_ENVS = 32


@dataclass
class _Clock:
    """Seconds per environment step, window by window, and per reset."""

    steps: list[float] = field(default_factory=list)
    resets: list[float] = field(default_factory=list)

    def rate(self, time_limit: int, resets: bool = True) -> float:
        """Environment steps per second."""
        step = float(np.median(self.steps))
        reset = float(np.median(self.resets)) if resets and self.resets else 0.0
        return 1.0 / (step + reset / time_limit)


class _Official:
    """One official environment under random actions."""

    def __init__(self, task: str, pictures: bool) -> None:
        self.env: Any = envs.make_official(task, pictures=pictures)
        self.clock = _Clock()
        self.seed = 0
        self.reset()

    def reset(self) -> None:
        start = time.perf_counter()
        self.env.reset(seed=self.seed)
        self.clock.resets.append(time.perf_counter() - start)
        self.seed += 1

    def window(self, seconds: float) -> None:
        stepping, count = 0.0, 0
        while stepping < seconds:
            action = self.env.action_space.sample()
            start = time.perf_counter()
            *_, terminated, truncated, _ = self.env.step(action)
            stepping += time.perf_counter() - start
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
        self._resetting = 0.0
        self._begin: Callable[..., Any] = self.world._begin
        self.world._begin = self._timed_begin  # type: ignore[method-assign]
        entries = self.world.contract.action
        self._low = np.array([entry.low for entry in entries])
        self._high = np.array([entry.high for entry in entries])
        self._rng = np.random.default_rng(0)
        self.world.reset()
        self.clock.resets.clear()  # the first one builds what later ones find

    def _timed_begin(self, indices: np.ndarray, given: list[int | None]) -> Any:
        start = time.perf_counter()
        obs = self._begin(indices, given)
        spent = time.perf_counter() - start
        self._resetting += spent
        self.clock.resets += [spent / len(indices)] * len(indices)
        return obs

    def window(self, seconds: float) -> None:
        num_envs = self.world.num_envs
        stepping, count = 0.0, 0
        while stepping < seconds:
            action = self._rng.uniform(self._low, self._high, (num_envs, len(self._low)))
            self._resetting = 0.0
            start = time.perf_counter()
            self.world.step(action)
            stepping += time.perf_counter() - start - self._resetting
            count += num_envs
        self.clock.steps.append(stepping / count)
        self.world.reset()


class _Limit:
    """Physics alone: a world's own models and states, stepped in a bare loop on one thread."""

    def __init__(self, task: str, num_envs: int) -> None:
        self.clock = _Clock()
        self.world: Any = envs.make_world(
            envs.resolve(task), num_envs, episode_seeds=lambda i, k: i + k, threads=1
        )
        self.world.reset()
        self._rng = np.random.default_rng(0)

    def window(self, seconds: float) -> None:
        bare = self.world.simulations()
        models, datas = bare.models, bare.datas
        low, high = models[0].actuator_ctrlrange.T
        stepping, count = 0.0, 0
        while stepping < seconds:
            controls = self._rng.uniform(low, high, (len(datas), len(low)))
            moved = bare.plan_moved()
            start = time.perf_counter()
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
            stepping += time.perf_counter() - start
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
        "without_resets": {
            "official_steps_per_s": official.clock.rate(steps, resets=False),
            "official_fixed_steps_per_s": fixed.clock.rate(steps, resets=False),
            "ours_steps_per_s": ours.clock.rate(steps, resets=False),
            "one_thread_steps_per_s": alone.clock.rate(steps, resets=False),
        },
        "reset_ms": {
            "official": 1e3 * float(np.median(official.clock.resets)),
            "official_fixed": 1e3 * float(np.median(fixed.clock.resets)),
            "ours": 1e3 * float(np.median(ours.clock.resets)),
        },
        "load_average": os.getloadavg()[0],
    }
