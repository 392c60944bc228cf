"""Which policy of a run is kept?

Every few thousand steps the deployed policy runs ten full episodes on validation seeds, other ones
each time (after 1,500 the same again). The best of forty such means is as much luck as merit, and
what a policy did ten thousand steps ago says little: a hopper that hops is between two that fall.
So ten episodes only make a contender: one within its budgets, whose return is above that of the
policy that is kept. It runs forty episodes more, which have not chosen it, and is judged by those
alone. Feasible comes first, which is a punishment within the budget with a standard error to spare
(rare, long punishments make the mean of forty episodes uncertain by several units), and so each
stream within its own; among those counts the return, less a per cent of it for each per cent of the
episodes beyond `SELDOM` that are over the budget (a mean that is spent to the full breaks it in two
of five); and while there is none, the least punishment: with streams, that over its budget where it
is most.

Where punishment varies so much that the error is more than a twentieth of the budget, the forty
choose, too: of the last fourteen contenders of a run on PointGoal1, which suffered 28 on average,
one had 19, was kept, and broke its budget. So a hundred more judge one that is feasible but
doubtful, however many errors fit within its budget: luck makes those small, too.

The episodes that judge a policy also set its evaluation critic right: the kept file's Q_C is
offset + slope Q_C, by least squares on what really followed (`evaluation.set_right`). As it is
learned it has a bias: what has a slow target lags, what has a quick one drifts upwards
(docs/experiments.md).
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
from kcpr_safety.stats import Line, over_budget
from kcpr_safety.training.evaluation import Critic, Episodes, act_together, critic_of, rollout

EPISODES = 10
"""Of each validation."""
CONFIRMING = 40
"""Further episodes of a contender."""
DECIDING = 100
"""And of one of whose budget those leave a doubt."""
DOUBT = 0.05
"""Standard error, as a share of the budget, from which on there is one."""
SELDOM = 0.2
"""Share of episodes that may be over the budget at no price."""
_NO_BUDGET = 1e-6
"""What a budget of nothing counts as, where punishment is divided by it."""


class Validation:
    """All validations of one run so far."""

    def __init__(self, card: TaskCard, budget: float, hold: int = 1) -> None:
        self._card, self._budget, self._hold = card, budget, hold
        self._world: envs.World | None = None
        self.rounds = 0
        """Episodes that each of the world's environments has been through."""

    def judge(
        self, policy: PolicyFile, steps: int, best: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The row of the log about the present policy; `best` is that of the one that is kept."""
        critic = critic_of(policy)
        done = self._run(policy, EPISODES, critic)
        row = {
            "kind": "validation",
            "steps": steps,
            "return_mean": done.return_mean,
            "punishment_mean": done.punishment_mean,
            "episodes": EPISODES,
            "over_budget_share": over_budget(done.punishments, self._budget) / EPISODES,
            "predicted_punishment": done.predicted,
            "measured_discounted_punishment": done.realised,
        }
        judged = self._judged(done)
        if judged["overspent"] <= 1.0 and _rank({**judged, "feasible": True}) > _rank(best):
            done = self._run(policy, CONFIRMING, critic)
            judged = self._judged(done)
            if judged["feasible"] and judged["doubtful"] and better(judged, best):
                done = self._run(policy, DECIDING, critic)
                judged = self._judged(done)
        return row | judged | {"critic_offset": done.line.offset, "critic_slope": done.line.slope}

    @property
    def world(self) -> envs.World:
        """Where validation happens, ten episodes at a time; made when first asked for."""
        if self._world is None:
            seeds = consecutive_seeds(FIRST_VALIDATION_SEED, EPISODES)
            world = envs.make_world(self._card, EPISODES, episode_seeds=seeds)
            self._world = world.hold(self._hold)
        return self._world

    def _run(self, policy: PolicyFile, episodes: int, critic: Critic | None) -> Episodes:
        first, rounds, in_all = self.rounds, episodes // EPISODES, VALIDATION_SEEDS // EPISODES
        if first % in_all + rounds > in_all:
            first += -first % in_all  # the seeds that come next are not for validation
        self.rounds = first + rounds
        # Many rows at once: nothing is claimed from these episodes, and it saves a third.
        return rollout(
            controller_from_tensors(policy.tensors, policy.contract),
            self.world,
            episodes,
            critic,
            act=act_together,
            first=first % in_all,
        )

    def _judged(self, done: Episodes) -> dict[str, Any]:
        """What these episodes say about the policy."""
        contract = self.world.contract
        mean, error = _mean(done.punishments)
        row: dict[str, Any] = {
            "judged_episodes": len(done.punishments),
            "judged_return": done.return_mean,
            "judged_punishment": mean,
            "judged_punishment_error": error,
            "judged_over_budget_share": over_budget(done.punishments, self._budget)
            / len(done.punishments),
        }
        bounds = [(mean, error, self._budget)]
        if contract.streams:
            row["streams"] = []
            sums = zip(*done.streams, strict=True)
            for stream, each in zip(contract.streams, sums, strict=True):
                mean, error = _mean(each)
                bounds.append((mean, error, stream.budget))
                row["streams"].append(
                    {
                        "name": stream.name,
                        "budget": stream.budget,
                        "punishment_mean": mean,
                        "punishment_error": error,
                        "over_budget_share": over_budget(each, stream.budget) / len(each),
                    }
                )
        return row | {
            "overspent": max(mean / max(budget, _NO_BUDGET) for mean, _, budget in bounds),
            "feasible": all(mean + error <= budget for mean, error, budget in bounds),
            "doubtful": any(error > DOUBT * budget for _, error, budget in bounds),
        }


def better(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    """Whether a validated policy should take the place of the one that is kept."""
    return _rank(row) > _rank(best)


def evaluation_line(row: Mapping[str, Any]) -> Line:
    """What sets the judged policy's Q_C right."""
    return Line(row["critic_offset"], row["critic_slope"])


def _rank(row: Mapping[str, Any] | None) -> tuple[bool, float]:
    if row is None:
        return False, -math.inf
    if not row["feasible"]:
        return False, -row["overspent"]
    price = abs(row["judged_return"]) * max(0.0, row["judged_over_budget_share"] - SELDOM)
    return True, row["judged_return"] - price


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the episodes and its standard error."""
    return float(np.mean(values)), float(np.std(values)) / math.sqrt(len(values))
