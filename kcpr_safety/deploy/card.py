"""What must whoever runs a bundle know: its interface, its evidence, and what it does not claim?

`card.json` is one JSON object with sorted keys and floats at round-trip precision, assembled from
the policy file, the run's evidence files (`evidence`) and the measured parity; nothing is computed
about the policy here, and no clock or path goes in, so the same run gives the same bytes. Its JSON
Schema is `card.schema.json` beside this file; a card that breaks it is neither written nor read.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonschema
import torch

from kcpr_safety import __version__
from kcpr_safety.assurance import CHECK_BITS, MODE_BITS, STATE, Assurance
from kcpr_safety.assured import SCHEMA_VERSION as INTERFACE_VERSION
from kcpr_safety.deploy.keys import PublicKey
from kcpr_safety.deploy.parity import TOLERANCE, Parity
from kcpr_safety.errors import FileFault
from kcpr_safety.evidence import Evidence, Part
from kcpr_safety.policy_file import PolicyFile
from kcpr_safety.stats import (
    CONFIDENCE,
    CVAR_LEVEL,
    Interval,
    cvar,
    mean_interval,
    over_budget,
    share_interval,
)
from kcpr_safety.texts import json_object

SCHEMA_VERSION = "1"

NOT_CLAIMED = (
    "The fallback is learned, not certified: an independent, non-learned last resort outside of "
    "this package is required.",
    "The evidence is from simulation, on episodes drawn like the training episodes; it is no "
    "performance level or safety integrity level.",
    "The intervals hold for this one policy; they say nothing about another training seed.",
)

METHODS = {
    "forward": "observation -> action: the nominal action, the policy that was evaluated",
    "nominal": "observation -> action of the reward module",
    "fallback": "observation -> action of the punishment module",
    "act": "observation -> (action, risk, mode), without memory",
    "step": "(observation, state) -> (action, risk, mode, state)",
    "risk": "(observation, action) -> [batch, 1]: pessimistic predicted punishment",
    "check": "observation -> int64 [batch], bits of `check_bits`",
    "self_test": "-> float: largest error of the golden answers, replayed",
    "contract": "-> JSON: contract and assurance",
    "schema_version": "-> int",
}


@dataclass(frozen=True)
class Proof:
    """What a run knows about its kept policy: its evidence files."""

    evidence: Evidence
    assurance: Assurance
    calibration: Mapping[str, Any]
    stress: Mapping[str, Any] | None
    """The fault table; None: not made."""
    latency: Mapping[str, Any] | None
    """What `bench policy` measured; None: not measured."""
    config: Mapping[str, Any]
    """The run's configuration."""


def make_card(policy: PolicyFile, proof: Proof, parity: Parity, key: PublicKey) -> dict[str, Any]:
    """The card of a bundle that `key` will sign."""
    contract, assurance, config = policy.contract, proof.assurance, proof.config
    return {
        "schema_version": SCHEMA_VERSION,
        "identity": {
            "task": policy.task,
            "agent": policy.agent,
            "seed": policy.seed,
            "steps": policy.steps,
        },
        "contract": json.loads(contract.to_json()),
        "interface": {
            "dtype": "float32",
            "shape": {"observation": ["batch", contract.obs_size]}
            | {"action": ["batch", contract.action_size]},
            "version": INTERFACE_VERSION,
            "methods": METHODS,
            "check_bits": dict(CHECK_BITS),
            "mode_bits": dict(MODE_BITS),
            "state": f"{', '.join(STATE)}, previous action; begin with assurance.initial_state",
            "observation": "raw, in the contract's order and units; the normaliser is inside",
            "action": "in the contract's units, scaled and clipped; apply as it is"
            if not contract.commands
            else "a row of the contract's commands, or the safe action; apply as it is",
            "safe_action": list(assurance.safe_action),
            "safe_action_when": "an entry of the observation is not finite (every method), or "
            "beyond its hard range (act, step)",
        },
        "assurance": assurance.to_record(),
        "safety": {
            "punishment": contract.punishment,
            "budget": contract.budget,
            "budget_is": "allowed punishment, summed over one full episode, undiscounted",
            "risk": f"{'larger of two critics, ' if not contract.commands else ''}punishment "
            f"discounted by {assurance.gamma:g} per step: an effective horizon of "
            f"{assurance.horizon_steps:.0f} steps ({assurance.horizon_steps * contract.period_s:g}"
            " s), if the nominal policy goes on",
            "fallback": fallback_words(assurance, proof.calibration),
            "not_claimed": list(NOT_CLAIMED),
        },
        "evidence": evidence_record(proof.evidence),
        "calibration": dict(proof.calibration),
        "stress": proof.stress,
        "latency": proof.latency,
        "parity": {
            **asdict(parity),
            "unit": "ULP of float32, batch 1, every method, against the evaluated policy",
            "replay_tolerance": TOLERANCE,
        },
        "provenance": {
            "package": f"kcpr-safety {__version__}",
            "torch": torch.__version__,
            "settings": dict(policy.settings),
            "training_versions": config.get("versions", {}),
            "task_card_sha256": config.get("card_sha256"),
            **({"begun_from": dict(begun)} if (begun := config.get("begun_from")) else {}),
        },
        "signature": {
            "algorithm": "ed25519",
            "key_id": key.id,
            "public_key_sha256": key.fingerprint,
        },
    }


