"""How do the velocity tasks step in a few array operations, with the official numbers?

The official classes stay the authority: they build the models, reset the episodes and hold every
constant (thresholds, weights, healthy ranges). Only their `step` is done here, for all environments
at once: physics per environment on the crew's threads, then observation, reward and punishment as
arrays.

    speed      = displacement over one control period / period             [m/s]
    reward     = weight * forward speed (+ alive) - effort
    punishment = 1 where speed > threshold, else 0

The displacement is that of the first position(s) for the planar bodies and the swimmer, of the
torso for Ant, of the centre of mass for Humanoid; the last two lag one physics step behind, as they
do in the official classes.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from kcpr_safety.cards import TaskCard
from kcpr_safety.envs.crew import Crew
from kcpr_safety.envs.official import describe, make_plain
from kcpr_safety.envs.world import Outcome, Simulations, World
from kcpr_safety.seeds import EpisodeSeeds

Array = np.ndarray


class Place(Enum):
    """Where a body is said to be, in the plane; its change over a step is the displacement [m]."""

    FIRST = 1
    """The first position: planar bodies."""
    FIRST_TWO = 2
    """The first two positions: the swimmer."""
    TORSO = 3
    """The torso's frame: Ant."""
    MASS = 4
    """The centre of mass: Humanoid."""


@dataclass(frozen=True)
class Body:
    """What distinguishes one velocity task's arithmetic from another's."""

    place: Place
    planar_speed: bool = False
    """Is the punished speed that in the plane, or the forward one alone?"""
    clips_velocity: bool = False
    """Are observed velocities clipped to +-10?"""
    reads_forces: bool = False
    """Does it observe body terms and contact forces?"""


_BODIES = {
    "HalfCheetah": Body(Place.FIRST),
    "Hopper": Body(Place.FIRST, clips_velocity=True),
    "Walker2d": Body(Place.FIRST, clips_velocity=True),
    "Swimmer": Body(Place.FIRST_TWO),
    "Ant": Body(Place.TORSO, planar_speed=True),
    "Humanoid": Body(Place.MASS, planar_speed=True, reads_forces=True),
}
# The first version of the swimmer was punished for its speed in the plane.
_OLD_SWIMMER = "SafetySwimmerVelocity-v0"


def body_of(task: str) -> Body | None:
    """The arithmetic of a velocity task; None for any other."""
    for version in ("v0", "v1"):
        name = task.removeprefix("Safety").removesuffix(f"Velocity-{version}")
        if task == f"Safety{name}Velocity-{version}" and name in _BODIES:
            return (
                Body(Place.FIRST_TWO, planar_speed=True) if task == _OLD_SWIMMER else _BODIES[name]
            )
    return None


