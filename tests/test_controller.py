"""Is the deployed controller's answer the right one, always finite and always within bounds?"""

import dataclasses
import math
import warnings

import pytest
import torch
from fakes import fake_contract, fake_policy, seeing_near
from hypothesis import given, settings
from hypothesis import strategies as st

from kcpr_safety.contract import Contract, Entry
from kcpr_safety.controller import METHODS, Controller, controller_from_tensors


def one_by_one(raw_log_std: float = 0.0) -> Controller:
    """One sensor (mean 2, scale 1/2), one motor in [-2, 4]; m_R = 2 x, offset -x.

    The raw log standard deviation 0 is in the middle of [-5, 1]: log std -2.
    """
    contract = Contract(
        task="SafetyFake-v1",
        observation=(Entry("speed", "m/s"),),
        action=(Entry("motor", "N m", -2.0, 4.0),),
        period_s=0.05,
        time_limit=1000,
        budget=25.0,
        punishment="too fast",
    )
    # The companion's second column is its deviation's, which must not reach the action.
    weight = torch.tensor([[[2.0, 0.0]], [[-1.0, 7.0]]])
    tensors = {
        "obs_mean": torch.tensor([2.0]),
        "obs_scale": torch.tensor([0.5]),
        "actor.0.weight": weight,
        "actor.0.bias": torch.tensor([[[0.0, raw_log_std]], [[0.0, 0.0]]]),
    }
    return controller_from_tensors(tensors, contract)


@pytest.mark.parametrize(
    ("obs", "expected"),
    [
        (2.0, 1.0),  # x = 0: the middle of [-2, 4]
        (3.0, 3.28478246),  # x = .5, m = 1: -2 + 6 * (1 + .76159416) / 2
        (1.0, -1.28478246),  # x = -.5, m = -1
        (500.0, 4.0),  # x clamped to 10, tanh(20) = 1: the upper bound
        (-500.0, -2.0),
    ],
)
def test_nominal_by_hand(obs: float, expected: float) -> None:
    action = one_by_one().nominal(torch.tensor([[obs]]))
    assert action.shape == (1, 1)
    assert action.item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("raw_log_std", "obs", "expected"),
    [
        (0.0, 2.0, 1.0),  # x = 0
        (0.0, 3.0, 3.19503840),  # std .13533528, m = 1 - .5 * .13533528 = .93233236
        (0.80471896, 3.0, 2.38635147),  # tanh(raw) = 2/3, log std 0, m = 1 - .5
        (0.80471896, 1.0, -0.38635147),  # x = -.5, m = -1 + .5
        (99.0, 3.0, -0.03337131),  # log std at its upper bound 1, m = 1 - .5 * 2.71828183
    ],
)
def test_fallback_by_hand(raw_log_std: float, obs: float, expected: float) -> None:
    action = one_by_one(raw_log_std).fallback(torch.tensor([[obs]]))
    assert action.item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("obs", "seen"),
    [
        (1.0, 3.5),  # (1 - 2) / 2 = -.5, and 4 more
        (0.9, 0.34252064),  # -.55 + 4 exp(-1.5)
        (0.0, -0.99999878),  # -1 + 4 exp(-15)
        (7.0, 6.5),  # 2.5, and never more than 4
        (1e30, 14.0),  # the clamp comes first
        (-1e30, -10.0),
        (math.nan, -0.99999878),  # as 0: what it says is not used
    ],
)
def test_what_is_near_looks_larger_by_hand(obs: float, seen: float) -> None:
    tensors = {
        "obs_mean": torch.tensor([2.0]),
        "obs_scale": torch.tensor([0.5]),
        "obs_near": torch.tensor([4.0]),
        "actor.0.weight": torch.ones(2, 1, 2),
        "actor.0.bias": torch.zeros(2, 1, 2),
    }
    contract = fake_contract(obs=1, actions=1)
    x = controller_from_tensors(tensors, contract).normalise(torch.tensor([[obs]]))
    assert x.item() == pytest.approx(seen, rel=1e-6, abs=1e-6)


def test_what_is_no_closeness_looks_as_it_is() -> None:
    policy = seeing_near(fake_policy(3))
    without = {name: part for name, part in policy.tensors.items() if name != "obs_near"}
    obs = torch.rand(20, 5)
    both = (controller_from_tensors(t, policy.contract) for t in (policy.tensors, without))
    seen, plain = (controller.normalise(obs) for controller in both)
    assert torch.equal(seen[:, 1:-1], plain[:, 1:-1])
    assert bool((seen[:, [0, -1]] > plain[:, [0, -1]]).all())


def test_hidden_layers_are_rectified() -> None:
    """Hidden values 3 and -3 become 3 and 0; their sum is mean and offset: 3, not 0."""
    tensors = {
        "obs_mean": torch.zeros(1),
        "obs_scale": torch.ones(1),
        "actor.0.weight": torch.tensor([[[3.0, -3.0]]]).repeat(2, 1, 1),
        "actor.0.bias": torch.zeros(2, 1, 2),
        "actor.1.weight": torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]).repeat(2, 1, 1),
        "actor.1.bias": torch.zeros(2, 1, 2),
    }
    contract = dataclasses.replace(fake_contract(obs=1), action=(Entry("motor", "N m", -1.0, 1.0),))
    controller = controller_from_tensors(tensors, contract)
    assert controller(torch.ones(1, 1)).item() == pytest.approx(0.99505475, abs=1e-6)  # tanh 3
    # tanh(3 + 3 exp(-2))
    assert controller.fallback(torch.ones(1, 1)).item() == pytest.approx(0.99780147, abs=1e-6)


