"""What is a task in a maze: what is paid, what is punished, what is observed, how does it end?

    reward      metres by which the geodesic distance to the goal became shorter in this step,
                and GOAL_REWARD on reaching it (shaped: the sum of an episode is the way made good)
    punishment  1 in contact (clearance below 5 mm); otherwise what the clearance lacks to 10 cm,
                as a share of 10 cm; 0 from there on. Clearance: from the robot's round footprint
                to the nearest wall, at the end of the control period
    observed    24 lidar beams, the goal's distance and bearing as the crow flies, the robot's own
                speed and turn rate: neither its position nor anything of the map
    end         the robot's centre within 20 cm of the goal's: success; else the time limit

A start is drawn by the episode's seed: one of the drawing's start cells, up to 20 cm off its centre
on either axis (14 cm or more clear of any wall), any heading. Cards hold the drawings (`maze_plan`)
and the time limits; the robot is `burger`.
"""

import math
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from kcpr_safety.cards import Maze, TaskCard
from kcpr_safety.contract import Contract
from kcpr_safety.envs import burger
from kcpr_safety.envs.crew import Crew
from kcpr_safety.envs.maze_plan import Plan, plan_of
from kcpr_safety.envs.solo import SoloEnv
from kcpr_safety.envs.world import Outcome, Simulations, World
from kcpr_safety.seeds import EpisodeSeeds, consecutive_seeds

GOAL_REWARD = 1.0
GOAL_DISTANCE = 0.20  # [m]
CONTACT = 0.005  # [m]
NEAR = 0.10  # [m]
_START_SPREAD = 0.20  # [m]
_HUGE = 1e3
"""No position or speed of a robot in a maze comes near this; a NaN is not below it either."""


def punishment_of(clearance: Float[np.ndarray, " envs"]) -> Float[np.ndarray, " envs"]:
    """Punishment of one step for the clearance [m] at its end; negative: pressed into a wall."""
    return np.where(clearance < CONTACT, 1.0, np.clip(1.0 - clearance / NEAR, 0.0, 1.0))


def start_pose(plan: Plan, seed: int) -> Float[np.ndarray, " 3"]:
    """x, y [m] and heading [rad] that an episode of this seed starts from."""
    rng = np.random.default_rng(seed)
    cell = plan.starts[rng.integers(len(plan.starts))]
    place = cell + rng.uniform(-_START_SPREAD, _START_SPREAD, 2)
    return np.append(place, rng.uniform(-math.pi, math.pi))