class VelocityWorld(World):
    """The velocity tasks, all environments of a step at once."""

    path = "fast"

    def __init__(
        self, card: TaskCard, body: Body, num_envs: int, episode_seeds: EpisodeSeeds, threads: int
    ) -> None:
        self._crew = Crew(min(threads, max(num_envs, 1)))
        made = [make_plain(card.task) for _ in range(max(num_envs, 1))]
        self._envs = [env for env, _ in made]
        first, limit = made[0]
        super().__init__(describe(card, first, limit), num_envs, episode_seeds)
        self._body = body
        # One model for all simulations: nothing writes to it, and it stays in the cores' caches.
        self._model = first.model
        self._substeps = first.frame_skip
        self._datas = [env.data for env in self._envs]
        self._ctrl = [data.ctrl for data in self._datas]
        self._views = [view for data in self._datas for view in self._viewed(data)]
        self._skipped = 1 if body.place is Place.FIRST else 2
        self._action = np.zeros((num_envs, self.contract.action_size))
        self._place = np.zeros((num_envs, 1 if body.place is Place.FIRST else 2))
        self._time = np.zeros(num_envs)

    def _viewed(self, data: Any) -> list[Array]:
        """Views of what the array pass reads of one environment: observed numbers first."""
        views = [data.qpos, data.qvel]
        if self._body.reads_forces:
            views += [data.cinert, data.cvel, data.qfrc_actuator, data.cfrc_ext]
        if self._body.place is Place.TORSO:
            views.append(data.body("torso").xpos)
        return [view.reshape(-1) for view in views]

    def _simulate(self, i: int) -> None:
        data = self._datas[i]
        self._ctrl[i][:] = self._action[i]
        mujoco.mj_step(self._model, data, nstep=self._substeps)
        if self._body.reads_forces:
            mujoco.mj_rnePostConstraint(self._model, data)

    def _read(self) -> Float[Array, "envs all"]:
        return np.concatenate(self._views).reshape(self.num_envs, -1)

    def _places(self, state: Float[Array, "envs all"]) -> Float[Array, "envs axes"]:
        if self._body.place is Place.FIRST:
            return state[:, :1]
        if self._body.place is Place.FIRST_TWO:
            return state[:, :2]
        if self._body.place is Place.TORSO:
            return state[:, -3:-1]
        mass = self._model.body_mass
        return np.array(
            [(np.einsum("b,bj->j", mass, d.xipos) / mass.sum())[:2] for d in self._datas]
        )

    def _advance(self, action: Float[Array, "envs action"]) -> Outcome:
        env = self._envs[0]
        self._action = action
        self._crew.each(self._simulate, self.num_envs)
        state = self._read()
        place = self._places(state)
        velocity = (place - self._place) / env.dt
        time = np.array([data.time for data in self._datas])
        late = np.abs(time - self._time - env.dt) > self._model.opt.timestep / 2
        unstable = late | ~np.isfinite(state).all(axis=1)
        self._place, self._time = place, time

        forward = velocity[:, 0]
        effort = env._ctrl_cost_weight * np.sum(np.square(action), axis=1)
        reward = getattr(env, "_forward_reward_weight", 1.0) * forward
        if hasattr(env, "_healthy_reward"):
            reward = reward + env._healthy_reward
        reward = reward - effort
        speed = np.sqrt(np.sum(np.square(velocity), axis=1)) if self._body.planar_speed else forward
        punishment = (speed > env._velocity_threshold).astype(np.float64)
        never = np.zeros(self.num_envs, dtype=bool)
        terminated = ~self._healthy(env, state)
        return Outcome(self._observed(state), reward, punishment, terminated, never, unstable)

    def _observed(self, state: Float[Array, "envs all"]) -> Float[Array, "envs obs"]:
        """All but the first positions, by which nothing depends on where in the world it is."""
        obs = state[:, self._skipped : self._skipped + self.contract.obs_size].copy()
        if self._body.clips_velocity:
            velocities = slice(self._model.nq - self._skipped, None)
            obs[:, velocities] = np.clip(obs[:, velocities], -10, 10)
        return obs

    def _healthy(self, env: Any, state: Float[Array, "envs all"]) -> Array:
        """Inside every range that the official class sets; strictly, but for Ant's."""
        healthy = np.ones(self.num_envs, dtype=bool)
        if not hasattr(env, "_healthy_z_range"):
            return healthy
        if hasattr(env, "_healthy_angle_range"):
            healthy &= _inside(state[:, 1], env._healthy_z_range)
            healthy &= _inside(state[:, 2], env._healthy_angle_range)
        elif self._body.place is Place.TORSO:
            low, high = env._healthy_z_range
            healthy &= (low <= state[:, 2]) & (state[:, 2] <= high)
        else:
            healthy &= _inside(state[:, 2], env._healthy_z_range)
        if hasattr(env, "_healthy_state_range"):
            rest = state[:, 2 : self._model.nq + self._model.nv]
            healthy &= _inside(rest, env._healthy_state_range).all(axis=1)
        return healthy

    def _reset_rows(self, indices: Array, seeds: Array) -> Float[Array, "some obs"]:
        rows = np.array(
            [self._envs[i].reset(seed=int(seed))[0] for i, seed in zip(indices, seeds, strict=True)]
        )
        self._place = self._place.copy()
        self._place[indices] = self._places(self._read())[indices]
        self._time[indices] = [self._datas[i].time for i in indices]
        return rows

    def simulations(self) -> Simulations:
        """Models and states as they are."""
        models = [self._model] * self.num_envs
        return Simulations(models, self._datas, self._substeps, False)

    def close_extras(self, **_: Any) -> None:
        self._crew.close()


def _inside(value: Array, bounds: tuple[float, float]) -> Array:
    return (bounds[0] < value) & (value < bounds[1])
