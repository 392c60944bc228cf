"""How near to the machine's limit does the learner work, and what does coupling cost?

One process, window by window in turn, so that a busy moment of the machine hits all alike; the
median of the windows counts. Every figure is there per agent:

    updates_per_s      drawing a batch and learning from it, on as many threads as training takes
    gflops             the same, as operations counted from the shapes (`products`)
    gemm_gflops        the same products in bare loops, on all cores (or one, if that was faster)
    ratio_gemm         gflops / gemm_gflops
    ratio_sb3          steps of single MLPs per second, beside Stable-Baselines3's SAC on whichever
                       number of threads suits it better
    loop_steps_per_s   environment steps of the whole loop, acting and stepping included
    parameters         numbers that learning moves

`one_thread` holds the learner on one thread, as in two runs side by side; `loop` where time goes.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kcpr_safety import envs
from kcpr_safety.agents import Learner, Settings, agent_settings
from kcpr_safety.agents.task import Task
from kcpr_safety.errors import MissingPackageError
from kcpr_safety.replay import Replay
from kcpr_safety.seeds import training_seeds
from kcpr_safety.studies import bench_sb3
from kcpr_safety.studies.loop_parts import loop_figures
from kcpr_safety.studies.products import KINDS, Limit, update_products, wait_for_device
from kcpr_safety.studies.transitions import random_replay
from kcpr_safety.training.evaluation import torch_threads
from kcpr_safety.training.heap import keep_freed_memory
from kcpr_safety.training.runs import check_device, learner_threads

AGENTS = ("kcpr", "sac-lag")
LOOP_TASKS = ("SafetyPointGoal1-v0", "SafetyHalfCheetahVelocity-v1")
DEFAULT_TASK = LOOP_TASKS[1]
"""Whose sizes the updates have."""
THREADS = sorted({1, learner_threads(None)})
"""One, and as many as training takes."""
WINDOWS = 7

_SEED = 0
_FILL = 5_000
"""Transitions that updates draw from."""
_AT_ONCE = 4
"""Updates between two looks at the clock."""


class Pace:
    """Updates per second, window by window, for each number of threads."""

    def __init__(self, update: Callable[[int], None]) -> None:
        self._update = update
        self._rates: dict[int, list[float]] = {}
        update(_AT_ONCE)  # the first ones allocate

    def window(self, seconds: float) -> None:
        """Update for so long, on as many threads as torch has now."""
        started, updates, spent = time.perf_counter(), 0, 0.0
        while spent < seconds:
            self._update(_AT_ONCE)
            wait_for_device()
            updates, spent = updates + _AT_ONCE, time.perf_counter() - started
        self._rates.setdefault(torch.get_num_threads(), []).append(updates / spent)

    def rate(self, threads: int) -> float:
        """The median window."""
        return statistics.median(self._rates[threads])


class Ours:
    """One agent's learner, its pace and the limit of its products."""

    def __init__(self, settings: Settings, contract: Any, device: str) -> None:
        sizes = contract.obs_size, contract.action_size
        task = Task(*sizes, contract.budget, contract.time_limit)
        self.settings = settings
        self.learner = Learner(settings, task, settings.num_envs, _SEED, device)
        self.products = update_products(settings, *sizes)
        self.flops = sum(product.flops for product in self.products)
        self.networks = self.learner.actor.members + self.learner.critic.members
        self.limit = Limit(self.products, device)

    def begin(self, replay: Replay) -> None:
        """From now on there is something to learn from."""
        generator = torch.Generator().manual_seed(_SEED)

        def update(times: int) -> None:
            for _ in range(times):
                self.learner.update(replay.draw(self.settings.batch, generator), measure=False)

        self.pace = Pace(update)


class Theirs:
    """Stable-Baselines3's SAC and its pace."""

    def __init__(self, settings: Settings, replay: Replay, device: str) -> None:
        self.sac = bench_sb3.Sb3Sac(settings, replay, _SEED, device)
        self.pace = Pace(self.sac.update)

    def figures(self) -> dict[str, Any]:
        return {
            "version": self.sac.version,
            "parameters": self.sac.parameters,
            "networks": bench_sb3.NETWORKS,
            "updates_per_s": self.pace.rate(THREADS[-1]),
            "one_thread_updates_per_s": self.pace.rate(1),
        }


