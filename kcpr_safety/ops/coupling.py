"""How do two soft-optimal policies regularise each other by KL (KCSO), over finite actions?

Softened companion prior    p_b(a|s) = pi_comp(a|s)^b / sum_a' pi_comp(a'|s)^b,   b in [0, 1)
One module, prior fixed     V = (1/h) log sum_a p_b(a) exp(h Q(a)),   pi = p_b exp(h (Q - V))
Both modules at once        l_R = (h_R Q_R + b h_P Q_P) / (1 - b^2),   pi_R = softmax(l_R)
                            l_P = (h_P Q_P + b h_R Q_R) / (1 - b^2),   pi_P = softmax(l_P)

Q_R is the value of reward and Q_P the value of *minus* punishment: both modules maximise. The
closed form is the unique fixed point of the two one-module policies, because with
l_i = log pi_i up to a per-state constant they are the linear system l_R = b l_P + h_R Q_R,
l_P = b l_R + h_P Q_P, of determinant 1 - b^2. At given values the reward module therefore acts on
Q_R + lambda Q_P with lambda = b h_P / h_R.

Source: the definitions of KCPR and KCSO in arXiv:2606.28152; this derivation is the project's own.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kcpr_safety.errors import SettingsError

Logits = Float[Tensor, "*batch actions"]
Value = Float[Tensor, "*batch"]


def check_softening(softening: float) -> None:
    """Raise `SettingsError` unless b is in [0, 1): at b = 1 the coupled system is singular."""
    if not 0.0 <= softening < 1.0:
        raise SettingsError(f"softening is {softening}; it must lie in [0, 1)")


def soften(log_policy: Logits, softening: float) -> Logits:
    """log p_b: the companion raised to the power b and normalised; b = 0 is uniform."""
    check_softening(softening)
    return torch.log_softmax(softening * log_policy, dim=-1)


def soft_value(q: Logits, log_prior: Logits, temperature: float) -> Value:
    """V = (1/h) log sum_a p(a) exp(h Q(a)) for any real inverse temperature h.

    Limits: h = +inf (-inf) is the max (min) of Q over the prior's support, h = 0 its mean.
    """
    if temperature != temperature:
        raise SettingsError("the inverse temperature is NaN; any real number or +-inf is legal")
    if temperature == 0.0:
        return (log_prior.exp() * q).sum(-1)
    if temperature in (float("inf"), float("-inf")):
        sign = 1.0 if temperature > 0 else -1.0
        outside = torch.isneginf(log_prior)
        return sign * (sign * q).masked_fill(outside, -torch.inf).amax(-1)
    return torch.logsumexp(log_prior + temperature * q, dim=-1) / temperature


def soft_policy(q: Logits, log_prior: Logits, temperature: float) -> Logits:
    """log pi = log p + h (Q - V), for finite h."""
    return torch.log_softmax(log_prior + temperature * q, dim=-1)


def coupled_policies(
    reward_q: Logits,
    punishment_q: Logits,
    reward_temperature: float,
    punishment_temperature: float,
    softening: float,
) -> tuple[Logits, Logits]:
    """(log pi_R, log pi_P) that are each other's softened prior: the closed form above."""
    check_softening(softening)
    reward, punishment = reward_temperature * reward_q, punishment_temperature * punishment_q
    sharpening = 1.0 / (1.0 - softening**2)
    return (
        torch.log_softmax(sharpening * (reward + softening * punishment), dim=-1),
        torch.log_softmax(sharpening * (punishment + softening * reward), dim=-1),
    )


def kl_divergence(log_policy: Logits, log_prior: Logits) -> Value:
    """KL(policy || prior) >= 0; actions that the policy never takes contribute nothing."""
    gap = torch.where(torch.isneginf(log_policy), 0.0, log_policy - log_prior)
    return (log_policy.exp() * gap).sum(-1)
