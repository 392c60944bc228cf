"""How does a program get actions out of a run folder, a policy file or a bundle?

    policy = load_policy("bundle")
    action = policy.act(obs)            # numpy in, numpy out

Of a bundle every file must be what a trusted key signed (`manifest`) before anything is read, all
must agree with each other, and the TorchScript controller, loaded only when its bytes are laid out
as the exporter does, has to repeat its golden answers before it may act. A run or a
policy file gives the same controller without TorchScript.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from torch import Tensor, nn

from kcpr_safety.assurance import Assurance
from kcpr_safety.assured import assured, contract_text, unassured
from kcpr_safety.contract import Contract
from kcpr_safety.deploy.archive import extras_of, load_script
from kcpr_safety.deploy.bundle import (
    CARD_FILE,
    CONTRACT_EXTRA,
    FILES,
    GOLDEN_FILE,
    read_calibration,
)
from kcpr_safety.deploy.card import card_from_bytes
from kcpr_safety.deploy.keys import trusted_keys
from kcpr_safety.deploy.manifest import MANIFEST_FILE, Sealed, open_sealed
from kcpr_safety.deploy.parity import TOLERANCE, answers
from kcpr_safety.deploy.runtimes import asked
from kcpr_safety.deploy.script import CONTROLLER_FILE
from kcpr_safety.errors import FileFault
from kcpr_safety.evidence import CALIBRATION_FILE
from kcpr_safety.policy_file import BUNDLE_FILE, PolicyFile, policy_from_bytes, read_policy
from kcpr_safety.tensor_file import unpack

Row = Float[ndarray, "*batch obs"]
Command = Float[ndarray, "*batch action"]


@dataclass(frozen=True)
class Policy:
    """A deterministic policy in physical units, with what it may assume."""

    contract: Contract
    source: Path
    """The folder or file that it was loaded from."""
    controller: nn.Module
    """Takes float32 tensors: the methods of `assured.AssuredController`."""

    def act(self, obs: Row) -> Command:
        """The nominal action [A] of one observation [O], or [N, A] of N of them, float32."""
        return self._ask("nominal", obs)

    def fallback(self, obs: Row) -> Command:
        """The punishment module's action: learned avoidance, not a certified stop."""
        return self._ask("fallback", obs)

    def check(self, obs: Row) -> Int[ndarray, "*batch"]:
        """0, or the bits that say what is wrong with each observation."""
        return self._ask("check", obs)

    def _ask(self, method: str, obs: Row) -> Shaped[ndarray, "..."]:
        array = np.asarray(obs)
        width = self.contract.obs_size
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"observations are float32 or float64, not {array.dtype}")
        if array.ndim not in (1, 2) or array.shape[-1] != width:
            raise ValueError(
                f"an observation of {self.contract.task} is [{width}] or [batch, {width}], "
                f"not {list(array.shape)}"
            )
        # Too large for float32 becomes infinite, and is then answered as such.
        with np.errstate(over="ignore"):
            rows = torch.from_numpy(np.atleast_2d(array).astype(np.float32))
        function = getattr(self.controller, method)
        with torch.inference_mode():
            # Row by row: a matrix product may round differently in a larger batch.
            outputs = [function(rows[i : i + 1]) for i in range(len(rows))]
        stacked = torch.cat(outputs) if outputs else function(rows)
        answer: Shaped[ndarray, ...] = stacked.numpy()
        return np.asarray(answer[0]) if array.ndim == 1 else answer


@dataclass(frozen=True)
class Opened:
    """A bundle whose parts have been checked against each other."""

    sealed: Sealed
    card: Mapping[str, Any]
    policy: PolicyFile
    assurance: Assurance
    module: torch.jit.ScriptModule
    """`controller.pt`, after its golden answers were repeated."""
    error: float
    """Largest error of those, in shares of an action's span."""


def load_policy(path: Path, trust: Iterable[Path] = ()) -> Policy:
    """Load whatever can act from a run folder, a policy file or a bundle folder.

    A bundle must be signed by a key of `keys.trusted_keys`; `trust` adds files `ID.pub` to those. A
    run that is not calibrated yet has neither ranges nor thresholds.
    """
    path = Path(path)
    if is_bundle(path):
        opened = open_bundle(path, trust)
        return Policy(opened.policy.contract, path, opened.module)
    policy = read_policy(path)
    assurance = unassured(policy)
    if (path / CALIBRATION_FILE).is_file():
        assurance, _ = read_calibration(path, policy)
    return Policy(policy.contract, path, assured(policy, assurance))


