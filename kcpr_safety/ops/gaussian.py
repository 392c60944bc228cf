"""How do two tanh-Gaussian policies regularise each other by KL, over continuous actions?

A policy draws u ~ N(mean, std^2) and acts a = tanh(u). Softening happens in the pre-tanh space,
which is the base measure: N(m, v)^b is proportional to N(m, v / b), the variance is inflated.
(In action space the tanh Jacobian would be raised to b too and cancel only at b = 1.)

Two agreeing policies still have KL(N || soft N) = (d/2)(b - 1 - ln b) > 0 in *every* step; left in
a backup it would make early termination attractive, so backups charge the excess over it.

Shapes: `*batch` any leading dimensions, `d` action dimensions; sums run over `d`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

Vector = Float[Tensor, "*batch d"]
Scalar = Float[Tensor, "*batch"]


LOG_RATIO_RANGE = (-1.0, 1.0)
"""Bounds of log(companion deviation / own deviation)."""


def squash_log_std(raw: Vector, low: float, high: float) -> Vector:
    """Smoothly bounded log standard deviation in (low, high)."""
    return low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)


def sample(mean: Vector, log_std: Vector, noise: Vector) -> Vector:
    """Reparametrised pre-tanh draw u = mean + std * noise."""
    return mean + log_std.exp() * noise


def tanh_log_prob(pre_tanh: Vector, log_std: Vector, noise: Vector) -> Scalar:
    """log density of a = tanh(u) at u = mean + std * noise.

    log N(u) - sum log(1 - tanh(u)^2), the latter as 2 (log 2 - u - softplus(-2u)), which does not
    overflow where tanh saturates; in as few operations as can be:

        sum [ 2 (u + softplus(-2u)) - (log_std + noise^2 / 2) ] - d (log(2 pi) / 2 + 2 log 2)
    """
    # softplus with beta is log(1 + exp(beta u)) / beta
    per_dim = torch.add(pre_tanh, softplus(pre_tanh, beta=-2.0), alpha=-2.0).mul_(2.0)
    per_dim.sub_(torch.addcmul(log_std, noise, noise, value=0.5))
    constant = 0.5 * math.log(2.0 * math.pi) + 2.0 * math.log(2.0)
    return per_dim.sum(-1).sub_(constant * pre_tanh.shape[-1])


def softened_kl(
    mean: Vector, log_std: Vector, prior_mean: Vector, prior_log_std: Vector, softening: float
) -> Scalar:
    """KL( N(mean, v) || N(prior_mean, prior_v / b) ), the KL to the softened companion prior."""
    log_ratio = 2.0 * (log_std - prior_log_std)
    distance = (mean - prior_mean).square() * torch.exp(-2.0 * prior_log_std)
    per_dim = softening * (log_ratio.exp() + distance) - 1.0 - log_ratio - math.log(softening)
    return 0.5 * per_dim.sum(-1)


def agreement_kl(dims: int, softening: float) -> float:
    """KL(N || soft N) of a policy and itself: (d/2)(b - 1 - ln b)."""
    return 0.5 * dims * (softening - 1.0 - math.log(softening))
