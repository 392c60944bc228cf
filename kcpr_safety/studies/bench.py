"""How many steps and updates a second are possible here?

    sim      the world alone, beside the official environment and bare physics (`bench_sim`)
    learner  updates alone, on transitions that random actions gave
    loop     training as it is: acting, stepping and learning together, beside the two above

Quiet machines only: any other load is part of what is measured.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kcpr_safety import envs
from kcpr_safety.agents import Learner, Settings, agent_settings
from kcpr_safety.agents.continuous import Task
from kcpr_safety.errors import SettingsError, UnknownNameError
from kcpr_safety.replay import Replay
from kcpr_safety.seeds import training_seeds
from kcpr_safety.studies.bench_sim import DEFAULT_ENVS, bench_sim
from kcpr_safety.studies.bench_sim import DEFAULT_TASK as DEFAULT_SIM_TASK
from kcpr_safety.training.evaluation import single_thread
from kcpr_safety.training.loop import TrainOptions, train_run
from kcpr_safety.transition import Batch

BENCHES = ("sim", "learner", "loop")

DEFAULT_TASK = "SafetyHalfCheetahVelocity-v1"

_WINDOWS = 7
"""The simulators take turns; each gets its seconds in so many parts."""
_SEED = 0
_WARM_UP = 20
"""Calls before the clock starts: the first ones allocate."""
_FILL = 5_000
"""Transitions that the learner's bench draws from."""
_FOREVER = 10_000_000
"""More environment steps than any bench takes; time ends it."""


def run(
    what: str, task: str | None, agent: str, num_envs: int | None, seconds: float
) -> dict[str, Any]:
    """Measure each part for `seconds`; returns figures and what they were measured with."""
    if what not in BENCHES:
        raise UnknownNameError("bench", what, BENCHES)
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"{seconds} s is no time to measure; give seconds > 0")
    card = envs.resolve(task or (DEFAULT_SIM_TASK if what == "sim" else DEFAULT_TASK))
    if what == "sim":
        return bench_sim(
            card.task,
            num_envs=num_envs or DEFAULT_ENVS,
            windows=_WINDOWS,
            seconds=seconds / _WINDOWS,
            progress=lambda line: print(f"bench: {line}", file=sys.stderr, flush=True),
        )
    overrides: dict[str, Any] = {key: item.value for key, item in card.overrides.items()}
    if num_envs is not None:
        overrides["num_envs"] = num_envs
    settings = agent_settings(agent, overrides)
    world = envs.make_world(card, settings.num_envs, episode_seeds=training_seeds(_SEED))
    figures: dict[str, float] = {}
    with single_thread():
        if what == "loop":
            figures["environment_steps_per_s"] = simulation(world, seconds)
        figures["learner_updates_per_s"] = learning(world, settings, seconds)
        if what == "loop":
            figures |= training(card.task, agent, overrides, seconds)
    return {
        **figures,
        "task": card.task,
        "agent": agent,
        "envs": settings.num_envs,
        "path": world.path,
        "batch": settings.batch,
        "updates_per_step": settings.updates_per_step,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def simulation(world: envs.World, seconds: float) -> float:
    """Environment steps per second, resets of finished episodes included."""
    actions = _random_actions(world, 64)
    world.reset()
    for i in range(_WARM_UP):
        world.step(actions[i % 64])
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        world.step(actions[calls % 64])
        calls += 1
    return calls * world.num_envs / (time.perf_counter() - started)


def learning(world: envs.World, settings: Settings, seconds: float) -> float:
    """Learner updates per second, the draw from replay included."""
    contract = world.contract
    task = Task(contract.obs_size, contract.action_size, contract.budget, contract.time_limit)
    learner = Learner(settings, task, settings.num_envs, _SEED)
    replay = Replay(_FILL + settings.num_envs, contract.obs_size, contract.action_size)
    _fill(replay, learner, world)
    generator = torch.Generator().manual_seed(_SEED)
    for _ in range(_WARM_UP):
        learner.update(replay.draw(settings.batch, generator))
    started, updates = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        learner.update(replay.draw(settings.batch, generator))
        updates += 1
    return updates / (time.perf_counter() - started)


def training(
    task: str, agent: str, overrides: Mapping[str, Any], seconds: float
) -> dict[str, float]:
    """Environment steps and updates per second of the whole loop, once it learns."""
    clock = _Clock(seconds)
    with tempfile.TemporaryDirectory(prefix="kcpr-bench-") as folder:
        settings = {**overrides, "random_steps": 1_000, "capacity": 100_000}
        out = Path(folder) / "run"
        options = TrainOptions(task, out, agent, _FOREVER, _SEED, overrides=settings)
        with contextlib.suppress(_TimeIsUp):
            train_run(options, [clock])
    return clock.figures()


class _TimeIsUp(Exception):
    """Ends a training that would never end."""


class _Clock:
    """A sink that notes the first and the latest row of learning, and stops in time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rows: list[Mapping[str, Any]] = []

    def open(self, run: Path, task: str, total_steps: int, budget: float) -> None:
        pass

    def write(self, row: Mapping[str, Any]) -> None:
        if row["kind"] == "train" and row["updates"] > 0:
            self._rows = [*self._rows[:1], row]
            if self._span("wall_s") >= self._seconds:
                raise _TimeIsUp

    def close(self) -> None:
        pass

    def _span(self, key: str) -> float:
        return float(self._rows[-1][key] - self._rows[0][key])

    def figures(self) -> dict[str, float]:
        """Per second, between the first and the latest row."""
        wall = self._span("wall_s")
        return {
            "loop_steps_per_s": self._span("steps") / wall,
            "loop_updates_per_s": self._span("updates") / wall,
        }


def _random_actions(world: envs.World, count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(_SEED)
    low = np.array([entry.low for entry in world.contract.action])
    high = np.array([entry.high for entry in world.contract.action])
    shape = (world.num_envs, len(low))
    return [generator.uniform(low, high, shape) for _ in range(count)]


def _fill(replay: Replay, learner: Learner, world: envs.World) -> None:
    actions = _random_actions(world, 64)
    low = np.array([entry.low for entry in world.contract.action])
    span = np.array([entry.high for entry in world.contract.action]) - low
    obs, _ = world.reset()
    for call in range(_FILL // world.num_envs + 1):
        action = actions[call % 64]
        next_obs, reward, terminated, truncated, infos = world.step(action)
        batch = Batch(
            obs=_tensor(obs),
            action=_tensor(2.0 * (action - low) / span - 1.0),
            reward=_tensor(reward),
            punishment=_tensor(infos["punishment"]),
            continues=1.0 - _tensor(terminated),
            next_obs=_tensor(infos["final_obs"]),
        )
        replay.add(batch)
        learner.observe(batch, torch.as_tensor(terminated | truncated))
        obs = next_obs


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(array, dtype=torch.float32)