def is_bundle(path: Path) -> bool:
    """Whether a folder wants to be a bundle."""
    marks = (CONTROLLER_FILE, CARD_FILE, MANIFEST_FILE)
    return path.is_dir() and any((path / mark).exists() for mark in marks)


def open_bundle(folder: Path, trust: Iterable[Path] = ()) -> Opened:
    """Check a bundle's files against each other and load its TorchScript controller."""
    sealed = open_sealed(folder, trusted_keys(trust))
    data = sealed.contents
    if odd := sorted(set(data) ^ set(FILES)):
        what = "no part of a bundle" if odd[0] in data else f"not listed in {MANIFEST_FILE}"
        raise FileFault(f"{folder / odd[0]} is {what} of this package's format")
    card = card_from_bytes(data[CARD_FILE], str(folder / CARD_FILE))
    if card["signature"]["public_key_sha256"] != sealed.key.fingerprint:
        raise FileFault(
            f"{folder / CARD_FILE} names another key than {sealed.key.id}, which signed"
        )
    policy = policy_from_bytes(data[BUNDLE_FILE], str(folder / BUNDLE_FILE))
    contract = policy.contract
    if card["contract"] != json.loads(contract.to_json()):
        raise FileFault(f"{folder / CARD_FILE} and {BUNDLE_FILE} differ in their contract")
    sizes = (contract.obs_size, contract.action_size)
    assurance = Assurance.from_record(card["assurance"], sizes, str(folder / CARD_FILE))
    name = str(folder / CONTROLLER_FILE)
    archive = data[CONTROLLER_FILE]
    extras = extras_of(archive, name)
    text = contract_text(contract, assurance)
    beside = {
        CARD_FILE: data[CARD_FILE],
        GOLDEN_FILE: data[GOLDEN_FILE],
        CONTRACT_EXTRA: text.encode(),
    }
    for extra, content in beside.items():
        if extras.get(extra) != content:
            raise FileFault(f"{name} belongs to another bundle: its {extra} differs")
    golden, _ = unpack(data[GOLDEN_FILE], str(folder / GOLDEN_FILE))
    module = load_script(archive, name)
    with asked(name):
        if module.contract() != text:
            raise FileFault(f"{name} and {CARD_FILE} differ in their contract")
        error = max(self_test(module, golden, contract, str(folder)), own_test(module, name))
    return Opened(sealed, card, policy, assurance, module, error)


def own_test(module: torch.jit.ScriptModule, name: str) -> float:
    """The golden answers that the controller carries inside."""
    error = float(module.self_test())
    if not error <= TOLERANCE:
        raise FileFault(
            f"{name} does not repeat its golden answers here: its self-test is off by {error:.2g}, "
            f"allowed is {TOLERANCE:.0g}"
        )
    return error


def self_test(
    module: torch.nn.Module, golden: dict[str, Tensor], contract: Contract, name: str
) -> float:
    """Replay the golden answers; the largest error, in shares of an action's span."""
    obs = golden.get("obs")
    if obs is None or obs.dim() != 2 or obs.shape[0] == 0 or obs.shape[1] != contract.obs_size:
        raise FileFault(f"{name}/{GOLDEN_FILE} does not hold golden answers")
    told = answers(module, obs)
    if {"obs", *told} != set(golden):
        raise FileFault(f"{name}/{GOLDEN_FILE} does not hold the answers of every method")
    span = torch.tensor([entry.high - entry.low for entry in contract.action])
    worst = 0.0
    for method, answer in told.items():
        wanted = golden[method]
        if wanted.shape != answer.shape or wanted.dtype != answer.dtype:
            raise FileFault(f"{name}/{GOLDEN_FILE} does not fit {CONTROLLER_FILE}")
        scale = span if answer.shape[-1:] == span.shape and answer.dim() == 2 else torch.ones(())
        if "risk" in method:
            scale = 1.0 + wanted.abs()
        error = ((answer - wanted).abs() / scale).max()
        worst = max(worst, float(error)) if error == error else float("inf")
    if worst > TOLERANCE:
        raise FileFault(
            f"{name}/{CONTROLLER_FILE} does not repeat its golden answers here: it is off by "
            f"{worst:.2g} of an action's span, allowed is {TOLERANCE:.0g}"
        )
    return worst
