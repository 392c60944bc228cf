"""What of a learner goes into files, and how does it come back?

`policy_tensors` and `warm_start` are the policy's side (`policy_file`): networks and normaliser.
`snapshot` and `restore` are the resumed run's: those, and all that learning has accumulated.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from kcpr_safety.agents.continuous import EVALUATION, Learner
from kcpr_safety.errors import TrainingFault
from kcpr_safety.stats import Line


def policy_tensors(learner: Learner) -> dict[str, Tensor]:
    """Copies of everything that a policy file holds (`policy_file`)."""
    tensors = {
        "obs_mean": learner.normaliser.obs_mean.cpu().clone(),
        "obs_scale": learner.normaliser.obs_scale.cpu().clone(),
        **learner.normaliser.obs_range.tensors(),
    }
    if bool(learner.normaliser.near.any()):
        tensors["obs_near"] = learner.normaliser.near.clone()
    for name, stack in (("actor", learner.deployed), ("critic", learner.critic)):
        for i, (weight, bias) in enumerate(stack.layers()):
            if name == "actor" and not learner.settings.coupled:
                # Offset zero: the fallback of an agent without a companion is itself.
                weight, bias = (torch.cat([p, torch.zeros_like(p)]) for p in (weight, bias))
            tensors[f"{name}.{i}.weight"] = weight.cpu().clone()
            tensors[f"{name}.{i}.bias"] = bias.cpu().clone()
    for offset in _offset_heads(tensors):
        offset.mul_(learner.settings.fallback_lean * learner.offset_scale)
    return tensors


def with_evaluation(tensors: Mapping[str, Tensor], line: Line, scale: float) -> dict[str, Tensor]:
    """A policy file's tensors with twins of Q_C that say line(Q_C) instead.

    `scale`: what one unit of punishment is to the critics (`Learner.punishment_scale`).
    """
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("critic."))
    weight, bias = f"critic.{last}.weight", f"critic.{last}.bias"
    changed = {name: tensors[name].clone() for name in (weight, bias)}
    changed[weight][EVALUATION] *= line.slope
    changed[bias][EVALUATION] *= line.slope
    changed[bias][EVALUATION] += line.offset * scale
    return {**tensors, **changed}


def _offset_heads(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Views of the weights and biases that make the fallback's offset."""
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("actor."))
    return [_offsets(tensors[f"actor.{last}.{kind}"]) for kind in ("weight", "bias")]


def _offsets(last: Tensor) -> Tensor:
    """The punishment module's first half of the actors' last weight or bias."""
    return last[1, ..., : last.shape[-1] // 2]


def warm_start(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    """Begin from a policy file's actors and critics; its normaliser is the starting guess.

    Where the file's fallback leaned further than these settings do, so does the first companion.
    """
    for name, stack in (("actor", learner.actor), ("critic", learner.critic)):
        for i, parameters in enumerate(stack.layers()):
            for kind, own in zip(("weight", "bias"), parameters, strict=True):
                given = tensors.get(f"{name}.{i}.{kind}")
                if given is None or given[: stack.members].shape != own.shape:
                    shape = None if given is None else tuple(given.shape)
                    raise TrainingFault(
                        f"cannot start from that policy: its {name}.{i}.{kind} is {shape}, "
                        f"these settings need {tuple(own.shape)}"
                    )
                own.copy_(given[: stack.members])
    if learner.settings.coupled:
        weight, bias = learner.actor.layers()[-1]
        for part in (weight, bias):
            _offsets(part).div_(learner.settings.fallback_lean * learner.offset_scale)
    learner.target.flat.copy_(learner.critic.flat)
    learner.deployed.flat.copy_(learner.actor.flat)
    learner.normaliser.begin(tensors, float(learner.settings.random_steps))


def snapshot(learner: Learner) -> dict[str, Tensor]:
    """Everything that a resumed run needs; by reference, so copy it before changing it."""
    streams = {
        f"stream.{name}": torch.tensor(controller.state(), dtype=torch.float64)
        for (name, _), controller in zip(
            learner.task.streams, learner.stream_controllers, strict=True
        )
    }
    return streams | {
        "parameters": learner.parameters,
        "target": learner.target.flat,
        "deployed": learner.deployed.flat,
        "adam_first": learner.adam[0],
        "adam_second": learner.adam[1],
        "generator": learner.generator.get_state(),
        **learner.normaliser.snapshot(),
        "scalars": torch.tensor(
            [learner.log_tau, float(learner.updates), *learner.controller.state()],
            dtype=torch.float64,
        ),
    }


def restore(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `snapshot`; the shapes are checked, nothing is half loaded before that."""
    own = snapshot(learner)
    for key, value in own.items():
        given = tensors.get(key)
        if given is None or given.shape != value.shape or given.dtype != value.dtype:
            raise TrainingFault(f"the checkpoint's '{key}' does not fit these settings")
    for key in ("parameters", "target", "deployed", "adam_first", "adam_second"):
        own[key].copy_(tensors[key])
    learner.normaliser.restore(tensors)
    learner.generator.set_state(tensors["generator"])
    learner.log_tau, updates, *state = tensors["scalars"].tolist()
    learner.updates = int(updates)
    learner.controller.take(state)
    for (name, _), controller in zip(learner.task.streams, learner.stream_controllers, strict=True):
        controller.take(tensors[f"stream.{name}"].tolist())
