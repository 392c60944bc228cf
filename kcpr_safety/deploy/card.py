"""What must whoever runs a bundle know: its interface, its evidence, and what it does not claim?

`card.json` is one JSON object with sorted keys and floats at round-trip precision, computed from
the policy file, the run's evaluation and the measured parity; no clock, path or machine name goes
in, so the same run gives the same bytes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from kcpr_safety import __version__
from kcpr_safety.controller import NON_FINITE
from kcpr_safety.deploy.parity import TOLERANCE, Parity
from kcpr_safety.errors import FileFault
from kcpr_safety.evidence import Evidence
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

_KEYS = ("contract", "evidence", "identity", "parity")


def make_card(
    policy: PolicyFile,
    evidence: Evidence,
    parity: Parity,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """The card of a bundle; `config` is the run's."""
    contract = policy.contract
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
            "methods": {
                "forward": "observation -> action: the nominal action",
                "nominal": "observation -> action of the reward module",
                "fallback": "observation -> action of the punishment module",
                "check": "observation -> int64 [batch], bits of `check_bits`",
            },
            "check_bits": {"non_finite": NON_FINITE},
            "observation": "raw, in the contract's order and units; the normaliser is inside",
            "action": "in the contract's units, scaled and clipped; apply as it is"
            if not contract.commands
            else "a row of the contract's commands, or the safe action; apply as it is",
            "safe_action": [min(max(0.0, e.low), e.high) for e in contract.action],
            "safe_action_when": "any entry of the observation is not finite",
        },
        "safety": {
            "punishment": contract.punishment,
            "budget": contract.budget,
            "budget_is": "allowed punishment, summed over one full episode, undiscounted",
            "not_claimed": list(NOT_CLAIMED),
        },
        "evidence": evidence_record(evidence),
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
        },
    }


def evidence_record(evidence: Evidence) -> dict[str, Any]:
    """Every episode, and what follows from them with intervals."""
    over = over_budget(evidence.punishments, evidence.budget)
    shares = {"success": evidence.successes, "collision": evidence.collisions}
    told = {
        name: _share(sum(map(bool, flags)), evidence.episodes)
        for name, flags in shares.items()
        if flags is not None
    }
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
        raise FileFault(f"{name} has schema version {version!r}; this package reads '1'")
    missing = [key for key in _KEYS if not isinstance(card.get(key), dict)]
    if missing:
        raise FileFault(f"{name} is no bundle card: it lacks {', '.join(missing)}")
    return card


def _interval(interval: Interval) -> dict[str, float | None]:
    """JSON has no infinity: an open side is null."""
    return {key: x if math.isfinite(x) else None for key, x in asdict(interval).items()}
