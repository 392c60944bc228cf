"""Is the policy that a run keeps the best that it has seen, and not the luckiest?"""

from dataclasses import replace
from typing import Any

import pytest
from toys import Sprint

from kcpr_safety import envs
from kcpr_safety.cards import TaskCard
from kcpr_safety.punishments import Stream
from kcpr_safety.seeds import FIRST_EVALUATION_SEED, FIRST_VALIDATION_SEED
from kcpr_safety.training import validation
from kcpr_safety.training.validation import EPISODES, POOLED, Validation, better

CARD = TaskCard("SafetySprint-v0", "sprint", "", "one fast step", budget=10.0)


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """What the next validations find: (return, punishment) each; the worlds are Sprints."""
    coming: list[tuple[float, float]] = []

    class Done:
        def __init__(self) -> None:
            self.return_mean, self.punishment_mean = coming.pop(0)
            self.punishments = (self.punishment_mean,) * EPISODES
            self.predicted = self.realised = 0.0

    def make_world(card: TaskCard, num_envs: int, *, episode_seeds: Any) -> Sprint:
        return Sprint(num_envs, episode_seeds)

    monkeypatch.setattr(envs, "make_world", make_world)
    monkeypatch.setattr(validation, "rollout", lambda *_, **__: Done())
    monkeypatch.setattr(validation, "controller_from_tensors", lambda *_: None)
    monkeypatch.setattr(validation, "critic_of", lambda _: None)
    return coming


class Policy:
    tensors = contract = None


def test_one_lucky_validation_does_not_make_a_policy_feasible(
    outcomes: list[tuple[float, float]],
) -> None:
    judge = Validation(CARD, CARD.budget)
    outcomes += [(5.0, 14.0), (5.0, 13.0), (5.0, 0.0), (5.0, 4.0)]
    rows = [judge.judge(Policy(), steps) for steps in range(4)]
    assert [row["pooled_punishment"] for row in rows] == pytest.approx([14, 13.5, 9, 7.75])
    # Thirty episodes of which ten met nothing: their mean lies within the budget, but not surely.
    assert [row["feasible"] for row in rows] == [False, False, False, True]


def test_a_resumed_run_pools_what_its_first_part_saw(outcomes: list[tuple[float, float]]) -> None:
    first, second = Validation(CARD, CARD.budget), Validation(CARD, CARD.budget)
    outcomes += [(float(i), 0.0) for i in range(POOLED - 1)]
    for steps in range(POOLED - 1):
        first.judge(Policy(), steps)
    second.take([list(pair) for pair in first.seen])
    outcomes += [(8.0, 4.0)] * 2
    assert first.judge(Policy(), 9) == second.judge(Policy(), 9)
    assert first.seen == second.seen


