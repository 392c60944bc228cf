"""Is the policy that a run keeps the best that it has seen, and not the luckiest?"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toys import Sprint

from kcpr_safety import envs
from kcpr_safety.cards import TaskCard
from kcpr_safety.punishments import Stream
from kcpr_safety.seeds import FIRST_CALIBRATION_SEED, FIRST_VALIDATION_SEED
from kcpr_safety.stats import Line
from kcpr_safety.training import validation
from kcpr_safety.training.validation import CONFIRMING, DECIDING, EPISODES, Validation, better

CARD = TaskCard("SafetySprint-v0", "sprint", "", "one fast step", budget=10.0)
Outcome = tuple[float, ...]
"""(return, punishment) of episodes, or (return, force, speed)."""


class Run:
    """A run whose validations find what they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, streams: tuple[Stream, ...] = ()) -> None:
        self.coming: list[Outcome] = []
        self.asked: list[int] = []
        self.judge, self.best = Validation(CARD, CARD.budget), None

        def make_world(card: TaskCard, num_envs: int, *, episode_seeds: Any) -> Sprint:
            world = Sprint(num_envs, episode_seeds)
            world.contract = replace(world.contract, streams=streams)
            return world

        monkeypatch.setattr(envs, "make_world", make_world)
        monkeypatch.setattr(validation, "rollout", self._rollout)
        monkeypatch.setattr(validation, "controller_from_tensors", lambda *_: None)
        monkeypatch.setattr(validation, "critic_of", lambda _: None)

    def _rollout(self, _: Any, world: Any, episodes: int, *__: Any, **___: Any) -> Any:
        self.asked.append(episodes)
        return Done(self.coming.pop(0), episodes)

    def sees(self, *outcomes: Outcome) -> dict[str, Any]:
        """The next validation, of ten episodes and perhaps of forty."""
        self.coming = list(outcomes)
        row: dict[str, Any] = self.judge.judge(Policy(), 0, self.best)
        assert not self.coming
        if better(row, self.best):
            self.best = row
        return row


class Done:
    predicted = realised = 0.0
    line = Line(0.0, 1.0)

    def __init__(self, outcome: Outcome, episodes: int) -> None:
        self.return_mean, *parts = outcome
        self.punishment_mean = sum(parts)
        self.punishments = (self.punishment_mean,) * episodes
        self.streams = (tuple(parts),) * episodes


class Policy:
    tensors = contract = None


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def test_one_lucky_validation_does_not_make_a_policy_feasible(run: Run) -> None:
    row = run.sees((5.0, 4.0), (5.0, 14.0))
    assert run.asked == [EPISODES, CONFIRMING]
    assert (row["punishment_mean"], row["judged_punishment"]) == (4.0, 14.0)
    assert not row["feasible"]
    assert run.sees((5.0, 4.0), (5.0, 4.0))["feasible"]


def test_nor_does_it_make_one_the_best(run: Run) -> None:
    first = run.sees((5.0, 4.0), (5.0, 4.0))
    second = run.sees((9.0, 4.0), (4.5, 4.0))
    assert run.best is first
    assert (second["return_mean"], second["judged_return"]) == (9.0, 4.5)
    assert second["judged_episodes"] == CONFIRMING


def test_what_is_good_between_two_that_are_bad_is_kept(run: Run) -> None:
    run.sees((1.0, 90.0))
    hops = run.sees((9.0, 0.0), (9.0, 0.0))
    run.sees((1.0, 90.0))
    assert run.best is hops


def test_only_contenders_are_asked_for_more(run: Run) -> None:
    run.sees((5.0, 14.0))  # over its budget
    run.sees((5.0, 4.0), (5.0, 4.0))
    run.sees((4.0, 0.0))  # earns less
    run.sees((9.0, 10.5))  # over its budget
    assert run.asked == [10, 10, 40, 10, 10]


