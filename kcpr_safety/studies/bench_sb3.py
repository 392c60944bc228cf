"""How fast does Stable-Baselines3's SAC learn from the same transitions, at equal sizes?

As its users run it: float32, ReLU, tuned entropy coefficient, target average at every update. One
of its updates is an optimiser step of three MLPs: two critics and one actor. The entropy
coefficient takes a step too, here and there, but is one number, and not counted.
"""

import importlib
from typing import Any

import gymnasium
import numpy as np

from kcpr_safety.agents.settings import Settings
from kcpr_safety.errors import MissingPackageError
from kcpr_safety.replay import Replay

NETWORKS = 3
"""MLPs that one update steps."""


class _Spaces(gymnasium.Env[np.ndarray, np.ndarray]):
    """All that SAC wants of an environment whose transitions are given."""

    def __init__(self, obs_size: int, action_size: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_size,), np.float32)


class Sb3Sac:
    """Its learner over a copy of a replay."""

    def __init__(self, settings: Settings, replay: Replay, seed: int, device: str) -> None:
        try:
            sb3: Any = importlib.import_module("stable_baselines3")
            logger: Any = importlib.import_module("stable_baselines3.common.logger")
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                "stable-baselines3", "pip install 'stable-baselines3>=2.3'"
            ) from error
        layout, count = replay.layout, len(replay)
        self.version = str(sb3.__version__)
        self._batch = settings.batch
        self._sac = sb3.SAC(
            "MlpPolicy",
            _Spaces(layout.obs_size, layout.action_size),
            learning_rate=settings.learning_rate,
            buffer_size=count,
            batch_size=settings.batch,
            tau=settings.critic_target_rate,
            gamma=settings.gamma,
            policy_kwargs={"net_arch": [settings.width] * settings.depth},
            seed=seed,
            device=device,
        )
        self._sac.set_logger(logger.configure(None, []))
        rows = layout.read(replay.rows[:count].cpu())
        obs, action, next_obs = (x.numpy() for x in (rows.obs, rows.action, rows.next_obs))
        reward, done = rows.reward.numpy(), 1.0 - rows.continues.numpy()
        for i in range(count):
            self._sac.replay_buffer.add(
                obs[i], next_obs[i], action[i], reward[i : i + 1], done[i : i + 1], [{}]
            )

    def update(self, times: int) -> None:
        """Sample and learn that often, in one call: its own overhead per call is spread."""
        self._sac.train(gradient_steps=times, batch_size=self._batch)

    @property
    def parameters(self) -> int:
        """Numbers that it trains, entropy coefficient apart."""
        policy = self._sac.policy
        trained = [*policy.actor.parameters(), *policy.critic.parameters()]
        return sum(parameter.numel() for parameter in trained)
