"""Does the deployed file compute what was evaluated, to the last bit?

Two levels, row by row at batch 1, every method: golden observations, drawn from the normaliser's
statistics and shipped with their answers; and adversarial ones: bounds, zeros of both signs,
denormals, the largest floats, infinities and NaN in every entry. The distance is counted in ULP,
the number of float32 values between two answers. (The third level, whole episodes, needs a
simulator and lives in the tests.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kcpr_safety.contract import Contract
from kcpr_safety.controller import METHODS

GOLDEN_ROWS = 64
TOLERANCE = 1e-5
"""Largest error of a replayed golden answer on another machine, in shares of the action's span."""

_SPREAD = 3.0
"""Golden observations reach this many standard deviations, some beyond."""


@dataclass(frozen=True)
class Parity:
    """Largest distance over every row and method; 0 is parity."""

    golden_rows: int
    golden_max_ulp: int
    adversarial_rows: int
    adversarial_max_ulp: int

    @property
    def holds(self) -> bool:
        return self.golden_max_ulp == 0 and self.adversarial_max_ulp == 0


def golden_observations(tensors: Mapping[str, Tensor]) -> Float[Tensor, "rows obs"]:
    """Observations as training saw them, always the same for the same policy."""
    generator = torch.Generator().manual_seed(0)
    mean, scale = tensors["obs_mean"], tensors["obs_scale"]
    noise = torch.randn(GOLDEN_ROWS, mean.shape[0], generator=generator)
    widths = torch.linspace(0.0, _SPREAD, GOLDEN_ROWS).unsqueeze(1)
    return torch.nan_to_num(mean + widths * noise / scale)


def adversarial_observations(
    tensors: Mapping[str, Tensor], contract: Contract
) -> Float[Tensor, "rows obs"]:
    """Observations as only a broken sensor or an attacker gives them."""
    mean, scale = tensors["obs_mean"], tensors["obs_scale"]
    size = mean.shape[0]
    info = torch.finfo(torch.float32)
    values = [0.0, -0.0, 1.0, info.tiny, -info.tiny, info.smallest_normal / 2**10, info.eps]
    values += [info.max, info.min, 1e30, torch.inf, -torch.inf, torch.nan]
    rows = [torch.full((size,), value) for value in values]
    rows += [torch.tensor([getattr(e, side) for e in contract.observation]) for side in _SIDES]
    # Around the normaliser's clamp, where one ULP of the input decides.
    for limit in (-10.0, 10.0):
        edge = mean + limit / scale
        rows += [edge, torch.nextafter(edge, mean), torch.nextafter(edge, 2 * edge - mean)]
    for value in (torch.nan, torch.inf, -torch.inf, info.max, info.tiny):
        single = mean.repeat(size, 1)
        single.fill_diagonal_(value)
        rows += list(single)
    return torch.stack(rows).to(torch.float32)


def answers(
    module: torch.nn.Module, obs: Float[Tensor, "rows obs"]
) -> dict[str, Float[Tensor, "rows out"] | Int[Tensor, " rows"]]:
    """What every method says to every row, asked one at a time as a robot asks."""
    with torch.inference_mode():
        return {
            method: torch.cat([getattr(module, method)(row.unsqueeze(0)) for row in obs])
            for method in METHODS
        }


def measure(
    eager: torch.nn.Module,
    deployed: torch.nn.Module,
    tensors: Mapping[str, Tensor],
    contract: Contract,
) -> Parity:
    """Compare twice over: TorchScript's first calls run other code than its later ones."""
    golden = golden_observations(tensors)
    adversarial = adversarial_observations(tensors, contract)
    worst = []
    for obs in (golden, adversarial):
        wanted = answers(eager, obs)
        distances = [
            max_ulp(wanted[method], got)
            for _ in range(2)
            for method, got in answers(deployed, obs).items()
        ]
        worst.append(max(distances))
    return Parity(len(golden), worst[0], len(adversarial), worst[1])


def max_ulp(one: Tensor, two: Tensor) -> int:
    """Largest number of float32 steps between two equal-shaped tensors; integers by difference."""
    if one.shape != two.shape or one.dtype != two.dtype:
        raise ValueError(f"{one.dtype} {list(one.shape)} and {two.dtype} {list(two.shape)} differ")
    if one.numel() == 0:
        return 0
    return int((_line(one) - _line(two)).abs().max())


_SIDES = ("low", "high")


def _line(values: Tensor) -> Int[Tensor, "..."]:
    """float32 as integers in the order of the numbers; -0 lies one below +0."""
    if values.dtype != torch.float32:
        return values.to(torch.int64)
    bits = values.contiguous().view(torch.int32).to(torch.int64)
    return torch.where(bits >= 0, bits, -(bits + 2**31) - 1)
