"""How are observations and rewards brought to unit scale while the data still grows?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Moments:
    """Running mean and variance per column, merged batch by batch in float64 (Chan et al. 1979)."""

    def __init__(self, size: int) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.squares = torch.zeros(size, dtype=torch.float64)
        """Sum of squared deviations from the mean."""

    def add(self, rows: Float[Tensor, "rows size"]) -> None:
        """Merge in a batch of rows."""
        rows = rows.double()
        count = rows.shape[0]
        mean = rows.mean(0)
        gap = mean - self.mean
        total = self.count + count
        self.squares += (rows - mean).square().sum(0) + gap.square() * (self.count * count / total)
        self.mean += gap * (count / total)
        self.count = total

    @property
    def deviation(self) -> Float[Tensor, "size"]:
        """Standard deviation per column; 0 before any data."""
        return (self.squares / self.count.clamp_min(1.0)).sqrt()


class Extremes:
    """Smallest and largest number per column so far."""

    def __init__(self, size: int) -> None:
        most = torch.finfo(torch.float32).max
        # Finite from the start, as everything in a checkpoint is.
        self.low = torch.full((size,), most)
        self.high = torch.full((size,), -most)

    def add(self, rows: Float[Tensor, "rows size"]) -> None:
        """Take a batch of rows into account."""
        torch.minimum(self.low, rows.amin(0), out=self.low)
        torch.maximum(self.high, rows.amax(0), out=self.high)

    def merge(self, low: Float[Tensor, "size"], high: Float[Tensor, "size"]) -> None:
        """Take into account what another has seen."""
        self.add(torch.stack([low, high]))

    def tensors(self) -> dict[str, Tensor]:
        """Copies by the names of a policy file; none before any data."""
        if bool((self.low > self.high).any()):
            return {}
        return {"obs_low": self.low.clone(), "obs_high": self.high.clone()}


class ReturnScale:
    """1 / deviation of the discounted return sum_k gamma^k r_(t-k) that each environment carries.

    Used to divide rewards by, so that values are of order one on every task.
    """

    def __init__(self, num_envs: int, gamma: float, floor: float = 1e-2) -> None:
        self.gamma, self.floor = gamma, floor
        self.moments = Moments(1)
        self.running = torch.zeros(num_envs, dtype=torch.float64)
        self.refresh()

    def add(self, reward: Float[Tensor, "envs"], ended: Bool[Tensor, "envs"]) -> None:
        """Advance every environment's running return by one reward."""
        self.running = self.gamma * self.running + reward.double()
        self.moments.add(self.running[:, None])
        self.running = self.running.masked_fill(ended, 0.0)
        self.refresh()

    def refresh(self) -> None:
        """Take over what the moments say by now."""
        self.scale = 1.0 / max(float(self.moments.deviation), self.floor)
        """What to multiply rewards by."""
