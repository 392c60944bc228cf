"""What does a learner see of the world? Steps, in tensors, with both streams."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Batch(NamedTuple):
    """B transitions; learners see nothing else of a world."""

    obs: Float[Tensor, "batch obs"]
    action: Float[Tensor, "batch action"]
    """In [-1, 1]; the world's bounds are applied outside the learner."""
    reward: Float[Tensor, "batch"]
    punishment: Float[Tensor, "batch"]
    """Punishment (cost) of the step, >= 0."""
    continues: Float[Tensor, "batch"]
    """1 - terminated: 0 where the episode truly ended, 1 where time ran out or it goes on; over
    n steps, times gamma^(n - 1) (`replay.NStep`)."""
    next_obs: Float[Tensor, "batch obs"]
    streams: Float[Tensor, "batch streams"] | None = None
    """The punishment's parts that have budgets of their own, where a task has such."""
