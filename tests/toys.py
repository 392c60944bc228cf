"""What do tests train in, where MuJoCo would take too long?"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kcpr_safety import envs
from kcpr_safety.cards import TaskCard
from kcpr_safety.contract import Contract, Entry
from kcpr_safety.envs.world import Outcome, World
from kcpr_safety.seeds import EpisodeSeeds


class Sprint(World):
    """One-step physics: reward is the first action, fast steps are punished, the second is idle.

    Observation: position and the last action. An episode ends (terminated) beyond `far`.
    """

    def __init__(
        self,
        num_envs: int,
        episode_seeds: EpisodeSeeds,
        *,
        limit: int = 20,
        far: float = math.inf,
        fast: float = 0.0,
    ) -> None:
        contract = Contract(
            task="SafetySprint-v0",
            observation=(Entry("position", "m"), Entry("last_action", "m/s")),
            action=(Entry("speed", "m/s", -2.0, 4.0), Entry("idle", "1", -1.0, 1.0)),
            period_s=0.1,
            time_limit=limit,
            budget=5.0,
            punishment="one step with a positive normalised speed",
        )
        super().__init__(contract, num_envs, episode_seeds)
        self.far, self.fast = far, fast
        self.position = np.zeros(num_envs)

    def _advance(self, action: np.ndarray) -> Outcome:
        speed = (np.clip(action[:, 0], -2.0, 4.0) - 1.0) / 3.0
        self.position = self.position + speed
        return Outcome(
            obs=np.stack([self.position, speed], axis=1),
            reward=speed.copy(),
            punishment=(speed > self.fast).astype(np.float64),
            terminated=np.abs(self.position) > self.far,
            truncated=np.zeros(self.num_envs, dtype=bool),
        )

    def _reset_rows(self, indices: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        self.position[indices] = (seeds % 7) / 7.0
        return np.stack([self.position[indices], np.zeros(len(indices))], axis=1)


def only_sprints(monkeypatch: pytest.MonkeyPatch, card: TaskCard) -> None:
    """From now on every task is `card`, and every world a Sprint of its budget."""

    def make_world(card: TaskCard, num_envs: int, *, episode_seeds: Any, **_: Any) -> Sprint:
        world = Sprint(num_envs, episode_seeds)
        world.contract = replace(world.contract, budget=card.budget)
        return world

    monkeypatch.setattr(envs, "resolve", lambda task: card)
    monkeypatch.setattr(envs, "make_world", make_world)
