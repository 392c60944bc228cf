"""What does one file hold so that a policy can be run, exported or trained further anywhere?

A safetensors file with fixed tensor names, and everything else as text in its header:

    obs_mean [O], obs_scale [O]        normalisation: (obs - mean) * scale
    obs_low [O], obs_high [O]          what training saw, at least and at most; files of schema
                                       version 1 lack the two
    obs_near [O]                       what an observation of closeness adds at 1
                                       (see `controller`); in files of schema version 3 alone
    actor.{i}.weight [2, in, out]      member 0: reward module, 1: punishment module; ReLU between
    actor.{i}.bias [2, 1, out]         last out = 2 A: pre-tanh mean (of the punishment module: the
                                       fallback's offset in the reward module's deviations), then
                                       raw log std
    critic.{i}.weight [C, in, out]     state-action critics, O + A inputs, for warm starts and risk
    critic.{i}.bias [C, 1, out]

where the contract has a table of K commands, in place of actors and critics:

    q.{i}.weight [2, in, out]          member 0: values of reward, 1: of minus punishment; ReLU
    q.{i}.bias [2, 1, out]             between; last out = K, one value for each command
    logit_weights [2]                  (h_R, b h_P): the policy's preferences are
                                       logit_weights[0] Q_R + logit_weights[1] Q_P

Anything that differs from this is refused by name, on reading and on writing: sizes are never
inferred from weights, and nothing is unpickled.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kcpr_safety.contract import Contract
from kcpr_safety.errors import FileFault
from kcpr_safety.files import atomic_write, read_limited
from kcpr_safety.tensor_file import pack, unpack
from kcpr_safety.texts import json_object

SCHEMA_VERSIONS = ("1", "2", "3")
"""Those that are read: 1 is without the range of the observations, and so is what is read; 3 has
nearness, with or without that range."""
RUN_FILE = "policy.safetensors"
BUNDLE_FILE = "weights.safetensors"
MODULES = 2
"""Reward module and punishment module."""

MAX_BYTES = 64 * 2**20
MAX_LAYERS = 8
_KEYS = ("agent", "contract", "schema_version", "seed", "settings", "steps", "task")
_LAYER = re.compile(r"(actor|critic|q)\.(\d+)\.(weight|bias)")
_NORMALISER = ("obs_mean", "obs_scale")
RANGE = ("obs_low", "obs_high")
NEAR = "obs_near"


@dataclass(frozen=True)
class PolicyFile:
    """A trained policy with its critics, what it may assume, and where it comes from."""

    tensors: Mapping[str, Tensor]
    contract: Contract
    agent: str
    seed: int
    """The training seed."""
    steps: int
    """Environment steps taken when these weights were kept."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The agent's settings, JSON values only."""

    @property
    def task(self) -> str:
        return self.contract.task

    @property
    def schema_version(self) -> str:
        return _version(self.tensors)

    def metadata(self) -> dict[str, str]:
        """All but the tensors, as the file's header holds it."""
        return {
            "schema_version": self.schema_version,
            "contract": self.contract.to_json(),
            "settings": json.dumps(dict(self.settings), sort_keys=True, allow_nan=False),
            "agent": self.agent,
            "task": self.task,
            "seed": str(self.seed),
            "steps": str(self.steps),
        }


def locate_policy(path: Path) -> Path:
    """The policy file that `path` means: itself, or the one in a run or bundle folder."""
    path = Path(path)
    if path.is_dir():
        for name in (RUN_FILE, BUNDLE_FILE):
            if (path / name).is_file():
                return path / name
        raise FileFault(f"{path} holds no policy: neither {RUN_FILE} nor {BUNDLE_FILE} is there")
    if not path.exists():
        raise FileFault(f"{path} does not exist; name a run folder, a bundle or a policy file")
    return path


def write_policy(path: Path, policy: PolicyFile) -> None:
    """Write atomically; equal policies give equal bytes."""
    atomic_write(path, policy_to_bytes(policy, str(path)))


def read_policy(path: Path) -> PolicyFile:
    """Read a policy file, or the one in a run or bundle folder."""
    path = locate_policy(path)
    return policy_from_bytes(read_limited(path, MAX_BYTES), str(path))


def policy_to_bytes(policy: PolicyFile, name: str) -> bytes:
    """The file's bytes; a policy that could not be read back raises `FileFault`."""
    check_tensors(policy.tensors, policy.contract, name)
    data = pack(policy.tensors, policy.metadata())
    if len(data) > MAX_BYTES:
        raise FileFault(f"{name} would be {len(data):,} bytes; a policy has at most {MAX_BYTES:,}")
    return data


