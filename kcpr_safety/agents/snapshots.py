"""What of a learner goes into files, and how does it come back?

`policy_tensors` and `warm_start` are the policy's side (`policy_file`): networks and normaliser.
`snapshot` and `restore` are the resumed run's: those, and all that learning has accumulated.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from kcpr_safety.agents.budget import WINDOW
from kcpr_safety.agents.continuous import Learner
from kcpr_safety.errors import TrainingFault

_GROWING = ("recent",)
"""Parts of the state that have no fixed shape."""

LATER = ("obs_low", "obs_high")
"""Parts that checkpoints of earlier versions lack: what was seen before is then forgotten."""


def policy_tensors(learner: Learner) -> dict[str, Tensor]:
    """Copies of everything that a policy file holds (`policy_file`)."""
    tensors = {
        "obs_mean": learner.obs_mean.cpu().clone(),
        "obs_scale": learner.obs_scale.cpu().clone(),
        **learner.obs_range.tensors(),
    }
    for name, stack in (("actor", learner.deployed), ("critic", learner.critic)):
        for i, (weight, bias) in enumerate(stack.layers()):
            if name == "actor" and not learner.settings.coupled:
                # Offset zero: the fallback of an agent without a companion is itself.
                weight, bias = (torch.cat([p, torch.zeros_like(p)]) for p in (weight, bias))
            tensors[f"{name}.{i}.weight"] = weight.cpu().clone()
            tensors[f"{name}.{i}.bias"] = bias.cpu().clone()
    return tensors


def warm_start(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    """Begin from a policy file's actors and critics; its normaliser is the starting guess."""
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
    learner.target.flat.copy_(learner.critic.flat)
    learner.deployed.flat.copy_(learner.actor.flat)
    # As if it had been seen in this many rows: new data soon outweighs it.
    count = float(learner.settings.random_steps)
    learner.obs_moments.count.fill_(count)
    learner.obs_moments.mean.copy_(tensors["obs_mean"])
    learner.obs_moments.squares.copy_(count * tensors["obs_scale"].double().pow(-2))
    learner.refresh_normaliser()
    if "obs_low" in tensors:
        learner.obs_range.merge(tensors["obs_low"], tensors["obs_high"])


def snapshot(learner: Learner) -> dict[str, Tensor]:
    """Everything that a resumed run needs; by reference, so copy it before changing it."""
    recent = list(learner.controller.recent)
    return {
        "parameters": learner.parameters,
        "target": learner.target.flat,
        "deployed": learner.deployed.flat,
        "adam_first": learner.adam[0],
        "adam_second": learner.adam[1],
        "generator": learner.generator.get_state(),
        "obs_count": learner.obs_moments.count,
        "obs_mean": learner.obs_moments.mean,
        "obs_squares": learner.obs_moments.squares,
        "obs_low": learner.obs_range.low,
        "obs_high": learner.obs_range.high,
        "return_count": learner.return_scale.moments.count,
        "return_mean": learner.return_scale.moments.mean,
        "return_squares": learner.return_scale.moments.squares,
        "return_running": learner.return_scale.running,
        "scalars": torch.tensor(
            [learner.log_tau, learner.controller.integral, float(learner.updates)],
            dtype=torch.float64,
        ),
        "recent": torch.tensor(recent, dtype=torch.float64),
    }


def restore(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `snapshot`; the shapes are checked, nothing is half loaded before that."""
    own = {key: value for key, value in snapshot(learner).items() if key not in _GROWING}
    for key, value in own.items():
        given = tensors.get(key, value if key in LATER else None)
        if given is None or given.shape != value.shape or given.dtype != value.dtype:
            raise TrainingFault(f"the checkpoint's '{key}' does not fit these settings")
    for key in ("parameters", "target", "deployed", "adam_first", "adam_second"):
        own[key].copy_(tensors[key])
    for prefix, moments in (("obs", learner.obs_moments), ("return", learner.return_scale.moments)):
        moments.count = tensors[f"{prefix}_count"].clone()
        moments.mean = tensors[f"{prefix}_mean"].clone()
        moments.squares = tensors[f"{prefix}_squares"].clone()
    if LATER[0] in tensors:
        learner.obs_range.low, learner.obs_range.high = (tensors[key].clone() for key in LATER)
    learner.return_scale.refresh()
    learner.return_scale.running = tensors["return_running"].clone()
    learner.generator.set_state(tensors["generator"])
    learner.log_tau, learner.controller.integral, updates = tensors["scalars"].tolist()
    learner.updates = int(updates)
    learner.controller.recent.clear()
    learner.controller.recent.extend(tensors["recent"].tolist()[-WINDOW:])
    learner.refresh_normaliser()
