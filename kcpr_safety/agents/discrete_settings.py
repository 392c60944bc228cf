"""Which numbers does a discrete agent have, and in which of them do DQN ... klDMP differ?

All are one learner (`agents.discrete`). With tau = 1 / h and b the softening:

    dqn      tau 0, b 0, one stream r - c: the greedy maximum, acts on its reward module alone
    sql      tau > 0, the same stream: soft Q-learning
    dmp      tau 0, b 0, two streams, acts on the mixture of both modules
    softdmp  tau > 0, b 0, two streams, transitions routed to two buffers by the policies' ratio
    kldmp    tau > 0, b > 0: each module's prior is the other; acts on its reward module

Values and temperatures live in the same normalised units as those of the continuous agents
(`agents.settings`), unless `normalise` is off.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kcpr_safety.agents.settings import check_ranges, typed
from kcpr_safety.errors import SettingsError, UnknownNameError

REPLAYS = ("shared", "routed", "split")
COMPANIONS = ("both", "own")
DEPLOYED = ("reward", "mixture")


@dataclass(frozen=True)
class DiscreteSettings:
    """Every number of the discrete learner; the defaults are those of `kldmp`, for all tasks."""

    reward_temperature: float = 0.1
    """tau_R = 1 / h_R of the reward module; 0 is the greedy limit."""
    punishment_temperature: float = 0.1
    """tau_P = 1 / h_P of the punishment module."""
    softening: float = 0.6
    """b in [0, 1): the companion's policy is raised to this power before it serves as a prior."""
    scalarised: float = 0.0
    """Weight of punishment that is subtracted from the reward stream itself (DQN, SQL)."""
    companion: str = "both"
    """"both": closed form on both target networks; "own": softmax of the companion's Q alone."""
    mixing: float = 0.5
    """w: exploration acts on w pi_R + (1 - w) pi_P."""
    deployed: str = "reward"
    """"reward": argmax of h_R Q_R + b h_P Q_P; "mixture": argmax of w Q_R + (1 - w) Q_P."""
    replay: str = "shared"
    """"shared": one buffer; "routed": each module's own, filled by the ratio of the policies;
    "split": punished transitions in a second one, and half of every draw from each."""

    exploration: float = 0.05
    """Share of uniformly random actions in the end."""
    exploration_steps: int = 20_000
    """The share of random actions falls from 1 to its end over these first steps."""
    normalise: bool = True
    """Bring observations, rewards and punishments to unit scale while learning."""
    width: int = 128
    """Units in each hidden layer."""
    depth: int = 2
    """Hidden layers."""
    gamma: float = 0.99
    """Discount per step."""
    learning_rate: float = 5e-4
    """Adam's step."""
    target_rate: float = 0.005
    """Share of the networks that enters their targets at each update."""
    batch: int = 128
    """Transitions per update."""
    updates_per_step: float = 0.25
    """Learner updates per environment step."""
    num_envs: int = 8
    """Environments side by side."""
    random_steps: int = 2_000
    """Steps of uniformly random actions before learning starts."""
    capacity: int = 1_000_000
    """Transitions that the replay remembers."""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.softening == 1.0:
            raise SettingsError("softening is 1.0; it must lie in [0, 1)")
        for name, choices in (
            ("replay", REPLAYS),
            ("companion", COMPANIONS),
            ("deployed", DEPLOYED),
        ):
            if getattr(self, name) not in choices:
                raise UnknownNameError(f"{name} setting", str(getattr(self, name)), choices)

    @property
    def numbers(self) -> tuple[float, float, float]:
        """(h_R, h_P, b), as `ops.coupling` takes them."""
        taus = (self.reward_temperature, self.punishment_temperature)
        h = [1.0 / tau if tau else math.inf for tau in taus]
        return h[0], h[1], self.softening

    @property
    def logit_weights(self) -> tuple[float, float]:
        """What the deployed argmax multiplies Q_R and Q_P by."""
        if self.deployed == "mixture":
            return self.mixing, 1.0 - self.mixing
        reward_h, punishment_h, softening = self.numbers
        if math.isinf(reward_h) or softening == 0.0:
            # Greedy in Q_R first: what the companion adds is infinitely less.
            return 1.0, softening if math.isinf(punishment_h) else 0.0
        return reward_h, softening * punishment_h


_RANGES: Mapping[str, tuple[float, float]] = {
    "reward_temperature": (0.0, 1e6),
    "punishment_temperature": (0.0, 1e6),
    "softening": (0.0, 1.0),
    "scalarised": (0.0, 1e6),
    "mixing": (0.0, 1.0),
    "exploration": (0.0, 1.0),
    "exploration_steps": (1, 10**9),
    "width": (1, 4096),
    "depth": (1, 7),
    "gamma": (0.0, 0.99999),
    "learning_rate": (1e-8, 1.0),
    "target_rate": (1e-6, 1.0),
    "batch": (1, 65_536),
    "updates_per_step": (0.0, 64.0),
    "num_envs": (1, 4096),
    "random_steps": (1, 10**9),
    "capacity": (1, 10**9),
}

_GREEDY = {"reward_temperature": 0.0, "punishment_temperature": 0.0, "softening": 0.0}
_SINGLE = {"scalarised": 1.0, "mixing": 1.0}

DISCRETE_AGENTS: Mapping[str, Mapping[str, Any]] = {
    "dqn": {**_GREEDY, **_SINGLE},
    "sql": {"softening": 0.0, **_SINGLE},
    "dmp": {**_GREEDY, "deployed": "mixture"},
    "softdmp": {"softening": 0.0, "deployed": "mixture", "replay": "routed"},
    "kldmp": {},
    "kldmp-routed": {"replay": "routed"},
    "kldmp-split": {"replay": "split"},
}
"""What each named agent changes in the defaults; all are the same code."""


def discrete_settings(agent: str, overrides: Mapping[str, Any]) -> DiscreteSettings:
    """The settings of a named agent after a task card's or a caller's overrides."""
    if agent not in DISCRETE_AGENTS:
        raise UnknownNameError("agent", agent, DISCRETE_AGENTS)
    return replace(
        DiscreteSettings(), **{**DISCRETE_AGENTS[agent], **typed(DiscreteSettings, overrides)}
    )


def discrete_settings_from(record: Any) -> DiscreteSettings:
    """The settings in a file's record; whatever does not fit raises `SettingsError`."""
    if not isinstance(record, Mapping):
        raise SettingsError("settings are names with numbers")
    return replace(DiscreteSettings(), **typed(DiscreteSettings, record))