def test_where_punishment_varies_a_hundred_more_decide(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter suffers four times the mean, so the error is 0.27 of it with 40, 0.17 with 100."""

    def varied(_: Any, __: Any, episodes: int, *___: Any, **____: Any) -> Done:
        done = run._rollout(None, None, episodes)
        done.punishments = (4 * done.punishment_mean, 0.0, 0.0, 0.0) * (episodes // 4)
        return done

    monkeypatch.setattr(validation, "rollout", varied)
    lucky = run.sees((5.0, 4.0), (5.0, 7.0), (5.0, 11.0))
    assert run.asked == [EPISODES, CONFIRMING, DECIDING]
    assert not lucky["feasible"]
    assert (lucky["judged_punishment"], lucky["judged_episodes"]) == (11.0, DECIDING)
    run.asked.clear()
    assert run.sees((5.0, 4.0), (5.0, 7.0), (5.0, 8.0))["feasible"]
    assert not run.sees((6.0, 4.0), (6.0, 9.9))["feasible"]  # as forty have said
    assert run.sees((6.0, 4.0), (6.0, 1.0))["feasible"]  # beyond doubt
    assert run.asked == [10, 40, 100, 10, 40, 10, 40]


def test_a_contender_has_its_error_to_spare(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty episodes of which a quarter suffers 36: 9 on average, with an error of 2.5."""
    rare = Done((5.0, 9.0), CONFIRMING)
    rare.punishments = (36.0, 0.0, 0.0, 0.0) * 10
    for budget, feasible in ((11.4, False), (11.5, True)):
        monkeypatch.setattr(validation, "rollout", lambda *_, **__: rare)
        row = Validation(CARD, budget).judge(Policy(), 0, None)
        assert row["judged_punishment_error"] == pytest.approx(np.sqrt(27 * 9 / 40))
        assert row["feasible"] is feasible


def test_every_validation_meets_other_episodes_and_none_that_judge(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[int] = []

    def rollout(_: Any, world: Sprint, episodes: int, *__: Any, first: int, **___: Any) -> Done:
        for i in range(episodes):
            met.append(world._episode_seeds(i % EPISODES, first + i // EPISODES))
        return Done((float(len(met)), 0.0), episodes)

    monkeypatch.setattr(validation, "rollout", rollout)
    for _ in range(30):  # contenders all
        run.sees()
    assert len(met) == len(set(met)) == 1500
    rounds = run.judge.rounds
    for late in range(5):  # the first seeds again, wherever the last ones ended
        run.judge.rounds = rounds - late
        run.sees()
    assert min(met) == FIRST_VALIDATION_SEED
    assert max(met) < FIRST_CALIBRATION_SEED


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((True, 1.0, 0.0, 0.9), (False, 9.0, 3.0, 0.0)),
        ((True, 2.0, 0.4, 0.2), (True, 1.0, 0.0, 0.0)),
        ((True, 44.0, 0.5, 0.2), (True, 46.0, 0.8, 0.38)),
        ((True, 27.0, 0.8, 0.3), (True, 20.0, 0.4, 0.0)),
        ((True, -5.0, 0.4, 0.1), (True, -4.9, 0.4, 0.3)),
        ((False, 1.0, 3.0, 1.0), (False, 9.0, 4.0, 0.5)),
    ],
)
def test_feasible_comes_first_then_return_at_the_price_of_breaking_it_often(
    first: tuple[Any, ...], second: tuple[Any, ...]
) -> None:
    names = ("feasible", "judged_return", "overspent", "judged_over_budget_share")
    good, bad = (dict(zip(names, row, strict=True)) for row in (first, second))
    assert better(good, bad)
    assert not better(bad, good)
    assert not better(good, good)
    assert better(bad, None)


# --------------------------------------------------------------------------------------- streams

FORCE, SPEED = Stream("force", 4.0, "hard"), Stream("speed", 6.0, "fast")


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch, (FORCE, SPEED))


def test_a_policy_over_in_one_stream_is_not_kept_before_one_that_holds_both(parted: Run) -> None:
    over = parted.sees((9.0, 5.0, 1.0))  # 6 of 10 in all, 5 of 4 in force
    holds = parted.sees((1.0, 3.0, 5.0), (1.0, 3.0, 5.0))
    assert [row["feasible"] for row in (over, holds)] == [False, True]
    assert over["judged_punishment"] < holds["judged_punishment"] < CARD.budget
    assert better(holds, over) and not better(over, holds)
    force, speed = over["streams"]
    assert (force["name"], force["budget"], force["punishment_mean"]) == ("force", 4.0, 5.0)
    assert (force["over_budget_share"], speed["over_budget_share"]) == (1.0, 0.0)


def test_the_infeasible_are_ranked_by_what_is_overspent_most(parted: Run) -> None:
    force, speed, total = (parted.sees((0.0, *at)) for at in ((8.0, 0.0), (0.0, 9.0), (0.0, 16.0)))
    assert [row["overspent"] for row in (force, speed, total)] == pytest.approx([2, 1.5, 16 / 6])
    assert better(speed, force) and better(force, total)
    assert force["judged_punishment"] < speed["judged_punishment"]


def test_a_stream_is_feasible_with_its_error_to_spare(
    parted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the episodes spend 7.4 of a force of 4: 3.7 on average, with an error of 0.6."""
    done = Done((5.0, 3.7, 0.0), CONFIRMING)
    done.streams = ((7.4, 0.0), (0.0, 0.0)) * 20
    monkeypatch.setattr(validation, "rollout", lambda *_, **__: done)
    row = parted.sees()
    told = row["streams"][0]
    assert told["punishment_mean"] == pytest.approx(3.7) and told["punishment_mean"] < FORCE.budget
    assert told["punishment_error"] == pytest.approx(3.7 / CONFIRMING**0.5)
    assert not row["feasible"]
