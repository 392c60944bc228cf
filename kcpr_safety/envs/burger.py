"""What robot drives in the mazes, and how does MuJoCo carry it?

A differential-drive robot with the figures of the TurtleBot3 Burger's public data sheet: 1 kg,
138 x 178 x 192 mm, wheels of 33 mm radius 160 mm apart, at most 0.22 m/s and 2.84 rad/s, a laser
distance sensor of 0.12 to 3.5 m turning at 5 Hz, 32 mm behind the axle. It may back at half speed.
A command (v, w) becomes two wheel speeds, each held to what the two limits need at most:

    left = (v - w L / 2) / r,  right = (v + w L / 2) / r     clipped to max(0.22, 2.84 L / 2) / r

Planar: the body has two slides and a hinge, not wheels that touch a floor. Each wheel is a velocity
servo that pushes where the wheel stands, so that speed and turn rate follow commands as first-order
lags of 0.10 s and 0.066 s; a third, stiff one is the tyres' grip sideways (it slips by 3 mm/s in
the tightest turn at full speed). Contact with walls is MuJoCo's, of a sphere as wide as the robot's
footprint. Wheels on a floor need physics steps of 1 to 2 ms, 100 to 200 a control period; this
body does with 20 of 10 ms. Not modelled: noise of sensor and wheels, latency, slip on starting.
The lags, the grip and the friction are assumptions; the data sheet says nothing about them.
"""

import math
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from kcpr_safety.contract import Entry
from kcpr_safety.envs.maze_plan import Plan

RADIUS = 0.105  # of the footprint [m]
WHEEL_RADIUS, WHEEL_BASE = 0.033, 0.160  # [m]
MOST_SPEED, MOST_TURN = 0.22, 2.84  # [m/s], [rad/s]
BACKWARD = 0.11  # [m/s]
LIDAR_X = -0.032  # [m]
LIDAR_RANGE = (0.12, 3.5)  # [m]
BEAMS = 24
PERIOD_S = 0.2
SUBSTEPS = 20

ACTION = (
    Entry("forward_speed", "m/s", -BACKWARD, MOST_SPEED),
    Entry("turn_rate", "rad/s", -MOST_TURN, MOST_TURN),
)
OBSERVATION = (
    *(Entry(f"lidar_{i:02d}", "m", *LIDAR_RANGE) for i in range(BEAMS)),
    Entry("goal_distance", "m", 0.0),
    Entry("goal_bearing_sin", "1", -1.0, 1.0),
    Entry("goal_bearing_cos", "1", -1.0, 1.0),
    Entry("forward_speed", "m/s"),
    Entry("turn_rate", "rad/s"),
)
"""Beam 0 looks ahead, the others follow counter-clockwise every 15 degrees."""

_WHEEL_LIMIT = max(MOST_SPEED, MOST_TURN * WHEEL_BASE / 2) / WHEEL_RADIUS  # [rad/s]
_MASS, _INERTIA = 1.0, 0.0042  # [kg]; [kg m^2], a block of the data sheet's size
_WHEEL_DRAG = 5.0  # [N s/m]: mass / (2 * 0.10 s)
_GRIP = 200.0  # [N s/m]
_WALL_HEIGHT = 0.25  # [m]
_LIDAR_HEIGHT = 0.18  # [m]
_ONLY_WALLS = np.array([0, 1, 0, 0, 0, 0], dtype=np.uint8)
_ROBOT = 1
"""The body's number, after the world."""

_ANGLES = np.arange(BEAMS) * (2 * math.pi / BEAMS)
# From MuJoCo 3.5 on the function also tells surface normals, if asked to.
_NO_NORMALS = {"normal": None} if "normal" in (mujoco.mj_multiRay.__doc__ or "") else {}


def wheel_speeds(command: Float[np.ndarray, "envs 2"]) -> Float[np.ndarray, "envs 2"]:
    """Left and right wheel [rad/s] for commands (forward speed [m/s], turn rate [rad/s])."""
    low, high = np.array([(entry.low, entry.high) for entry in ACTION]).T
    speed, turn = np.clip(command, low, high).T
    half = WHEEL_BASE / 2
    wheels = np.stack([speed - turn * half, speed + turn * half], axis=1) / WHEEL_RADIUS
    return np.clip(wheels, -_WHEEL_LIMIT, _WHEEL_LIMIT)