def test_rounding_does_not_leave_the_bounds() -> None:
    """In float32, -.2 + (.1 - -.2) is above .1."""
    policy = fake_policy(0, gain=1e3)
    action = (Entry("hip", "N m", -0.2, 0.1), Entry("knee", "N m", 0.7, 1.9))
    controller = controller_from_tensors(
        policy.tensors, dataclasses.replace(policy.contract, action=action)
    )
    assert bool((controller.low + 2 * controller.half_span > controller.high).all()), (
        "not a hard case"
    )
    obs = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    actions = torch.cat([controller(obs), controller.fallback(obs)])
    assert bool((actions == controller.high).any(dim=0).all()), "no action saturates"
    assert bool((actions <= controller.high).all())


def test_forward_is_the_nominal_action() -> None:
    policy = fake_policy(3)
    controller = controller_from_tensors(policy.tensors, policy.contract)
    obs = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(controller(obs), controller.nominal(obs))
    assert not torch.equal(controller(obs), controller.fallback(obs))


def test_no_state_and_nothing_to_train() -> None:
    policy = fake_policy(3)
    controller = controller_from_tensors(policy.tensors, policy.contract)
    before = {key: value.clone() for key, value in controller.state_dict().items()}
    obs = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    first = [getattr(controller, name)(obs) for name in METHODS]
    second = [getattr(controller, name)(obs) for name in METHODS]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(before[key], value) for key, value in controller.state_dict().items())
    assert not list(controller.parameters())
    assert not any(action.requires_grad for action in first)


def test_rows_do_not_mix() -> None:
    """A NaN in one row changes nothing in the others."""
    policy = fake_policy(3)
    controller = controller_from_tensors(policy.tensors, policy.contract)
    obs = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    clean = controller(obs)
    obs[2, 0] = math.nan
    dirty = controller(obs)
    assert torch.equal(dirty[[0, 1, 3]], clean[[0, 1, 3]])
    assert not torch.equal(dirty[2], clean[2])
    assert controller.check(obs).tolist() == [0, 0, 1, 0]


def test_safe_action_is_zero_command_within_the_bounds() -> None:
    """Zero where zero is allowed, else the nearest bound."""
    contract = dataclasses.replace(
        fake_contract(),
        action=(Entry("hip", "N m", -1.0, 3.0), Entry("pump", "l/s", 0.5, 2.0)),
    )
    policy = fake_policy(0, contract=contract)
    controller = controller_from_tensors(policy.tensors, contract)
    assert controller(torch.full((1, 5), math.nan)).tolist() == [[0.0, 0.5]]


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


@settings(max_examples=200, deadline=None)
@given(
    row=st.lists(FLOATS, min_size=5, max_size=5),
    gain=st.sampled_from([1.0, 1e3, 1e30]),
)
def test_every_observation_gives_a_finite_action_within_bounds(
    row: list[float], gain: float
) -> None:
    """Even with weights so large that hidden layers overflow."""
    policy = fake_policy(1, gain=gain)
    controller = controller_from_tensors(policy.tensors, policy.contract)
    obs = torch.tensor([row], dtype=torch.float32)
    low = torch.tensor([entry.low for entry in policy.contract.action])
    high = torch.tensor([entry.high for entry in policy.contract.action])
    for action in (controller(obs), controller.fallback(obs)):
        assert bool(torch.isfinite(action).all())
        assert bool(((low <= action) & (action <= high)).all())
    assert controller.check(obs).item() == int(not all(math.isfinite(x) for x in row))
    if not all(math.isfinite(x) for x in row):
        assert controller(obs).tolist() == controller.fallback(obs).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("obs", "words"),
    [
        (torch.zeros(1, 6), r"\[batch, 5\]"),
        (torch.zeros(1, 4), r"\[batch, 5\]"),
        (torch.zeros(5), r"\[batch, 5\]"),
        (torch.zeros(1, 1, 5), r"\[batch, 5\]"),
        (torch.zeros(1, 5, dtype=torch.float64), "float32"),
        (torch.zeros(1, 5, dtype=torch.int64), "float32"),
    ],
)
def test_wrong_width_or_type_raises(method: str, obs: torch.Tensor, words: str) -> None:
    policy = fake_policy()
    controller = controller_from_tensors(policy.tensors, policy.contract)
    with pytest.raises(ValueError, match=words):
        getattr(controller, method)(obs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.jit")
        scripted = torch.jit.freeze(torch.jit.script(controller), preserved_attrs=list(METHODS[1:]))
    with pytest.raises(torch.jit.Error, match=words):
        getattr(scripted, method)(obs)


@pytest.mark.parametrize(("low", "high"), [(-math.inf, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_impossible_bounds_are_refused(low: float, high: float) -> None:
    contract = dataclasses.replace(fake_contract(), action=(Entry("hip", "N m", low, high),) * 2)
    with pytest.raises(ValueError, match="finite bounds"):
        controller_from_tensors(fake_policy().tensors, contract)
