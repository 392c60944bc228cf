"""What do tests use in place of a trained policy and the folder of a finished run?"""

import math
from itertools import pairwise

import torch

from kcpr_safety.contract import Contract, Entry
from kcpr_safety.policy_file import PolicyFile

BUDGET = 25.0


def fake_contract(obs: int = 5, actions: int = 2, task: str = "SafetyFake-v1") -> Contract:
    """Bounds that are neither symmetric nor equal, so that a mistaken scale shows."""
    return Contract(
        task=task,
        observation=tuple(Entry(f"sensor_{i}", "m/s") for i in range(obs)),
        action=tuple(Entry(f"motor_{i}", "N m", -1.0 - i, 0.5 + i) for i in range(actions)),
        period_s=0.05,
        time_limit=1000,
        budget=BUDGET,
        punishment="1 for every step above the speed limit",
    )


def fake_policy(
    seed: int = 0,
    *,
    contract: Contract | None = None,
    width: int = 32,
    residual: float = 1.0,
    gain: float = 1.0,
) -> PolicyFile:
    """A random policy of the real format; `gain` > 1 makes the actions saturate."""
    contract = contract or fake_contract()
    obs, actions = contract.obs_size, contract.action_size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {
        "obs_mean": normal(obs),
        "obs_scale": 0.5 + normal(obs).abs(),
        "companion_residual": torch.tensor(residual),
    }
    for stack, members, sizes in (
        ("actor", 2, (obs, width, width, 2 * actions)),
        ("critic", 6, (obs + actions, width, width, 1)),
    ):
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            weight = normal(members, inputs, outputs)
            tensors[f"{stack}.{i}.weight"] = gain * weight / math.sqrt(inputs)
            tensors[f"{stack}.{i}.bias"] = 0.1 * normal(members, 1, outputs)
    settings = {"width": width, "tau_reward": 0.2}
    return PolicyFile(tensors, contract, "kcpr", seed, 90_000, settings)
