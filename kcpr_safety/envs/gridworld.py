"""How is a grid-world stepped: alone, as a Gymnasium environment, or many side by side?

`GridEnv` is registered with gymnasium as `Grid...-v0`: the observation is the number of the state,
info["cost"] the punishment, `env.unwrapped.grid.tensors` the exact P, r and c. `GridWorld` is the
same as a `World`: the observation is a one at the state's place, and the two actuators (cells up
and to the right) take one of four commands.
"""

from typing import Any, SupportsInt

import gymnasium
import numpy as np

from kcpr_safety.cards import TaskCard
from kcpr_safety.contract import Contract, Entry
from kcpr_safety.envs.grids import GRIDS, MOVES, Grid, grid_of
from kcpr_safety.envs.world import Outcome, World
from kcpr_safety.errors import EnvironmentFault
from kcpr_safety.seeds import EpisodeSeeds

FAMILY = "grid"
COMMANDS = tuple((float(-down), float(right)) for down, right in MOVES)
"""(up, right) of each action, in cells."""


def task_of(grid: Grid) -> str:
    """Environment id: `GridWindyCliff-v0` for `windy-cliff`."""
    return f"Grid{''.join(part.capitalize() for part in grid.name.split('-'))}-v0"


TASKS = {task_of(grid): grid for grid in GRIDS.values()}


def card_of(task: str) -> TaskCard:
    """A grid-world describes itself: its card needs no file."""
    grid = TASKS[task]
    return TaskCard(
        task=task,
        title=grid.title,
        description=f"{grid.title}. " + " ".join(grid.drawing),
        punishment=f"{grid.hazard_punishment:g} for every step into a hazard or pit",
        budget=0.0,
        success="the goal is reached",
        commands=COMMANDS,
    )


class GridEnv(gymnasium.Env[Any, SupportsInt]):
    """One grid-world; `grid` is a name or a `Grid` of one's own."""

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, grid: str | Grid, render_mode: str | None = None) -> None:
        self.grid = grid_of(grid) if isinstance(grid, str) else grid
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Discrete(self.grid.states)
        self.action_space = gymnasium.spaces.Discrete(len(MOVES))
        self.state = -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.choice(self.grid.starts))
        return self.state, {}

    def step(self, action: SupportsInt) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if self.state < 0:
            raise EnvironmentFault(f"grid {self.grid.name}: reset before stepping")
        outcomes = self.grid.outcomes
        move = int(action)
        chances = outcomes.probability[self.state, move].cumsum()
        way = int((chances < self.np_random.random()).sum())
        place = (self.state, move, min(way, len(chances) - 1))
        self.state = int(outcomes.following[place])
        ended = self.state == self.grid.goal
        cost = float(outcomes.punishment[place])
        return self.state, float(outcomes.reward[place]), ended, False, {"cost": cost}

    def render(self) -> str:  # type: ignore[override, unused-ignore]
        """The drawing, with an @ where the agent stands."""
        rows = [list(row) for row in self.grid.drawing]
        if self.state >= 0:
            row, column = self.grid.cells[self.state]
            rows[row][column] = "@"
        return "\n".join("".join(row) for row in rows)


class GridWorld(World):
    """Many episodes of one grid-world, stepped by a few array operations."""

    path = FAMILY

    def __init__(
        self, grid: Grid, num_envs: int, episode_seeds: EpisodeSeeds, card: TaskCard | None = None
    ) -> None:
        described = card or card_of(task_of(grid))
        contract = Contract(
            task=described.task,
            observation=tuple(Entry(f"cell_{r}_{c}", "1", 0.0, 1.0) for r, c in grid.cells),
            action=(Entry("up", "cells", -1.0, 1.0), Entry("right", "cells", -1.0, 1.0)),
            period_s=1.0,
            time_limit=grid.time_limit,
            budget=described.budget,
            punishment=described.punishment,
            commands=COMMANDS,
        )
        super().__init__(contract, num_envs, episode_seeds)
        self.grid = grid
        self.state = np.zeros(num_envs, dtype=np.int64)
        self._chances = grid.outcomes.probability.cumsum(-1)
        self._rows = np.eye(grid.states)
        self._draws = np.zeros((num_envs, grid.time_limit))
        """One number a step for each environment, drawn when its episode begins."""

    def _advance(self, action: np.ndarray) -> Outcome:
        # The direction that an actuator command points to most.
        move = (action @ np.array(COMMANDS).T).argmax(1)
        draw = self._draws[np.arange(self.num_envs), self.elapsed]
        way = (self._chances[self.state, move] < draw[:, None]).sum(1)
        place = (self.state, move, np.minimum(way, self._chances.shape[-1] - 1))
        outcomes = self.grid.outcomes
        self.state = outcomes.following[place]
        return Outcome(
            obs=self._rows[self.state],
            reward=outcomes.reward[place],
            punishment=outcomes.punishment[place],
            terminated=self.state == self.grid.goal,
            truncated=np.zeros(self.num_envs, dtype=bool),
        )

    def _reset_rows(self, indices: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        for i, seed in zip(indices, seeds, strict=True):
            generator = np.random.default_rng(int(seed))
            self.state[i] = generator.choice(self.grid.starts)
            self._draws[i] = generator.random(self.grid.time_limit)
        rows: np.ndarray = self._rows[self.state[indices]]
        return rows


for _task, _grid in TASKS.items():
    if _task not in gymnasium.registry:
        gymnasium.register(
            _task,
            entry_point="kcpr_safety.envs.gridworld:GridEnv",
            kwargs={"grid": _grid.name},
            max_episode_steps=_grid.time_limit,
        )
