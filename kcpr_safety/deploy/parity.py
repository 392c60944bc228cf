"""Does the deployed file compute what was evaluated, to the last bit?

Two levels, row by row at batch 1, every method: golden observations, drawn from the normaliser's
statistics and shipped with their answers; and adversarial ones: bounds, zeros of both signs,
denormals, the largest floats, infinities and NaN in every entry, the edges of every hard range and
what lies just beyond. The distance is counted in ULP,
the number of float32 values between two answers; of the forms that other libraries compute (ONNX)
in shares of the action's span, and of 1 + risk. `step` is asked row after row with its own state.
(The third level, whole episodes, needs a simulator and lives in the tests.)
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kcpr_safety.assurance import MODE_BITS, Assurance
from kcpr_safety.assured import AssuredController
from kcpr_safety.contract import Contract
from kcpr_safety.controller import METHODS

GOLDEN_ROWS = 64
TOLERANCE = 1e-5
"""Largest error of a replayed golden answer on another machine, in shares of the action's span."""

_SPREAD = 3.0
"""Golden observations reach this many standard deviations, some beyond."""

Act = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""obs [1, N] -> (action, risk, mode)"""


@dataclass(frozen=True)
class Parity:
    """Largest distances over every row and method; 0 is parity."""

    golden_rows: int
    golden_max_ulp: int
    adversarial_rows: int
    adversarial_max_ulp: int
    onnx_max_error: float
    pt2_max_error: float

    @property
    def holds(self) -> bool:
        exact = self.golden_max_ulp == 0 and self.adversarial_max_ulp == 0
        return exact and self.onnx_max_error <= TOLERANCE and self.pt2_max_error <= TOLERANCE


def golden_observations(tensors: Mapping[str, Tensor]) -> Float[Tensor, "rows obs"]:
    """Observations as training saw them, always the same for the same policy."""
    generator = torch.Generator().manual_seed(0)
    mean, scale = tensors["obs_mean"], tensors["obs_scale"]
    noise = torch.randn(GOLDEN_ROWS, mean.shape[0], generator=generator)
    widths = torch.linspace(0.0, _SPREAD, GOLDEN_ROWS).unsqueeze(1)
    return torch.nan_to_num(mean + widths * noise / scale)


def adversarial_observations(
    tensors: Mapping[str, Tensor], contract: Contract, assurance: Assurance
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
    return torch.stack([*rows, *_edges(mean, assurance)]).to(torch.float32)


def _edges(mean: Tensor, assurance: Assurance) -> list[Tensor]:
    """Every entry at its hard range's end, which is still valid; and each alone just beyond.

    So a range that is too narrow shows in the first two rows, and one that is too wide in its own.
    """
    low, high = (torch.tensor(side) for side in (assurance.hard_low, assurance.hard_high))
    inside = torch.minimum(torch.maximum(mean, low), high)
    rows = []
    for edge, out in ((low, -torch.inf), (high, torch.inf)):
        closed = torch.isfinite(edge)
        rows.append(torch.where(closed, edge, inside))
        beyond = torch.nextafter(edge, torch.full_like(edge, out))
        for i in torch.nonzero(closed).flatten().tolist():
            rows.append(inside.clone())
            rows[-1][i] = beyond[i]
    return rows


def answers(module: Any, obs: Float[Tensor, "rows obs"]) -> dict[str, Tensor]:
    """What every method of a controller, eager or scripted, says to every row, one at a time."""
    told: dict[str, list[Tensor]] = {}

    def note(name: str, answer: Tensor) -> None:
        told.setdefault(name, []).append(answer)

    with torch.inference_mode():
        state = initial_state(module)
        for row in obs:
            one = row.unsqueeze(0)
            for method in METHODS:
                note(method, getattr(module, method)(one))
            for name, answer in zip(_ACT, module.act(one), strict=True):
                note(name, answer)
            note("risk_of_fallback", module.risk(one, told["fallback"][-1]))
            *said, state = module.step(one, state)
            for name, answer in zip(_STEP, (*said, state), strict=True):
                note(name, answer)
    return {name: torch.cat(rows) for name, rows in told.items()}


def initial_state(module: Any) -> Float[Tensor, "1 state"]:
    """What `step` begins with, by the controller's own contract."""
    record = json.loads(module.contract())
    return torch.tensor([record["assurance"]["initial_state"]], dtype=torch.float32)


def measure(
    eager: AssuredController,
    deployed: torch.nn.Module,
    others: tuple[Act, Act],
    tensors: Mapping[str, Tensor],
    contract: Contract,
    assurance: Assurance,
) -> Parity:
    """Compare twice over: TorchScript's first calls run other code than its later ones.

    `others` are the ONNX graph and the exported program.
    """
    golden = golden_observations(tensors)
    adversarial = adversarial_observations(tensors, contract, assurance)
    worst = []
    errors = [0.0, 0.0]
    for obs in (golden, adversarial):
        wanted = answers(eager, obs)
        distances = [
            max_ulp(wanted[method], got)
            for _ in range(2)
            for method, got in answers(deployed, obs).items()
        ]
        worst.append(max(distances))
        for i, act in enumerate(others):
            errors[i] = max(errors[i], act_error(act, obs, wanted, contract))
    return Parity(len(golden), worst[0], len(adversarial), worst[1], errors[0], errors[1])


def act_error(
    act: Act, obs: Float[Tensor, "rows obs"], wanted: Mapping[str, Tensor], contract: Contract
) -> float:
    """Largest error of (action, risk, mode): in spans, in 1 + risk, and any other mode is 1.

    The risk of an invalid observation means nothing and is not compared; another shape is infinity.
    """
    said = [act(row.unsqueeze(0)) for row in obs]
    action, risk, mode = (torch.cat(parts) for parts in zip(*said, strict=True))
    wholes = zip((action, risk, mode), (wanted[name] for name in _ACT), strict=True)
    if any(one.shape != two.shape for one, two in wholes):
        return math.inf
    span = torch.tensor([entry.high - entry.low for entry in contract.action])
    known = wanted["act_mode"] != MODE_BITS["invalid"]
    errors = (
        (action - wanted["act_action"]).abs() / span,
        ((risk - wanted["act_risk"]).abs() / (1.0 + wanted["act_risk"]))[known],
        (mode != wanted["act_mode"]).float(),
    )
    return max(float(torch.nan_to_num(e, nan=torch.inf).max()) for e in errors if e.numel())


def max_ulp(one: Tensor, two: Tensor) -> int:
    """Largest number of float32 steps between two equal-shaped tensors; integers by difference."""
    if one.shape != two.shape or one.dtype != two.dtype:
        raise ValueError(f"{one.dtype} {list(one.shape)} and {two.dtype} {list(two.shape)} differ")
    if one.numel() == 0:
        return 0
    return int((_line(one) - _line(two)).abs().max())


_SIDES = ("low", "high")
_ACT = ("act_action", "act_risk", "act_mode")
_STEP = ("step_action", "step_risk", "step_mode", "step_state")


def _line(values: Tensor) -> Tensor:
    """float32 as integers in the order of the numbers; -0 lies one below +0."""
    if values.dtype != torch.float32:
        return values.to(torch.int64)
    bits = values.contiguous().view(torch.int32).to(torch.int64)
    return torch.where(bits >= 0, bits, -(bits + 2**31) - 1)
