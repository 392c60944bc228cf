"""Is what a calibration reports what happened, worked out by hand?"""

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from fakes import fake_assurance, fake_policy
from toys import Sprint

from kcpr_safety.assured import assured, unassured
from kcpr_safety.envs.world import Outcome
from kcpr_safety.errors import SettingsError
from kcpr_safety.policy_file import PolicyFile
from kcpr_safety.seeds import (
    FIRST_CALIBRATION_SEED,
    FIRST_EVALUATION_SEED,
    FIRST_VALIDATION_SEED,
    VALIDATION_SEEDS,
    EpisodeSeeds,
    consecutive_seeds,
)
from kcpr_safety.training import calibration
from kcpr_safety.training.calibration import (
    EPISODES,
    alarms,
    assured_act,
    calibrate,
    conformal,
    reliability,
)
from kcpr_safety.training.evaluation import Trace, discounted, known_steps


def trace(punishments: list[float], *, terminated: bool = True) -> Trace:
    steps = len(punishments)
    return Trace(
        obs=[np.zeros(1)] * steps,
        actions=[np.zeros(1)] * steps,
        rewards=[1.0] * steps,
        punishments=punishments,
        terminated=terminated,
        done=True,
    )


def test_calibration_seeds_judge_nothing_and_choose_no_checkpoint() -> None:
    """Validation ends below them; evaluation begins above."""
    assert FIRST_VALIDATION_SEED + VALIDATION_SEEDS <= FIRST_CALIBRATION_SEED
    assert FIRST_CALIBRATION_SEED + EPISODES <= FIRST_EVALUATION_SEED


def test_discounted_by_hand() -> None:
    assert discounted([1.0, 0.0, 4.0], 0.5).tolist() == [2.0, 2.0, 4.0]


def test_the_future_of_a_cut_episode_is_known_only_far_from_its_end() -> None:
    assert known_steps(trace([0.0] * 50), 0.75) == 50
    assert known_steps(trace([0.0] * 50, terminated=False), 0.75) == 30  # 5 horizons of 4
    assert known_steps(trace([0.0] * 20, terminated=False), 0.75) == 10  # none left: half of that
    assert known_steps(trace([0.0] * 10, terminated=False), 0.75) == 0


def test_reliability_by_hand() -> None:
    traces = [trace([0.0] * 20)]
    predicted, futures = [np.arange(20.0)], [2.0 * np.arange(20.0)]
    rows = reliability(traces, predicted, futures, 0.9)
    assert len(rows) == 10
    assert rows[0] == {"steps": 2, "predicted": 0.5, "realised": 1.0}
    assert rows[-1] == {"steps": 2, "predicted": 18.5, "realised": 37.0}
    assert (
        reliability([trace([0.0] * 5, terminated=False)], [np.zeros(5)], [np.zeros(5)], 0.9) == []
    )


def test_the_conformal_quantile_covers_new_episodes() -> None:
    """By hand, and as it promises: of many new episodes at least nine in ten stay below."""
    traces = [trace([0.0])] * 9
    futures = [np.array([float(i)]) for i in range(9)]
    predicted = [np.zeros(1)] * 9
    assert conformal(traces, predicted, futures, 0.9)["quantile"] == 8.0  # rank ceil(10 * .9) = 9
    few = conformal(traces[:8], predicted[:8], futures[:8], 0.9)
    assert few["quantile"] is None, "eight episodes cannot promise nine in ten"
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        drawn = [generator.exponential(size=5) for _ in range(21)]
        q = conformal([trace([0.0] * 5)] * 20, [np.zeros(5)] * 20, drawn[:20], 0.9)["quantile"]
        covered.append(drawn[20].max() <= q)
    assert 0.87 <= np.mean(covered) <= 0.96


def test_alarms_by_hand() -> None:
    """Alarm from step 1 to 4; bad (from 10) from 3 to 5; and one bad step without any alarm."""
    risk = np.array([0.0, 1.0, 1.5, 1.0, 2.0, 0.0, 0.0, 0.0])
    future = np.array([0.0, 9.0, 0.0, 10.0, 30.0, 10.0, 0.0, 20.0])
    said = alarms([risk], [future], (1.0, 10.0), 0.05)
    assert said["bad_steps"] == 4
    assert said["missed_share"] == 0.5
    assert said["false_alarm_share"] == 0.5
    assert said["alarm_share"] == 0.5
    assert said["lead_time_s_median"] == pytest.approx(0.1)  # two steps before it became bad
    quiet = alarms([np.zeros(3)], [np.zeros(3)], (1.0, 1.0), 0.05)
    assert (
        quiet["missed_share"] is quiet["false_alarm_share"] is quiet["lead_time_s_median"] is None
    )


def test_every_row_of_assured_acting_has_its_own_memory() -> None:
    policy = fake_policy(1)
    controller = assured(policy, fake_assurance(policy))
    act = assured_act(controller.step, controller.get_buffer("initial"), 2)
    obs = np.random.default_rng(0).normal(size=(30, 2, 5))
    together = [act(None, rows) for rows in obs]
    for i in (0, 1):
        alone = assured_act(controller.step, controller.get_buffer("initial"), 1)
        for rows, both in zip(obs, together, strict=True):
            assert np.allclose(alone(None, rows[i : i + 1])[0], both[i], atol=1e-5)


