"""How does a run become a folder that a robot can trust to be what was evaluated?

    NAME/  controller.pt        scripted and frozen; card, contract and golden vectors inside
           controller.onnx      `act` as an ONNX graph
           controller.pt2       `act` as a torch.export program
           weights.safetensors  source of truth: both policies and the critics, a policy file
           golden.safetensors   observations with their answers
           card.json            interface, assurance, evidence, parity, provenance
           CARD.md              the card for people, with evaluation.svg
           sbom.cdx.json        components and licences (CycloneDX)
           manifest.json        SHA-256 of all of these (`manifest`)
           manifest.sig         ed25519 signature over it (`keys`)

Written only here, only with evaluation evidence and bit-exact parity, and as a whole: the folder is
filled beside its place and then renamed. The same run and key give the same bytes.
"""

import hashlib
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kcpr_safety.assurance import Assurance
from kcpr_safety.assured import assured, contract_text
from kcpr_safety.deploy.archive import canonical, extras_of, load_script
from kcpr_safety.deploy.card import Proof, card_to_bytes, check_card, make_card
from kcpr_safety.deploy.components import components
from kcpr_safety.deploy.keys import PublicKey, signing_key
from kcpr_safety.deploy.manifest import SEALS, seal
from kcpr_safety.deploy.parity import Parity, answers, golden_observations, measure
from kcpr_safety.deploy.render import plot_of, rendered
from kcpr_safety.deploy.runtimes import exported_act, onnx_act
from kcpr_safety.deploy.script import CONTROLLER_FILE, EXPORTED_FILE, ONNX_FILE, scripted
from kcpr_safety.errors import FileFault
from kcpr_safety.evidence import (
    CALIBRATION_FILE,
    EVIDENCE_FILE,
    LATENCY_FILE,
    STRESS_FILE,
    Evidence,
    read_evidence,
    read_json,
)
from kcpr_safety.files import atomic_write, faults_of, sync_folder
from kcpr_safety.policy_file import (
    BUNDLE_FILE,
    PolicyFile,
    locate_policy,
    policy_to_bytes,
    read_policy,
)
from kcpr_safety.stats import over_budget
from kcpr_safety.tensor_file import pack

GOLDEN_FILE = "golden.safetensors"
CARD_FILE = "card.json"
CONTRACT_EXTRA = "contract.json"
PAGE_FILE = "CARD.md"
PLOT_FILE = "evaluation.svg"
COMPONENTS_FILE = "sbom.cdx.json"
FILES = (
    *(CONTROLLER_FILE, ONNX_FILE, EXPORTED_FILE),
    *(BUNDLE_FILE, GOLDEN_FILE, CARD_FILE, PAGE_FILE, PLOT_FILE, COMPONENTS_FILE),
)
"""What manifest and signature are about."""


def export_bundle(run: Path, out: Path, key: str | Path | None = None) -> dict[str, Any]:
    """Write the bundle of a run folder to the folder `out`; the result's keys are stable.

    `key` is a private key's file or its name among the user's own (`keys.signing_key`).
    """
    start = time.perf_counter()
    run, out = Path(run), Path(out)
    check_target(out)
    signer = signing_key(key)
    policy = read_policy(run)
    proof = read_proof(run, policy)
    evidence = proof.evidence
    contents, parity = bundle_contents(policy, proof, signer.public)
    write_folder(out, seal(contents, signer))
    return {
        "task": policy.task,
        "agent": policy.agent,
        "seed": policy.seed,
        "eval_seed": evidence.eval_seed,
        "steps": evidence.steps,
        "wall_s": time.perf_counter() - start,
        "return_mean": evidence.return_mean,
        "punishment_mean": evidence.punishment_mean,
        "episodes": evidence.episodes,
        "over_budget_share": over_budget(evidence.punishments, evidence.budget) / evidence.episodes,
        "budget": evidence.budget,
        "path": str(out),
        "key": signer.id,
        "parity": {**asdict(parity), "holds": parity.holds},
    }


def read_run_evidence(run: Path, policy: PolicyFile) -> Evidence:
    """The run's evaluation, if it judged this very policy."""
    path = run / EVIDENCE_FILE
    if not path.exists():
        raise FileFault(
            f"{run} has not been evaluated, and a bundle needs evidence; "
            f"first run: kcpr-safety evaluate {run}"
        )
    evidence = read_evidence(path)
    for key in ("task", "agent", "seed"):
        judged, held = getattr(evidence, key), getattr(policy, key)
        if judged != held:
            raise FileFault(f"{path} judged {key} {judged}, but the run's policy has {held}")
    if evidence.policy_sha256 != _digest(run):
        raise FileFault(
            f"{path} judged another policy than the run holds now; run again: "
            f"kcpr-safety evaluate {run}"
        )
    held = tuple((stream.name, stream.budget) for stream in policy.contract.streams)
    if evidence.budgets != held:
        raise FileFault(
            f"{path} does not judge the streams that the policy is held to; run again: "
            f"kcpr-safety evaluate {run}"
        )
    return evidence


