"""Do the coupled policies obey the laws of KCSO?"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kcpr_safety.errors import SettingsError
from kcpr_safety.ops.coupling import (
    coupled_policies,
    kl_divergence,
    soft_policy,
    soft_value,
    soften,
)
from kcpr_safety.ops.losses import coupling_weight

temperatures = st.floats(-20.0, 20.0)
softenings = st.floats(0.0, 0.97)
seeds = st.integers(0, 10_000)


def draw_q(seed: int, states: int = 4, actions: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(states, actions, generator=generator, dtype=torch.float64)


def draw_prior(seed: int) -> torch.Tensor:
    return torch.log_softmax(draw_q(seed + 1), dim=-1)


@given(seeds, softenings, st.floats(0.1, 10.0), st.floats(-10.0, 10.0))
@settings(deadline=None)
def test_closed_form_is_the_fixed_point_of_both_one_module_policies(
    seed: int, softening: float, reward_h: float, punishment_h: float
) -> None:
    reward_q, punishment_q = draw_q(seed), draw_q(seed + 7)
    reward, punishment = coupled_policies(reward_q, punishment_q, reward_h, punishment_h, softening)
    torch.testing.assert_close(
        reward, soft_policy(reward_q, soften(punishment, softening), reward_h), atol=1e-9, rtol=1e-9
    )
    torch.testing.assert_close(
        punishment,
        soft_policy(punishment_q, soften(reward, softening), punishment_h),
        atol=1e-9,
        rtol=1e-9,
    )


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_alternating_the_two_policies_converges_to_the_closed_form(seed: int) -> None:
    reward_q, punishment_q, softening = draw_q(seed), draw_q(seed + 7), 0.8
    reward = punishment = torch.full_like(reward_q, -math.log(5))
    for _ in range(200):
        reward = soft_policy(reward_q, soften(punishment, softening), 2.0)
        punishment = soft_policy(punishment_q, soften(reward, softening), 3.0)
    expected = coupled_policies(reward_q, punishment_q, 2.0, 3.0, softening)
    torch.testing.assert_close((reward, punishment), expected, atol=1e-12, rtol=1e-12)


@given(seeds, temperatures, st.floats(-50.0, 50.0))
@settings(deadline=None)
def test_a_constant_added_to_q_adds_to_v_and_leaves_the_policy(
    seed: int, temperature: float, constant: float
) -> None:
    q, prior = draw_q(seed), draw_prior(seed)
    if abs(temperature) < 1e-3:  # 1/h amplifies rounding; h = 0 itself is exact
        temperature = 0.0
    torch.testing.assert_close(
        soft_value(q + constant, prior, temperature),
        soft_value(q, prior, temperature) + constant,
        atol=1e-9,
        rtol=1e-9,
    )
    torch.testing.assert_close(
        soft_policy(q + constant, prior, temperature), soft_policy(q, prior, temperature)
    )


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_limits_of_the_inverse_temperature(seed: int) -> None:
    q, prior = draw_q(seed), draw_prior(seed)
    prior = torch.log_softmax(prior.masked_fill(torch.eye(4, 5, dtype=torch.bool), -torch.inf), -1)
    inside = ~torch.isneginf(prior)
    highest = q.masked_fill(~inside, -torch.inf).amax(-1)
    lowest = q.masked_fill(~inside, torch.inf).amin(-1)
    assert torch.equal(soft_value(q, prior, math.inf), highest)
    assert torch.equal(soft_value(q, prior, -math.inf), lowest)
    torch.testing.assert_close(soft_value(q, prior, 1e4), highest, atol=2e-3, rtol=0)
    torch.testing.assert_close(soft_value(q, prior, -1e4), lowest, atol=2e-3, rtol=0)
    torch.testing.assert_close(
        soft_value(q, prior, 1e-6), soft_value(q, prior, 0.0), atol=1e-5, rtol=0
    )


@given(seeds, temperatures)
@settings(deadline=None)
def test_equal_q_gives_the_prior_back_and_kl_is_not_negative(seed: int, temperature: float) -> None:
    prior = draw_prior(seed)
    torch.testing.assert_close(soft_policy(torch.full_like(prior, 3.0), prior, temperature), prior)
    assert (kl_divergence(soft_policy(draw_q(seed), prior, temperature), prior) >= -1e-12).all()
    assert (kl_divergence(prior, prior).abs() < 1e-12).all()


@given(seeds, st.floats(0.1, 20.0))
@settings(deadline=None)
def test_the_soft_value_is_what_the_soft_policy_attains(seed: int, temperature: float) -> None:
    """V = E_pi[Q] - KL(pi || prior) / h, and no other policy does better (h > 0)."""
    q, prior = draw_q(seed), draw_prior(seed)

    def attained(log_policy: torch.Tensor) -> torch.Tensor:
        cost = kl_divergence(log_policy, prior) / temperature
        return (log_policy.exp() * q).sum(-1) - cost

    value = soft_value(q, prior, temperature)
    torch.testing.assert_close(attained(soft_policy(q, prior, temperature)), value)
    assert (attained(draw_prior(seed + 3)) <= value + 1e-9).all()


@given(seeds, softenings, st.floats(0.1, 10.0), st.floats(0.1, 10.0))
@settings(deadline=None)
def test_the_reward_policy_acts_on_the_sum_that_lambda_names(
    seed: int, softening: float, reward_h: float, punishment_h: float
) -> None:
    reward_q, punishment_q = draw_q(seed), draw_q(seed + 7)
    reward, _ = coupled_policies(reward_q, punishment_q, reward_h, punishment_h, softening)
    weight = coupling_weight(softening, 1.0 / reward_h, 1.0 / punishment_h, tau=0.0)
    uniform = torch.full_like(reward_q, -math.log(5))
    eta = reward_h / (1.0 - softening**2)
    torch.testing.assert_close(
        reward, soft_policy(reward_q + weight * punishment_q, uniform, eta), atol=1e-9, rtol=1e-9
    )


def test_no_softening_means_two_independent_soft_q_learners() -> None:
    reward_q, punishment_q = draw_q(1), draw_q(2)
    reward, punishment = coupled_policies(reward_q, punishment_q, 2.0, 3.0, softening=0.0)
    torch.testing.assert_close(reward, torch.log_softmax(2.0 * reward_q, -1))
    torch.testing.assert_close(punishment, torch.log_softmax(3.0 * punishment_q, -1))


@pytest.mark.parametrize("softening", [-0.1, 1.0, 1.5, math.nan])
def test_softening_outside_its_range_is_refused(softening: float) -> None:
    with pytest.raises(SettingsError, match=r"\[0, 1\)"):
        coupled_policies(draw_q(1), draw_q(2), 1.0, 1.0, softening)


def test_a_temperature_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(SettingsError, match="NaN"):
        soft_value(draw_q(1), draw_prior(1), math.nan)
