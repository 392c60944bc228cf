"""Are the written-out gradients those of the losses?"""

import pytest
import torch

from kcpr_safety.ops import gaussian, gradients, losses
from kcpr_safety.ops.gradients import Companion

TAU, TAU_P, K, K_P, B = 0.3, 0.2, 0.7, 0.4, 0.8


def draw(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, generator=generator, dtype=torch.float64)


def companion_of(offset: torch.Tensor, log_ratio: torch.Tensor) -> Companion:
    return Companion(offset, log_ratio, (2 * log_ratio).exp())


def value(action: torch.Tensor) -> torch.Tensor:
    """Twins of some smooth Q, the second always the higher."""
    q = (action.sin() * action).sum(-1)
    return torch.stack([q, q + 1.0 + action.square().sum(-1)])


def q_slope(action: torch.Tensor, twin: int) -> torch.Tensor:
    action = action.detach().requires_grad_()
    return torch.autograd.grad(value(action)[twin].sum(), action)[0]


def test_the_reward_policys_gradient() -> None:
    mean, log_std = draw(1).requires_grad_(), (0.3 * draw(2)).requires_grad_()
    offset, log_ratio, noise = draw(3), 0.5 * draw(4), draw(5)
    prior = (mean + log_std.exp() * offset).detach(), (log_std + log_ratio).detach()
    u = gaussian.sample(mean, log_std, noise)
    loss = losses.reward_actor_loss(
        gaussian.tanh_log_prob(u, log_std, noise),
        value(torch.tanh(u)),
        gaussian.softened_kl(mean, log_std, *prior, B),
        TAU,
        K,
        1.0,
    )
    expected = torch.autograd.grad(6 * loss, [mean, log_std])
    action, std = torch.tanh(u).detach(), log_std.exp().detach()
    g = gradients.through_tanh(action, -q_slope(action, 0), TAU)
    own = gradients.reward_gradient(g, std, noise, TAU)
    found = gradients.coupled_gradient(own, companion_of(offset, log_ratio), std, K, B)
    torch.testing.assert_close(found, tuple(expected))


def test_the_companions_gradient() -> None:
    offset, log_ratio = draw(3).requires_grad_(), (0.5 * draw(4)).requires_grad_()
    mean, log_std, noise = draw(1), 0.3 * draw(2), draw(5)
    own = mean + log_std.exp() * offset, log_std + log_ratio
    u = gaussian.sample(*own, noise)
    loss = losses.punishment_actor_loss(
        gaussian.tanh_log_prob(u, own[1], noise),
        value(torch.tanh(u)),
        gaussian.softened_kl(*own, mean, log_std, B),
        TAU_P,
        K_P,
    )
    expected = torch.autograd.grad(6 * loss, [offset, log_ratio])
    action = torch.tanh(u).detach()
    slope = (q_slope(action, 0) + q_slope(action, 1)) / 2
    g = gradients.through_tanh(action, slope, TAU_P)
    found = gradients.companion_gradient(
        g,
        companion_of(offset.detach(), log_ratio.detach()),
        (log_std.exp(), own[1].detach().exp()),
        noise,
        (TAU_P, K_P, B),
    )
    torch.testing.assert_close(found, expected)


def test_a_companion_that_moves_along_leads_out_of_reach_and_is_held() -> None:
    """No slope of Q, as where actions are saturated: only barrier, coupling and spring are left."""
    k, softening, std, reach = 0.005, 0.97, torch.tensor([0.2]), 5.0
    ahead = companion_of(torch.tensor([4.0]), torch.tensor([0.0]))

    def settled(*, held: bool) -> float:
        mean = torch.tensor([1.0])
        for _ in range(2_000):
            g = gradients.through_tanh(torch.tanh(mean), torch.zeros(1), 1e-3)
            if held:
                g = gradients.drawn_back(g, mean, reach)
            own = gradients.reward_gradient(g, std, torch.zeros(1), 1e-3)
            mean -= gradients.coupled_gradient(own, ahead, std, k, softening)[0]
        return float(mean)

    assert settled(held=False) > 100.0
    pull = k * softening * 4.0 / 0.2 - 2e-3
    assert settled(held=True) == pytest.approx(reach + pull / losses.SPRING, rel=1e-3)


@pytest.mark.parametrize("softening", [0.1, 0.8, 0.99])
def test_excess_kls_are_the_softened_kls_over_agreement(softening: float) -> None:
    mean, log_std, offset, log_ratio = draw(1), 0.3 * draw(2), draw(3), 0.5 * draw(4)
    other = mean + log_std.exp() * offset, log_std + log_ratio
    agreement = gaussian.agreement_kl(3, softening)
    inner, outer = gradients.excess_kls(companion_of(offset, log_ratio), softening)
    torch.testing.assert_close(
        inner, gaussian.softened_kl(mean, log_std, *other, softening) - agreement
    )
    torch.testing.assert_close(
        outer, gaussian.softened_kl(*other, mean, log_std, softening) - agreement
    )


def test_coupled_gaussians_settle_where_lambda_says() -> None:
    """Two Gaussians on quadratic values, by gradient descent on the losses alone.

    Q_R = -(u - 1)^2 and Q_P = 2 (u + 1)^2 / 2: KCSO's reward policy has the mean that maximises
    Q_R - lambda Q_P, which is (2 - 2 lambda) / (2 + 2 lambda), at lambda = b k_R / (tau_P + k_P).
    """
    tau, k, tau_p, k_p, b = 0.3, 0.5, 0.1, 0.4, 0.9
    weight = losses.coupling_weight(b, k, k_p, tau_p)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    reward = [zero.clone().requires_grad_(), zero.clone().requires_grad_()]
    companion = [zero.clone().requires_grad_(), zero.clone().requires_grad_()]

    def expected(policy: list[torch.Tensor], centre: float) -> torch.Tensor:
        """E (u - centre)^2 of both twins."""
        mean, log_std = policy
        return ((mean - centre).square() + (2 * log_std).exp()).sum(-1).expand(2, -1)

    optimiser = torch.optim.Adam([*reward, *companion], lr=0.02)
    for _ in range(3000):
        # -log_std is the mean of log pi up to a constant.
        loss = losses.reward_actor_loss(
            -reward[1].sum(-1),
            -expected(reward, 1.0),
            gaussian.softened_kl(*reward, *(x.detach() for x in companion), b),
            tau,
            k,
            1.0,
        ) + losses.punishment_actor_loss(
            -companion[1].sum(-1),
            expected(companion, -1.0),
            gaussian.softened_kl(*companion, *(x.detach() for x in reward), b),
            tau_p,
            k_p,
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    best = (1 - weight) / (1 + weight)
    assert reward[0].item() == pytest.approx(best, abs=1e-3)
    assert companion[0].item() < reward[0].item()
