"""Is the policy that a run keeps the best that it has seen, and not the luckiest?"""

from typing import Any

import pytest
from toys import Sprint

from kcpr_safety import envs
from kcpr_safety.cards import TaskCard
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
