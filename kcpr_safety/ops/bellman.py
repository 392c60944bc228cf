"""What does each critic learn towards?

    reward       y = r + g (low Q_R(s', a') - tau_R log pi_R(a'|s') - k_R X(pi_R)(s')),  a' ~ pi_R
    punishment   y = c + g (mean Q_P(s', a') + tau_P log pi_P(a'|s') + k_P X(pi_P)(s')), a' ~ pi_P
    evaluation   y = c + g Q_C(s', a'),                        a' = the deployed policy's, noiseless

X is the excess KL (`ops.gaussian`), g the discount after termination: g = gamma (1 - terminated);
truncation bootstraps. low is the lower of the twins, or what `pessimism` makes of both.

Q_P and Q_C are punishments (>= 0). The maximum of the twins would be their
pessimism, but it is taken again at every step: where the twins differ by a little, Q_P grows to
several times what is ever suffered, and what it then says about *actions* is mostly that noise
(docs/experiments.md). The mean has no such bias, and the coupling keeps pi_P too close to pi_R to
exploit it.

To the punishment module the c of a terminated step also holds gamma times what would have been
suffered ever after, at the deployed policy's pace: else whoever runs too fast learns from it to
fall, which is the quickest way to suffer no more. Q_C counts what is truly suffered.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

Column = Float[Tensor, "batch"]
Twins = Float[Tensor, "twins batch"]
Members = Float[Tensor, "members batch"]


def low(q: Twins, pessimism: float) -> Column:
    """The lower twin at a pessimism of 1, both twins' mean at 0, evenly in between."""
    least = q.amin(0)
    return least + 0.5 * (1.0 - pessimism) * (q.amax(0) - least)


def reward_target(
    reward: Column, discount: Column, next_q: Twins, regularisation: Column, pessimism: float
) -> Column:
    """r + g (low over twins - regularisation); regularisation = tau log pi + k X."""
    return reward + discount * (low(next_q, pessimism) - regularisation)


def punishment_target(
    punishment: Column, discount: Column, next_q: Twins, regularisation: Column
) -> Column:
    """c + g (mean of twins + regularisation), at least 0: punishments cannot be negative."""
    return (punishment + discount * (next_q.mean(0) + regularisation)).clamp_min(0.0)


def evaluation_target(punishment: Column, discount: Column, next_q: Twins) -> Twins:
    """c + g Q_C of each twin itself: an unbiased pair, whose spread shows its uncertainty.

    Not clamped: near zero the clamp would keep every error upwards and cut every one downwards,
    again at each of the 1/(1-gamma) steps of the horizon.
    """
    return punishment + discount * next_q


def critic_loss(q: Members, target: Members) -> Float[Tensor, ""]:
    """Half the squared error, averaged over the batch and summed over ensemble members."""
    return 0.5 * mse_loss(q, target, reduction="sum") / q.shape[-1]