def test_every_validation_meets_other_episodes_and_none_that_judge(
    outcomes: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[int] = []
    fake = validation.rollout

    def rollout(_: Any, world: Sprint, episodes: int, *__: Any, first: int, **___: Any) -> Any:
        met.extend(world._episode_seeds(i, first) for i in range(episodes))
        return fake()

    monkeypatch.setattr(validation, "rollout", rollout)
    judge = Validation(CARD, CARD.budget)
    outcomes += [(0.0, 0.0)] * 250
    for steps in range(250):
        judge.judge(Policy(), steps)
    assert len(set(met[: 200 * EPISODES])) == 200 * EPISODES
    assert min(met) == FIRST_VALIDATION_SEED
    assert max(met) < FIRST_EVALUATION_SEED


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((True, 1.0, 0.0), (False, 9.0, 30.0)),
        ((True, 2.0, 4.0), (True, 1.0, 0.0)),
        ((False, 1.0, 30.0), (False, 9.0, 40.0)),
    ],
)
def test_feasible_comes_first(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    names = ("feasible", "pooled_return", "pooled_punishment")
    good, bad = (dict(zip(names, row, strict=True)) for row in (first, second))
    assert better(good, bad)
    assert not better(bad, good)
    assert not better(good, good)
    assert better(bad, None)


# --------------------------------------------------------------------------------------- streams

FORCE, SPEED = Stream("force", 4.0, "hard"), Stream("speed", 6.0, "fast")


@pytest.fixture
def parted(
    outcomes: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[float, float, float]]:
    """What the next validations find: (return, force, speed) each."""
    coming: list[tuple[float, float, float]] = []

    class Done:
        def __init__(self) -> None:
            self.return_mean, *parts = coming.pop(0)
            self.punishment_mean = sum(parts)
            self.punishments = (self.punishment_mean,) * EPISODES
            self.streams = (tuple(parts),) * EPISODES
            self.predicted = self.realised = 0.0

    def make_world(card: TaskCard, num_envs: int, *, episode_seeds: Any) -> Sprint:
        world = Sprint(num_envs, episode_seeds)
        world.contract = replace(world.contract, streams=(FORCE, SPEED))
        return world

    monkeypatch.setattr(envs, "make_world", make_world)
    monkeypatch.setattr(validation, "rollout", lambda *_, **__: Done())
    return coming


def judged(coming: list[Any], *outcome: float) -> dict[str, Any]:
    """The first validation of a run."""
    coming.append(outcome)
    return Validation(CARD, CARD.budget).judge(Policy(), 0)


def test_a_policy_over_in_one_stream_is_not_kept_before_one_that_holds_both(
    parted: list[Any],
) -> None:
    over = judged(parted, 9.0, 5.0, 1.0)  # 6 of 10 in all, 5 of 4 in force
    holds = judged(parted, 1.0, 3.0, 5.0)
    assert [row["feasible"] for row in (over, holds)] == [False, True]
    assert over["pooled_punishment"] < holds["pooled_punishment"] < CARD.budget
    assert better(holds, over) and not better(over, holds)
    force, speed = over["streams"]
    assert (force["name"], force["budget"], force["pooled_punishment"]) == ("force", 4.0, 5.0)
    assert (force["over_budget_share"], speed["over_budget_share"]) == (1.0, 0.0)


def test_the_infeasible_are_ranked_by_what_is_overspent_most(parted: list[Any]) -> None:
    force, speed, total = (
        judged(parted, 0.0, *parts) for parts in ((8.0, 0.0), (0.0, 9.0), (0.0, 16.0))
    )
    assert [row["overspent"] for row in (force, speed, total)] == pytest.approx([2, 1.5, 16 / 6])
    assert better(speed, force) and better(force, total)
    assert force["pooled_punishment"] < speed["pooled_punishment"]


def test_a_stream_is_feasible_with_its_error_to_spare(parted: list[Any]) -> None:
    judge = Validation(CARD, CARD.budget)
    parted += [(0.0, 0.0, 1.0), (0.0, 7.8, 1.0)]
    first, second = (judge.judge(Policy(), steps) for steps in range(2))
    told = second["streams"][0]
    assert first["feasible"] and not second["feasible"]
    assert told["pooled_punishment"] == pytest.approx(3.9)
    assert told["pooled_punishment_error"] == pytest.approx(3.9 / 20**0.5)


def test_streams_are_pooled_over_a_resumption(parted: list[Any]) -> None:
    first, second = Validation(CARD, CARD.budget), Validation(CARD, CARD.budget)
    parted += [(float(i), i, 2.0) for i in range(POOLED + 1)]
    for steps in range(POOLED + 1):
        first.judge(Policy(), steps)
    second.take([list(row) for row in first.seen])
    parted += [(8.0, 4.0, 1.0)] * 2
    assert first.judge(Policy(), 9) == second.judge(Policy(), 9)
    assert first.seen == second.seen


def test_what_was_kept_by_the_total_alone_gives_way(parted: list[Any]) -> None:
    """A run that was begun before streams were looked at."""
    judge = Validation(CARD, CARD.budget)
    judge.take([[9.0, 1.0, 1.0]] * POOLED)
    parted.append((1.0, 3.0, 0.0))
    row = judge.judge(Policy(), 9)
    assert row["streams"][0]["pooled_punishment"] == 3.0
    old = {"feasible": True, "pooled_return": 9.0, "pooled_punishment": 1.0}
    assert better(row, old)
    assert row["pooled_return"] < old["pooled_return"]
