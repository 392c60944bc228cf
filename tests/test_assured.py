"""Does the runtime assurance do what it says, on every observation, without a bump or a hole?"""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from fakes import fake_assurance, fake_discrete_policy, fake_policy, fake_servo_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from kcpr_safety.assurance import SPANS, Assurance
from kcpr_safety.assured import AssuredController, assured, contract_text, unassured
from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.errors import FileFault, SettingsError
from kcpr_safety.training.evaluation import Critic

POLICY = fake_policy(1)
ASSURANCE = fake_assurance(POLICY)
POLICIES = [POLICY, fake_discrete_policy(1), fake_servo_policy(1)]
KINDS = ["continuous", "discrete", "servos"]
INVALID, AVOIDING, BLENDED = 4, 1, 2


def observations(count: int = 64) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(2))


class Sure(torch.nn.Module):
    """A critic that says what the first entry of the observation says."""

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x[:, :1]


def scripted_risk(**changed: Any) -> AssuredController:
    """A controller whose risk is the first entry; nominal 0.1, fallback -0.3 of motor 0."""
    tensors = {k: torch.zeros_like(v) for k, v in POLICY.tensors.items()}
    tensors["obs_scale"] = torch.ones(5)
    policy = dataclasses.replace(POLICY, tensors=tensors)
    values: dict[str, Any] = {"slew": (9.0, 9.0), "soft_start_steps": 1, **changed}
    controller = assured(policy, fake_assurance(policy, **values))
    controller.critic = Sure()
    # Bounds [-1, .5] and [-2, 1.5]; the pre-tanh means decide.
    mean = math.atanh(2 * (0.1 + 1.0) / 1.5 - 1)
    aside = math.atanh(2 * (-0.3 + 1.0) / 1.5 - 1)
    bias = controller.policy.get_buffer("pair.last.bias")
    bias[0, 0, 0] = mean
    # The raw log deviation 0 is in the middle of [-5, 1].
    bias[1, 0, 0] = (aside - mean) / math.exp(-2.0)
    return controller


def run(controller: AssuredController, risks: list[float]) -> list[tuple[float, int]]:
    """(motor 0, mode) of a sequence of risks through `step`."""
    state = controller.get_buffer("initial")
    said = []
    for risk in risks:
        obs = torch.zeros(1, 5)
        obs[0, 0] = risk
        action, told, mode, state = controller.step(obs, state)
        assert told.item() == pytest.approx(risk)
        said.append((round(float(action[0, 0]), 4), int(mode)))
    return said


def test_act_blends_between_the_thresholds() -> None:
    controller = scripted_risk(release=0.2, engage=0.6)
    for risk, expected, mode in (
        (0.0, 0.1, 0),
        (0.2, 0.1, 0),
        (0.3, 0.0, BLENDED),  # a quarter of the way
        (0.4, -0.1, BLENDED),
        (0.6, -0.3, AVOIDING),
        (5.0, -0.3, AVOIDING),
    ):
        obs = torch.zeros(1, 5)
        obs[0, 0] = risk
        action, _, said = controller.act(obs)
        assert action[0, 0].item() == pytest.approx(expected, abs=1e-6), risk
        assert said.item() == mode, risk


