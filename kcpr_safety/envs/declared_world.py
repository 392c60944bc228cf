"""How are environments with a declared punishment stepped side by side?

Each environment steps itself, as its authors wrote it; then the card's terms are worked out for all
of them at once. What an episode remembers, its last command, begins anew with each episode.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from kcpr_safety.cards import TaskCard
from kcpr_safety.envs.declared import shares
from kcpr_safety.envs.official import OfficialWorld
from kcpr_safety.envs.world import Outcome
from kcpr_safety.seeds import EpisodeSeeds


class DeclaredWorld(OfficialWorld):
    """Environments of one card with `[[punish]]`."""

    path = "declared"

    def __init__(self, card: TaskCard, num_envs: int, episode_seeds: EpisodeSeeds) -> None:
        super().__init__(card, num_envs, episode_seeds)
        for env in self._envs:
            env.charges = False
        self._punishment = self._envs[0].punishment
        rest = np.zeros((num_envs, self.contract.action_size))
        self._before = np.full_like(shares(self._envs[0].action_space, rest), np.nan)

    def _advance(self, action: np.ndarray) -> Outcome:
        outcome = super()._advance(action)
        now = shares(self._envs[0].action_space, action)
        before = np.where(np.isnan(self._before), now, self._before)
        models, datas = (
            list(each) for each in zip(*map(self._simulation, self._envs), strict=True)
        )
        charge = self._punishment(models, datas, now, before)
        self._before = now
        streams = charge.streams if self.contract.streams else None
        return replace(outcome, punishment=charge.total, streams=streams)

    def _reset_rows(self, indices: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        self._before[indices] = np.nan
        return super()._reset_rows(indices, seeds)

    @staticmethod
    def _simulation(env: Any) -> tuple[Any, Any]:
        return env.model, env.data