def read_proof(run: Path, policy: PolicyFile) -> Proof:
    """The evidence files of a run, each of which must be about its kept policy."""
    evidence = read_run_evidence(run, policy)
    assurance, calibration = read_calibration(run, policy)
    optional = {
        name: read_json(run / name) if (run / name).exists() else None
        for name in (STRESS_FILE, LATENCY_FILE, "config.json")
    }
    stress = optional[STRESS_FILE]
    if stress is not None and (stress.get("policy_sha256"), stress.get("assurance")) != (
        _digest(run),
        assurance.to_record(),
    ):
        raise FileFault(
            f"{run / STRESS_FILE} was made with another policy or calibration; run again: "
            f"kcpr-safety stress {run}"
        )
    latency, config = optional[LATENCY_FILE], optional["config.json"] or {}
    return Proof(evidence, assurance, calibration, stress, latency, config)


def read_calibration(run: Path, policy: PolicyFile) -> tuple[Assurance, dict[str, Any]]:
    """The run's calibration, if it was of this very policy."""
    path = run / CALIBRATION_FILE
    if not path.exists():
        raise FileFault(
            f"{run} has not been calibrated, and a controller needs its ranges and thresholds; "
            f"first run: kcpr-safety calibrate {run}"
        )
    record = read_json(path)
    if record.get("policy_sha256") != _digest(run):
        raise FileFault(
            f"{path} is about another policy than the run holds now; run again: "
            f"kcpr-safety calibrate {run}"
        )
    sizes = (policy.contract.obs_size, policy.contract.action_size)
    assurance = Assurance.from_record(record.get("assurance"), sizes, str(path))
    report = record.get("calibration")
    if not isinstance(report, dict) or not isinstance(report.get("fallback"), dict):
        raise FileFault(f"{path} holds no report of a calibration")
    return assurance, report


def _digest(run: Path) -> str:
    return hashlib.sha256(locate_policy(run).read_bytes()).hexdigest()


def bundle_contents(
    policy: PolicyFile, proof: Proof, key: PublicKey
) -> tuple[dict[str, bytes], Parity]:
    """File name -> bytes of a bundle whose parity has been measured on these very bytes."""
    contract, tensors = policy.contract, policy.tensors
    eager = assured(policy, proof.assurance)
    forms = scripted(policy, proof.assurance)
    others = (
        onnx_act(forms[ONNX_FILE], ONNX_FILE),
        exported_act(forms[EXPORTED_FILE], EXPORTED_FILE),
    )
    script = load_script(forms[CONTROLLER_FILE], CONTROLLER_FILE)
    parity = measure(eager, script, others, tensors, contract, proof.assurance)
    if not parity.holds:
        raise FileFault(
            f"no bundle of {policy.task} was written: the TorchScript controller differs from the "
            f"evaluated policy by {max(parity.golden_max_ulp, parity.adversarial_max_ulp)} ULP, "
            f"ONNX by {parity.onnx_max_error:.2g} and torch.export by {parity.pt2_max_error:.2g} "
            "of the action's span"
        )
    obs = golden_observations(tensors)
    golden = pack({"obs": obs, **answers(eager, obs)}, {"schema_version": "1"})
    card = make_card(policy, proof, parity, key)
    check_card(card, CARD_FILE)
    data = card_to_bytes(card)
    extras = {
        CARD_FILE: data,
        CONTRACT_EXTRA: contract_text(contract, proof.assurance).encode(),
        GOLDEN_FILE: golden,
    }
    controller = canonical(forms[CONTROLLER_FILE], extras)
    extras_of(controller, CONTROLLER_FILE)
    return forms | {
        CONTROLLER_FILE: controller,
        BUNDLE_FILE: policy_to_bytes(policy, BUNDLE_FILE),
        GOLDEN_FILE: golden,
        CARD_FILE: data,
        PAGE_FILE: rendered(card).encode(),
        PLOT_FILE: plot_of(card).encode(),
        COMPONENTS_FILE: components(),
    }, parity


def check_target(out: Path) -> None:
    """Raise `FileFault` unless `out` is new, an empty folder or an earlier bundle."""
    with faults_of(f"cannot write {out}"):
        if out.exists():
            strange = [out.name] if not out.is_dir() else sorted(_names(out) - {*FILES, *SEALS})
            if strange:
                raise FileFault(
                    f"cannot write {out}: {strange[0]} is no part of a bundle; "
                    "choose a new or empty folder"
                )


def write_folder(out: Path, contents: Mapping[str, bytes]) -> None:
    """Put a bundle in its place as a whole; only a bundle or an empty folder is ever replaced."""
    out = out.resolve()
    check_target(out)
    mark = secrets.token_hex(6)
    fresh, old = (out.with_name(f".{out.name}.{mark}.{kind}") for kind in ("new", "old"))
    with faults_of(f"cannot write {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.mkdir()
            for name, data in contents.items():
                atomic_write(fresh / name, data)
            if out.exists():
                out.rename(old)
            try:
                fresh.rename(out)
            except BaseException:
                with suppress(OSError):
                    old.rename(out)
                raise
            sync_folder(out.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
