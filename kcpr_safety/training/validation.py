"""Which policy of a run is kept?

Every few thousand steps the deployed policy runs ten full episodes on validation seeds, other ones
each time. Ten episodes are few, and the best of forty such means is as much luck as merit. So a
policy is ranked by the mean over the last five validations: deployed is a slow average of what is
learned, hence nearly the same policy as a little earlier. Feasible comes first, which is a pooled
punishment within the budget with a standard error to spare (rare, long punishments make the mean of
fifty episodes uncertain by several units), and so each stream within its own; among those counts
the pooled return, and while there is none, the least pooled punishment: with streams, that over its
budget where it is most.
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
from kcpr_safety.training.evaluation import Episodes, act_together, critic_of, rollout

EPISODES = 10
POOLED = 5
"""Validations that a policy is ranked by."""
_NO_BUDGET = 1e-6
"""What a budget of nothing counts as, where punishment is divided by it."""


class Validation:
    """All validations of one run so far."""

    def __init__(self, card: TaskCard, budget: float) -> None:
        self._card, self._budget = card, budget
        self._world: envs.World | None = None
        self.seen: list[tuple[float, ...]] = []
        """(mean return, mean punishment, mean squared punishment) of each, in order; then the mean
        and the mean square of each stream."""

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
        parts = _moments(done) if self._world.contract.streams else ()
        self.seen.append((done.return_mean, done.punishment_mean, squared, *parts))
        pooled = [row[:3] for row in self.seen[-POOLED:]]
        pooled_return, pooled_punishment, squared = np.mean(pooled, axis=0).tolist()
        error = _error(pooled_punishment, squared, len(pooled))
        row = {
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
        return row | self._by_stream(row, done) if parts else row

    def _by_stream(self, row: Mapping[str, Any], done: Episodes) -> dict[str, Any]:
        """What each stream adds to the row: a policy must be feasible in all."""
        assert self._world is not None
        # Of a run that an earlier version began, only what this one saw tells of streams.
        pooled = [seen[3:] for seen in self.seen[-POOLED:] if len(seen) > 3]
        moments = np.mean(pooled, axis=0).reshape(-1, 2).tolist()
        streams, sums = self._world.contract.streams, zip(*done.streams, strict=True)
        told = [
            {
                "name": stream.name,
                "budget": stream.budget,
                "punishment_mean": float(np.mean(each)),
                "over_budget_share": over_budget(each, stream.budget) / EPISODES,
                "pooled_punishment": mean,
                "pooled_punishment_error": _error(mean, squared, len(pooled)),
            }
            for stream, each, (mean, squared) in zip(streams, sums, moments, strict=True)
        ]
        spent = [(row["pooled_punishment"], self._budget)]
        spent += [(part["pooled_punishment"], part["budget"]) for part in told]
        return {
            "streams": told,
            "overspent": max(mean / max(budget, _NO_BUDGET) for mean, budget in spent),
            "feasible": row["feasible"]
            and all(
                part["pooled_punishment"] + part["pooled_punishment_error"] <= part["budget"]
                for part in told
            ),
        }

    def take(self, seen: Sequence[Sequence[float]]) -> None:
        """Continue after these."""
        self.seen = [tuple(row) for row in seen]


def better(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    """Whether a validated policy should take the place of the one that is kept.

    One that was kept before streams were looked at gives way: nobody knows whether it holds them.
    """
    if best is None or ("overspent" in row and "overspent" not in best):
        return True
    return _rank(row) > _rank(best)


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    if row["feasible"]:
        return True, row["pooled_return"]
    return False, -row.get("overspent", row["pooled_punishment"])


def _moments(done: Episodes) -> list[float]:
    """Mean and mean square of each stream over the episodes."""
    sums = np.array(done.streams)
    return [float(x) for x in np.stack([sums.mean(0), np.square(sums).mean(0)], 1).flat]


def _error(mean: float, squared: float, validations: int) -> float:
    """Standard error of a mean over their episodes."""
    return math.sqrt(max(squared - mean**2, 0.0) / (EPISODES * validations))
