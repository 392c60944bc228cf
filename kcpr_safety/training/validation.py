"""Which policy of a run is kept?

Every few thousand steps the deployed policy runs ten full episodes on validation seeds, other ones
each time. Ten episodes are few, and the best of forty such means is as much luck as merit. So a
policy is ranked by the mean over the last five validations: deployed is a slow average of what is
learned, hence nearly the same policy as a little earlier. Feasible comes first, which is a pooled
punishment within the budget with a standard error to spare (rare, long punishments make the mean of
fifty episodes uncertain by several units); among those counts the pooled return, and while there is
none, the least pooled punishment.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kcpr_safety import envs
from kcpr_safety.cards import TaskCard
from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.policy_file import PolicyFile
from kcpr_safety.seeds import FIRST_VALIDATION_SEED, VALIDATION_SEEDS, consecutive_seeds
from kcpr_safety.stats import over_budget
from kcpr_safety.training.evaluation import act_together, critic_of, rollout

EPISODES = 10
POOLED = 5
"""Validations that a policy is ranked by."""


class Validation:
    """All validations of one run so far."""

    def __init__(self, card: TaskCard, budget: float) -> None:
        self._card, self._budget = card, budget
        self._world: envs.World | None = None
        self.seen: list[tuple[float, float, float]] = []
        """(mean return, mean punishment, mean squared punishment) of each, in order."""

    def judge(self, policy: PolicyFile, steps: int) -> dict[str, Any]:
        """The row of the log about the present policy."""
        if self._world is None:
            seeds = consecutive_seeds(FIRST_VALIDATION_SEED, EPISODES)
            self._world = envs.make_world(self._card, EPISODES, episode_seeds=seeds)
        # Many rows at once: nothing is claimed from these episodes, and it saves a third.
        done = rollout(
            controller_from_tensors(policy.tensors, policy.contract),
            self._world,
            EPISODES,
            critic_of(policy),
            act=act_together,
            first=len(self.seen) % (VALIDATION_SEEDS // EPISODES),
        )
        squared = float(np.square(done.punishments).mean())
        self.seen.append((done.return_mean, done.punishment_mean, squared))
        pooled = self.seen[-POOLED:]
        pooled_return, pooled_punishment, squared = np.mean(pooled, axis=0).tolist()
        variance = max(squared - pooled_punishment**2, 0.0)
        error = math.sqrt(variance / (EPISODES * len(pooled)))
        return {
            "kind": "validation",
            "steps": steps,
            "return_mean": done.return_mean,
            "punishment_mean": done.punishment_mean,
            "episodes": EPISODES,
            "over_budget_share": over_budget(done.punishments, self._budget) / EPISODES,
            "pooled_return": pooled_return,
            "pooled_punishment": pooled_punishment,
            "predicted_punishment": done.predicted,
            "measured_discounted_punishment": done.realised,
            "pooled_punishment_error": error,
            "feasible": pooled_punishment + error <= self._budget,
        }

    def take(self, seen: Sequence[Sequence[float]]) -> None:
        """Continue after these."""
        self.seen = [(reward, punishment, squared) for reward, punishment, squared in seen]


def better(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    """Whether a validated policy should take the place of the one that is kept."""
    return best is None or _rank(row) > _rank(best)


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    return row["feasible"], row["pooled_return"] if row["feasible"] else -row["pooled_punishment"]
