"""How do the navigation tasks step near the speed of their physics, with the official numbers?

safety_gymnasium stays the authority for everything that happens now and then: it draws layouts,
builds models, places goals, and owns the random numbers. What happens at every step is done here:
physics per environment on the crew's threads, then one array pass for the observations, rewards
and punishments of all of them.

Three savings leave every number as it is:
- sensors are off in the substeps, whose readings nobody sees, and on in the final evaluation;
- the first substep starts from that evaluation (`mj_step2`), as positions and velocities have not
  changed since; not where gremlins are moved first, nor with the RK4 integrator;
- the official code draws a random number for the count of substeps, which is always the same; the
  draws are made up for when the next goal is placed.
"""

import functools
import re
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Bool, Float, Int

from kcpr_safety.cards import TaskCard
from kcpr_safety.envs import layouts
from kcpr_safety.envs.crew import Crew
from kcpr_safety.envs.judging import Punisher, Rewarder, Scene
from kcpr_safety.envs.official import describe, make_plain
from kcpr_safety.envs.sensing import observe, sensing_of
from kcpr_safety.envs.world import Outcome, Simulations, World
from kcpr_safety.seeds import EpisodeSeeds

Array = np.ndarray

KNOWN = re.compile(r"Safety(Point|Car|Ant|Racecar|Doggo)(Goal|Button|Push|Circle)[012]-v0")
OLDEST_MUJOCO = (3, 3, 6)
_VERSION = tuple(int(part) for part in mujoco.__version__.split(".")[:3] if part.isdigit())
_NO_SENSORS = int(mujoco.mjtDisableBit.mjDSBL_SENSOR)


def is_known(task: str) -> bool:
    """Is this one of the tasks whose every number this file knows, on this MuJoCo?

    Before 3.3.6 every `mj_forward` moved the point that the next solution starts from, and the
    official environment calls it three times a step: there, only the official code is exact.
    """
    return KNOWN.fullmatch(task) is not None and _VERSION >= OLDEST_MUJOCO