def fallback_words(assurance: Assurance, calibration: Mapping[str, Any]) -> str:
    """Whether the punishment module may act, and why."""
    found = calibration["fallback"]
    told = (
        f"acting alone from states that the nominal policy visits it suffered "
        f"{found['punishment']:.4g} where the nominal policy suffered "
        f"{found['nominal_punishment']:.4g}"
    )
    if assurance.fallback:
        return f"acts: {told}"
    if not found["earned"]:
        early = found.get("ended_early", 0), found.get("nominal_ended_early", 0)
        if early[0] > early[1]:
            told += f" and ended {early[0]} episodes early where that ended {early[1]}"
        rule = "at most half, and no more early ends,"
        return f"never acts in this bundle: {told}, and {rule} had to be shown"
    return (
        f"never acts in this bundle: {told}, but no threshold lowered the nominal punishment at a "
        "cost of at most 5 % of the return"
    )


def evidence_record(evidence: Evidence) -> dict[str, Any]:
    """Every episode, and what follows from them with intervals."""
    over = over_budget(evidence.punishments, evidence.budget)
    shares = {"success": evidence.successes, "collision": evidence.collisions}
    told: dict[str, Any] = {
        name: _share(sum(map(bool, flags)), evidence.episodes)
        for name, flags in shares.items()
        if flags is not None
    }
    if evidence.streams:
        told["streams"] = [_part(part) for part in evidence.streams]
    return {
        "episodes": evidence.episodes,
        "eval_seed": evidence.eval_seed,
        "training_steps": evidence.steps,
        "policy": "deterministic",
        "budget": evidence.budget,
        "confidence": CONFIDENCE,
        "return_mean": _interval(mean_interval(evidence.returns)),
        "punishment_mean": _interval(mean_interval(evidence.punishments)),
        "punishment_max": max(evidence.punishments),
        "punishment_cvar": {"level": CVAR_LEVEL, "value": cvar(evidence.punishments)},
        "over_budget": _share(over, evidence.episodes),
        **told,
        "predicted_punishment": evidence.predicted_punishment,
        "realised_punishment": evidence.realised_punishment,
        "returns": list(evidence.returns),
        "punishments": list(evidence.punishments),
        "lengths": list(evidence.lengths),
    }


def _part(part: Part) -> dict[str, Any]:
    over = over_budget(part.punishments, part.budget)
    return {
        "name": part.name,
        "budget": part.budget,
        "punishment_mean": _interval(mean_interval(part.punishments)),
        "punishment_max": max(part.punishments),
        "over_budget": _share(over, len(part.punishments)),
        "punishments": list(part.punishments),
    }


def _share(count: int, episodes: int) -> dict[str, Any]:
    return {"episodes": count, **_interval(share_interval(count, episodes))}


def card_to_bytes(card: Mapping[str, Any]) -> bytes:
    """The one way in which a card is written."""
    return (json.dumps(card, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def card_from_bytes(data: bytes, name: str) -> dict[str, Any]:
    """Inverse of `card_to_bytes`; an unknown schema or a missing part raises `FileFault`."""
    try:
        card = json_object(data)
    except ValueError as error:
        raise FileFault(f"{name} is no bundle card: {error}") from error
    version = card.get("schema_version")
    if version != SCHEMA_VERSION:
        raise FileFault(
            f"{name} has schema version {version!r}; this package reads '{SCHEMA_VERSION}'"
        )
    check_card(card, name)
    return card


def check_card(card: Mapping[str, Any], name: str) -> None:
    """Raise `FileFault` for a card that breaks its JSON Schema."""
    fault = next(_validator().iter_errors(card), None)
    if fault is not None:
        place = "/".join(map(str, fault.absolute_path)) or "the card"
        raise FileFault(f"{name} is no bundle card: {place}: {fault.message:.200}")


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((Path(__file__).parent / "card.schema.json").read_text("utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _interval(interval: Interval) -> dict[str, float | None]:
    """JSON has no infinity: an open side is null."""
    return {key: x if math.isfinite(x) else None for key, x in asdict(interval).items()}