def sprinter(offset: float) -> PolicyFile:
    """Runs at 96.4 % of full speed; its punishment module has another pre-tanh mean."""
    contract = Sprint(1, consecutive_seeds(0, 1)).contract
    policy = fake_policy(1, contract=contract, width=4)
    tensors = {key: torch.zeros_like(tensor) for key, tensor in policy.tensors.items()}
    tensors["obs_scale"] = torch.ones(2)
    tensors["actor.2.bias"][0, 0, 0] = 2.0
    tensors["actor.2.bias"][1, 0, 0] = offset / math.exp(-2.0)  # in deviations
    tensors["critic.2.bias"][4:] = 1.0
    return dataclasses.replace(policy, tensors=tensors, settings={"gamma": 0.9})


@pytest.fixture
def sprints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds above 95 % are punished."""

    def world_of(_: Any, num_envs: int, seeds: EpisodeSeeds) -> Sprint:
        return Sprint(num_envs, seeds, fast=0.95)

    monkeypatch.setattr(calibration, "world_of", world_of)
    # Of 20 steps, two of a soft start would be much.
    monkeypatch.setattr(calibration, "SOFT_START_S", 0.1)


@pytest.mark.usefixtures("sprints")
def test_a_soft_start_is_halved_until_the_return_can_bear_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 20 steps, the first n of n at k / n of the speed cost (n - 1) / 2: 2 of 16, 8, 4, 2."""
    monkeypatch.setattr(calibration, "SOFT_START_S", 1.6)
    assurance, _ = calibrate(sprinter(0.0), 4)
    assert assurance.soft_start_steps == 2


@pytest.mark.usefixtures("sprints")
def test_a_fallback_that_avoids_at_little_cost_is_called() -> None:
    """tanh 1.8 = 94.7 % of full speed: 1.8 % of the return, and no punishment."""
    assurance, report = calibrate(sprinter(1.8 - 2.0), 10)
    assert report["punishment_mean"] == 20.0
    speed = report["observation_quantiles"][1]
    assert speed[1:] == pytest.approx([math.tanh(2.0)] * 2)
    assert speed[0] < speed[1], "it starts from rest"
    assert report["fallback"]["earned"] is True
    assert report["fallback"]["punishment"] == 0.0
    # Taken over after 1/11, 2/11 ... of 20 steps.
    left = sum(20 - round(20 * (i + 1) / 11) for i in range(10))
    assert report["fallback"]["nominal_punishment"] == left
    assert assurance.fallback
    assert assurance.engage == pytest.approx(1.0 / 0.4)  # the critics' 1, in punishment
    assert assurance.release == assurance.engage, "the risk is the same everywhere"
    assert (assurance.soft_start_steps, assurance.dwell_steps, assurance.blend_steps) == (1, 2, 1)
    assert report["thresholds_tried"][0]["punishment_mean"] == 0.0


class Stumbles(Sprint):
    """Whoever is slower than 95 % falls."""

    def _advance(self, action: np.ndarray) -> Outcome:
        outcome = super()._advance(action)
        return dataclasses.replace(outcome, terminated=outcome.reward <= 0.95)


def test_a_fallback_that_falls_over_has_not_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    world = partial(Stumbles, fast=0.95)
    monkeypatch.setattr(calibration, "world_of", lambda _, envs, seeds: world(envs, seeds))
    monkeypatch.setattr(calibration, "SOFT_START_S", 0.1)
    _, report = calibrate(sprinter(1.8 - 2.0), 10)
    told = report["fallback"]
    assert (told["punishment"], told["ended_early"], told["nominal_ended_early"]) == (0.0, 10, 0)
    assert told["nominal_punishment"] > 0.0
    assert told["earned"] is False


@pytest.mark.usefixtures("sprints")
def test_a_fallback_that_costs_too_much_is_not_called() -> None:
    """It stands still: no punishment, and no return either."""
    assurance, report = calibrate(sprinter(-2.0), 10)
    assert report["fallback"]["earned"] is True
    assert len(report["thresholds_tried"]) == 4
    assert not assurance.fallback


@pytest.mark.usefixtures("sprints")
def test_a_fallback_that_does_not_avoid_has_not_earned_its_place() -> None:
    assurance, report = calibrate(sprinter(1.0), 10)
    assert report["fallback"]["earned"] is False
    assert report["thresholds_tried"] == []
    assert not assurance.fallback
    assert assurance.hard_low[1] < 0.0 < assurance.seen_high[1] < assurance.hard_high[1]
    assert "no range of training" in assurance.seen_in


@pytest.mark.usefixtures("sprints")
def test_what_training_saw_is_in_the_range() -> None:
    policy = sprinter(0.0)
    tensors = policy.tensors | {"obs_low": torch.full((2,), -99.0), "obs_high": torch.zeros(2)}
    assurance, _ = calibrate(dataclasses.replace(policy, tensors=tensors), 2)
    assert assurance.seen_low == (-99.0, -99.0)
    assert assurance.seen_high[0] > 1.0
    assert assurance.seen_in == "training and calibration episodes"


def test_impossible_numbers_of_episodes() -> None:
    for count in (0, 501):
        with pytest.raises(SettingsError, match="1 to 500"):
            calibrate(fake_policy(1), count)


def test_a_policy_without_assurance_is_where_it_starts() -> None:
    plain = unassured(fake_policy(1))
    assert not plain.fallback
    assert math.isinf(plain.engage)
    assert plain.risk_scale == pytest.approx(1000 * 0.01 / 25)
