"""How does a robot that is described by a MuJoCo model and a card become a world?

    model = "my_robot.xml"              # beside the card; MJCF in one file
    files = ["base.stl"]                # meshes and pictures that it loads, beside the card
    period_s = 0.05                     # between two commands; whole physics steps [s]
    time_limit = 200                    # steps of an episode
    observe = ["joint_position *"]      # what a policy sees (`robot_senses`)

    [[robot.reward]], [robot.ends]      # what is paid, what ends an episode (`robot_terms`)
    [[punish]]                          # what is punished (`terms`)

    [robot.start]                       # how an episode begins
    keyframe = "home"                   # of the model; default: the model's own zero
    joints = 0.1                        # spread of hinges and slides, within their range [rad, m]
    velocities = 0.1                    # spread of all velocities [rad/s, m/s]

    [[robot.place]]                     # bodies with mocap="true", placed anew by every episode
    body = "target"
    low = [0.1, 0.1, 0.0]               # [m]
    high = [0.3, 0.3, 0.0]

An action is one command per actuator, within its `ctrlrange`. All environments share one model; a
step is `mj_step` on the crew's threads and one `mj_forward`, by which everything that is observed,
paid and punished is of the end of the control period.
"""

from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from kcpr_safety.cards import Robot, TaskCard
from kcpr_safety.contract import Contract
from kcpr_safety.envs import naming
from kcpr_safety.envs.crew import Crew
from kcpr_safety.envs.punishing import Punishment
from kcpr_safety.envs.robot_senses import senses, simple_joints
from kcpr_safety.envs.robot_state import Gathered, State
from kcpr_safety.envs.robot_terms import ends, rewards
from kcpr_safety.envs.robot_words import ALL, Words
from kcpr_safety.envs.solo import SoloEnv
from kcpr_safety.envs.world import Outcome, Simulations, World
from kcpr_safety.errors import CardError
from kcpr_safety.seeds import EpisodeSeeds, consecutive_seeds

Array = np.ndarray
_HUGE = 1e6
"""No position or velocity of a robot comes near this; a NaN is not below it either."""


