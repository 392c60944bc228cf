"""What does each policy minimise?

    reward module       E[ tau_R log pi_R - low Q_R + k_R KL(pi_R || soft(pi_P)) + nu mean Q_P ]
    punishment module   E[ tau_P log pi_P + mean Q_P + k_P KL(pi_P || soft(pi_R)) ]

nu is zero for every coupled agent: punishment then reaches the reward module only through its
companion. nu > 0 with k = 0 is the Lagrangian baseline (SAC-Lag), nu = k = 0 is SAC.

These are KCSO (`ops.coupling`) with h_i = 1 / (tau_i + k_i) and b_i = b k_i / (tau_i + k_i): the
reward module acts on Q_R - lambda Q_P with lambda = b k_R / (tau_P + k_P).
"""

from jaxtyping import Float
from torch import Tensor

from kcpr_safety.ops.bellman import low

Column = Float[Tensor, "batch"]
Twins = Float[Tensor, "twins batch"]
Scalar = Float[Tensor, ""]


def reward_actor_loss(
    log_prob: Column, q: Twins, kl: Column, entropy: float, k: float, pessimism: float
) -> Scalar:
    """tau_R log pi_R - low Q_R + k_R KL, averaged over the batch."""
    return (entropy * log_prob - low(q, pessimism) + k * kl).mean()


def punishment_actor_loss(
    log_prob: Column, q: Twins, kl: Column, entropy: float, k: float
) -> Scalar:
    """tau_P log pi_P + mean Q_P + k_P KL, averaged over the batch (Q_P >= 0 is a punishment)."""
    return (entropy * log_prob + q.mean(0) + k * kl).mean()


SPRING = 0.1
"""How hard a draw beyond reach is pulled back: where the squash is flat the coupling pulls with
k_R b offset / std, some 0.1, and moves it a unit further."""


def beyond_reach(drawn: Float[Tensor, "batch action"], reach: float) -> Scalar:
    """SPRING / 2 times the squared distance of draws, before the squash, from [-reach, reach]."""
    out = drawn - drawn.clamp(-reach, reach)
    return 0.5 * SPRING * out.square().sum(-1).mean()


def coupling_weight(softening: float, k_reward: float, k_punishment: float, tau: float) -> float:
    """lambda = b k_R / (tau_P + k_P): the weight of punishment that the coupling implies."""
    return softening * k_reward / (tau + k_punishment)


def huber_slope(error: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Derivative of the Huber loss of a temporal difference: the error, at most 1 in size."""
    return error.clamp(-1.0, 1.0)
