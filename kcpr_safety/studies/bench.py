"""How many steps and updates a second are possible here?

    sim      the world alone, beside the official environment and bare physics (`bench_sim`)
    learner  updates beside the limit of their matrix products and beside another library's, and
             where a training loop's time goes (`bench_learner`)
    loop     training as it is: acting, stepping and learning together, beside the world alone;
             what checkpoints cost, and how long resuming takes (`checkpoint_cost`)
    policy   one answer of a bundle's controller, in every form that it runs in (`bench_policy`)

Quiet machines only: any other load is part of what is measured.
"""

import os
import sys
import time
from typing import Any

from kcpr_safety import envs
from kcpr_safety.agents import agent_settings
from kcpr_safety.errors import SettingsError, UnknownNameError
from kcpr_safety.studies.bench_learner import AGENTS, DEFAULT_TASK, WINDOWS, bench_learner
from kcpr_safety.studies.bench_sim import DEFAULT_ENVS, bench_sim
from kcpr_safety.studies.bench_sim import DEFAULT_TASK as DEFAULT_SIM_TASK
from kcpr_safety.studies.checkpoint_cost import checkpoint_figures
from kcpr_safety.studies.loop_parts import loop_figures
from kcpr_safety.studies.transitions import random_actions
from kcpr_safety.training.evaluation import torch_threads
from kcpr_safety.training.runs import check_device, training_world

BENCHES = ("sim", "learner", "loop", "policy")

_SEED = 0
_WARM_UP = 20
"""Calls before the clock starts: the first ones allocate."""


def run(
    what: str,
    task: str | None,
    agent: str | None,
    num_envs: int | None,
    seconds: float,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure each part for `seconds`; returns figures and what they were measured with."""
    if what not in BENCHES:
        raise UnknownNameError("bench", what, BENCHES)
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"{seconds} s is no time to measure; give seconds > 0")
    check_device(device)
    overrides: dict[str, Any] = {} if num_envs is None else {"num_envs": num_envs}
    if what == "learner":
        agents = AGENTS if agent is None else (agent,)
        return bench_learner(
            task, agents, overrides=overrides, device=device, seconds=seconds, progress=_progress
        )
    card = envs.resolve(task or (DEFAULT_SIM_TASK if what == "sim" else DEFAULT_TASK))
    if what == "sim":
        return bench_sim(
            card.task,
            num_envs=num_envs or DEFAULT_ENVS,
            windows=WINDOWS,
            seconds=seconds / WINDOWS,
            progress=_progress,
        )
    agent = agent or AGENTS[0]
    own = {key: item.value for key, item in card.overrides.items()}
    settings = agent_settings(agent, own | overrides)
    world = training_world(card, settings.num_envs, _SEED)
    with torch_threads():
        alone = simulation(world, seconds)
    loop = loop_figures(card.task, agent, overrides, seconds, device)
    cost = checkpoint_figures(card.task, agent, overrides, loop["steps_per_s"], device)
    return {
        "environment_steps_per_s": alone,
        "loop_steps_per_s": loop.pop("steps_per_s"),
        "loop_updates_per_s": loop.pop("updates_per_s"),
        **loop,
        **cost,
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
    actions = random_actions(world, _SEED)
    world.reset()
    for i in range(_WARM_UP):
        world.step(actions[i % len(actions)])
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        world.step(actions[calls % len(actions)])
        calls += 1
    return calls * world.num_envs / (time.perf_counter() - started)


def _progress(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
