"""How do two soft-optimal policies regularise each other by KL (KCSO), over finite actions?

Softened companion prior    p_b(a|s) = pi_comp(a|s)^b / sum_a' pi_comp(a'|s)^b,   b in [0, 1)
One module, prior fixed     V = (1/h) log sum_a p_b(a) exp(h Q(a)),   pi = p_b exp(h (Q - V))
Both modules at once        l_R = (h_R Q_R + b h_P Q_P) / (1 - b^2),   pi_R = softmax(l_R)
                            l_P = (h_P Q_P + b h_R Q_R) / (1 - b^2),   pi_P = softmax(l_P)
                            h_R V_R = LSE(l_R) - LSE(b l_P),   h_P V_P = LSE(l_P) - LSE(b l_R)

Q_R is the value of reward and Q_P the value of *minus* punishment: both modules maximise. The
closed form is the unique fixed point of the two one-module policies, because with
l_i = log pi_i up to a per-state constant they are the linear system l_R = b l_P + h_R Q_R,
l_P = b l_R + h_P Q_P, of determinant 1 - b^2. At given values the reward module therefore acts on
Q_R + lambda Q_P with lambda = b h_P / h_R.

Any real inverse temperature is legal, and so are 0 and +-inf as limits. Where h is infinite, l
grows as slope t + level for t -> inf: only actions of the largest slope stay, and among them the
level decides. Two infinite temperatures grow together, h_P / h_R -> +-1.

Source: the definitions of KCPR and KCSO in arXiv:2606.28152; this derivation is the project's own.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kcpr_safety.errors import SettingsError

Logits = Float[Tensor, "*batch actions"]
Value = Float[Tensor, "*batch"]

_TIE = 1e-9
"""Slopes within this of the largest count as equal to it: rounding must not break a tie."""


def check_softening(softening: float) -> None:
    """Raise `SettingsError` unless b is in [0, 1): at b = 1 the coupled system is singular."""
    if not 0.0 <= softening < 1.0:
        raise SettingsError(f"softening is {softening}; it must lie in [0, 1)")


def check_temperature(temperature: float) -> None:
    """Raise `SettingsError` where an inverse temperature is no number; 0 and +-inf are legal."""
    if math.isnan(temperature):
        raise SettingsError("the inverse temperature is NaN; any real number or +-inf is legal")


def soften(log_policy: Logits, softening: float) -> Logits:
    """log p_b: the companion raised to the power b and normalised; b = 0 is uniform."""
    check_softening(softening)
    if softening == 0.0:  # also where the companion never takes an action: 0 * -inf is no number
        return torch.full_like(log_policy, -math.log(log_policy.shape[-1]))
    return torch.log_softmax(softening * log_policy, dim=-1)


def soft_value(q: Logits, log_prior: Logits, temperature: float) -> Value:
    """V = (1/h) log sum_a p(a) exp(h Q(a)) for any real inverse temperature h.

    Limits: h = +inf (-inf) is the max (min) of Q over the prior's support, h = 0 its mean.
    """
    check_temperature(temperature)
    if temperature == 0.0:
        return (log_prior.exp() * q).sum(-1)
    if math.isinf(temperature):
        sign = math.copysign(1.0, temperature)
        outside = torch.isneginf(log_prior)
        return sign * (sign * q).masked_fill(outside, -torch.inf).amax(-1)
    return torch.logsumexp(log_prior + temperature * q, dim=-1) / temperature


def soft_policy(q: Logits, log_prior: Logits, temperature: float) -> Logits:
    """log pi = log p + h (Q - V); h = +inf (-inf) keeps the best (worst) of the prior's support."""
    check_temperature(temperature)
    if math.isinf(temperature):
        slope = math.copysign(1.0, temperature) * q
        slope = slope.masked_fill(torch.isneginf(log_prior), -torch.inf)
        return _Growing(slope, log_prior).log_policy()
    return torch.log_softmax(log_prior + temperature * q, dim=-1)


