"""Is a bundle everything that it says it is, on this machine, now?

Signature and hashes, card against its schema, contract everywhere the same, golden answers inside
and outside the controller, parity of all forms with the eager policy on golden and adversarial
observations, page and picture against the card. The first fault is raised, with the file and the
reason. Whether the task still has the contract is for who knows tasks (`api.verify`).
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kcpr_safety import __version__
from kcpr_safety.assured import SCHEMA_VERSION, AssuredController, assured, contract_text
from kcpr_safety.deploy.bundle import CARD_FILE, COMPONENTS_FILE, PAGE_FILE, PLOT_FILE
from kcpr_safety.deploy.components import check_components
from kcpr_safety.deploy.load import Opened, open_bundle, self_test
from kcpr_safety.deploy.parity import (
    TOLERANCE,
    act_error,
    adversarial_observations,
    answers,
    golden_observations,
    measure,
)
from kcpr_safety.deploy.render import plot_of, rendered
from kcpr_safety.deploy.runtimes import asked, exported_act, onnx_act, onnx_contract
from kcpr_safety.deploy.script import CONTROLLER_FILE, EXPORTED_FILE, ONNX_FILE
from kcpr_safety.errors import FileFault


def verify_bundle(folder: Path, trust: Iterable[Path] = ()) -> tuple[Opened, dict[str, Any]]:
    """The bundle and what was found; anything wrong raises `FileFault`."""
    opened = open_bundle(folder, trust)
    data = opened.sealed.contents
    for name, wanted in ((PAGE_FILE, rendered), (PLOT_FILE, plot_of)):
        # Another version words its pages otherwise; its bytes are signed all the same.
        own = opened.card["provenance"]["package"] == f"kcpr-safety {__version__}"
        if own and data[name] != wanted(opened.card).encode():
            raise FileFault(f"{folder / name} does not say what {CARD_FILE} says")
    check_components(data[COMPONENTS_FILE], str(folder / COMPONENTS_FILE))
    return opened, {
        "task": opened.policy.task,
        "path": str(folder),
        "key": opened.sealed.key.id,
        "files": len(data),
        "bytes": sum(map(len, data.values())),
        "golden_error": opened.error,
        **parity_here(opened, folder),
    }


def parity_here(opened: Opened, folder: Path) -> dict[str, Any]:
    """Measured on this machine, which may round differently from the one that exported."""
    data, policy = opened.sealed.contents, opened.policy
    others = (
        onnx_act(data[ONNX_FILE], str(folder / ONNX_FILE)),
        exported_act(data[EXPORTED_FILE], str(folder / EXPORTED_FILE)),
    )
    text = contract_text(policy.contract, opened.assurance)
    if onnx_contract(data[ONNX_FILE], str(folder / ONNX_FILE)) != text:
        raise FileFault(f"{folder / ONNX_FILE} and {CARD_FILE} differ in their contract")
    eager = assured(policy, opened.assurance)
    with asked(str(folder / CONTROLLER_FILE)):
        version = opened.module.schema_version()
        parity = measure(
            eager, opened.module, others, policy.tensors, policy.contract, opened.assurance
        )
    for name, error in ((ONNX_FILE, parity.onnx_max_error), (EXPORTED_FILE, parity.pt2_max_error)):
        if not error <= TOLERANCE:
            raise FileFault(f"{folder / name} differs from the policy by {error:.2g} of a span")
    found = {f"parity_{name}": value for name, value in asdict(parity).items()}
    if version != SCHEMA_VERSION:
        with asked(str(folder / CONTROLLER_FILE)):
            return found | {"parity_earlier_version_max_error": _earlier(eager, opened, folder)}
    if max(parity.golden_max_ulp, parity.adversarial_max_ulp) > MOST_ULP:
        raise FileFault(
            f"{folder / CONTROLLER_FILE} differs from the policy of weights.safetensors by "
            f"{max(parity.golden_max_ulp, parity.adversarial_max_ulp)} ULP"
        )
    return found


def _earlier(eager: AssuredController, opened: Opened, folder: Path) -> float:
    """Largest error of a controller whose arithmetic is an earlier version's."""
    tensors, contract = opened.policy.tensors, opened.policy.contract
    obs = golden_observations(tensors)
    told = {"obs": obs, **answers(eager, obs)}
    error = self_test(opened.module, told, contract, str(folder))
    obs = adversarial_observations(tensors, contract, opened.assurance)
    error = max(error, act_error(opened.module.act, obs, answers(eager, obs), contract))
    if not error <= TOLERANCE:
        raise FileFault(
            f"{folder / CONTROLLER_FILE}, of an earlier version, differs from the policy of "
            f"weights.safetensors by {error:.2g} of a span"
        )
    return error


MOST_ULP = 0
"""Eager and TorchScript call the same kernels, on any one machine; of an earlier version the
controller differs by roundings, and is held to the tolerance of another machine."""
