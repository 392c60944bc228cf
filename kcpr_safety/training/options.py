"""What is asked of a training run, and what does it answer in the end?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kcpr_safety.training.checkpoints import Config


@dataclass(frozen=True)
class TrainOptions:
    """What `train_run` needs to know; None means the default of the task or agent."""

    task: str
    out: Path
    agent: str = "kcpr"
    steps: int | None = None
    seed: int = 0
    budget: float | None = None
    num_envs: int | None = None
    init: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    """Cores that the learner may use; None: see `runs.learner_threads`."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the agent's and the task card's."""


@dataclass(frozen=True)
class RunSummary:
    """How a run ended: the validation of the policy that it kept."""

    config: Config
    run: Path
    wall_s: float
    kept: Mapping[str, Any]
    punishment_total: float

    def record(self) -> dict[str, Any]:
        """JSON values under the stable keys; `eval_seed` is None, for this is no evaluation."""
        return {
            "task": self.config.task,
            "agent": self.config.agent,
            "seed": self.config.seed,
            "eval_seed": None,
            "steps": self.config.steps,
            "wall_s": self.wall_s,
            "return_mean": self.kept.get("judged_return"),
            "punishment_mean": self.kept.get("judged_punishment"),
            "episodes": self.kept.get("judged_episodes", 0),
            "over_budget_share": self.kept.get("judged_over_budget_share"),
            "budget": self.config.budget,
            "path": str(self.run),
            "kept_steps": self.kept.get("steps"),
            "punishment_total": self.punishment_total,
        }
