"""How are observations and rewards brought to unit scale while the data still grows?"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kcpr_safety.controller import MAX_NORMALISED, NEAR_GAIN

OBS_DEVIATION_FLOOR = 1e-2
"""An entry that hardly varies is not blown up by more than the inverse of this."""


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
        torch.minimum(self.low, low, out=self.low)
        torch.maximum(self.high, high, out=self.high)

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


class Normaliser:
    """What a learner sees of observations and rewards: both at unit scale, by all that was met.

    One that is not `active` leaves everything as it is.
    """

    def __init__(
        self,
        obs_size: int,
        num_envs: int,
        gamma: float,
        *,
        device: torch.device | str = "cpu",
        active: bool = True,
        near: Tensor | None = None,
    ) -> None:
        """`near` [obs]: how much larger what is close looks (see `controller`); None: not."""
        self.device, self.active = device, active
        self._look(torch.zeros(obs_size) if near is None else near)
        self.obs_moments = Moments(obs_size)
        self.obs_range = Extremes(obs_size)
        self.return_scale = ReturnScale(num_envs, gamma)
        self.refresh()

    def add(
        self,
        obs: Float[Tensor, "envs obs"],
        reward: Float[Tensor, "envs"],
        ended: Bool[Tensor, "envs"],
        *,
        holds: bool = False,
    ) -> None:
        """Merge in one step of all environments; what observations become `holds`, if told."""
        self.obs_range.add(obs)
        if not self.active:
            return
        if not holds:
            self.obs_moments.add(obs)
        self.return_scale.add(reward, ended)
        self.refresh()

    def __call__(self, obs: Float[Tensor, "batch obs"]) -> Float[Tensor, "batch obs"]:
        """Observations on the learner's device, centred, scaled and clipped."""
        if not self.active:
            return obs
        centred = (obs - self.obs_mean).mul_(self.obs_scale)
        centred.clamp_(-MAX_NORMALISED, MAX_NORMALISED)
        if self._looks_near:
            centred.add_(torch.exp((obs.clamp(max=1.0) - 1.0) * NEAR_GAIN) * self._near)
        return centred

    @property
    def reward_scale(self) -> float:
        """What to multiply rewards by."""
        return self.return_scale.scale if self.active else 1.0

    def refresh(self) -> None:
        """Take over what the moments say by now."""
        seen = float(self.obs_moments.count) > 0
        deviation = self.obs_moments.deviation.clamp_min(OBS_DEVIATION_FLOOR)
        scale = (1.0 / deviation).float() if seen else torch.ones(len(deviation))
        self.obs_mean = self.obs_moments.mean.float().to(self.device)
        self.obs_scale = scale.to(self.device)

    def _look(self, near: Float[Tensor, "obs"]) -> None:
        """From now on what is close looks larger by so much."""
        self.near, self._near = near, near.to(self.device)
        self._looks_near = bool(near.any())

    def begin(self, tensors: Mapping[str, Tensor], rows: float) -> None:
        """A policy file's normaliser, as if seen in this many rows: new data soon outweighs it."""
        self.obs_moments.count.fill_(rows)
        self.obs_moments.mean.copy_(tensors["obs_mean"])
        self.obs_moments.squares.copy_(rows * tensors["obs_scale"].double().pow(-2))
        if "obs_low" in tensors:
            self.obs_range.merge(tensors["obs_low"], tensors["obs_high"])
        self._look(tensors.get("obs_near", torch.zeros_like(self.near)).clone())
        self.refresh()

    def snapshot(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs; by reference, so copy it before changing it."""
        moments = self.return_scale.moments
        return {
            "obs_count": self.obs_moments.count,
            "obs_mean": self.obs_moments.mean,
            "obs_squares": self.obs_moments.squares,
            "obs_low": self.obs_range.low,
            "obs_high": self.obs_range.high,
            "obs_near": self.near,
            "return_count": moments.count,
            "return_mean": moments.mean,
            "return_squares": moments.squares,
            "return_running": self.return_scale.running,
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `snapshot`."""
        for prefix, moments in (("obs", self.obs_moments), ("return", self.return_scale.moments)):
            moments.count = tensors[f"{prefix}_count"].clone()
            moments.mean = tensors[f"{prefix}_mean"].clone()
            moments.squares = tensors[f"{prefix}_squares"].clone()
        self.obs_range.low = tensors["obs_low"].clone()
        self.obs_range.high = tensors["obs_high"].clone()
        self._look(tensors["obs_near"].clone())
        self.return_scale.running = tensors["return_running"].clone()
        self.return_scale.refresh()
        self.refresh()
