"""Where do transitions wait to be learned from, and how is a batch drawn?

One float32 row per transition, both streams side by side:
[obs | action | reward | punishment | continues | next_obs], `continues` = 1 - terminated
(truncation bootstraps). Storing N environments' step is one block copy and drawing a batch is one
gather of rows into a buffer that is used again.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kcpr_safety.transition import Batch


@dataclass(frozen=True)
class Layout:
    """Column slices of one row."""

    obs_size: int
    action_size: int

    @property
    def width(self) -> int:
        return 2 * self.obs_size + self.action_size + 3

    def read(self, rows: Float[Tensor, "batch width"]) -> Batch:
        """Views of the columns."""
        sizes = [self.obs_size, self.action_size, 3, self.obs_size]
        obs, action, scalars, next_obs = torch.split(rows, sizes, dim=1)
        reward, punishment, continues = scalars.unbind(1)
        return Batch(obs, action, reward, punishment, continues, next_obs)


class Replay:
    """Ring buffer of the last `capacity` transitions."""

    def __init__(
        self,
        capacity: int,
        obs_size: int,
        action_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.layout = Layout(obs_size, action_size)
        self.rows = torch.zeros(capacity, self.layout.width, device=device)
        self.added = 0
        """Transitions ever added; the newest stands in row (added - 1) % capacity."""
        self._drawn = torch.empty(0, self.layout.width, device=device)

    def __len__(self) -> int:
        return min(self.added, self.rows.shape[0])

    def add(self, batch: Batch) -> None:
        """Store N transitions, overwriting the oldest."""
        scalars = torch.stack([batch.reward, batch.punishment, batch.continues], dim=1)
        rows = torch.cat([batch.obs, batch.action, scalars, batch.next_obs], dim=1)
        rows = rows.to(self.rows.device)
        capacity, start = self.rows.shape[0], self.added % self.rows.shape[0]
        first = min(rows.shape[0], capacity - start)
        self.rows[start : start + first] = rows[:first]
        self.rows[: rows.shape[0] - first] = rows[first:]
        self.added += rows.shape[0]

    def take_up(self, added: int) -> None:
        """Continue with the rows that stand here, as after `added` transitions."""
        self.added = added

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Uniform batch with replacement; valid until the next draw."""
        return self.gather(torch.randint(len(self), (size,), generator=generator))

    def gather(self, index: Int[Tensor, "batch"]) -> Batch:
        """The named rows; valid until the next draw."""
        if self._drawn.shape[0] != index.shape[0]:
            self._drawn = self.rows.new_empty(index.shape[0], self.layout.width)
        torch.index_select(self.rows, 0, index.to(self.rows.device), out=self._drawn)
        return self.layout.read(self._drawn)