class MazeWorld(World):
    """Robots in copies of one maze, all environments of a step at once."""

    path = "fast"

    def __init__(
        self, card: TaskCard, maze: Maze, num_envs: int, episode_seeds: EpisodeSeeds, threads: int
    ) -> None:
        self._crew = Crew(min(threads, max(num_envs, 1)))
        contract = Contract(
            task=card.task,
            observation=burger.OBSERVATION,
            action=burger.ACTION,
            period_s=burger.PERIOD_S,
            time_limit=maze.time_limit,
            budget=card.budget,
            punishment=card.punishment,
            commands=card.commands,
        )
        super().__init__(contract, num_envs, episode_seeds)
        self.plan = plan_of(maze.drawing, f"task card {card.task}")
        # One model for all simulations: nothing writes to it, and it stays in the cores' caches.
        self._model = burger.model_of(self.plan)
        self._datas = [mujoco.MjData(self._model) for _ in range(num_envs)]
        self._views = [view for data in self._datas for view in (data.qpos, data.qvel)]
        self._ctrl = [data.ctrl for data in self._datas]
        self._wheels = np.zeros((num_envs, 2))
        self._scans = np.zeros((num_envs, burger.BEAMS))
        self._beams = (np.zeros((num_envs, 3)), np.zeros((num_envs, 3 * burger.BEAMS)))
        self._to_goal = np.zeros(num_envs)

    def _simulate(self, i: int) -> None:
        self._ctrl[i][:2] = self._wheels[i]
        mujoco.mj_step(self._model, self._datas[i], nstep=burger.SUBSTEPS)

    def _scan(self, i: int) -> None:
        origin, rays = self._beams
        burger.scan(self._model, self._datas[i], origin[i], rays[i], self._scans[i])

    def _state(self) -> Float[np.ndarray, "envs 6"]:
        """x, y, heading and their rates."""
        return np.concatenate(self._views).reshape(self.num_envs, 6)

    def _advance(self, action: Float[np.ndarray, "envs action"]) -> Outcome:
        self._wheels = burger.wheel_speeds(action)
        self._crew.each(self._simulate, self.num_envs)
        state = self._state()
        unstable = ~(np.abs(state) < _HUGE).all(axis=1)
        # Rows that mean nothing are put where everything is defined; they are never handed out.
        state[unstable] = np.append(self.plan.goal, np.zeros(4))

        self._beams = burger.beams(state[:, :3])
        self._crew.each(self._scan, self.num_envs)
        before, self._to_goal = self._to_goal, self.plan.to_goal(state[:, :2])
        clearance = self.plan.clearance(state[:, :2]) - burger.RADIUS
        obs = self._observed(state, self._scans)
        arrived = obs[:, burger.BEAMS] <= GOAL_DISTANCE
        return Outcome(
            obs=obs,
            reward=before - self._to_goal + GOAL_REWARD * arrived,
            punishment=punishment_of(clearance),
            terminated=arrived,
            truncated=np.zeros(self.num_envs, dtype=bool),
            unstable=unstable,
            collision=(clearance < CONTACT) & ~unstable,
        )

    def _observed(
        self, state: Float[np.ndarray, "some 6"], scans: Float[np.ndarray, "some beams"]
    ) -> Float[np.ndarray, "some obs"]:
        x, y, heading, x_rate, y_rate, turn = state.T
        dx, dy = self.plan.goal[0] - x, self.plan.goal[1] - y
        bearing = np.arctan2(dy, dx) - heading
        speed = np.cos(heading) * x_rate + np.sin(heading) * y_rate
        rest = (np.hypot(dx, dy), np.sin(bearing), np.cos(bearing), speed, turn)
        return np.concatenate([scans, np.stack(rest, axis=1)], axis=1)

    def _reset_rows(self, indices: np.ndarray, seeds: np.ndarray) -> Float[np.ndarray, "some obs"]:
        for i, seed in zip(indices, seeds, strict=True):
            mujoco.mj_resetData(self._model, self._datas[i])
            self._datas[i].qpos[:] = start_pose(self.plan, int(seed))
            mujoco.mj_forward(self._model, self._datas[i])
        state = self._state()[indices]
        origin, rays = self._beams
        origin[indices], rays[indices] = burger.beams(state[:, :3])
        for i in indices.tolist():
            self._scan(i)
        self._to_goal[indices] = self.plan.to_goal(state[:, :2])
        return self._observed(state, self._scans[indices])

    def simulations(self) -> Simulations:
        """Models and states as they are."""
        return Simulations([self._model] * self.num_envs, self._datas, burger.SUBSTEPS, False)

    def state(self, i: int) -> tuple[Any, Any]:
        """Model and state of one environment, to look at."""
        return self._model, self._datas[i]

    def close_extras(self, **_: Any) -> None:
        self._crew.close()


class MazeEnv(SoloEnv):
    """One robot by itself, for checks and pictures."""

    def __init__(
        self,
        card: TaskCard,
        maze: Maze,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
    ) -> None:
        world = MazeWorld(card, maze, 1, consecutive_seeds(0, 1), threads=1)
        super().__init__(world, render_mode, width, height)
        self._size = world.plan.size

    def _camera(self, model: Any, data: Any) -> Any:
        """The maze from above."""
        width, height = self._size
        camera = mujoco.MjvCamera()
        camera.lookat[:] = width / 2, height / 2, 0.0
        camera.azimuth, camera.elevation = 90.0, -90.0
        shape = self._picture[1] / self._picture[0]
        half_view = math.tan(math.radians(model.vis.global_.fovy) / 2)
        camera.distance = 0.55 * max(height, width / shape) / half_view
        return camera