def bench_learner(
    task: str | None = None,
    agents: Sequence[str] = AGENTS,
    *,
    overrides: Mapping[str, Any] | None = None,
    device: str = "cpu",
    windows: int = WINDOWS,
    seconds: float = 10.0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Figures of the named agents, `seconds` for each thing that is measured."""
    check_device(device)
    card = envs.resolve(task or DEFAULT_TASK)
    numbers = {name: item.value for name, item in card.overrides.items()} | dict(overrides or {})
    settings = {agent: agent_settings(agent, numbers) for agent in agents}
    some = settings[agents[0]]
    keep_freed_memory()  # as a training does
    with torch_threads():
        world = envs.make_world(card, some.num_envs, episode_seeds=training_seeds(_SEED))
        ours = {agent: Ours(own, world.contract, device) for agent, own in settings.items()}
        replay = random_replay(world, [side.learner for side in ours.values()], _FILL, _SEED)
        world.close()
        for side in ours.values():
            side.begin(replay)
        sb3, note = _sb3(some, replay, device)
        measured = [measure for side in ours.values() for measure in (side.pace, side.limit)]
        for k in range(windows):
            for threads in THREADS:
                torch.set_num_threads(threads)
                for measure in [*measured, *([sb3.pace] if sb3 else [])]:
                    measure.window(seconds / windows)
            progress(f"window {k + 1} of {windows}")
    loops: dict[str, dict[str, Any]] = {agent: {} for agent in agents}
    for name in [card.task] if task else LOOP_TASKS:
        for agent in agents:
            progress(f"training {agent} on {name}")
            loops[agent][name] = loop_figures(name, agent, overrides or {}, seconds, device)
    record: dict[str, Any] = {}
    for agent, side in ours.items():
        for key, value in _figures(side, sb3).items():
            record.setdefault(key, {})[agent] = value
    return {
        **record,
        "loop_steps_per_s": {
            agent: {name: loop["steps_per_s"] for name, loop in rows.items()}
            for agent, rows in loops.items()
        },
        "loop": loops,
        "sb3": sb3 and sb3.figures(),
        "sb3_note": note,
        "task": card.task,
        "batch": some.batch,
        "width": some.width,
        "depth": some.depth,
        "envs": some.num_envs,
        "device": device,
        "cores": os.cpu_count() or 1,
        "threads": THREADS[-1],
        "load_average": os.getloadavg()[0],
    }


def _sb3(settings: Settings, replay: Replay, device: str) -> tuple[Theirs | None, str]:
    """The other learner, or the sentence that says how to get it."""
    try:
        return Theirs(settings, replay, device), (
            "the unit beside SAC is one optimiser step of one MLP: it steps 2 critics and 1 actor "
            "per update (the entropy coefficient, one number here and there, does not count)"
        )
    except MissingPackageError as fault:
        return None, f"no comparison with Stable-Baselines3: {fault}"


def _figures(side: Ours, sb3: Theirs | None) -> dict[str, Any]:
    """One agent's figures by name."""
    limits = {threads: side.limit.gflops(threads) for threads in THREADS}
    # On a busy machine two threads can be slower than one; the limit is what was possible.
    best = max(limits.values())

    def paced(threads: int) -> dict[str, float | None]:
        updates = side.pace.rate(threads)
        beside = bench_sb3.NETWORKS * max(map(sb3.pace.rate, THREADS)) if sb3 else None
        return {
            "updates_per_s": updates,
            "gflops": updates * side.flops / 1e9,
            "ratio_gemm": updates * side.flops / 1e9 / best,
            "ratio_sb3": updates * side.networks / beside if beside else None,
        }

    return {
        **paced(THREADS[-1]),
        "gemm_gflops": best,
        "parameters": side.learner.parameters.numel(),
        "networks": side.networks,
        "flops_per_update": side.flops,
        "products": [vars(product) | {"flops": product.flops} for product in side.products],
        "gemm_by_threads": {
            str(threads): {"all": limits[threads]}
            | {kind: side.limit.gflops(threads, kind) for kind in KINDS}
            for threads in THREADS
        },
        "one_thread": paced(1),
    }
