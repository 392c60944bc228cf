"""An open field in which an ant learns to walk to goals, to stay there, and not to fall.

AntMaze pays exp(-distance), which says next to nothing from two cells away, and its episodes go on
with an ant on its back. Here the same ant, with the same observation, is paid that, its speed
towards the goal [m/s] and 0.2 for being upright; lying on its back ends the episode. In some of the
episodes the goal moves on when it is reached. AntMaze then begins with what was learned here
(`README.md`).
"""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium_robotics.envs.maze.ant_maze_v5 import AntMazeEnv
from gymnasium_robotics.envs.maze.maps import OPEN


class AntToGoals(AntMazeEnv):
    """AntMaze's own ant, field and goals; only what is paid differs, and when it ends."""

    def __init__(
        self, render_mode: str | None = None, *, enough: float = math.inf, move_on: float = 0.5
    ) -> None:
        """Speed is paid up to `enough` [m/s]; the goals of a share `move_on` of episodes move."""
        super().__init__(render_mode=render_mode, maze_map=OPEN, reward_type="dense")
        self.enough, self.move_on = enough, move_on

    def reset(self, *, seed: int | None = None, **options: Any) -> Any:
        obs_and_info = super().reset(seed=seed, **options)
        self.reset_target = bool(self.np_random.uniform() < self.move_on)
        return obs_and_info

    def step(self, action: np.ndarray) -> Any:
        goal = self.goal.copy()
        before = float(np.linalg.norm(self.data.qpos[:2] - goal))
        obs, paid, _, truncated, info = super().step(action)
        after = float(np.linalg.norm(self.data.qpos[:2] - goal))
        reward = float(paid) + 0.2 + min((before - after) / self.ant_env.dt, self.enough)
        _, x, y, _ = self.data.qpos[3:7]
        on_its_back = bool(1.0 - 2.0 * (x * x + y * y) < 0.0)
        return obs, reward, on_its_back, truncated, info


gymnasium.register("AntToGoals-v0", AntToGoals, max_episode_steps=400)
gymnasium.register(
    "AntToGoalsCalmly-v0",
    AntToGoals,
    max_episode_steps=700,
    kwargs={"enough": 0.8, "move_on": 0.25},
)
