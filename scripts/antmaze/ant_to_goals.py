"""An open field in which an ant that walks learns to turn: it follows one goal after another.

AntMaze pays exp(-distance), which says next to nothing from two cells away, and an ant that has
learned to walk one way forgets it there: half of the goals lie behind it. Here the same ant, with
the same observation, is paid its speed towards the goal [m/s] and 0.2 for being upright; most goals
lie ahead of where it comes from, so that walking always pays and turning is learned bit by bit.
Lying on its back ends the episode. AntMaze then begins with what was learned here (`README.md`).
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium_robotics.envs.maze.ant_maze_v5 import AntMazeEnv

FIELD = [[1] * 7, *([1, 0, 0, 0, 0, 0, 1] for _ in range(5)), [1] * 7]
"""Of cells 4 m wide."""
FREE = 8.5
"""Goals lie at most so far from the middle, in x and y: 1.5 m from the walls [m]."""
NEAR, FAR = 2.0, 5.0
"""How far goals lie ahead [m]."""
CONE = np.pi / 3
"""How far to the side of the way that the ant came [rad]."""
ANYWHERE = 0.25
"""Share of the goals that lie anywhere in the field."""
REACHED = 0.75
"""A goal so near is reached [m]."""


class AntToGoals(AntMazeEnv):
    """AntMaze's own ant among its walls; what differs is goals, what is paid, and the end."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode, maze_map=FIELD)

    def reset(self, *, seed: int | None = None, **options: Any) -> Any:
        super().reset(seed=seed, **options)
        self.came_from = self.place() - np.array([1.0, 0.0])
        self.next_goal()
        return self._get_obs(self.ant_env._get_obs()), {}

    def step(self, action: np.ndarray) -> Any:
        before = np.linalg.norm(self.place() - self.goal)
        obs, _, _, truncated, info = super().step(action)
        after = np.linalg.norm(self.place() - self.goal)
        reward = 0.2 + float(before - after) / self.ant_env.dt
        if after <= REACHED:
            self.next_goal()
            obs["desired_goal"] = self.goal.copy()
        _, x, y, _ = self.data.qpos[3:7]
        on_its_back = bool(1.0 - 2.0 * (x * x + y * y) < 0.0)
        return obs, reward, on_its_back, truncated, info

    def place(self) -> np.ndarray:
        """Where the ant is [m]."""
        place: np.ndarray = self.data.qpos[:2].copy()
        return place

    def next_goal(self) -> None:
        """Ahead of where it comes from, if there is room; and now and then anywhere."""
        place, rng = self.place(), self.np_random
        way = np.arctan2(*(place - self.came_from)[::-1])
        self.came_from = place
        cones = () if rng.uniform() < ANYWHERE else (*[CONE] * 3, *[2 * CONE] * 3, *[np.pi] * 3)
        for cone in cones:
            turned = way + rng.uniform(-cone, cone)
            goal = place + rng.uniform(NEAR, FAR) * np.array([np.cos(turned), np.sin(turned)])
            if np.abs(goal).max() <= FREE:
                self.goal = goal
                return
        self.goal = rng.uniform(-FREE, FREE, 2)


gymnasium.register("AntToGoals-v0", AntToGoals, max_episode_steps=400)