def policy_from_bytes(data: bytes, name: str) -> PolicyFile:
    """Inverse of `policy_to_bytes`; `name` is what a fault calls the file."""
    tensors, metadata = unpack(data, name)
    version = metadata.get("schema_version")
    if version not in SCHEMA_VERSIONS:
        found = "has no schema_version" if version is None else f"has schema version '{version}'"
        known = "' or '".join(SCHEMA_VERSIONS)
        raise FileFault(f"{name} {found}; a policy file of this package has '{known}'")
    if version != _version(tensors):
        least = {"2": RANGE[0], "3": NEAR}.get(version, f"no {RANGE[0]}, no {NEAR}")
        raise FileFault(f"{name} has schema version {version}, but not its tensors: {least}")
    if set(metadata) != set(_KEYS):
        odd = ", ".join(sorted(set(metadata) ^ set(_KEYS)))
        raise FileFault(f"{name} is not a policy file: its header is missing or adds {odd}")
    try:
        contract = Contract.from_json(metadata["contract"])
        settings = json_object(metadata["settings"])
        seed, steps = int(metadata["seed"]), int(metadata["steps"])
    except (FileFault, ValueError) as error:
        raise FileFault(f"{name} has a damaged header: {error}") from error
    if metadata["task"] != contract.task:
        raise FileFault(f"{name} names task {metadata['task']}, its contract {contract.task}")
    check_tensors(tensors, contract, name)
    return PolicyFile(tensors, contract, metadata["agent"], seed, steps, settings)


def check_tensors(tensors: Mapping[str, Tensor], contract: Contract, name: str) -> None:
    """Raise `FileFault` unless names, shapes, types and values are those of the format."""
    discrete = bool(contract.commands)
    plain = (*_NORMALISER, *RANGE, NEAR, *(("logit_weights",) if discrete else ()))
    stacks = ("q",) if discrete else ("actor", "critic")
    for key, tensor in tensors.items():
        layer = _LAYER.fullmatch(key)
        if key not in plain and not (layer and layer[1] in stacks):
            if layer or key == "logit_weights":
                kind = f"{len(contract.commands)} commands" if discrete else "no table of commands"
                raise FileFault(f"{name} holds a tensor '{key}', but its contract has {kind}")
            raise FileFault(f"{name} holds a tensor '{key}' that no policy has")
        if tensor.dtype != torch.float32:
            raise FileFault(f"{name}: {key} is {tensor.dtype}, not torch.float32")
        if not bool(torch.isfinite(tensor).all()):
            raise FileFault(f"{name}: {key} holds a number that is not finite")
    for entry in contract.action:
        if not -math.inf < entry.low < entry.high < math.inf:
            raise FileFault(f"{name}: action {entry.name} needs finite bounds, low below high")
    obs, action = contract.obs_size, contract.action_size
    _expect(tensors, "obs_mean", (obs,), name)
    _expect(tensors, "obs_scale", (obs,), name)
    if bool((tensors["obs_scale"] <= 0).any()):
        raise FileFault(f"{name}: obs_scale must be positive everywhere")
    if any(key in tensors for key in RANGE):
        for key in RANGE:
            _expect(tensors, key, (obs,), name)
        if bool((tensors["obs_low"] > tensors["obs_high"]).any()):
            raise FileFault(f"{name}: obs_low is above obs_high")
    if NEAR in tensors:
        _expect(tensors, NEAR, (obs,), name)
        if bool((tensors[NEAR] < 0).any()):
            raise FileFault(f"{name}: {NEAR} must not be negative")
    if discrete:
        _check_stack(tensors, "q", obs, len(contract.commands), name)
        _expect(tensors, "logit_weights", (MODULES,), name)
        if not bool(tensors["logit_weights"].any()):
            raise FileFault(f"{name}: logit_weights are all 0, which prefers no command")
    else:
        _check_stack(tensors, "actor", obs, 2 * action, name)
        _check_stack(tensors, "critic", obs + action, None, name)
    if tensors[f"{stacks[0]}.0.weight"].shape[0] != MODULES:
        raise FileFault(f"{name}: {stacks[0]}.0.weight must have {MODULES} members")


def _version(tensors: Mapping[str, Tensor]) -> str:
    """The schema version of a file that holds these."""
    return "3" if NEAR in tensors else "2" if RANGE[0] in tensors else "1"


def layer_count(tensors: Mapping[str, Tensor], stack: str) -> int:
    """How many layers `stack` ("actor", "critic" or "q") has."""
    return sum(f"{stack}.{i}.weight" in tensors for i in range(MAX_LAYERS + 1))


def _check_stack(
    tensors: Mapping[str, Tensor], stack: str, inputs: int, outputs: int | None, name: str
) -> None:
    """Layers 0, 1, ... without a gap, each fitting on the one before."""
    found = {match[2] for key in tensors if (match := _LAYER.fullmatch(key)) and match[1] == stack}
    count = len(found)
    if not 1 <= count <= MAX_LAYERS or found != {str(i) for i in range(count)}:
        raise FileFault(f"{name}: the {stack} must have layers 0, 1, ... up to {MAX_LAYERS} in all")
    members = None
    for i in range(count):
        weight = tensors.get(f"{stack}.{i}.weight")
        if weight is None or weight.dim() != 3 or 0 in weight.shape:
            raise FileFault(f"{name}: {stack}.{i}.weight must be [members, in, out]")
        members = members or weight.shape[0]
        last = outputs if outputs is not None and i == count - 1 else weight.shape[2]
        _expect(tensors, f"{stack}.{i}.weight", (members, inputs, last), name)
        _expect(tensors, f"{stack}.{i}.bias", (members, 1, last), name)
        inputs = last


def _expect(tensors: Mapping[str, Tensor], key: str, shape: tuple[int, ...], name: str) -> None:
    if key not in tensors:
        raise FileFault(f"{name} lacks the tensor {key}")
    if tuple(tensors[key].shape) != shape:
        found = list(tensors[key].shape)
        raise FileFault(f"{name}: {key} has shape {found}, its contract asks for {list(shape)}")
