"""What do the tests of the benchmark page show, without training anything?

Rows of made-up agents: `steady` keeps the budget, `eager` earns more and breaks it, `lucky` keeps
the mean while a third of its episodes break it.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

TASKS = ("SafetyHalfCheetahVelocity-v1", "SafetyPointGoal1-v0")
AGENTS = ("steady", "eager", "lucky")
MORE_TASKS = (
    *TASKS,
    "SafetyHopperVelocity-v1",
    "SafetyWalker2dVelocity-v1",
    "SafetyAntVelocity-v1",
    "SafetySwimmerVelocity-v1",
    "SafetyHumanoidVelocity-v1",
    "SafetyCarGoal1-v0",
    "SafetyPointCircle1-v0",
    "SafetyPointPush1-v0",
)


def fake_row(
    task: str, agent: str, seed: int, episodes: int = 50, **changed: Any
) -> dict[str, Any]:
    """The row of one training."""
    generator = np.random.default_rng([len(task), sum(map(ord, agent)), seed])
    level = {"steady": 8.0, "eager": 90.0, "lucky": 4.0}.get(agent, 15.0)
    level *= math.exp(0.1 * generator.standard_normal())
    punishments = generator.poisson(level, episodes).astype(float)
    if agent == "lucky":
        punishments[: episodes // 3] = 40.0 + generator.integers(0, 9, episodes // 3)
        punishments[episodes // 3 :] = 0.0
    height = {"eager": 3000.0}.get(agent, 2000.0) + 50.0 * generator.standard_normal()
    returns = generator.normal(height, 60.0, episodes)
    learning = [(25_000 * (i + 1), 1 - math.exp(-i / 8)) for i in range(40)]
    row = {
        "schema_version": "trial-1",
        "task": task,
        "agent": agent,
        "label": agent,
        "overrides": {},
        "seed": seed,
        "eval_seed": 10_000,
        "steps": 1_000_000,
        "wall_s": 20.0,
        "episodes": episodes,
        "budget": 25.0,
        "mode": "deterministic",
        "time_limit": 1000,
        "returns": returns.tolist(),
        "punishments": punishments.tolist(),
        "lengths": [1000] * episodes,
        "return_mean": float(returns.mean()),
        "punishment_mean": float(punishments.mean()),
        "over_budget_share": float((punishments > 25).mean()),
        "predicted_punishment": 0.9 * level / 10,
        "realised_punishment": level / 10,
        "reliability": [
            {"steps": 900, "predicted": 0.02 * i * level, "realised": 0.021 * i * level}
            for i in range(10)
        ],
        "policy_sha256": f"{seed:064x}",
        "kept_steps": 900_000,
        "path": f"{task}-{agent}-{seed}",
        "punishment_training": 900 * level,
        "punishment_worst": float(punishments.max()),
        "train_wall_s": 3600.0,
        "first_feasible_steps": 100_000,
        "first_feasible_return": 700.0,
        "first_feasible_wall_s": 400.0,
        "largest_fall": 40.0 + seed,
        "training": [[s, height * x, 2 * level, s * level / 1000] for s, x in learning],
        "validation": [
            [s, height * x, level * (2 - x), level / 11, level / 10] for s, x in learning
        ],
        "command": f"kcpr-safety train {task} --agent {agent} --steps 1000000 --seed {seed}",
        "settings": {},
        "versions": {"kcpr-safety": "0.1.0", "torch": "2.13.0", "mujoco": "3.3.7"},
        "machine": "Linux x86_64, Python 3.11",
        "config_sha256": f"{seed:064d}",
    }
    return {**row, **changed}


def fake_rows(
    tasks: tuple[str, ...] = TASKS, agents: tuple[str, ...] = AGENTS, seeds: int = 5
) -> list[dict[str, Any]]:
    return [fake_row(t, a, seed) for t in tasks for a in agents for seed in range(seeds)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
