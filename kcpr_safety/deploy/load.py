"""How does a program get actions out of a run folder, a policy file or a bundle?

    policy = load_policy("bundle")
    action = policy.act(obs)            # numpy in, numpy out

Of a bundle every file must be what a trusted key signed (`manifest`) before anything is read, all
must agree with each other, and the TorchScript controller, loaded only when its bytes are laid out
as the exporter does, has to repeat its golden answers before it may act. A run or a
policy file gives the same controller without TorchScript.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from torch import Tensor, nn

from kcpr_safety.contract import Contract
from kcpr_safety.controller import METHODS, controller_from_tensors
from kcpr_safety.deploy.archive import extras_of, load_script
from kcpr_safety.deploy.bundle import (
    CARD_FILE,
    CONTRACT_EXTRA,
    CONTROLLER_FILE,
    FILES,
    GOLDEN_FILE,
)
from kcpr_safety.deploy.card import card_from_bytes
from kcpr_safety.deploy.keys import trusted_keys
from kcpr_safety.deploy.manifest import MANIFEST_FILE, open_sealed
from kcpr_safety.deploy.parity import TOLERANCE, answers
from kcpr_safety.errors import FileFault
from kcpr_safety.policy_file import BUNDLE_FILE, policy_from_bytes, read_policy
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
    """Takes float32 tensors [batch, obs]: `forward`, `nominal`, `fallback`, `check`."""

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


def load_policy(path: Path, trust: Iterable[Path] = ()) -> Policy:
    """Load whatever can act from a run folder, a policy file or a bundle folder.

    A bundle must be signed by a key of `keys.trusted_keys`; `trust` adds files `ID.pub` to those.
    """
    path = Path(path)
    marks = (CONTROLLER_FILE, CARD_FILE, MANIFEST_FILE)
    if path.is_dir() and any((path / mark).exists() for mark in marks):
        return load_bundle(path, trust)
    policy = read_policy(path)
    controller = controller_from_tensors(policy.tensors, policy.contract)
    return Policy(policy.contract, path, controller)


def load_bundle(folder: Path, trust: Iterable[Path] = ()) -> Policy:
    """Check a bundle's files against each other and load its TorchScript controller."""
    data = open_sealed(folder, trusted_keys(trust)).contents
    if odd := sorted(set(data) ^ set(FILES)):
        what = "no part of a bundle" if odd[0] in data else f"not listed in {MANIFEST_FILE}"
        raise FileFault(f"{folder / odd[0]} is {what} of this package's format")
    card = card_from_bytes(data[CARD_FILE], str(folder / CARD_FILE))
    policy = policy_from_bytes(data[BUNDLE_FILE], str(folder / BUNDLE_FILE))
    contract = policy.contract
    if card["contract"] != json.loads(contract.to_json()):
        raise FileFault(f"{folder / CARD_FILE} and {BUNDLE_FILE} differ in their contract")
    name = str(folder / CONTROLLER_FILE)
    archive = data[CONTROLLER_FILE]
    extras = extras_of(archive, name)
    beside = {
        CARD_FILE: data[CARD_FILE],
        GOLDEN_FILE: data[GOLDEN_FILE],
        CONTRACT_EXTRA: contract.to_json().encode(),
    }
    for extra, content in beside.items():
        if extras.get(extra) != content:
            raise FileFault(f"{name} belongs to another bundle: its {extra} differs")
    golden, _ = unpack(data[GOLDEN_FILE], str(folder / GOLDEN_FILE))
    module = load_script(archive, name)
    self_test(module, golden, contract, str(folder))
    return Policy(contract, folder, module)


def self_test(module: nn.Module, golden: dict[str, Tensor], contract: Contract, name: str) -> float:
    """Replay the golden answers; the largest error, in shares of an action's span."""
    rows = golden["obs"].shape[0] if "obs" in golden else 0
    if set(golden) != {"obs", *METHODS} or rows == 0 or golden["obs"].dim() != 2:
        raise FileFault(f"{name}/{GOLDEN_FILE} does not hold golden answers")
    span = torch.tensor([entry.high - entry.low for entry in contract.action])
    worst = 0.0
    try:
        for method, answer in answers(module, golden["obs"]).items():
            scale = span if answer.is_floating_point() else torch.ones(())
            error = ((answer - golden[method]).abs() / scale).max()
            worst = max(worst, float(error)) if error == error else float("inf")
    except RuntimeError as error:
        raise FileFault(f"{name}/{GOLDEN_FILE} does not fit {CONTROLLER_FILE}") from error
    if worst > TOLERANCE:
        raise FileFault(
            f"{name}/{CONTROLLER_FILE} does not repeat its golden answers here: it is off by "
            f"{worst:.2g} of an action's span, allowed is {TOLERANCE:.0g}"
        )
    return worst