def test_step_waits_blends_and_lets_go_late() -> None:
    """Called at .5, blended over 2 steps, at least 3 steps, let go below .2."""
    controller = scripted_risk(release=0.2, engage=0.5, dwell_steps=3, blend_steps=2)
    risks = [0.4, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert run(controller, risks) == [
        (0.1, 0),
        (-0.1, BLENDED),
        (-0.3, AVOIDING),  # the risk is gone, the dwell is not
        (-0.3, AVOIDING),
        (-0.1, BLENDED),
        (0.1, 0),
        (0.1, 0),
    ]
    # Between the thresholds it stays as it was: no chattering.
    assert run(controller, [0.5, 0.3, 0.3, 0.3, 0.3, 0.3])[-1] == (-0.3, AVOIDING)
    assert run(controller, [0.3, 0.3, 0.3])[-1] == (0.1, 0)


def test_a_risk_that_is_not_finite_calls_the_fallback() -> None:
    class Lost(torch.nn.Module):
        def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return torch.full((x.shape[0], 1), math.nan)

    controller = scripted_risk(blend_steps=1)
    controller.critic = Lost()
    obs = torch.zeros(1, 5)
    assert controller.act(obs)[2].item() == AVOIDING
    assert controller.step(obs, controller.get_buffer("initial"))[2].item() == AVOIDING


def test_soft_start_and_slew_limits() -> None:
    """From the default (0) in 4 steps to .1; then at most .05 a step towards -.3."""
    controller = scripted_risk(soft_start_steps=4, engage=0.5, release=0.2, blend_steps=1)
    assert [a for a, _ in run(controller, [0.0] * 5)] == [0.025, 0.05, 0.075, 0.1, 0.1]
    controller = scripted_risk(slew=(0.05, 9.0), engage=0.5, release=0.2, blend_steps=1)
    assert [a for a, _ in run(controller, [0.0, 0.0, 0.0, 0.9, 0.9])] == [0.05, 0.1, 0.1, 0.05, 0.0]


def test_a_fallback_that_did_not_earn_its_place_never_acts() -> None:
    controller = scripted_risk(fallback=False, engage=math.inf, release=math.inf)
    assert run(controller, [0.0, 9.0, 9.0]) == [(0.1, 0)] * 3
    obs = torch.full((1, 5), 9.0)
    assert controller.act(obs)[2].item() == 0


@pytest.mark.parametrize("policy", POLICIES, ids=KINDS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "above", "below"])
def test_every_entry_that_is_invalid_gives_the_safe_action(policy: Any, value: str) -> None:
    assurance = fake_assurance(policy)
    safe = torch.tensor([assurance.safe_action])
    controller = assured(policy, assurance)
    for index in range(policy.contract.obs_size):
        obs = torch.zeros(1, 5)
        edges = {"above": assurance.hard_high[index], "below": assurance.hard_low[index]}
        edge = edges.get(value)
        obs[0, index] = float(value) if edge is None else math.nextafter(edge, 2 * edge) * 1.001
        action, risk, mode = controller.act(obs)
        stepped = controller.step(obs, controller.get_buffer("initial"))
        for said, bits in ((action, mode), (stepped[0], stepped[2])):
            assert torch.equal(said, safe), index
            assert bits.item() == INVALID, index
        if edge is None:
            for said in (controller(obs), controller.nominal(obs), controller.fallback(obs)):
                assert torch.equal(said, safe), index
        assert math.isfinite(risk.item())
        assert torch.isfinite(stepped[3]).all()
        wrong = controller.check(obs).item()
        assert bool(wrong & 1) == (edge is None)
        assert wrong & 2
        # At the edge itself it is still valid.
        if edge is not None:
            obs[0, index] = edge
            assert controller.act(obs)[2].item() != INVALID
            assert not controller.check(obs).item() & 2


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


def test_weights_that_overflow_command_the_rest_pose() -> None:
    policy = fake_servo_policy(1)
    weight = policy.tensors["actor.1.weight"]
    tensors = {**policy.tensors, "actor.1.weight": torch.full_like(weight, math.inf)}
    controller = controller_from_tensors(tensors, policy.contract)
    obs = observations(4)
    assert torch.isnan(controller.pair(controller.normalise(obs))).any()
    for said in (controller.nominal(obs), controller.fallback(obs)):
        assert torch.equal(said, torch.tensor([policy.contract.rest] * 4))


@settings(max_examples=60, deadline=None)
@given(
    row=st.lists(FLOATS, min_size=5, max_size=5),
    state=st.lists(FLOATS, min_size=6, max_size=6),
    gain=st.sampled_from([1.0, 1e30]),
    which=st.sampled_from([0, 1, 2]),
)
def test_any_observation_and_state_give_a_finite_action_within_bounds(
    row: list[float], state: list[float], gain: float, which: int
) -> None:
    policy = (fake_policy, fake_discrete_policy, fake_servo_policy)[which](1, gain=gain)
    controller = assured(policy, fake_assurance(policy))
    obs = torch.tensor([row], dtype=torch.float32)
    memory = torch.tensor([state], dtype=torch.float32)
    action, _, mode = controller.act(obs)
    stepped, _, moved, after = controller.step(obs, memory)
    for said in (action, stepped):
        for value, entry in zip(said[0].tolist(), policy.contract.action, strict=True):
            assert entry.low <= value <= entry.high
    assert bool(torch.isfinite(after).all())
    invalid = bool(controller.check(obs).item() & 3)
    assert (mode.item() == INVALID) == (moved.item() == INVALID) == invalid


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_risk_is_the_larger_twin_in_units_of_punishment(layer_norm: bool) -> None:
    """Against the training's own critic, whose mean of the twins `evaluate` reports."""
    numbers = {"width": 32, "gamma": 0.99, "num_envs": 1, "random_steps": 1000}
    policy = dataclasses.replace(POLICY, settings={**numbers, "layer_norm": layer_norm})
    controller = assured(policy, unassured(policy))
    obs = observations()
    actions = controller(obs)
    mean = torch.from_numpy(Critic(policy)(obs.numpy(), actions.numpy())).float()
    twins = []
    for member in (4, 5):
        tensors = dict(policy.tensors)
        for i in range(3):
            for kind in ("weight", "bias"):
                both = tensors[f"critic.{i}.{kind}"].clone()
                both[4] = both[5] = both[member]
                tensors[f"critic.{i}.{kind}"] = both
        alone = dataclasses.replace(policy, tensors=tensors)
        twins.append(torch.from_numpy(Critic(alone)(obs.numpy(), actions.numpy())).float())
    torch.testing.assert_close((twins[0] + twins[1]) / 2, mean)
    larger = torch.maximum(*twins).clamp_min(0.0)
    assert not torch.equal(twins[0] > twins[1], torch.ones(64, dtype=torch.bool))
    torch.testing.assert_close(controller.risk(obs, actions)[:, 0], larger, rtol=1e-4, atol=1e-4)


