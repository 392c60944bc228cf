"""Which kind of learner does an agent's name mean, and what may a training loop ask of any kind?

Two families: continuous actions in [-1, 1] (`agents.continuous`) and a choice among the commands of
a table (`agents.discrete`). A loop knows neither by name; it knows this protocol.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kcpr_safety.agents import discrete_snapshots, snapshots
from kcpr_safety.agents.continuous import Learner
from kcpr_safety.agents.discrete import DiscreteLearner
from kcpr_safety.agents.discrete_settings import (
    DISCRETE_AGENTS,
    DiscreteSettings,
    discrete_settings,
    discrete_settings_from,
)
from kcpr_safety.agents.settings import AGENTS, Settings, agent_settings, settings_from
from kcpr_safety.agents.task import Task
from kcpr_safety.errors import UnknownNameError
from kcpr_safety.replay import Replay
from kcpr_safety.transition import Batch

AnySettings = Settings | DiscreteSettings


class AnyLearner(Protocol):
    """What a training loop needs of a learner."""

    updates: int
    """Updates so far."""
    progress: float
    """Share of training that is done."""
    generator: torch.Generator
    """Its own random numbers."""

    def begin(self, pace: float, streams: Sequence[float], terminations: float) -> None:
        """Take note, first of all, of what robots suffer that have learned nothing."""
        ...

    def act(self, obs: Tensor) -> Tensor:
        """Exploring actions of all environments."""
        ...

    def observe(self, batch: Batch, ended: Tensor) -> None:
        """Take note of one step of all environments."""
        ...

    def advance(self, steps: int) -> None:
        """Take note of environment steps that were taken while learning."""
        ...

    def update(self, batch: Batch, *, measure: bool = True) -> dict[str, Tensor]:
        """Learn from a batch; metrics if they are asked for."""
        ...

    def memory(self, capacity: int) -> Replay:
        """Where transitions wait to be learned from."""
        ...

    def m_bounds(self) -> tuple[float, float] | None:
        """Between what its budget controller keeps m; None without one."""
        ...

    def status(self) -> dict[str, float]:
        """Numbers of a row of metrics that no batch is needed for."""
        ...


@dataclass(frozen=True)
class Family:
    """One kind of learner: how it is made, kept and brought back."""

    agents: Mapping[str, Mapping[str, Any]]
    chooses: bool
    """Whether it chooses among the rows of a table of commands."""
    settings: Callable[[str, Mapping[str, Any], int], AnySettings]
    """Settings of a named agent after overrides, for a run of so many environment steps."""
    read_settings: Callable[[Any], AnySettings]
    """Settings from a file's record; whatever does not fit raises `SettingsError`."""
    make: Callable[[Any, Task, int, int, torch.device | str], Any]
    """Learner of settings, task, number of environments, seed and device."""
    policy_tensors: Callable[[Any], dict[str, Tensor]]
    warm_start: Callable[[Any, Mapping[str, Tensor]], None]
    snapshot: Callable[[Any], dict[str, Tensor]]
    restore: Callable[[Any, Mapping[str, Tensor]], None]


FAMILIES = (
    Family(
        AGENTS,
        False,
        agent_settings,
        settings_from,
        Learner,
        snapshots.policy_tensors,
        snapshots.warm_start,
        snapshots.snapshot,
        snapshots.restore,
    ),
    Family(
        DISCRETE_AGENTS,
        True,
        lambda agent, overrides, _: discrete_settings(agent, overrides),
        discrete_settings_from,
        DiscreteLearner,
        discrete_snapshots.policy_tensors,
        discrete_snapshots.warm_start,
        discrete_snapshots.snapshot,
        discrete_snapshots.restore,
    ),
)


def family_of(agent: str) -> Family:
    """The family that a named agent belongs to."""
    for family in FAMILIES:
        if agent in family.agents:
            return family
    raise UnknownNameError("agent", agent, [name for family in FAMILIES for name in family.agents])
