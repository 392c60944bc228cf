"""What are the actor losses' gradients, written out?

With a = tanh(u), u = mean + std * noise, and q' = dQ/da of the twin that counts, the losses of
`ops.losses` have per row (d log pi / du = 2 a, because the tanh correction's derivative is -2 a)

    g_R = 2 tau_R a - (1 - a^2) q'_R          g_P = 2 tau_P a + (1 - a^2) q'_P

A logarithmic barrier -w log(1 - a^2) at the actions' bounds, of which the squash's part of the
entropy is one of weight tau_R, has the derivative 2 w a: the first term's weight is then w.

In the reward policy's own coordinates (mean_P = mean_R + std_R offset, log std_P = log std_R +
log ratio, the reward policy held constant) both KLs depend on offset and ratio alone:

    KL(pi_R || soft pi_P) = 1/2 sum [ b (1 + offset^2) / ratio^2 - 1 + 2 log ratio - ln b ]
    KL(pi_P || soft pi_R) = 1/2 sum [ b (ratio^2 + offset^2)     - 1 - 2 log ratio - ln b ]

and with the companion held constant in turn the reward policy's gradient is

    d/d mean_R    = g_R - k_R b offset / (ratio^2 std_R)
    d/d log std_R = g_R std_R noise_R - tau_R + k_R (b / ratio^2 - 1)
    d/d offset    = g_P std_R + k_P b offset
    d/d log ratio = g_P std_P noise_P - tau_P + k_P (b ratio^2 - 1)

The first line is the coupling at work: where the companion steps aside, it takes the reward policy
with it. Where the squash is flat (1 - a^2 = 0) little else acts on the mean, and the companion, an
offset from it, moves along: they would run to where log pi costs more than all reward. So draws
that lie out of reach are drawn back (`drawn_back`). Tests hold every line against automatic
differentiation of the losses in float64.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kcpr_safety.ops import losses

Vector = Float[Tensor, "*batch d"]
Scalar = Float[Tensor, "*batch"]


class Companion(NamedTuple):
    """The punishment policy in the reward policy's coordinates."""

    offset: Vector
    log_ratio: Vector
    square: Vector
    """ratio^2"""


def excess_kls(companion: Companion, softening: float) -> tuple[Scalar, Scalar]:
    """(X of the reward policy, X of its companion): each softened KL over that of agreement."""
    offset, log_ratio, square = companion
    half, constant = 0.5 * softening, 0.5 * softening * offset.shape[-1]
    distance = offset.square()
    outer = torch.add(square, distance).mul_(half).sub_(log_ratio)
    inner = torch.addcdiv(log_ratio, distance.add_(1.0), square, value=half)
    return inner.sum(-1).sub_(constant), outer.sum(-1).sub_(constant)


def through_tanh(action: Vector, q_slope: Vector, entropy: float) -> Vector:
    """g = 2 tau a + (1 - a^2) q', for a loss that rises with q (reward: pass -dQ/da)."""
    return torch.addcmul(q_slope, action.square(), q_slope, value=-1.0).add_(
        action, alpha=2.0 * entropy
    )


def drawn_back(g: Vector, drawn: Vector, reach: float) -> Vector:
    """g with d/du of `losses.beyond_reach`, u what is `drawn` before the squash; g is consumed."""
    return g.add_(drawn - drawn.clamp(-reach, reach), alpha=losses.SPRING)


def reward_gradient(g: Vector, std: Vector, noise: Vector, entropy: float) -> tuple[Vector, Vector]:
    """(d mean_R, d log std_R) without the coupling."""
    return g, (g * std).mul_(noise).sub_(entropy)


def coupled_gradient(
    gradient: tuple[Vector, Vector], companion: Companion, std: Vector, k: float, softening: float
) -> tuple[Vector, Vector]:
    """(d mean_R, d log std_R) with the coupling, from those without it."""
    by_mean, by_spread = gradient
    pulled = torch.addcdiv(by_mean, companion.offset, companion.square * std, value=-k * softening)
    spread = torch.add(by_spread, companion.square.reciprocal(), alpha=k * softening)
    return pulled, spread.sub_(k)


def companion_gradient(
    g: Vector,
    companion: Companion,
    stds: tuple[Vector, Vector],
    noise: Vector,
    weights: tuple[float, float, float],
) -> tuple[Vector, Vector]:
    """(d offset, d log ratio); stds are (std_R, std_P), weights (tau_P, k_P, b)."""
    entropy, k, softening = weights
    d_offset = (g * stds[0]).add_(companion.offset, alpha=k * softening)
    d_log_ratio = (g * stds[1]).mul_(noise).add_(companion.square, alpha=k * softening)
    return d_offset, d_log_ratio.sub_(entropy + k)
