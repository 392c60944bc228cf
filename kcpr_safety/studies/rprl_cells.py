"""How is one agent trained on one grid-world, with all its seeds side by side, and judged exactly?

A cell is (world, variant, seeds, steps). The seeds are replicas of one learner: members of one
stack of networks, in environments of their own, with one stream of random numbers among them; so a
cell repeats as a whole. The deployed policy is judged without sampling: the distribution over
states is carried through the exact tensors up to the time limit.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcpr_safety.agents.discrete import DiscreteLearner
from kcpr_safety.agents.discrete_settings import DiscreteSettings
from kcpr_safety.agents.task import Task
from kcpr_safety.envs.grids import MOVES, Grid, grid_of
from kcpr_safety.envs.gridworld import COMMANDS, GridWorld
from kcpr_safety.replay import Divided
from kcpr_safety.seeds import training_seeds
from kcpr_safety.transition import Batch

POINTS = 20
"""Evaluations along a learning curve."""

OnStep = Callable[[float], None]
"""Told the share of the cell that is done."""


@dataclass(frozen=True)
class Cell:
    """One agent on one grid-world."""

    world: str
    """Name of a grid-world (`envs.grids`)."""
    variant: str
    settings: DiscreteSettings
    seeds: tuple[int, ...]
    steps: int
    """Environment steps of each seed."""

    weight = 1
    """Beside other cells, in time."""

    @property
    def key(self) -> dict[str, Any]:
        """What a finished cell is recognised by; any change of a number makes another cell."""
        return {**asdict(self), "seeds": list(self.seeds)}


def train_cell(cell: Cell, on_step: OnStep = lambda share: None) -> list[dict[str, Any]]:
    """A row for each seed: exact return, punishment and success, curve, punishment in training."""
    started = time.perf_counter()
    settings, grid = cell.settings, grid_of(cell.world)
    replicas, envs = len(cell.seeds), settings.num_envs
    task = Task(grid.states, len(MOVES), 0.0, grid.time_limit)
    learner = DiscreteLearner(settings, task, envs, cell.seeds[0], replicas=replicas)
    schedules = [training_seeds(seed) for seed in cell.seeds]
    world = GridWorld(grid, replicas * envs, lambda i, k: schedules[i // envs](i % envs, k))
    replay = Replays(learner, cell.steps + envs)
    generator = torch.Generator().manual_seed(2**32 + cell.seeds[0])
    obs, owed = _float(world.reset()[0]), 0.0
    punished, ended_in_goal = np.zeros(replicas), np.zeros(replicas)
    curves: list[list[list[float]]] = [[] for _ in cell.seeds]
    marks = [cell.steps * (i + 1) // POINTS for i in range(POINTS)]
    while learner.steps < cell.steps:
        action = learner.act(obs)
        stepped = world.step(np.array(COMMANDS)[action[:, 0].long().numpy()])
        next_obs, reward, terminated, truncated, infos = stepped
        batch = Batch(
            obs=obs,
            action=action,
            reward=_float(reward),
            punishment=_float(infos["punishment"]),
            continues=1.0 - _float(terminated),
            next_obs=_float(infos["final_obs"]),
        )
        learner.observe(batch, torch.as_tensor(terminated | truncated))
        replay.add(batch)
        obs = _float(next_obs)
        punished += infos["punishment"].reshape(replicas, envs).sum(1)
        ended_in_goal += terminated.reshape(replicas, envs).sum(1)
        if learner.steps >= settings.random_steps:
            owed += settings.updates_per_step * envs
            while owed >= 1.0:
                owed -= 1.0
                learner.update(replay.draw(settings.batch, generator), measure=False)
        if learner.steps >= marks[0]:
            marks.pop(0)
            judged = judge(learner, grid)
            for curve, values, total in zip(curves, judged, punished, strict=True):
                curve.append([learner.steps, *values, float(total)])
            on_step(learner.steps / cell.steps)
    wall = time.perf_counter() - started
    return [
        {
            "seed": seed,
            "return_mean": curve[-1][1],
            "punishment_mean": curve[-1][2],
            "success": curve[-1][3],
            "punishment_training": float(total),
            "goals_training": int(goals),
            "curve": [[round(number, 5) for number in point] for point in curve],
            "cell_wall_s": round(wall, 2),
        }
        for seed, curve, total, goals in zip(
            cell.seeds, curves, punished, ended_in_goal, strict=True
        )
    ]


class Replays:
    """One replay a seed, in the agent's own design."""

    def __init__(self, learner: DiscreteLearner, capacity: int) -> None:
        self.learner = learner
        self.each = [learner.memory(capacity) for _ in range(learner.replicas)]
        self._routed = torch.zeros(0)
        for i, replay in enumerate(self.each):
            if isinstance(replay, Divided):
                replay.route = partial(self._route, i)

    def add(self, batch: Batch) -> None:
        if isinstance(self.each[0], Divided):
            self._routed = self.learner.route(batch).view(len(self.each), -1)
        parts = [part.chunk(len(self.each)) for part in batch if part is not None]
        for replay, own in zip(self.each, zip(*parts, strict=True), strict=True):
            replay.add(Batch(*own))

    def _route(self, replica: int, batch: Batch) -> Tensor:
        """All replicas were routed in one pass, before each takes its part."""
        return self._routed[replica]

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        drawn = [replay.draw(size, generator) for replay in self.each]
        parts = (part for part in zip(*drawn, strict=True) if part[0] is not None)
        return Batch(*(torch.cat(part) for part in parts))


def judge(learner: DiscreteLearner, grid: Grid) -> list[tuple[float, float, float]]:
    """(return, punishment, success) of each replica's deployed policy, up to the time limit."""
    states, replicas = grid.states, learner.replicas
    actions = learner.act_greedily(torch.eye(states).repeat(replicas, 1)).long().view(replicas, -1)
    transition, reward, punishment = (torch.tensor(part) for part in grid.tensors)
    here = torch.arange(states)
    moves = transition[here, actions]
    streams = torch.stack([reward[here, actions], punishment[here, actions]], dim=-1)
    where = torch.zeros(replicas, 1, states, dtype=torch.float64)
    where[..., grid.starts] = 1.0 / len(grid.starts)
    earned = torch.zeros(replicas, 1, 2, dtype=torch.float64)
    for _ in range(grid.time_limit):
        earned += where @ streams
        where = where @ moves
    success = where[:, 0, grid.goal]
    return [
        (float(total[0, 0]), float(total[0, 1]), float(share))
        for total, share in zip(earned, success, strict=True)
    ]


def _float(array: np.ndarray) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)
