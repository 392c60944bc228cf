"""What does it cost that a training can be killed at any moment?

    checkpoint_s       one checkpoint: learner, environments, a minute's new transitions, flushed
    checkpoint_share   of training time, at one checkpoint a minute
    checkpoint_mb      what it writes
    resume_s           from nothing to the next step: environments built, files read, and every
                       open episode's actions taken again (here all but the last step of a full one)

On this machine's disk, at the speed that the loop was just measured with.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kcpr_safety import envs
from kcpr_safety.agents import agent_settings
from kcpr_safety.studies.transitions import random_actions
from kcpr_safety.training import checkpoints
from kcpr_safety.training.checkpoints import Config
from kcpr_safety.training.loop import CHECKPOINT_PERIOD_S, Training
from kcpr_safety.training.runs import training_world

_SEED = 0
_MINUTES = 3
"""Checkpoints that are taken; the middle one is told."""
_STEPS = 10_000_000


def checkpoint_figures(
    task: str, agent: str, overrides: Mapping[str, Any], steps_per_s: float, device: str = "cpu"
) -> dict[str, Any]:
    """Seconds, megabytes and the share of training time; see the module's first lines."""
    card = envs.resolve(task)
    own = {name: override.value for name, override in card.overrides.items()}
    settings = agent_settings(agent, {**own, **overrides})
    world = training_world(card, settings.num_envs, _SEED)
    config = Config(card.task, agent, _SEED, _STEPS, card.budget, settings, world.contract, device)
    fresh = min(round(steps_per_s * CHECKPOINT_PERIOD_S), settings.capacity // (_MINUTES + 1))
    with tempfile.TemporaryDirectory(prefix="kcpr-bench-") as folder:
        run = Path(folder) / "run"
        training = Training(run, config, world, card)
        training.claim()
        world.reset(options={"episodes": [0] * settings.num_envs})
        actions = random_actions(world, _SEED)
        for i in range(world.contract.time_limit - 1):
            world.step(actions[i % len(actions)])
        seconds, written = [], []
        for _ in range(_MINUTES):
            _live(training, fresh)
            before = _bytes(run)
            started = time.perf_counter()
            training._save(0, finished=False)
            seconds.append(time.perf_counter() - started)
            written.append(_bytes(run) - before)
        world.close()
        started = time.perf_counter()
        world = training_world(card, settings.num_envs, _SEED)
        again = Training(run, checkpoints.read_config(run), world, card)
        again.take_up()
        again._begin()
        resume_s = time.perf_counter() - started
        world.close()
    checkpoint_s = statistics.median(seconds)
    return {
        "checkpoint_s": checkpoint_s,
        "checkpoint_share": checkpoint_s / CHECKPOINT_PERIOD_S,
        "checkpoint_mb": max(written) / 1e6,
        "resume_s": resume_s,
    }


def _live(training: Training, steps: int) -> None:
    """As if so many transitions had been stored."""
    replay = training.replay
    places = torch.arange(replay.added, replay.added + steps) % replay.rows.shape[0]
    replay.rows[places.to(replay.rows.device)] = 1.0
    replay.added += steps
    training.steps += steps


def _bytes(run: Path) -> int:
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
