"""What is a walk of a quadruped: how do its steps follow from targets, commands and conditions?

Fifty times a second the policy sends targets of joint angles about the standing pose; the motors'
own controllers hold them (`unitree`). What is observed, paid and punished says `walking`, what
differs from episode to episode `conditions`. An episode ends by a fall, or at its time limit.

Torques, contacts and the places of feet are those of the last physics step of a control period,
which MuJoCo computes at its beginning; positions, speeds and what is sensed, those at the end. Each
environment has its own model, which a reset sets anew from the plain one: friction, load, strength.
"""

import copy
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from kcpr_safety.cards import Quadruped, TaskCard
from kcpr_safety.contract import Contract
from kcpr_safety.envs import unitree, walking
from kcpr_safety.envs.conditions import Conditions, drawn
from kcpr_safety.envs.crew import Crew
from kcpr_safety.envs.solo import SoloEnv
from kcpr_safety.envs.walking import Motion
from kcpr_safety.envs.world import Outcome, Simulations, World
from kcpr_safety.seeds import EpisodeSeeds, consecutive_seeds

Array = np.ndarray

_HUGE = 1e3
"""No position but the place in the world, and no speed, comes near this; nor does a NaN pass."""


class QuadrupedWorld(World):
    """Robots on floors of their own, all environments of a step at once."""

    path = "fast"

    def __init__(
        self,
        card: TaskCard,
        quadruped: Quadruped,
        num_envs: int,
        episode_seeds: EpisodeSeeds,
        threads: int,
        *,
        pictures: bool = False,
    ) -> None:
        self._crew = Crew(min(threads, max(num_envs, 1)))
        robot = unitree.robot_of(quadruped.robot)
        contract = Contract(
            task=card.task,
            observation=walking.OBSERVATION,
            action=unitree.action_entries(),
            period_s=unitree.PERIOD_S,
            time_limit=quadruped.time_limit,
            budget=card.budget,
            punishment=card.punishment,
            servos=unitree.servos_of(robot),
        )
        super().__init__(contract, num_envs, episode_seeds)
        self._quadruped = quadruped
        body = self.body = unitree.Body(robot, pictures=pictures)
        self.models = [copy.copy(body.model) for _ in range(num_envs)]
        self._plain: dict[int, tuple[float, float, Array]] = {}
        """Each model's friction, trunk mass and inertia before its first episode: a test of faults
        changes them beforehand, and what episodes draw comes on top."""
        self.datas = [mujoco.MjData(model) for model in self.models]
        self._ctrl = [data.ctrl for data in self.datas]
        self._views = [
            (data.qpos, data.qvel, data.actuator_force, data.geom_xpos.reshape(-1))
            for data in self.datas
        ]
        model = body.model
        self._cuts = np.cumsum([model.nq, model.nv, model.nu]).tolist()
        self._rows = np.zeros((num_envs, self._cuts[-1] + 3 * model.ngeom))
        """What the views showed when they were last noted."""
        self._contacts = [0] * num_envs
        self._late = [0] * num_envs
        self._target = np.zeros((num_envs, model.nu))
        self._ordered = np.zeros((num_envs, model.nu))
        """Targets in the order of the model's actuators."""
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._place = np.zeros((num_envs, 3))
        self._feet = np.zeros((num_envs, 4, 3))
        self._command = np.zeros((num_envs, 2))
        self._phase = np.zeros(num_envs)
        """Of the clock at an episode's beginning."""
        self._noise = np.zeros((num_envs, quadruped.time_limit + 1, len(walking.NOISE)))
        kicks = len(drawn(quadruped, 0).kick_steps)
        self._kick_steps = np.full((num_envs, kicks), -1)
        self._kicks = np.zeros((num_envs, kicks, 2))
        self.motion: Motion | None = None
        """What the latest control period was like."""

    @property
    def command(self) -> Float[Array, "envs 2"]:
        """Commanded forward speed [m/s] and rate of turn [rad/s]."""
        return self._command

    def _simulate(self, i: int) -> None:
        model, data, late = self.models[i], self.datas[i], self._late[i]
        if late:
            mujoco.mj_step(model, data, nstep=late)
        self._ctrl[i][:] = self._ordered[i]
        mujoco.mj_step(model, data, nstep=unitree.SUBSTEPS - late)
        self._note(i)

    def _note(self, i: int) -> None:
        """While they are still in the core's cache."""
        np.concatenate(self._views[i], out=self._rows[i])
        self._contacts[i] = self.datas[i].ncon

    def _push(self) -> None:
        now = self._kick_steps == self._steps[:, None]
        if now.any():
            for i, k in np.argwhere(now).tolist():
                self.datas[i].qvel[:2] += self._kicks[i, k]

    def _read(self) -> tuple[Array, Array, Array, Array]:
        """Noted positions, velocities, torques, places of all geoms: a row an environment."""
        rows, (a, b, c) = self._rows, self._cuts
        geoms = rows[:, c:].reshape(self.num_envs, -1, 3)
        return rows[:, :a], rows[:, a:b], rows[:, b:c], geoms

    def _advance(self, action: Float[Array, "envs action"]) -> Outcome:
        before, self._target = self._target, action
        self._ordered[:, self.body.motors] = action
        self._push()
        self._rows = np.empty_like(self._rows)  # those of the step before may be in use
        self._crew.each(self._simulate, self.num_envs)
        self._steps += 1
        qpos, qvel, force, geoms = self._read()
        unstable = self._blown_up()
        if unstable is not None:
            # Rows that mean nothing are put where everything is defined; they are not handed out.
            qpos[unstable], qvel[unstable], force[unstable] = self.body.stance, 0.0, 0.0
        gravity = walking.gravity_of(qpos[:, 3:7])
        tilt = walking.tilt_of(gravity)
        motion = self.motion = self._moved(qpos, qvel, force, geoms, tilt, action - before)
        phase = walking.clock_of(self._steps, self._phase)
        return Outcome(
            obs=self._observed(gravity, qpos, qvel, phase),
            reward=walking.reward_of(motion, self._command, phase),
            punishment=walking.punishment_of(motion),
            terminated=walking.fallen(motion.height, motion.tilt),
            truncated=np.zeros(self.num_envs, dtype=bool),
            unstable=unstable,
        )

    def _blown_up(self) -> Array | None:
        """Where a noted position or speed is none that a robot has; None where all are."""
        place, rest = self._rows[:, :2], self._rows[:, 2 : self._cuts[1]]
        if np.isfinite(place).all() and np.abs(rest).max() < _HUGE:
            return None
        sound = np.isfinite(place).all(axis=1) & (np.abs(rest) < _HUGE).all(axis=1)
        return np.asarray(~sound)

    def _moved(
        self, qpos: Array, qvel: Array, force: Array, geoms: Array, tilt: Array, change: Array
    ) -> Motion:
        body = self.body
        place, quaternion = qpos[:, :3], qpos[:, 3:7]
        speed = walking.speed_over(place, self._place, walking.heading_of(quaternion))
        feet = geoms[:, body.feet]
        clearance = feet[:, :, 2] - body.foot_radius
        way = feet - self._feet
        moved = np.sqrt(np.square(way[:, :, 0]) + np.square(way[:, :, 1])) / unitree.PERIOD_S
        stood = self._feet[:, :, 2] - body.foot_radius < walking.TOUCHES
        self._place, self._feet = place, feet
        return Motion(
            forward=speed[:, 0],
            sideways=speed[:, 1],
            climb=speed[:, 2],
            spin=qvel[:, 3:6],
            height=place[:, 2],
            tilt=tilt,
            torque=force[:, body.motors] / body.torque,
            speed=qvel[:, body.rates] / body.speed,
            change=change,
            clearance=clearance,
            slip=np.where(stood & (clearance < walking.TOUCHES), moved, 0.0),
            body_contact=self._touched(clearance),
        )

    def _touched(self, clearance: Float[Array, "envs 4"]) -> Array:
        """Who touches the floor with anything but a foot: who has more contacts than feet on it.

        Only the floor is touched, and by a sphere in one place, from its margin on.
        """
        return np.asarray(self._contacts > (clearance <= self.body.foot_margin).sum(axis=1))

    def _observed(self, gravity: Array, qpos: Array, qvel: Array, phase: Array) -> Array:
        sensed = np.concatenate(
            [
                gravity,
                qvel[:, 3:6],
                qpos[:, self.body.angles],
                qvel[:, self.body.rates],
            ],
            axis=1,
        )
        sensed += self._noise[np.arange(self.num_envs), self._steps]
        return walking.observed(sensed, self._command, self._target, phase)

    def _reset_rows(self, indices: Array, seeds: Array) -> Float[Array, "some obs"]:
        for i, seed in zip(indices.tolist(), seeds.tolist(), strict=True):
            self._place_robot(i, drawn(self._quadruped, seed))
        # New arrays: those of the step before may be in somebody's hands.
        self._target, self._place = self._target.copy(), self._place.copy()
        self._feet, self._rows = self._feet.copy(), self._rows.copy()
        for i in indices.tolist():
            self._note(i)
        self._target[indices] = self.body.rest
        qpos, qvel, _, geoms = self._read()
        self._place[indices] = qpos[indices, :3]
        self._feet[indices] = geoms[indices][:, self.body.feet]
        phase = walking.clock_of(self._steps, self._phase)
        gravity = walking.gravity_of(qpos[:, 3:7])
        rows: Array = self._observed(gravity, qpos, qvel, phase)[indices]
        return rows

    def _place_robot(self, i: int, given: Conditions) -> None:
        model, data, body = self.models[i], self.datas[i], self.body
        if i not in self._plain:
            friction, mass = model.geom_friction[body.feet[0], 0], model.body_mass[body.trunk]
            self._plain[i] = float(friction), float(mass), model.body_inertia[body.trunk].copy()
        friction, mass, inertia = self._plain[i]
        body.strengthen(model, given.strength)
        body.roughen(model, given.friction * (friction / unitree.FRICTION))
        body.load(model, (mass, inertia), given.load_kg)
        mujoco.mj_setConst(model, data)
        mujoco.mj_resetData(model, data)
        data.qpos[:] = body.stance
        data.qpos[3:7] = np.cos(given.heading / 2), 0.0, 0.0, np.sin(given.heading / 2)
        data.qpos[body.angles] += given.joints
        data.ctrl[body.motors] = body.rest
        mujoco.mj_forward(model, data)
        self._late[i], self._steps[i], self._phase[i] = given.late, 0, given.phase
        self._command[i], self._noise[i] = given.command, given.noise
        self._kick_steps[i], self._kicks[i] = given.kick_steps, given.kicks

    def simulations(self) -> Simulations:
        """Models and states as they are."""
        models, substeps = self.models, unitree.SUBSTEPS
        return Simulations(models, self.datas, substeps, False, revive=self._revive)

    def _revive(self) -> None:
        for i in range(self.num_envs):
            self._note(i)
        qpos = self._read()[0]
        tilt = walking.tilt_of(walking.gravity_of(qpos[:, 3:7]))
        down = np.flatnonzero(walking.fallen(qpos[:, 2], tilt))
        if len(down):
            self._begin(down, [None] * len(down))

    def close_extras(self, **_: Any) -> None:
        self._crew.close()


class QuadrupedEnv(SoloEnv):
    """One robot by itself, for checks and pictures."""

    def __init__(
        self,
        card: TaskCard,
        quadruped: Quadruped,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
    ) -> None:
        pictures = render_mode is not None
        seeds = consecutive_seeds(0, 1)
        world = QuadrupedWorld(card, quadruped, 1, seeds, threads=1, pictures=pictures)
        super().__init__(world, render_mode, width, height)

    def _camera(self, model: Any, data: Any) -> Any:
        """From the side, moving and turning along."""
        camera = mujoco.MjvCamera()
        camera.lookat[:] = data.qpos[0], data.qpos[1], 0.2
        heading = np.degrees(walking.heading_of(data.qpos[None, 3:7])[0])
        camera.azimuth, camera.elevation, camera.distance = heading + 120.0, -15.0, 1.4
        return camera
