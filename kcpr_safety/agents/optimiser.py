"""How does one Adam step move all parameters of a learner, which lie in one flat tensor?

A unit that no longer fires has no gradient: its moments shrink until they are denormal, where
rounding holds them for good (0.999 of the smallest float is the smallest float again) and every
operation is many times slower. After half a million steps a quarter of all moments can be such; so
what is too small to move anything is set to zero now and then.

Source: Kingma and Ba 2015; torch's fused kernel.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam

Flat = Float[Tensor, "parameters"]

TIDY_EVERY = 256
"""Updates between two looks: fewer than it takes from the threshold to a denormal."""
NOTHING = 1e-25
"""Against the 1e-8 that is added to the root of the second moment (1e-16 if squared)."""


def adam_step(
    parameters: Flat, gradient: Flat, moments: tuple[Flat, Flat], update: int, learning_rate: float
) -> None:
    """Move `parameters` and both `moments` in place; `update` counts from 1."""
    if update % TIDY_EVERY == 0:
        for moment in moments:
            moment.masked_fill_(moment.abs() < NOTHING, 0.0)
    adam(
        [parameters],
        [gradient],
        [moments[0]],
        [moments[1]],
        max_exp_avg_sqs=[],
        # The kernel counts the step itself, before it is used.
        state_steps=[torch.tensor(float(update - 1), device=parameters.device)],
        fused=True,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=learning_rate,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )
