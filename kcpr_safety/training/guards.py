"""How is a training noticed that went wrong, before it spoils anything?

Numbers that are none are caught where they arise: what the world gave (`envs.world`, and here what
float32 cannot hold), what an update made of its batch (loss, entropy, gradient; one sum and a few
scalars, 0.4 % of an update), the learner's whole state before every checkpoint. The run then
returns once to its last good state and draws other random numbers from there on; a second time, it
stops with one sentence. What was at hand is left in `fault-STEPS.safetensors`.

Divergence makes no NaN; it is read off every row of the log, under `health`:

    critics exploding         a value beyond anything that rewards and punishments could add up to
    policy collapsed          the deviation of its actions at its lower bound
    coupling pinned ...       the controller's m at a bound for PINNED_STEPS steps: at the cap, the
                              budget is not met with all the weight there is; at the floor, it never
                              binds; so for the m of every stream
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcpr_safety.controller import LOG_STD_RANGE
from kcpr_safety.errors import FileFault, TrainingFault
from kcpr_safety.files import atomic_write
from kcpr_safety.tensor_file import pack
from kcpr_safety.training.checkpoints import versions
from kcpr_safety.transition import Batch

SCHEMA_VERSION = "1"
HEALTHY = "ok"
PINNED_STEPS = 20_000
MOST_VALUE = 1e3
"""Values are of order one where they are normalised; those of the cruellest task reach 40."""
_COLLAPSED = 1.05 * math.exp(LOG_STD_RANGE[0])
_AT_BOUND = 1e-3
_COUPLING, _PINNED = "coupling_m", "pinned"
"""What the total's metric and count are called; a stream's have its name after them."""


class Broken(TrainingFault):
    """Learning met or made a number that is none."""

    def __init__(self, sentence: str, batch: Batch | None = None) -> None:
        super().__init__(sentence)
        self.batch = batch


class Guard:
    """What one run has been through, and the checks along its way."""

    def __init__(self, task: str, m_bounds: tuple[float, float] | None, most_value: float) -> None:
        """`m_bounds` are those of a budget controller, where there is one."""
        self.task, self._m_bounds, self._most_value = task, m_bounds, most_value
        self.rollbacks = 0
        self._pinned = {"": 0}
        """By stream, "" being the total: 1 + the steps at which its m was first seen at the bound
        where it still is; else 0."""

    def counts(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        pinned = {f"{_PINNED}{stream}": since for stream, since in self._pinned.items()}
        return {"rollbacks": self.rollbacks} | pinned

    def take(self, counts: Mapping[str, int]) -> None:
        """Inverse of `counts`."""
        self.rollbacks = counts["rollbacks"]
        self._pinned = {"": counts[_PINNED]} | {
            key.removeprefix(_PINNED): since
            for key, since in counts.items()
            if key.startswith(_PINNED)
        }

    # ---------------------------------------------------------------------------------- checks

    def stored(self, batch: Batch, steps: int) -> None:
        """One step's transitions: finite in float64, but are they in float32?"""
        if not math.isfinite(
            float(batch.reward.sum() + batch.punishment.sum() + batch.next_obs.sum())
        ):
            self._fail(_culprits(batch._asdict()) or ["the sum of an observation"], batch, steps)

    def learned(
        self, metrics: Mapping[str, Any], gradient: Tensor | None, batch: Batch, steps: int
    ) -> None:
        """One update: its losses, its entropy, its gradient."""
        total = sum(float(v) for k, v in metrics.items() if k == "entropy" or k.endswith("loss"))
        if gradient is not None:
            total += float(gradient.sum())
        if not math.isfinite(total):
            bad = _culprits(batch._asdict()) + _culprits(metrics)
            bad += [] if gradient is None else _culprits({"gradient": gradient})
            self._fail(bad or ["the sum of a gradient"], batch, steps)

    def whole(self, state: Mapping[str, Tensor], steps: int) -> None:
        """All of a learner, before it becomes a checkpoint."""
        bad = _culprits(state)
        if bad:
            self._fail(bad, None, steps)

    def _fail(self, names: list[str], batch: Batch | None, steps: int) -> None:
        raise Broken(
            f"{', '.join(names)} became not finite at {steps:,} steps of {self.task}", batch
        )

    # ------------------------------------------------------------------------------ divergence

    def health(self, row: Mapping[str, Any]) -> str:
        """`HEALTHY`, or what is wrong with the training that this row of the log is about."""
        signs = []
        values = [abs(row[key]) for key in ("reward_q", "punishment_q") if key in row]
        if max(values, default=0.0) > self._most_value:
            signs.append(f"critics exploding (value {max(values):.3g})")
        if row.get("deviation", math.inf) < _COLLAPSED:
            signs.append(f"policy collapsed (deviation {row['deviation']:.2g})")
        streams = [key.removeprefix(_COUPLING) for key in row if key.startswith(f"{_COUPLING}_")]
        for stream in ("", *streams):
            bound = self._bound(row.get(f"{_COUPLING}{stream}"))
            since = (self._pinned.get(stream) or row["steps"] + 1) if bound else 0
            self._pinned[stream] = since
            if bound and row["steps"] + 1 - since >= PINNED_STEPS:
                whose = f" of {stream[1:]}" if stream else ""
                signs.append(f"coupling{whose} pinned at its {bound}")
        return ", ".join(signs) or HEALTHY

    def _bound(self, m: float | None) -> str | None:
        if m is None or self._m_bounds is None:
            return None
        low, high = self._m_bounds
        if m >= high * (1 - _AT_BOUND):
            return "cap"
        return "floor" if m <= low * (1 + _AT_BOUND) else None


def most_value(time_limit: int, budget: float) -> float:
    """|Q| beyond which critics explode, in normalised units: punished in every step, twice."""
    return max(MOST_VALUE, 2.0 * time_limit / max(budget, 1.0))


def dump(
    run: Path,
    steps: int,
    fault: Exception,
    learner: Mapping[str, Tensor],
    world: Mapping[str, np.ndarray],
) -> Path | None:
    """Leave what a bug report needs: batch, learner, and the environments' seeds and actions.

    None where not even that could be written.
    """
    tensors = {f"learner.{key}": value for key, value in learner.items()}
    tensors |= {f"world.{key}": torch.from_numpy(array) for key, array in world.items()}
    batch = getattr(fault, "batch", None)
    if batch is not None:
        held = batch._asdict().items()
        tensors |= {f"batch.{key}": value for key, value in held if value is not None}
    header = {
        "schema_version": SCHEMA_VERSION,
        "fault": str(fault),
        "steps": str(steps),
        "versions": json.dumps(versions()),
    }
    path = run / f"fault-{steps}.safetensors"
    with suppress(FileFault):
        atomic_write(path, pack(tensors, header))
        return path
    return None


def _culprits(values: Mapping[str, Any]) -> list[str]:
    """Names of what holds a number that is none."""
    return [
        key
        for key, value in values.items()
        if value is not None and not bool(torch.isfinite(torch.as_tensor(value)).all())
    ]