class NavigationWorld(World):
    """Goal, Button, Push and Circle tasks, all environments of a step at once."""

    path = "fast"

    def __init__(
        self, card: TaskCard, num_envs: int, episode_seeds: EpisodeSeeds, threads: int
    ) -> None:
        self._crew = Crew(min(threads, max(num_envs, 1)))
        first_builder, limit = make_plain(card.task)
        super().__init__(describe(card, first_builder, limit), num_envs, episode_seeds)
        self._builders = [first_builder, *self._more_builders(first_builder, num_envs - 1)]
        self._tasks = [builder.task for builder in self._builders]
        for task in self._tasks:
            task.only_physics = True
        # Any episode will do to learn the shapes; the first reset draws the ones that count.
        _new_episode(first_builder, 0)
        first = self._tasks[0]
        self._quicken_layouts()
        self._learn_constants(first, first.model)
        self._sensing = sensing_of(first, first.model)
        self._punish = Punisher(first, first.model)
        self._reward = Rewarder(first, first.model, num_envs)
        self._make_room(num_envs, first.data)

    def _more_builders(self, first_builder: Any, count: int) -> list[Any]:
        """One by one: until its first episode an agent holds a model, up to 20 MB; one will do."""
        builders = []
        for _ in range(count):
            builder, _ = make_plain(self.contract.task)
            builder.task.agent.set_engine(first_builder.task.agent.engine)
            builders.append(builder)
        return builders

    def _quicken_layouts(self) -> None:
        """Only after an episode are the placements known; they are the same for all."""
        if layouts.can_draw(self._tasks[0].random_generator):
            for task in self._tasks:
                generator = task.random_generator
                generator.build_layout = functools.partial(layouts.build_layout, generator)

    def _learn_constants(self, task: Any, model: Any) -> None:
        self._substeps = int(task.sim_conf.frameskip_binom_n)
        self._timestep = float(model.opt.timestep)
        self._range = model.actuator_ctrlrange.copy()
        self._agent = int(model.body("agent").id)
        self._root = int(model.body_rootid[self._agent])
        self._gremlins = getattr(task, "gremlins", None)
        self._euler = int(model.opt.integrator) == int(mujoco.mjtIntegrator.mjINT_EULER)
        self._has_buttons = hasattr(task, "buttons")
        self._button_lidar = self.slices.get("buttons_lidar", slice(0))
        self._speaking = int(model.opt.disableflags)
        self._silent = self._speaking | _NO_SENSORS
        self._can_die = type(task.agent).__name__ == "Ant"

    def _make_room(self, num_envs: int, data: Any) -> None:
        """What is kept about each environment; the objects come with its first episode."""
        self._models: list[Any] = [None] * num_envs
        self._datas: list[Any] = [None] * num_envs
        self._options: list[Any] = [None] * num_envs
        self._ctrl: list[Any] = [None] * num_envs
        self._contacts: list[Any] = [np.zeros((0, 2), dtype=np.int32)] * num_envs
        self._views: list[list[Array]] = [self._viewed(data)] * num_envs
        self._columns = np.cumsum([0, *(len(view) for view in self._views[0])])
        self._state = np.zeros((num_envs, self._columns[-1]))
        self._action = np.zeros((num_envs, self.contract.action_size))
        self._gremlin_path: Array = np.zeros(0)
        self._clock = np.zeros(num_envs)
        self._owed = np.zeros(num_envs, dtype=np.int64)
        self._timer = np.zeros(num_envs)
        self._goal_button = np.zeros(num_envs, dtype=np.int64)

    # ------------------------------------------------------------------ one step of everything

    def _advance(self, action: Float[Array, "envs action"]) -> Outcome:
        self._action = np.clip(action, self._range[:, 0], self._range[:, 1])
        if self._gremlins is not None:
            self._gremlin_path = self._plan_gremlins(self._gremlins)
        self._crew.each(self._simulate, self.num_envs)
        state = np.concatenate([view for views in self._views for view in views])
        state = state.reshape(self.num_envs, -1)
        clock = np.array([data.time for data in self._datas])
        unstable = self._find_unstable(state, clock)
        self._state, self._clock = state, clock
        self._owed += 1

        scene = self._scene(state, self._contacts)
        pressed = wrong = None
        if self._has_buttons:
            pressed, wrong = self._punish.pressed(scene, self._goal_button)
            wrong = wrong & (self._timer == 0)
        reward, achieved = self._reward(scene, pressed)
        punishment = self._punish(scene, wrong)
        self._timer = np.maximum(0, self._timer - 1)
        terminated = np.zeros(self.num_envs, dtype=bool)
        for i in np.flatnonzero(achieved & ~unstable):
            terminated[i] = self._next_goal(int(i))
        if self._can_die:
            terminated |= ~self._alive()
        never = np.zeros(self.num_envs, dtype=bool)
        obs = self._observe(state, self._timer)
        return Outcome(obs, reward, punishment, terminated, never, unstable)

    def _simulate(self, i: int) -> None:
        """One control period of one environment; runs on any thread of the crew."""
        model, data, options = self._models[i], self._datas[i], self._options[i]
        self._ctrl[i][:] = self._action[i]
        options.disableflags = self._silent
        if self._gremlins is not None:
            place = data.mocap_pos
            for there in self._gremlin_path[i]:
                place[:] = there
                mujoco.mj_step(model, data)
        elif self._euler:
            mujoco.mj_step2(model, data)
            mujoco.mj_step(model, data, nstep=self._substeps - 1)
        else:
            mujoco.mj_step(model, data, nstep=self._substeps)
        options.disableflags = self._speaking
        mujoco.mj_forward(model, data)
        if self._punish.needs_contacts:
            self._contacts[i] = data.contact.geom

    def _plan_gremlins(self, gremlins: Any) -> Float[Array, "envs substeps gremlins 3"]:
        """Where gremlins go before each substep: round in circles, by the simulation's clock."""
        times = np.empty((self._substeps, self.num_envs))
        times[0] = self._clock
        for k in range(1, self._substeps):  # added up as MuJoCo does: a product would round apart
            times[k] = times[k - 1] + self._timestep
        place = np.stack([np.sin(times), np.cos(times), np.ones_like(times)], axis=-1)
        place *= [gremlins.travel, gremlins.travel, gremlins.size]
        return np.repeat(place.transpose(1, 0, 2)[:, :, None], gremlins.num, axis=2)

    def _find_unstable(self, state: Array, clock: Array) -> Bool[Array, " envs"]:
        """Where MuJoCo gave up and started over (its clock shows it), or left something infinite.

        What those rows hold is replaced by what they held before, so that no NaN goes further.
        """
        late = np.abs(clock - self._clock - self._substeps * self._timestep)
        unstable: Array = late > self._timestep / 2
        unstable |= ~np.isfinite(state).all(axis=1)
        state[unstable] = self._state[unstable]
        return unstable

    def _next_goal(self, i: int) -> bool:
        """Place the next goal as the official environment does; True where that fails, an end."""
        from safety_gymnasium.utils.common_utils import ResamplingError

        task = self._tasks[i]
        self._pay_draws(i)
        task.update_layout()
        try:
            task.update_world()
        except ResamplingError:
            return True
        finally:
            self._look_again(i)
        return False

    def _pay_draws(self, i: int) -> None:
        """Make up for the draws of the substeps' count, one per step since the last time."""
        conf = self._tasks[i].sim_conf
        generator = self._tasks[i].random_generator.random_generator
        generator.binomial(conf.frameskip_binom_n, conf.frameskip_binom_p, size=self._owed[i])
        self._owed[i] = 0

    def _look_again(self, i: int) -> None:
        """Positions, goal and memory of an environment whose world was just changed."""
        task = self._tasks[i]
        self._state[i] = np.concatenate(self._views[i])
        rows = np.array([i])
        self._reward.remember(self._scene(self._state[rows], []), rows)
        if self._has_buttons:
            self._goal_button[i] = task.buttons.goal_button
            self._timer[i] = task.buttons.timer

    def _alive(self) -> Bool[Array, " envs"]:
        """Ant dies where its body touches the ground."""
        return np.asarray(self._state[:, 3 * self._agent + 2] > 0.08)

    # ------------------------------------------------------------------ reading the simulations

    def _viewed(self, data: Any) -> list[Array]:
        """Views of everything that one environment's array pass reads."""
        views = [data.xpos.reshape(-1), data.xmat[self._agent], data.sensordata]
        if self._reward.kind == "Circle":
            views += [data.cvel[self._agent], data.subtree_com[self._root]]
        elif self._punish.needs_qvel:
            views.append(data.qvel)
        return views

    def _part(self, state: Float[Array, "rows all"], part: int) -> Float[Array, "rows some"]:
        return state[:, self._columns[part] : self._columns[part + 1]]

    def _scene(self, state: Float[Array, "rows all"], contacts: list[Array]) -> Scene:
        xpos = self._part(state, 0).reshape(len(state), -1, 3)
        agent_pos = xpos[:, self._agent]
        if self._reward.kind == "Circle":
            return Scene(xpos, agent_pos, self._part(state, 3), self._part(state, 4))
        qvel = self._part(state, 3) if self._punish.needs_qvel else None
        return Scene(xpos, agent_pos, qvel=qvel, contacts=contacts)

    def _observe(self, state: Float[Array, "rows all"], timer: Array) -> Float[Array, "rows obs"]:
        xpos = self._part(state, 0).reshape(len(state), -1, 3)
        obs = observe(
            self._sensing, self._part(state, 2), xpos, xpos[:, self._agent], self._part(state, 1)
        )
        if self._has_buttons:
            obs[:, self._button_lidar] *= (timer == 0)[:, None]
        return obs

    # ------------------------------------------------------------------ new episodes

    def _reset_rows(self, indices: Int[Array, " some"], seeds: Array) -> Float[Array, "some obs"]:
        for i, seed in zip(indices, seeds, strict=True):
            _new_episode(self._builders[i], int(seed))
            task = self._tasks[i]
            self._models[i], self._datas[i] = task.model, task.data
            self._options[i], self._ctrl[i] = task.model.opt, task.data.ctrl
            self._views[i] = self._viewed(task.data)
            self._clock[i] = task.data.time
            self._owed[i] = 0
            self._look_again(int(i))
        return self._observe(self._state[indices], self._timer[indices])

    def simulations(self) -> Simulations:
        """Models and states as they are."""

        def plan() -> Array | None:
            if self._gremlins is None:
                return None
            self._clock = np.array([data.time for data in self._datas])
            return self._plan_gremlins(self._gremlins)

        return Simulations(self._models, self._datas, self._substeps, True, plan)

    def close_extras(self, **_: Any) -> None:
        self._crew.close()


def _new_episode(builder: Any, seed: int) -> None:
    """What the official `reset` does, but for its check that nothing costs yet."""
    task = builder.task
    builder.set_seed(seed)
    task.reset()
    task.update_world()
    task.specific_reset()
    task.agent.reset()
    mujoco.mj_forward(task.model, task.data)
