"""What does a world of one look like to whoever wants an environment: checks, and a camera?"""

from abc import abstractmethod
from typing import Any

import gymnasium
import mujoco
import numpy as np

from kcpr_safety.envs.world import World


class SoloEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One robot by itself; `step` gives six values, as others do here."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, world: World, render_mode: str | None, width: int, height: int) -> None:
        self._world = world
        self.observation_space = world.single_observation_space
        self.action_space = world.single_action_space
        self.render_mode = render_mode
        self._picture = (height, width)
        self._renderer: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        obs, _ = self._world.reset(seed=seed)
        return obs[0], {}

    def step(self, action: np.ndarray) -> Any:
        """obs, reward, cost, terminated, truncated, info."""
        _, reward, terminated, truncated, infos = self._world.step(np.asarray(action)[None])
        cost = float(infos["punishment"][0])
        ends = bool(terminated[0]), bool(truncated[0])
        return infos["final_obs"][0], float(reward[0]), cost, *ends, {}

    def render(self) -> Any:
        """What the camera sees."""
        bare = self._world.simulations()
        assert bare is not None  # all worlds of one tell
        model, data = bare.models[0], bare.datas[0]
        if self._renderer is None:
            self._renderer = mujoco.Renderer(model, *self._picture)
        self._renderer.update_scene(data, self._camera(model, data))
        return self._renderer.render()

    @abstractmethod
    def _camera(self, model: Any, data: Any) -> Any:
        """From where to look."""

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._world.close()
