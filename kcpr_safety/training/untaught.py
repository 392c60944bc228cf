"""What does a robot suffer that has learned nothing yet?

The budget controllers begin by it (`agents.budget`), so it must not be left to chance. The first
5,000 steps of a training, a third of an episode of each robot, said anything from nothing to twice
the aim of PointGoal1, whose episodes have a standard deviation of 89 about their mean of 36: where
they said little, robots learned to stand still beside hazards. So full episodes come first, on
validation seeds; like those of validations they teach nothing and count as no training. Actions are
uniformly random and the same in every run of a task, or those of the policy that a run begins with.
"""

from typing import NamedTuple

import torch
from torch import nn

from kcpr_safety.envs import World
from kcpr_safety.training.actuation import Actuation
from kcpr_safety.training.evaluation import act_together, collect

MOST_EPISODES = 100
"""The mean of so many has a standard error of 9 on PointGoal1, where 20 are aimed at."""


class Untaught(NamedTuple):
    """What happens in the time of one full episode."""

    punishment: float
    streams: tuple[float, ...]
    """Its parts, in the contract's order."""
    terminations: float
    episodes: int


def untaught(
    world: World, actuation: Actuation, steps: int, policy: nn.Module | None = None
) -> Untaught:
    """As many episodes as `steps` are long, between the world's environments and 100.

    Without a `policy`, a controller, actions are random.
    """
    contract = world.contract
    rounds = min(steps // contract.steps, MOST_EPISODES) // world.num_envs
    generator = torch.Generator().manual_seed(0)
    traces = collect(
        policy or nn.Identity(),
        world,
        max(rounds, 1) * world.num_envs,
        act=act_together
        if policy
        else lambda _, obs: actuation.command(actuation.random(len(obs), generator)),
    )
    episode = contract.time_limit / sum(len(trace.rewards) for trace in traces)
    streams = [sum(step) for trace in traces for step in zip(*trace.streams, strict=True)]
    count = len(contract.streams)
    return Untaught(
        episode * sum(sum(trace.punishments) for trace in traces),
        tuple(episode * sum(streams[k::count]) for k in range(count)),
        episode * sum(trace.terminated for trace in traces),
        len(traces),
    )
