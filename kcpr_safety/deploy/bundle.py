"""How does a run become a folder that a robot can trust to be what was evaluated?

    NAME/  controller.pt        scripted and frozen; card, contract and golden vectors inside
           weights.safetensors  source of truth: both policies and the critics, a policy file
           golden.safetensors   observations with their answers
           card.json            interface, evidence, parity, provenance
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

from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.deploy.archive import canonical, extras_of, load_script
from kcpr_safety.deploy.card import card_to_bytes, make_card
from kcpr_safety.deploy.keys import signing_key
from kcpr_safety.deploy.manifest import SEALS, seal
from kcpr_safety.deploy.parity import Parity, answers, golden_observations, measure
from kcpr_safety.deploy.script import scripted
from kcpr_safety.errors import FileFault
from kcpr_safety.evidence import EVIDENCE_FILE, Evidence, read_evidence, read_json
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

CONTROLLER_FILE = "controller.pt"
GOLDEN_FILE = "golden.safetensors"
CARD_FILE = "card.json"
CONTRACT_EXTRA = "contract.json"
FILES = (CONTROLLER_FILE, BUNDLE_FILE, GOLDEN_FILE, CARD_FILE)
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
    evidence = read_run_evidence(run, policy)
    config = read_json(run / "config.json") if (run / "config.json").exists() else {}
    contents, parity = bundle_contents(policy, evidence, config)
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
    digest = hashlib.sha256(locate_policy(run).read_bytes()).hexdigest()
    if evidence.policy_sha256 != digest:
        raise FileFault(
            f"{path} judged another policy than the run holds now; run again: "
            f"kcpr-safety evaluate {run}"
        )
    return evidence


def bundle_contents(
    policy: PolicyFile, evidence: Evidence, config: Mapping[str, Any]
) -> tuple[dict[str, bytes], Parity]:
    """File name -> bytes of a bundle whose parity has been measured on these very bytes."""
    eager = controller_from_tensors(policy.tensors, policy.contract)
    bare = scripted(policy)
    parity = measure(eager, load_script(bare, CONTROLLER_FILE), policy.tensors, policy.contract)
    if not parity.holds:
        raise FileFault(
            f"no bundle of {policy.task} was written: the TorchScript controller differs from the "
            f"evaluated policy by {max(parity.golden_max_ulp, parity.adversarial_max_ulp)} ULP"
        )
    obs = golden_observations(policy.tensors)
    golden = pack({"obs": obs, **answers(eager, obs)}, {"schema_version": "1"})
    weights = policy_to_bytes(policy, BUNDLE_FILE)
    card = card_to_bytes(make_card(policy, evidence, parity, config))
    extras = {
        CARD_FILE: card,
        CONTRACT_EXTRA: policy.contract.to_json().encode(),
        GOLDEN_FILE: golden,
    }
    controller = canonical(bare, extras)
    extras_of(controller, CONTROLLER_FILE)
    return {
        CONTROLLER_FILE: controller,
        BUNDLE_FILE: weights,
        GOLDEN_FILE: golden,
        CARD_FILE: card,
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
