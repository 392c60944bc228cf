"""Is each part of the punishment that has a budget of its own held to it, and to nothing else?"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_update import plain_gradient
from test_agents import SMALL, TASK, draw_batch, targets
from toys import Sprint

from kcpr_safety import envs
from kcpr_safety.agents import Learner, Settings, agent_settings
from kcpr_safety.agents.continuous import EVALUATION, PUNISHMENT, REWARD
from kcpr_safety.agents.snapshots import restore, snapshot
from kcpr_safety.cards import TaskCard
from kcpr_safety.envs.world import Outcome
from kcpr_safety.punishments import Stream
from kcpr_safety.replay import NStep
from kcpr_safety.training import loop, validation
from kcpr_safety.training.checkpoints import checkpoint_files
from kcpr_safety.training.evaluation import evaluate_policy
from kcpr_safety.training.options import TrainOptions
from kcpr_safety.training.runs import resume_run, train_run
from kcpr_safety.training.sinks import read_rows
from kcpr_safety.training.stopping import Interrupted
from kcpr_safety.transition import Batch

PARTS = TASK._replace(streams=(("torque", 10.0), ("contact", 5.0)))


def learner_of(settings: Settings = SMALL) -> Learner:
    return Learner(settings, PARTS, num_envs=4, seed=0)


def batch_of(torque: float, contact: float, total: float) -> Batch:
    parts = torch.tensor([torque, contact]).expand(32, 2)
    return draw_batch(1)._replace(punishment=torch.full((32,), total), streams=parts)


def suffer(learner: Learner, torque: float, contact: float, steps: int = 2_000) -> None:
    batch = batch_of(torque, contact, torque + contact)
    for _ in range(steps):
        learner.observe(
            batch._replace(**{k: v[:4] for k, v in batch._asdict().items()}), torch.zeros(4) > 0
        )
        learner.advance(100)


def test_only_the_part_that_is_overspent_pulls_harder() -> None:
    learner = learner_of()
    suffer(learner, torque=0.02, contact=0.001)  # twice its budget, a fifth of its budget
    torque, contact = learner.stream_controllers
    assert torque.m > 2 * SMALL.m_start / 3 > 2 * contact.m
    assert learner.m == pytest.approx(learner.controller.m + torque.m + contact.m)
    told = learner.status()
    assert told["deployed_torque"] == pytest.approx(20.0, rel=0.05)
    assert told["coupling_m_contact"] == contact.m


@pytest.mark.parametrize("controlled", [True, False])
def test_several_budgets_begin_at_the_weight_of_one(controlled: bool) -> None:
    settings = replace(SMALL, controlled=controlled)
    alone, parted = (Learner(settings, task, 4, 0) for task in (TASK, PARTS))
    assert alone.m == pytest.approx(settings.m_start)
    assert parted.m == pytest.approx(settings.m_start)
    assert parted.weight == pytest.approx(alone.weight)
    assert len({each.m for each in (parted.controller, *parted.stream_controllers)}) == 1


@pytest.mark.parametrize("budgets", [(3.0, 0.5, 0.25), (0.6, 0.4, 0.2), (25.0, 10.0, 5.0)])
def test_a_stream_counts_in_units_of_its_own_budget(budgets: tuple[float, ...]) -> None:
    """Also below one: half of any budget weighs as much as half of another."""
    total, torque, contact = budgets
    task = PARTS._replace(budget=total, streams=(("torque", torque), ("contact", contact)))
    learner = Learner(SMALL, task, num_envs=4, seed=0)
    for batch in (
        batch_of(0.5 * torque, 0.0, 0.0),
        batch_of(0.0, 0.5 * contact, 0.0),
        batch_of(0.0, 0.0, 0.5 * total),
    ):
        torch.testing.assert_close(learner.weighed(batch), torch.full((32,), 0.5 * total / 3))


def test_a_stream_without_a_budget_weighs_a_hundred_times_the_total() -> None:
    assert PARTS._replace(streams=(("never", 0.0), ("rarely", 0.25))).ratios == (100.0, 100.0)
    nothing = PARTS._replace(budget=0.0, streams=(("never", 0.0),))
    assert nothing.ratios == (1.0,)
    assert TASK.ratios == ()


@pytest.mark.parametrize("agent", ["kcpr", "sac-lag"])
def test_the_update_with_parts_is_the_gradient_of_the_plain_losses(agent: str) -> None:
    small = PARTS._replace(streams=(("torque", 10.0), ("contact", 0.5)))
    settings = agent_settings(agent, {"width": 16, "batch": 32})
    learner = Learner(settings, small, num_envs=4, seed=0)
    suffer(learner, torque=0.02, contact=0.0001, steps=500)
    for step in range(20):
        learner.update(parted(draw_batch(step)))
    batch = parted(draw_batch(100))
    expected = plain_gradient(learner, batch)
    learner.update(batch)
    torch.testing.assert_close(learner.gradient.double(), expected, atol=2e-6, rtol=2e-4)


def parted(batch: Batch) -> Batch:
    share = torch.linspace(0, 1, len(batch.punishment))
    parts = torch.stack([share * batch.punishment, (1 - share) * batch.punishment], 1)
    return batch._replace(streams=parts)


def test_what_spends_every_budget_alike_weighs_as_the_sum_does() -> None:
    learner = learner_of()
    suffer(learner, torque=0.02, contact=0.001)
    alike = batch_of(torque=0.3 * 10.0, contact=0.3 * 5.0, total=0.3 * 25.0)
    torch.testing.assert_close(learner.weighed(alike), alike.punishment)
    # One unit of what is overspent weighs more than one of what is not.
    torque, contact = batch_of(1.0, 0.0, 1.0), batch_of(0.0, 1.0, 1.0)
    assert learner.weighed(torque)[0] > 2 * learner.weighed(contact)[0] > 0


def test_parts_move_the_punishment_module_and_not_the_predicted_punishment() -> None:
    learner = learner_of()
    suffer(learner, torque=0.02, contact=0.001)
    contact, torque = (targets(learner, batch_of(part, 1.0 - part, 1.0)) for part in (0.0, 1.0))
    assert (torque[PUNISHMENT] > contact[PUNISHMENT] + 1e-3).all()
    assert torch.equal(torque[EVALUATION], contact[EVALUATION])
    assert torch.equal(torque[REWARD], contact[REWARD])


def test_a_learner_without_parts_learns_from_the_punishment_itself() -> None:
    learner, batch = Learner(SMALL, TASK, num_envs=4, seed=0), draw_batch(1)
    assert learner.weighed(batch) is batch.punishment
    assert learner.m == learner.controller.m


def test_parts_come_back_from_a_checkpoint() -> None:
    learner, other = learner_of(), learner_of()
    suffer(learner, torque=0.02, contact=0.001)
    restore(other, {key: value.clone() for key, value in snapshot(learner).items()})
    assert other.status() == learner.status()
    assert other.status() != learner_of().status()


def test_parts_are_stored_beside_their_sum() -> None:
    replay = NStep(40, (3, 2, 2), "cpu", steps=3, envs=4, gamma=0.9)
    for step in range(6):
        batch = draw_batch(step, size=4)
        parts = torch.stack([batch.punishment, 3 * batch.punishment], 1)
        replay.add(batch._replace(streams=parts))
    drawn = replay.draw(64, torch.Generator().manual_seed(0))
    assert drawn.streams is not None and float(drawn.punishment.max()) > 0
    torch.testing.assert_close(drawn.streams[:, 0], drawn.punishment)
    torch.testing.assert_close(drawn.streams[:, 1], 3 * drawn.punishment)


# ------------------------------------------------------------------------------------- whole runs

CARD = TaskCard("SafetySprint-v0", "sprint", "", "fast and busy steps", budget=60.0)


class Busy(Sprint):
    """Fast steps may be taken all the time, but the idle action must not be used."""

    def __init__(self, num_envs: int, episode_seeds: Any, **_: Any) -> None:
        super().__init__(num_envs, episode_seeds, limit=30)
        parts = (Stream("fast", 50.0, "fast steps"), Stream("busy", 1.5, "use of the idle action"))
        self.contract = replace(self.contract, budget=CARD.budget, streams=parts)

    def _advance(self, action: np.ndarray) -> Outcome:
        outcome = super()._advance(action)
        busy = (action[:, 1] > -0.5).astype(np.float64)
        parts = np.stack([outcome.punishment, busy], axis=1)
        reward = outcome.reward + 0.1 * action[:, 1]
        return replace(outcome, reward=reward, punishment=parts.sum(axis=1), streams=parts)


def make_busy(card: TaskCard, num_envs: int, *, episode_seeds: Any, **_: Any) -> Busy:
    return Busy(num_envs, episode_seeds)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "resolve", lambda task: CARD)
    monkeypatch.setattr(envs, "make_world", make_busy)
    monkeypatch.setattr(validation, "EPISODES", 2)
    monkeypatch.setattr(loop, "_LOG_EVERY", 500)


def options(out: Path, **overrides: float) -> TrainOptions:
    few = {"width": 32, "batch": 64, "random_steps": 500, "num_envs": 10, "gamma": 0.9}
    return TrainOptions(task=CARD.task, out=out, steps=8_000, threads=1, overrides=few | overrides)


@pytest.mark.slow
@pytest.mark.usefixtures("busy")
def test_each_budget_is_kept_and_none_is_saved_for_another(tmp_path: Path) -> None:
    train_run(options(tmp_path / "run"))
    fast, part = evaluate_policy(tmp_path / "run", 5, 10_000)["streams"]
    assert part["name"] == "busy" and part["punishment_mean"] <= 1.5
    assert fast["punishment_mean"] > 25.0


@pytest.mark.slow
@pytest.mark.usefixtures("busy")
def test_a_run_with_parts_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_run(options(tmp_path / "whole", updates_per_step=0.05))
    store = loop.Training._store

    def stopped(self: loop.Training, *args: Any) -> Any:
        if self.steps == 4_000:
            raise KeyboardInterrupt
        return store(self, *args)

    monkeypatch.setattr(loop.Training, "_store", stopped)
    monkeypatch.setattr(loop, "CHECKPOINT_PERIOD_S", 0.0)
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        train_run(options(tmp_path / "cut", updates_per_step=0.05))
    monkeypatch.undo()
    monkeypatch.setattr(envs, "resolve", lambda task: CARD)
    monkeypatch.setattr(envs, "make_world", make_busy)
    monkeypatch.setattr(validation, "EPISODES", 2)
    monkeypatch.setattr(loop, "_LOG_EVERY", 500)
    resume_run(tmp_path / "cut")
    rows = [read_rows(tmp_path / name) for name in ("whole", "cut")]
    assert {"untaught", "train", "validation"} == {row["kind"] for row in rows[0]}
    assert "coupling_m_busy" in next(row for row in rows[0] if row["kind"] == "train")
    assert all(len(row["streams"]) == 2 for row in rows[0] if row["kind"] == "validation")
    clocks = {"wall_s", "steps_per_s"}
    assert [{k: v for k, v in row.items() if k not in clocks} for row in rows[0]] == [
        {k: v for k, v in row.items() if k not in clocks} for row in rows[1]
    ]
    assert checkpoint_files(tmp_path / "cut")