def coupled_policies(
    reward_q: Logits,
    punishment_q: Logits,
    reward_temperature: float,
    punishment_temperature: float,
    softening: float,
) -> tuple[Logits, Logits]:
    """(log pi_R, log pi_P) that are each other's softened prior: the closed form above."""
    reward, punishment = _coupled(
        reward_q, punishment_q, reward_temperature, punishment_temperature, softening
    )
    return reward.log_policy(), punishment.log_policy()


def coupled_values(
    reward_q: Logits,
    punishment_q: Logits,
    reward_temperature: float,
    punishment_temperature: float,
    softening: float,
) -> tuple[Value, Value]:
    """(V_R, V_P) of the two policies above; V_i is what module i attains under its prior."""
    logits = _coupled(reward_q, punishment_q, reward_temperature, punishment_temperature, softening)
    values = []
    for own, companion, q, temperature in (
        (logits[0], logits[1], reward_q, reward_temperature),
        (logits[1], logits[0], punishment_q, punishment_temperature),
    ):
        prior = _Growing(
            None if companion.slope is None else softening * companion.slope,
            softening * companion.level,
        )
        if temperature == 0.0:
            values.append(soft_value(q, prior.log_policy(), 0.0))
        elif math.isinf(temperature):
            gap = own.largest_slope() - prior.largest_slope()
            values.append(math.copysign(1.0, temperature) * gap)
        else:
            # Where the other temperature is infinite, the two slopes are equal and cancel.
            values.append((own.log_sum() - prior.log_sum()) / temperature)
    return values[0], values[1]


def kl_divergence(log_policy: Logits, log_prior: Logits) -> Value:
    """KL(policy || prior) >= 0; actions that the policy never takes contribute nothing."""
    gap = torch.where(torch.isneginf(log_policy), 0.0, log_policy - log_prior)
    return (log_policy.exp() * gap).sum(-1)


class _Growing(NamedTuple):
    """slope t + level as t -> inf; without a slope it does not grow."""

    slope: Tensor | None
    level: Tensor

    def largest_slope(self) -> Tensor:
        assert self.slope is not None
        return self.slope.amax(-1)

    def log_sum(self) -> Tensor:
        """The part of log-sum-exp that stays finite."""
        return torch.logsumexp(self._leading(), dim=-1)

    def log_policy(self) -> Tensor:
        return torch.log_softmax(self._leading(), dim=-1)

    def _leading(self) -> Tensor:
        """The level of the actions that grow fastest; the others fall behind by infinity."""
        if self.slope is None:
            return self.level
        behind = self.slope < self.slope.amax(-1, keepdim=True) - _TIE
        return self.level.masked_fill(behind, -torch.inf)


def _coupled(
    reward_q: Tensor, punishment_q: Tensor, reward_h: float, punishment_h: float, softening: float
) -> tuple[_Growing, _Growing]:
    """(l_R, l_P) of the closed form."""
    check_softening(softening)
    check_temperature(reward_h)
    check_temperature(punishment_h)
    sharpening = 1.0 / (1.0 - softening**2)

    def mixed(reward_weight: float, punishment_weight: float) -> tuple[Tensor, Tensor]:
        reward, punishment = reward_weight * reward_q, punishment_weight * punishment_q
        return (
            sharpening * (reward + softening * punishment),
            sharpening * (punishment + softening * reward),
        )

    finite = [0.0 if math.isinf(h) else h for h in (reward_h, punishment_h)]
    levels = mixed(*finite)
    if finite == [reward_h, punishment_h]:
        return _Growing(None, levels[0]), _Growing(None, levels[1])
    slopes = mixed(
        *(math.copysign(1.0, h) if math.isinf(h) else 0.0 for h in (reward_h, punishment_h))
    )
    return _Growing(slopes[0], levels[0]), _Growing(slopes[1], levels[1])