def test_the_risk_of_a_choice_is_that_of_its_row() -> None:
    policy = fake_discrete_policy(1)
    controller = assured(policy, unassured(policy))
    obs = observations()
    values = controller.policy.pair(controller.policy.normalise(obs))[1]
    scale = unassured(policy).risk_scale
    for i, row in enumerate(policy.contract.commands):
        action = torch.tensor([row]).repeat(64, 1)
        expected = (-values[:, i] / scale).clamp_min(0.0)
        assert torch.equal(controller.risk(obs, action)[:, 0], expected)


@pytest.mark.parametrize("policy", POLICIES, ids=KINDS)
def test_without_assurance_everything_is_the_policy_itself(policy: Any) -> None:
    controller = assured(policy, unassured(policy))
    obs = observations()
    state = controller.get_buffer("initial").repeat(64, 1)
    for said in (controller.nominal(obs), controller.act(obs)[0], controller.step(obs, state)[0]):
        assert torch.equal(said, controller(obs))
    assert controller.act(obs)[2].tolist() == [0] * 64


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("step", (torch.zeros(1, 5), torch.zeros(1, 5)), r"\[batch, 6\]"),
        ("step", (torch.zeros(1, 5), torch.zeros(1, 6).double()), "state must be float32"),
        ("risk", (torch.zeros(1, 5), torch.zeros(1, 3)), r"\[batch, action\]"),
        ("risk", (torch.zeros(2, 5), torch.zeros(1, 2)), r"\[batch, action\]"),
        ("act", (torch.zeros(1, 6),), r"\[batch, 5\]"),
        ("act", (torch.zeros(1, 5).double(),), "float32"),
    ],
)
def test_wrong_shapes_raise(method: str, arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        getattr(assured(POLICY, ASSURANCE), method)(*arguments)


class TestRecords:
    def test_round_trip(self) -> None:
        for assurance in (ASSURANCE, unassured(POLICY)):
            text = json.dumps(assurance.to_record(), allow_nan=False)
            assert Assurance.from_record(json.loads(text), (5, 2), "NAME") == assurance

    def test_hard_ranges_are_three_spans_wider(self) -> None:
        ranged = unassured(POLICY).with_range(
            [0.0, -1.0, 7.0, 0.0, 0.0], [2.0, 1.0, 7.0, 1, 1], "x"
        )
        assert ranged.hard_low[:3] == (-6.0, -7.0, 7.0 - 7.0 * SPANS)
        assert ranged.hard_high[:3] == (8.0, 7.0, 7.0 + 7.0 * SPANS)

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"slew": [1.0]}, "list of 2"),
            ({"slew": [0.0, 1.0]}, "positive"),
            ({"engage": "high"}, "no number"),
            ({"engage": True}, "no number"),
            ({"engage": 0.1}, "must not be above"),
            ({"engage": None}, "finite threshold"),
            ({"fallback": 1}, "fallback is 1"),
            ({"dwell_steps": -1}, "count of steps"),
            ({"blend_steps": 1.5}, r"blend_steps is 1\.5"),
            ({"gamma": 1.0}, "gamma"),
            ({"hard_low": [9e9] * 5}, "low above its high"),
            ({"seen_in": None}, "seen_in"),
        ],
    )
    def test_nonsense_is_refused(self, changed: dict[str, Any], words: str) -> None:
        with pytest.raises(FileFault, match=words):
            Assurance.from_record({**ASSURANCE.to_record(), **changed}, (5, 2), "NAME")

    def test_a_missing_field_is_refused(self) -> None:
        record = ASSURANCE.to_record()
        del record["engage"]
        with pytest.raises(FileFault, match="NAME holds no runtime assurance: 'engage'"):
            Assurance.from_record(record, (5, 2), "NAME")

    def test_the_contract_tells_the_initial_state(self) -> None:
        record = json.loads(contract_text(POLICY.contract, ASSURANCE))
        assert record["task"] == POLICY.task
        assert record["assurance"]["initial_state"] == [0.0] * 6
        assert assured(POLICY, ASSURANCE).contract() == contract_text(POLICY.contract, ASSURANCE)
        with pytest.raises(SettingsError):
            dataclasses.replace(ASSURANCE, soft_start_steps=0)
