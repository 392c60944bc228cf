"""Are the tanh-Gaussian densities and divergences what torch's own distributions say?"""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, TransformedDistribution, kl_divergence
from torch.distributions.transforms import TanhTransform

from kcpr_safety.ops import gaussian

seeds = st.integers(0, 10_000)
softenings = st.floats(0.05, 0.999)


def draw(seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    return both[0], scale * 0.5 * both[1]


@given(seeds)
@settings(deadline=None, max_examples=30)
def test_log_prob_is_that_of_the_squashed_normal(seed: int) -> None:
    mean, log_std = draw(seed)
    noise, _ = draw(seed + 1)
    pre_tanh = gaussian.sample(mean, log_std, noise)
    squashed = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    expected = Independent(squashed, 1).log_prob(torch.tanh(pre_tanh).clamp(-1 + 1e-15, 1 - 1e-15))
    actual = gaussian.tanh_log_prob(pre_tanh, log_std, noise)
    inside = pre_tanh.abs().amax(-1) < 6  # beyond, the reference's atanh loses digits
    torch.testing.assert_close(actual[inside], expected[inside], atol=1e-4, rtol=1e-4)


def test_log_prob_stays_finite_where_tanh_saturates() -> None:
    pre_tanh = torch.tensor([[40.0, -40.0]])
    zeros = torch.zeros(1, 2)
    value = gaussian.tanh_log_prob(pre_tanh, zeros, zeros)
    assert torch.isfinite(value).all()
    # log N(0) - log(1 - tanh^2(40)) = -0.919 + (80 - 2 log 2), per dimension
    torch.testing.assert_close(value, torch.tensor([2 * (-0.9189385 + 80.0 - 1.3862944)]))


@given(seeds, softenings)
@settings(deadline=None, max_examples=50)
def test_softened_kl_is_the_kl_to_the_inflated_normal(seed: int, softening: float) -> None:
    mean, log_std = draw(seed)
    prior_mean, prior_log_std = draw(seed + 1)
    inflated = Normal(prior_mean, prior_log_std.exp() / math.sqrt(softening))
    expected = kl_divergence(Normal(mean, log_std.exp()), inflated).sum(-1)
    actual = gaussian.softened_kl(mean, log_std, prior_mean, prior_log_std, softening)
    torch.testing.assert_close(actual, expected)
    assert (actual >= 0).all()


@given(seeds, softenings)
@settings(deadline=None, max_examples=50)
def test_agreeing_policies_pay_exactly_the_agreement_kl(seed: int, softening: float) -> None:
    mean, log_std = draw(seed)
    paid = gaussian.softened_kl(mean, log_std, mean, log_std, softening)
    expected = torch.full((7,), gaussian.agreement_kl(3, softening), dtype=torch.float64)
    torch.testing.assert_close(paid, expected)


def test_softening_raises_the_density_to_the_power_b() -> None:
    """N(m, v)^b / N(m, v / b) must not depend on the point."""
    points = torch.linspace(-3, 3, 11, dtype=torch.float64)
    powered = 0.4 * Normal(0.3, 0.8).log_prob(points)
    inflated = Normal(0.3, 0.8 / math.sqrt(0.4)).log_prob(points)
    gap = powered - inflated
    torch.testing.assert_close(gap, gap[:1].expand(11), atol=1e-6, rtol=0)


def test_log_std_is_bounded_smoothly() -> None:
    raw = torch.tensor([-1e6, 0.0, 1e6])
    low, middle, high = gaussian.squash_log_std(raw, -5.0, 1.0).tolist()
    assert (low, middle, high) == (-5.0, -2.0, 1.0)


def test_gradients_of_every_divergence_and_density() -> None:
    tensors = [t.requires_grad_() for seed in (1, 2) for t in draw(seed)]
    assert torch.autograd.gradcheck(lambda *t: gaussian.softened_kl(*t, 0.7), tensors)
    noise, _ = draw(5)
    assert torch.autograd.gradcheck(
        lambda m, s: gaussian.tanh_log_prob(gaussian.sample(m, s, noise), s, noise), tensors[:2]
    )