def model_of(card: TaskCard, robot: Robot) -> Any:
    """The compiled model; from the card's own files alone."""
    where = f"task card {card.task}: {robot.model}"
    files = dict(robot.files)
    try:
        xml = files.pop(robot.model).decode()
        spec = mujoco.MjSpec.from_string(xml)
        named = [
            item.file
            for group in (spec.meshes, spec.textures, spec.hfields, spec.skins)
            for item in group
            if item.file
        ]
        missing = sorted(set(named) - set(files))
        if missing:
            raise CardError(f"{where} loads {', '.join(missing)}: name them in 'files' of [robot]")
        model = mujoco.MjModel.from_xml_string(xml, files)
    except (ValueError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        hint = "; put what it includes into one file" if "'include'" in text else ""
        raise CardError(f"{where} cannot be compiled: {text[:300]}{hint}") from error
    for i in range(model.nu):
        if not model.actuator_ctrllimited[i]:
            name = model.actuator(i).name or i
            raise CardError(
                f"{where}: actuator {name} has no ctrlrange; a policy needs bounds for its command"
            )
    # A number that became none stays, to be seen; MuJoCo would start over without a word.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    if not model.nu:
        raise CardError(f"{where} has no actuator: there is nothing to learn to command")
    return model


class RobotWorld(World):
    """Copies of one robot, all environments of a step at once."""

    path = "fast"

    def __init__(
        self, card: TaskCard, robot: Robot, num_envs: int, episode_seeds: EpisodeSeeds, threads: int
    ) -> None:
        self._crew = Crew(min(threads, max(num_envs, 1)))
        where = f"task card {card.task}"
        model = model_of(card, robot)
        table = robot.table
        sensed = senses(where, table.get("observe"), model)
        observation = tuple(entry for entries, _ in sensed for entry in entries)
        names = [entry.name for entry in observation]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise CardError(f"{where} observes {', '.join(twice)} more than once")
        super().__init__(
            Contract(
                task=card.task,
                observation=observation,
                action=naming.action_entries(model),
                period_s=robot.period_s,
                time_limit=robot.time_limit,
                budget=card.budget,
                punishment=card.punishment,
                commands=card.commands,
                streams=card.streams,
            ),
            num_envs,
            episode_seeds,
        )
        self._model, self._sensed = model, [sense for _, sense in sensed]
        self._substeps = _substeps(where, robot.period_s, model.opt.timestep)
        self._paid = rewards(where, table.get("reward", []), model)
        if not card.punish:
            raise CardError(f"{where} punishes nothing: it needs a [[punish]]")
        self._punishment = Punishment(card.punish, model, where)
        if card.success and {"height", "tilt"} & set(table.get("ends", {})):
            raise CardError(
                f"{where}: 'success' says that whatever ends an episode before its time is wanted, "
                "but [robot.ends] ends it by height or tilt, too; leave one of them out"
            )
        self._failed, self._arrived = ends(where, table.get("ends", {}), model)
        self._start = _Start(where, table, model)
        self._datas = [mujoco.MjData(model) for _ in range(num_envs)]
        for data in self._datas:
            mujoco.mj_forward(model, data)
        self._gathered = Gathered(self._datas)
        self._plain = self._gathered.read().flat[0]
        """What stands for a row that means nothing; it is never handed out."""
        self._before = self._gathered.read()
        self._low, self._high = (
            np.array([getattr(entry, side) for entry in self.contract.action])
            for side in ("low", "high")
        )
        self._share = np.full((num_envs, model.nu), np.nan)
        """Last commands of the open episodes, as shares of their range."""

    def _simulate(self, i: int) -> None:
        data = self._datas[i]
        data.ctrl[:] = self._command[i]
        mujoco.mj_step(self._model, data, nstep=self._substeps)
        mujoco.mj_forward(self._model, data)

    def _advance(self, action: Float[Array, "envs action"]) -> Outcome:
        self._command = np.clip(action, self._low, self._high)
        self._crew.each(self._simulate, self.num_envs)
        state = self._gathered.read()
        moved = np.concatenate([state.qpos, state.qvel], axis=1)
        unstable = ~(np.abs(moved) < _HUGE).all(axis=1)
        state.flat[unstable] = self._plain
        before, self._before = self._before, state

        failed, arrived = self._failed(state), self._arrived(state)
        share = (self._command - self._low) / (self._high - self._low)
        last = np.where(np.isnan(self._share), share, self._share)
        charge = self._punishment([self._model] * self.num_envs, self._datas, share, last)
        self._share = share
        return Outcome(
            obs=self._observed(state),
            reward=self._paid(before, state, arrived),
            punishment=charge.total,
            terminated=failed | arrived,
            truncated=np.zeros(self.num_envs, dtype=bool),
            unstable=unstable,
            streams=charge.streams if self.contract.streams else None,
        )

    def _observed(self, state: State) -> Float[Array, "envs obs"]:
        obs: Array = np.concatenate([sense(state) for sense in self._sensed], axis=1)
        return obs

    def _reset_rows(self, indices: Array, seeds: Array) -> Float[Array, "some obs"]:
        for i, seed in zip(indices.tolist(), seeds.tolist(), strict=True):
            self._start(self._datas[i], np.random.default_rng(seed))
            mujoco.mj_forward(self._model, self._datas[i])
        state = self._gathered.read()
        self._share[indices] = np.nan
        # The other rows are in the middle of an episode, as they were.
        self._before.flat[indices] = state.flat[indices]
        obs: Array = self._observed(state)[indices]
        return obs

    def simulations(self) -> Simulations:
        """Models and states as they are."""
        return Simulations([self._model] * self.num_envs, self._datas, self._substeps, True)

    def close_extras(self, **_: Any) -> None:
        self._crew.close()


class _Start:
    """Sets one simulation to the beginning of an episode."""

    def __init__(self, where: str, table: Any, model: Any) -> None:
        words = Words(f"{where}: [robot.start]", table.get("start", {}), model)
        self._model = model
        self._keyframe = words.one("keyframe", "keyframe") if words.has("keyframe") else None
        self._joints = words.number("joints", 0.0, low=0.0)
        self._velocities = words.number("velocities", 0.0, low=0.0)
        words.done()
        joints = simple_joints(words.where, [ALL], model) if self._joints else []
        self._columns = model.jnt_qposadr[joints]
        limited = model.jnt_limited[joints] > 0
        self._low = np.where(limited, model.jnt_range[joints, 0], -np.inf)
        self._high = np.where(limited, model.jnt_range[joints, 1], np.inf)
        self._placed = [_placed(where, i, row, model) for i, row in enumerate(_rows(where, table))]

    def __call__(self, data: Any, rng: np.random.Generator) -> None:
        if self._keyframe is None:
            mujoco.mj_resetData(self._model, data)
        else:
            mujoco.mj_resetDataKeyframe(self._model, data, self._keyframe)
        place = data.qpos[self._columns]
        moved = place + self._joints * rng.uniform(-1.0, 1.0, len(place))
        data.qpos[self._columns] = np.clip(moved, self._low, self._high)
        data.qvel[:] += self._velocities * rng.uniform(-1.0, 1.0, len(data.qvel))
        for number, low, high in self._placed:
            data.mocap_pos[number] = rng.uniform(low, high)


def _rows(where: str, table: Any) -> list[Any]:
    rows = table.get("place", [])
    if not isinstance(rows, list):
        raise CardError(f"{where}: [[robot.place]] must be tables in double brackets")
    return rows


def _placed(where: str, i: int, row: object, model: Any) -> tuple[int, Array, Array]:
    words = Words(f"{where}: [[robot.place]] {i + 1}", row, model)
    body = words.one("body", "body")
    number = int(model.body_mocapid[body])
    if number < 0:
        raise CardError(
            f'{words.where}: body {model.body(body).name} needs mocap="true" in the model'
        )
    low, high = words.row("low", 3), words.row("high", 3)
    if (low > high).any():
        raise CardError(f"{words.where}: 'low' is above 'high'")
    words.done()
    return number, low, high


def _substeps(where: str, period_s: float, timestep_s: float) -> int:
    """Physics steps in a control period."""
    count = round(period_s / timestep_s)
    if count < 1 or abs(count * timestep_s - period_s) > 1e-9:
        raise CardError(
            f"{where}: 'period_s' is {period_s:g} s, which is no whole number of the model's "
            f"physics steps of {timestep_s:g} s"
        )
    return count


class RobotEnv(SoloEnv):
    """One robot by itself, for checks and pictures."""

    def __init__(
        self,
        card: TaskCard,
        robot: Robot,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
    ) -> None:
        world = RobotWorld(card, robot, 1, consecutive_seeds(0, 1), threads=1)
        super().__init__(world, render_mode, width, height)

    def _camera(self, model: Any, data: Any) -> Any:
        """The model's first camera, or one that sees all of it."""
        camera = mujoco.MjvCamera()
        if model.ncam:
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        else:
            mujoco.mjv_defaultFreeCamera(model, camera)
        return camera
