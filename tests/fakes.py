"""What do tests use in place of a trained policy and the folder of a finished run?"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kcpr_safety.assurance import Assurance
from kcpr_safety.assured import unassured
from kcpr_safety.contract import Contract, Entry, Servo
from kcpr_safety.deploy.keys import PrivateKey, signing_key
from kcpr_safety.deploy.manifest import SEALS, seal
from kcpr_safety.policy_file import PolicyFile, policy_to_bytes, write_policy
from kcpr_safety.punishments import Stream

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


def seeing_near(policy: PolicyFile, near: float = 3.0) -> PolicyFile:
    """That policy, to which its first and its last observation are closeness."""
    added = torch.zeros(policy.contract.obs_size)
    added[0], added[-1] = near, 0.5 * near
    return replace(policy, tensors={**policy.tensors, "obs_near": added})


def fake_servo_policy(seed: int = 0, *, gain: float = 1.0) -> PolicyFile:
    """A random policy of targets for two joints, whose rest pose is neither zero nor the middle."""
    contract = fake_contract()
    servos = tuple(
        Servo(f"joint_{i}", 40.0, 1.0, entry.low + 0.8 * (entry.high - entry.low), 20.0, 30.0)
        for i, entry in enumerate(contract.action)
    )
    return fake_policy(seed, contract=replace(contract, servos=servos), gain=gain)


COMMANDS = ((0.0, 0.0), (0.5, 0.0), (0.25, -1.25), (0.25, 1.25), (-1.0, 0.1))


def fake_discrete_policy(
    seed: int = 0, *, gain: float = 1.0, weights: tuple[float, float] = (2.0, 1.5)
) -> PolicyFile:
    """A random policy that chooses among five commands."""
    contract = replace(fake_contract(), commands=COMMANDS)
    generator = torch.Generator().manual_seed(seed)
    sizes = (contract.obs_size, 32, 32, len(COMMANDS))
    tensors = {
        "obs_mean": torch.randn(contract.obs_size, generator=generator),
        "obs_scale": 0.5 + torch.rand(contract.obs_size, generator=generator),
        "logit_weights": torch.tensor(weights),
    }
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = torch.randn(2, inputs, outputs, generator=generator)
        tensors[f"q.{i}.weight"] = gain * weight / math.sqrt(inputs)
        tensors[f"q.{i}.bias"] = 0.1 * torch.randn(2, 1, outputs, generator=generator)
    return PolicyFile(tensors, contract, "kldmp", seed, 90_000, {"softening": 0.9})


def fake_evaluation(policy: PolicyFile, *, episodes: int = 10, **changed: Any) -> dict[str, Any]:
    """What `evaluation.json` holds after evaluating `policy`, with a few episodes over budget."""
    generator = np.random.default_rng([policy.seed, episodes])
    returns = [round(float(x), 3) for x in generator.normal(2500.0, 60.0, episodes)]
    punishments = [float(x) for x in generator.poisson(18, episodes)]
    record = {
        "task": policy.task,
        "agent": policy.agent,
        "seed": policy.seed,
        "eval_seed": 10_000,
        "steps": 100_000,
        "wall_s": 12.5,
        "return_mean": math.fsum(returns) / episodes,
        "punishment_mean": math.fsum(punishments) / episodes,
        "episodes": episodes,
        "over_budget_share": sum(x > BUDGET for x in punishments) / episodes,
        "budget": BUDGET,
        "path": "runs/fake",
        "returns": returns,
        "punishments": punishments,
        "lengths": [1000] * episodes,
        "predicted_punishment": 1.4,
        "realised_punishment": 1.7,
        "policy_sha256": hashlib.sha256(policy_to_bytes(policy, "policy")).hexdigest(),
    }
    return {**record, **changed}


STREAMS = (Stream("force", 12.0, "hard steps"), Stream("speed", 15.0, "fast steps"))


def fake_streams(*punishments: Sequence[float]) -> list[dict[str, Any]]:
    """What `evaluation.json` holds of `STREAMS`, which suffered so in each episode."""
    return [
        {
            "name": stream.name,
            "budget": stream.budget,
            "punishment_mean": sum(each) / len(each),
            "over_budget_share": sum(x > stream.budget for x in each) / len(each),
            "punishments": list(each),
        }
        for stream, each in zip(STREAMS, punishments, strict=True)
    ]


def fake_assurance(policy: PolicyFile, **changed: Any) -> Assurance:
    """Ranges, thresholds and limits that all bind now and then."""
    size = policy.contract.obs_size
    plain = unassured(policy).with_range([-40.0 - i for i in range(size)], [50.0] * size, "fakes")
    blends = not policy.contract.commands
    values: dict[str, Any] = {
        "fallback": True,
        "release": 0.25,
        "engage": 0.5,
        "dwell_steps": 3,
        "blend_steps": 4 if blends else 1,
        "soft_start_steps": 5 if blends else 1,
        "slew": tuple(0.5 * (e.high - e.low) for e in policy.contract.action),
    }
    return replace(plain, **{**values, **changed})


def fake_calibration(policy: PolicyFile, **changed: Any) -> dict[str, Any]:
    """What `calibration.json` holds after calibrating `policy`."""
    return {
        "schema_version": "1",
        "task": policy.task,
        "policy_sha256": hashlib.sha256(policy_to_bytes(policy, "policy")).hexdigest(),
        "assurance": fake_assurance(policy).to_record(),
        "calibration": {
            "seeds": [9_500, 9_519],
            "episodes": 20,
            "steps": 20_000,
            "unit": "punishment, discounted by 0.99 per step",
            "return_mean": 2500.0,
            "punishment_mean": 18.0,
            "observation_quantiles": [[-1.0, 0.0, 1.0]] * policy.contract.obs_size,
            "reliability": [{"steps": 2_000, "predicted": 0.2, "realised": 0.3}],
            "conformal": {
                "alpha": 0.1,
                "episodes": 20,
                "quantile": 1.5,
                "valid_for": "the nominal closed loop in simulation only",
            },
            "alarms": {
                "level": 0.5,
                "bad_from": 2.5,
                "bad_steps": 100,
                "missed_share": 0.25,
                "false_alarm_share": 0.5,
                "alarm_share": 0.01,
                "lead_time_s_median": None,
            },
            "fallback": {
                "episodes": 20,
                "punishment": 3.0,
                "nominal_punishment": 180.0,
                "ended_early": 0,
                "nominal_ended_early": 0,
                "earned": True,
                "rule": "at most 50%",
            },
            "thresholds_tried": [],
        },
        **changed,
    }


def fake_metrics(policy: PolicyFile, steps: int = 100_000, rows: int = 50) -> list[dict[str, Any]]:
    """Return rises; punishment overshoots the budget and is brought back under it."""
    generator = np.random.default_rng([policy.seed, rows])
    records: list[dict[str, Any]] = []
    total = 0.0
    for i in range(1, rows + 1):
        share = i / rows
        mean = 2500 * (1 - math.exp(-4 * share)) + float(generator.normal(0, 40))
        punishment = max(0.0, 90 * share * math.exp(-5 * share) * 4 + 14 * share)
        punishment += abs(float(generator.normal(0, 3)))
        total += punishment * steps / rows / 1000
        records.append(
            {
                "kind": "train",
                "steps": round(share * steps),
                "wall_s": 300.0 * share,
                "steps_per_s": 330.0,
                "return_mean": mean,
                "punishment_mean": punishment,
                "punishment_total": total,
                "coupling_m": 1 + 3 * share,
                "lambda": 0.05 * (1 + 3 * share),
                "predicted_punishment": punishment / 12,
            }
        )
        if i % (rows // 10) == 0:
            records.append(
                {
                    "kind": "validation",
                    "steps": round(share * steps),
                    "return_mean": mean + 60,
                    "punishment_mean": 0.8 * punishment,
                    "episodes": 5,
                    "predicted_punishment": punishment / 13,
                    "measured_discounted_punishment": punishment / 12,
                    "feasible": 0.8 * punishment <= BUDGET,
                }
            )
    return records


def fake_config(policy: PolicyFile, **changed: Any) -> dict[str, Any]:
    """What `config.json` of a run holds."""
    record = {
        "schema_version": "1",
        "task": policy.task,
        "agent": policy.agent,
        "seed": policy.seed,
        "steps": 100_000,
        "budget": BUDGET,
        "settings": dict(policy.settings),
        "contract": json.loads(policy.contract.to_json()),
        "versions": {"kcpr-safety": "0.1.0", "torch": "2.13.0", "mujoco": "3.3.7"},
        "machine": "Linux x86_64, Python 3.11",
    }
    return {**record, **changed}


def fake_run(folder: Path, policy: PolicyFile | None = None, **evaluation: Any) -> Path:
    """The folder of a finished and evaluated run; keywords change `evaluation.json`."""
    policy = policy or fake_policy()
    folder.mkdir(parents=True)
    write_policy(folder / "policy.safetensors", policy)
    (folder / "config.json").write_text(json.dumps(fake_config(policy)))
    rows = [json.dumps(row) + "\n" for row in fake_metrics(policy)]
    (folder / "metrics.jsonl").write_text("".join(rows))
    (folder / "evaluation.json").write_text(json.dumps(fake_evaluation(policy, **evaluation)))
    (folder / "calibration.json").write_text(json.dumps(fake_calibration(policy)))
    return folder


def reseal(bundle: Path, key: PrivateKey | None = None) -> Path:
    """Sign a bundle as it is now, as only the holder of a private key can."""
    contents = {p.name: p.read_bytes() for p in bundle.iterdir() if p.name not in SEALS}
    for name, data in seal(contents, key or signing_key()).items():
        (bundle / name).write_bytes(data)
    return bundle
