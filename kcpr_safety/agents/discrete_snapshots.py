"""What of a discrete learner goes into files, and how does it come back? (See `snapshots`.)"""

from collections.abc import Mapping

import torch
from torch import Tensor

from kcpr_safety.agents.discrete import DiscreteLearner
from kcpr_safety.errors import TrainingFault


def policy_tensors(learner: DiscreteLearner) -> dict[str, Tensor]:
    """Copies of everything that a policy file holds (`policy_file`)."""
    tensors = {
        "obs_mean": learner.normaliser.obs_mean,
        "obs_scale": learner.normaliser.obs_scale,
        "logit_weights": torch.tensor(learner.settings.logit_weights),
        **learner.normaliser.obs_range.tensors(),
        **learner.parameters_of(learner.q),
    }
    return {name: tensor.cpu().clone() for name, tensor in tensors.items()}


def warm_start(learner: DiscreteLearner, tensors: Mapping[str, Tensor]) -> None:
    """Begin from a policy file's networks; its normaliser is the starting guess."""
    for name, own in learner.parameters_of(learner.q).items():
        given = tensors.get(name)
        if given is None or given.shape != own.shape:
            shape = None if given is None else tuple(given.shape)
            raise TrainingFault(
                f"cannot start from that policy: its {name} is {shape}, these settings need "
                f"{tuple(own.shape)}"
            )
        own.copy_(given)
    learner.target.flat.copy_(learner.q.flat)
    learner.normaliser.begin(tensors, float(learner.settings.random_steps))


def snapshot(learner: DiscreteLearner) -> dict[str, Tensor]:
    """Everything that a resumed run needs; by reference, so copy it before changing it."""
    return {
        "q": learner.q.flat,
        "target": learner.target.flat,
        "adam_first": learner.adam[0],
        "adam_second": learner.adam[1],
        "generator": learner.generator.get_state(),
        **learner.normaliser.snapshot(),
        "scalars": torch.tensor([learner.updates, learner.steps], dtype=torch.float64),
    }


def restore(learner: DiscreteLearner, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `snapshot`; the shapes are checked, nothing is half loaded before that."""
    own = snapshot(learner)
    for key, value in own.items():
        given = tensors.get(key)
        if given is None or given.shape != value.shape or given.dtype != value.dtype:
            raise TrainingFault(f"the checkpoint's '{key}' does not fit these settings")
    for key in ("q", "target", "adam_first", "adam_second"):
        own[key].copy_(tensors[key])
    learner.normaliser.restore(tensors)
    learner.generator.set_state(tensors["generator"])
    learner.updates, learner.steps = (int(value) for value in tensors["scalars"].tolist())
