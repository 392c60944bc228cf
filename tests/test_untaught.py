"""Is what the weight of punishment begins by what untaught robots really suffer?"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toys import Sprint

from kcpr_safety.envs.world import Outcome
from kcpr_safety.punishments import Stream
from kcpr_safety.seeds import consecutive_seeds
from kcpr_safety.training.actuation import actuation_of
from kcpr_safety.training.untaught import MOST_EPISODES, Untaught, untaught


def sprint(**kind: float) -> Sprint:
    return Sprint(4, consecutive_seeds(1_000, 4), **kind)  # type: ignore[arg-type]


class Always(nn.Module):
    """One command, whatever is observed."""

    def __init__(self, *command: float) -> None:
        super().__init__()
        self.command = torch.tensor(command)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.command.expand(len(obs), -1)


def of(world: Sprint, steps: int = 10_000, policy: nn.Module | None = None) -> Untaught:
    return untaught(world, actuation_of(world.contract), steps, policy)


def test_random_actions_suffer_what_they_should() -> None:
    """Speeds are uniform in [-1, 1], and those above the limit are punished."""
    for fast, share in ((0.0, 0.5), (0.5, 0.25), (1.0, 0.0)):
        found = of(sprint(fast=fast))
        assert found.punishment == pytest.approx(20.0 * share, abs=1.0)
        assert found.terminations == 0.0


def test_it_is_the_same_in_every_run() -> None:
    assert of(sprint()) == of(sprint())
    torch.manual_seed(1)
    assert of(sprint()) == of(sprint())


def test_what_ends_early_counts_in_the_time_of_a_full_episode() -> None:
    """The first step, of 1 m, goes beyond `far`: every episode is one punished step."""
    found = of(sprint(far=0.9, fast=-2.0), policy=Always(4.0, 0.0))
    assert found.punishment == pytest.approx(20.0)
    assert found.terminations == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("steps", "episodes"), [(10, 4), (99, 4), (160, 8), (10_000, MOST_EPISODES)]
)
def test_a_short_run_watches_no_longer_than_it_is(steps: int, episodes: int) -> None:
    assert of(sprint(), steps).episodes == episodes


def test_the_policy_that_a_run_begins_with_acts_for_itself() -> None:
    assert of(sprint(), policy=Always(4.0, 0.0)).punishment == 20.0
    assert of(sprint(), policy=Always(-2.0, 0.0)).punishment == 0.0


class Parted(Sprint):
    """Speed is one stream, a constant quarter the other."""

    def __init__(self) -> None:
        super().__init__(4, consecutive_seeds(1_000, 4))
        streams = Stream("speed", 5.0, "fast"), Stream("time", 5.0, "always")
        self.contract = replace(self.contract, streams=streams)

    def _advance(self, action: np.ndarray) -> Outcome:
        outcome = super()._advance(action)
        quarter = np.full(self.num_envs, 0.25)
        streams = np.stack([outcome.punishment, quarter], axis=1)
        return replace(outcome, punishment=outcome.punishment + 0.25, streams=streams)


def test_streams_are_told_apart() -> None:
    world = Parted()
    found = of(world)
    assert found.streams[1] == pytest.approx(5.0)
    assert found.streams[0] == pytest.approx(10.0, abs=1.0)
    assert math.fsum(found.streams) == pytest.approx(found.punishment)
