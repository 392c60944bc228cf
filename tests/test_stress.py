"""Is each fault the one that it is called, and is the verdict drawn from the table alone?"""

import dataclasses
from typing import Any

import mujoco
import numpy as np
import pytest
from fakes import fake_assurance, fake_contract, fake_policy
from test_calibration import sprinter
from toys import Sprint

from kcpr_safety.contract import Entry, Servo
from kcpr_safety.envs.world import Simulations
from kcpr_safety.errors import SettingsError
from kcpr_safety.seeds import EpisodeSeeds, consecutive_seeds
from kcpr_safety.training import stress as faults
from kcpr_safety.training.stress import (
    FAULTS,
    BrokenEntry,
    Delay,
    Frames,
    Lag,
    Weak,
    Wiring,
    verdict,
)

POLICY = fake_policy(1)


def frames(count: int, episodes: int = 3) -> list[np.ndarray]:
    return [np.full((episodes, 5), float(t)) + np.arange(5) for t in range(1, count + 1)]


def test_a_delay_tells_what_was() -> None:
    channel = Delay(POLICY, 3, steps=2)
    told = [channel.sense(frame)[0, 0] for frame in frames(6)]
    assert told == [1.0, 1.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("repeat", [True, False])
def test_lost_frames_are_zeros_or_the_last_one(repeat: bool) -> None:
    channel = Frames(POLICY, 3, chance=0.5, repeat=repeat)
    sent = frames(200)
    told = [channel.sense(frame) for frame in sent]
    lost = np.array([t[:, 0] != s[:, 0] for t, s in zip(told, sent, strict=True)])
    assert 0.4 < lost.mean() < 0.6
    assert not lost[0].any()
    for t, i in zip(*np.nonzero(lost), strict=True):
        expected = told[t - 1][i] if repeat else np.zeros(5)
        assert np.array_equal(told[t][i], expected)


def test_broken_wiring_and_entries() -> None:
    (frame,) = frames(1)
    swapped = Wiring(POLICY, 3, flip=False).sense(frame)
    flipped = Wiring(POLICY, 3, flip=True).sense(frame)
    for i in range(3):
        assert sorted(swapped[i]) == sorted(frame[i])
        assert (swapped[i] != frame[i]).sum() == 2
        assert (flipped[i] == -frame[i]).sum() == 1
        assert (flipped[i] == frame[i]).sum() == 4
    broken = BrokenEntry(POLICY, 3)
    told = np.array([broken.sense(frame) for _ in range(300)])
    assert 0.07 < np.isnan(told).any(axis=2).mean() < 0.13
    assert all(np.isnan(told[:, i]).any(axis=0).sum() == 1 for i in range(3))
    assert np.isfinite(frame).all(), "the world's own array is left alone"


def test_actuators_by_hand() -> None:
    command = np.array([[-1.0, 1.5]])
    assert Weak(POLICY, 1, share=0.6).actuate(command).tolist() == [[-0.6, pytest.approx(0.9)]]
    lag = Lag(POLICY, 1, left=0.5)
    assert [lag.actuate(command)[0, 0] for _ in range(3)] == [-0.5, -0.75, -0.875]


def test_actuators_of_servos_are_about_the_rest_pose() -> None:
    """Two knees between -2.1 and -1.5 rad, resting at -1.8: 0 is not what weakness leads to."""
    knee = Servo("knee", kp=40.0, kd=1.0, rest=-1.8, torque=20.0, speed=20.0)
    contract = dataclasses.replace(
        fake_contract(),
        action=(Entry("left", "rad", -2.1, -1.5), Entry("right", "rad", -2.1, -1.5)),
        servos=(knee, knee),
    )
    policy = fake_policy(1, contract=contract)
    command = np.array([[-2.1, -1.5]])
    np.testing.assert_allclose(Weak(policy, 1, 0.6).actuate(command), [[-1.98, -1.62]])
    lag = Lag(policy, 1, left=0.5)
    np.testing.assert_allclose(lag.actuate(command), [[-1.95, -1.65]])
    np.testing.assert_allclose(lag.actuate(command), [[-2.025, -1.575]])


def test_both_ways_meet_the_same_faults() -> None:
    for name, make in FAULTS.items():
        one, other = make(POLICY, 3), make(POLICY, 3)
        for frame in frames(20):
            same = np.array_equal(one.sense(frame), other.sense(frame), equal_nan=True)
            assert same, name


def row(fault: str, nominal: tuple[float, ...], assured: tuple[float, ...]) -> dict[str, Any]:
    keys = ("return_mean", "punishment_max", "over_budget_share")
    ways = {"nominal": nominal, "assured": assured}
    return {"fault": fault, **{w: dict(zip(keys, v, strict=True)) for w, v in ways.items()}}


@pytest.mark.parametrize(
    ("normal", "worse", "helps"),
    [
        ((95.0, 30.0, 0.1), (10.0, 80.0, 0.4), True),  # a smaller share over budget
        ((95.0, 30.0, 0.1), (10.0, 90.0, 0.5), True),  # only the worst episode is better
        ((95.0, 30.0, 0.1), (10.0, 101.0, 0.4), False),  # the worst episode is worse
        ((89.0, 0.0, 0.0), (10.0, 0.0, 0.0), False),  # costs more than a tenth
        ((100.0, 30.0, 0.1), (50.0, 100.0, 0.5), False),  # changes nothing
    ],
)
def test_the_verdict(normal: tuple[float, ...], worse: tuple[float, ...], helps: bool) -> None:
    rows = [
        row("none", (100.0, 30.0, 0.1), normal),
        row("bad", (50.0, 100.0, 0.5), worse),
    ]
    assert verdict(rows, acts=True)["helps"] is helps
    assert verdict(rows, acts=False)["helps"] is False


@pytest.fixture
def sprints(monkeypatch: pytest.MonkeyPatch) -> None:
    def world_of(_: Any, num_envs: int, seeds: EpisodeSeeds) -> Sprint:
        return Sprint(num_envs, seeds, fast=0.95)

    monkeypatch.setattr(faults, "world_of", world_of)


@pytest.mark.usefixtures("sprints")
def test_the_whole_table() -> None:
    """Full speed is punished; the assurance calls a fallback that is slower at once."""
    policy = sprinter(1.66 - 2.0)
    assurance = fake_assurance(policy, soft_start_steps=1, blend_steps=1)
    names = [name for name, make in FAULTS.items() if "mass" not in name and "fric" not in name]
    steps: list[tuple[int, int]] = []
    record = faults.stress(policy, assurance, 3, faults=names, on_step=lambda *at: steps.append(at))
    assert [r["fault"] for r in record["faults"]] == names
    none = record["faults"][0]
    assert none["nominal"]["punishment_mean"] == 20.0
    assert none["nominal"]["over_budget_share"] == 1.0
    assert none["assured"]["punishment_mean"] == 0.0
    assert record["verdict"]["helps"] is True
    assert steps[-1][0] == steps[-1][1]
    assert record["assurance"] == assurance.to_record()


@pytest.mark.usefixtures("sprints")
def test_a_body_that_cannot_be_changed_is_said_so() -> None:
    policy = sprinter(0.0)
    body = ["mass + 30 %", "friction - 40 %"]
    with pytest.raises(SettingsError, match=r"no MuJoCo model here: its body stays as it is"):
        faults.stress(policy, fake_assurance(policy), 1, faults=body)
    record = faults.stress(policy, fake_assurance(policy), 1, faults=["none", *body])
    assert [row["fault"] for row in record["faults"]] == ["none"]
    assert record["left_out"] == body
    assert "left_out" not in faults.stress(policy, fake_assurance(policy), 1, faults=["none"])


def test_a_heavier_body_accelerates_less() -> None:
    """Newton's second law, of a cart on a rail, whose mass MuJoCo works out beforehand."""
    model = mujoco.MjModel.from_xml_string("""
      <mujoco><option gravity="0 0 0"/>
      <worldbody>
      <body><joint name="rail" type="slide"/><geom size="0.1" mass="2"/></body>
      </worldbody>
      <actuator><motor joint="rail"/></actuator></mujoco>""")
    data = mujoco.MjData(model)
    sprint = Sprint(1, consecutive_seeds(0, 1))
    sprint.simulations = lambda: Simulations([model], [data], 1, False)  # type: ignore[method-assign]
    faults.Body(POLICY, 1, mass=1.25, friction=1.0).prepare(sprint)
    data.ctrl[0] = 3.0
    mujoco.mj_step(model, data)
    assert data.qvel[0] == pytest.approx(3.0 / 2.5 * model.opt.timestep)


@pytest.mark.slow
@pytest.mark.parametrize(("mass", "friction"), [(1.3, 1.0), (1.0, 0.6)])
def test_a_changed_body_moves_differently(mass: float, friction: float) -> None:
    from kcpr_safety.envs import make_world, resolve
    from kcpr_safety.seeds import evaluation_seeds

    ends = []
    for factors in ((1.0, 1.0), (mass, friction)):
        seeds = evaluation_seeds(10_000, 1)
        world = make_world(resolve("SafetyHalfCheetahVelocity-v1"), 1, episode_seeds=seeds)
        world.reset()
        faults.Body(POLICY, 1, *factors).prepare(world)
        for _ in range(50):
            obs, *_ = world.step(np.full((1, 6), 0.5))
        ends.append(obs)
        world.close()
    assert not np.array_equal(*ends)
