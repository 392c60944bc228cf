"""Which transitions do the benches learn from? Those that random actions gave."""

from collections.abc import Sequence

import numpy as np
import torch

from kcpr_safety import envs
from kcpr_safety.agents import Learner
from kcpr_safety.replay import Replay
from kcpr_safety.transition import Batch

_ACTIONS = 64
"""Drawn once and used in turn: drawing them is no part of what is measured."""


def random_actions(world: envs.World, seed: int) -> list[np.ndarray]:
    """Some commands for all environments, in actuator units."""
    generator = np.random.default_rng(seed)
    low, span = _bounds(world)
    shape = (_ACTIONS, world.num_envs, len(low))
    return list(low + generator.random(shape) * span)


def random_replay(world: envs.World, learners: Sequence[Learner], size: int, seed: int) -> Replay:
    """At least `size` transitions on the learners' device; their normalisers see them too."""
    replay = learners[0].memory(size + world.num_envs)
    low, span = _bounds(world)
    actions = random_actions(world, seed)
    obs, _ = world.reset()
    for call in range(size // world.num_envs + 1):
        action = actions[call % _ACTIONS]
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
        for learner in learners:
            learner.observe(batch, torch.as_tensor(terminated | truncated))
        obs = next_obs
    return replay


def _bounds(world: envs.World) -> tuple[np.ndarray, np.ndarray]:
    """(lowest, highest - lowest) of each actuator."""
    low = np.array([entry.low for entry in world.contract.action])
    return low, np.array([entry.high for entry in world.contract.action]) - low


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(array, dtype=torch.float32)
