"""What of one robot's policy can another one begin with?

Observations and actions are matched by name and unit, whatever their order. What the new task
observes beyond that has weights of zero at first: the policy acts as it did, and learns to look.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kcpr_safety.contract import Contract, Entry
from kcpr_safety.controller import layers_of
from kcpr_safety.errors import TrainingFault
from kcpr_safety.policy_file import PolicyFile

_MOST = torch.finfo(torch.float32).max
_UNSEEN = {
    "obs_mean": 0.0,
    "obs_scale": 1.0,
    "obs_low": _MOST,
    "obs_high": -_MOST,
    "obs_near": 0.0,
}
"""The normaliser's entries for a number that was never observed."""


def shared_entries(policy: PolicyFile, contract: Contract) -> int:
    """How many of the contract's observations the policy knows."""
    return sum(place is not None for place in _places(policy.contract, contract))


def inherited(policy: PolicyFile, contract: Contract) -> dict[str, Tensor]:
    """The policy's tensors (`policy_file`), arranged for the observations of that contract.

    `TrainingFault` where the two share no observation, or their actions differ.
    """
    known = policy.contract
    places = _places(known, contract)
    if all(place is None for place in places):
        raise TrainingFault(
            f"cannot start from that policy: of what {contract.task} observes, a policy of "
            f"{policy.task} knows nothing ({_told(contract.observation)} against "
            f"{_told(known.observation)})"
        )
    given = {entry.name: i for i, entry in enumerate(known.action)}
    if set(given) != {entry.name for entry in contract.action}:
        raise TrainingFault(
            f"cannot start from that policy: {contract.task} is driven by "
            f"{_told(contract.action)}, a policy of {policy.task} drives {_told(known.action)}"
        )
    actions = torch.tensor([given[entry.name] for entry in contract.action])
    tensors = dict(policy.tensors)
    for name, unknown in _UNSEEN.items():
        if name in tensors:
            tensors[name] = _picked(tensors[name], places, unknown)
    for name in ("actor.0.weight", "q.0.weight"):
        if name in tensors:
            tensors[name] = _picked(tensors[name].mT, places, 0.0).mT
    if "critic.0.weight" in tensors:
        both = tensors["critic.0.weight"]
        observed = _picked(both[:, : known.obs_size].mT, places, 0.0).mT
        acted = both[:, known.obs_size :]
        tensors["critic.0.weight"] = torch.cat([observed, acted[:, actions]], 1)
    if not known.commands:
        last = len(layers_of(tensors, "actor")) - 1
        columns = torch.cat([actions, actions + known.action_size])  # means, then deviations
        for kind in ("weight", "bias"):
            name = f"actor.{last}.{kind}"
            tensors[name] = tensors[name][..., columns]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _places(known: Contract, wanted: Contract) -> list[int | None]:
    """Where the known contract has each of the wanted one's observations."""
    places = {(entry.name, entry.unit): i for i, entry in enumerate(known.observation)}
    return [places.get((entry.name, entry.unit)) for entry in wanted.observation]


def _picked(values: Tensor, places: Sequence[int | None], unknown: float) -> Tensor:
    """Columns of `values` [..., known] in the order of `places`; `unknown` for those of none."""
    picked = values.new_full((*values.shape[:-1], len(places)), unknown)
    found = [(new, old) for new, old in enumerate(places) if old is not None]
    new, old = (torch.tensor(side) for side in zip(*found, strict=True))
    picked[..., new] = values[..., old]
    return picked


def _told(entries: Sequence[Entry]) -> str:
    names = [entry.name for entry in entries[:3]]
    return ", ".join(names) + (f" and {len(entries) - 3} more" if len(entries) > 3 else "")