def beams(pose: Float[np.ndarray, "envs 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Where each robot's sensor is [envs, 3], and unit vectors of its beams [envs, 3 BEAMS]."""
    x, y, heading = pose.T
    origin = np.stack([x, y, np.full_like(x, _LIDAR_HEIGHT)], axis=1)
    origin[:, 0] += LIDAR_X * np.cos(heading)
    origin[:, 1] += LIDAR_X * np.sin(heading)
    angles = heading[:, None] + _ANGLES
    rays = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=2)
    return origin, rays.reshape(len(pose), -1)


def scan(
    model: Any, data: Any, origin: np.ndarray, rays: np.ndarray, out: Float[np.ndarray, " beams"]
) -> None:
    """Distances to the walls into `out` [m], as the sensor would tell them."""
    geoms = np.empty(BEAMS, dtype=np.int32)
    mujoco.mj_multiRay(
        m=model,
        d=data,
        pnt=origin,
        vec=rays,
        geomgroup=_ONLY_WALLS,
        flg_static=1,
        bodyexclude=_ROBOT,
        geomid=geoms,
        dist=out,
        nray=BEAMS,
        cutoff=2 * LIDAR_RANGE[1],
        **_NO_NORMALS,
    )
    out[geoms < 0] = LIDAR_RANGE[1]
    np.clip(out, *LIDAR_RANGE, out=out)


def model_of(plan: Plan) -> Any:
    """The robot in a maze, compiled; its three positions are x, y [m] and heading [rad]."""
    walls = "".join(
        f'<geom class="wall" pos="{(x + X) / 2} {(y + Y) / 2} {_WALL_HEIGHT / 2}" '
        f'size="{(X - x) / 2} {(Y - y) / 2} {_WALL_HEIGHT / 2}"/>'
        for x, y, X, Y in plan.walls
    )
    width, height = plan.size
    half = WHEEL_BASE / 2
    drive = f'kv="{_WHEEL_DRAG * WHEEL_RADIUS**2}" gear="{1 / WHEEL_RADIUS} 0 0 0 0 0"'
    limits = f'ctrlrange="{-_WHEEL_LIMIT} {_WHEEL_LIMIT}"'
    return mujoco.MjModel.from_xml_string(f"""
<mujoco>
  <option timestep="{PERIOD_S / SUBSTEPS}" integrator="implicitfast">
    <flag autoreset="disable"/>
  </option>
  <size memory="1M"/>
  <visual><global offwidth="1280" offheight="960"/></visual>
  <default>
    <geom contype="0" conaffinity="0" friction="0.3"/>
    <default class="wall"><geom type="box" group="1" contype="1" rgba=".35 .37 .42 1"/></default>
    <default class="shown"><geom group="2" mass="0"/></default>
  </default>
  <worldbody>
    <light pos="{width / 2} {height / 2} 6" directional="true"/>
    <geom type="plane" pos="{width / 2} {height / 2} 0" size="{width} {height} .1"
          rgba=".85 .85 .82 1"/>
    <geom type="cylinder" pos="{plan.goal[0]} {plan.goal[1]} .002" size=".2 .002"
          rgba=".2 .7 .3 1"/>
    {walls}
    <body name="robot">
      <inertial pos="0 0 .05" mass="{_MASS}" diaginertia="{_INERTIA} {_INERTIA} {_INERTIA}"/>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <joint name="heading" type="hinge" axis="0 0 1"/>
      <geom type="sphere" pos="0 0 {RADIUS}" size="{RADIUS}" conaffinity="1" group="3" mass="0"/>
      <geom class="shown" type="cylinder" pos="0 0 .08" size="{RADIUS} .07" rgba=".2 .3 .7 1"/>
      <geom class="shown" type="box" pos=".07 0 .16" size=".035 .015 .01" rgba=".95 .8 .2 1"/>
      <site name="left" pos="0 {half} {WHEEL_RADIUS}"/>
      <site name="right" pos="0 {-half} {WHEEL_RADIUS}"/>
      <site name="axle" pos="0 0 {WHEEL_RADIUS}"/>
    </body>
  </worldbody>
  <actuator>
    <velocity name="left_wheel" site="left" {drive} {limits}/>
    <velocity name="right_wheel" site="right" {drive} {limits}/>
    <general name="grip" site="axle" gear="0 1 0 0 0 0" gainprm="0" biastype="affine"
             biasprm="0 0 {-_GRIP}" ctrlrange="-1 1"/>
  </actuator>
</mujoco>""")
