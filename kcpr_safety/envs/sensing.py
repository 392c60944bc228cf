"""What do all robots of a navigation world observe, computed in one pass over arrays?

The numbers are those of safety_gymnasium's `obs()`: sensors as they are, joint angles as sine and
cosine, ball joints as rotation matrices, and one pseudo-lidar per kind of object. A lidar has
`bins` sectors around the robot; an object at distance d and angle a (in the robot's frame) gives

    sensor = max(0, max_dist - d) / max_dist         (or exp(-gain d) where max_dist is None)
    bin    = floor(a / width),   alias = a / width - bin,   width = 2 pi / bins
    obs[bin] <- sensor,  obs[bin + 1] <- alias sensor,  obs[bin - 1] <- (1 - alias) sensor

where <- keeps the larger value, so that the nearest object is seen.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray


@dataclass(frozen=True)
class Sensing:
    """Where each observation entry comes from; the same for all environments of a task."""

    size: int
    copied_to: Int[Array, " copied"]
    copied_from: Int[Array, " copied"]
    sine_to: Int[Array, " hinges"]
    angle_from: Int[Array, " hinges"]
    matrix_to: Int[Array, " balls"]
    quaternion_from: Int[Array, " balls"]
    lidar_to: Int[Array, " objects"]
    """First observation entry of the lidar that sees each object."""
    lidar_body: Int[Array, " objects"]
    bins: int
    max_dist: float | None
    exp_gain: float


def sensing_of(task: Any, model: Any) -> Sensing:
    """Read off an official task which sensors and lidars it observes, in which order."""
    info = task.agent.sensor_info
    address = {model.sensor(i).name: int(model.sensor_adr[i]) for i in range(model.nsensor)}
    obstacles = {f"{obstacle.name}_lidar": obstacle for obstacle in task._obstacles}
    copied: list[tuple[int, int]] = []
    sine: list[tuple[int, int]] = []
    matrix: list[tuple[int, int]] = []
    lidar: list[tuple[int, int]] = []
    at = 0
    for name, space in task.obs_info.obs_space_dict.spaces.items():
        size = int(np.prod(space.shape))
        if name in obstacles:
            lidar += [(at, body) for body in bodies_of(obstacles[name], model)]
        elif name in info.hinge_pos_names:
            sine.append((at, address[name]))
        elif name in info.ballquat_names:
            matrix.append((at, address[name]))
        else:
            skipped = 2 if name == info.freejoint_pos_name else 0
            copied += [(at + k, address[name] + skipped + k) for k in range(size)]
        at += size
    (copied_to, copied_from), (sine_to, angle_from), (matrix_to, quaternion_from), lidars = (
        np.array(pairs, dtype=np.intp).reshape(-1, 2).T for pairs in (copied, sine, matrix, lidar)
    )
    return Sensing(
        size=at,
        copied_to=copied_to,
        copied_from=copied_from,
        sine_to=sine_to,
        angle_from=angle_from,
        matrix_to=matrix_to,
        quaternion_from=quaternion_from,
        lidar_to=lidars[0],
        lidar_body=lidars[1],
        bins=task.lidar_conf.num_bins,
        max_dist=task.lidar_conf.max_dist,
        exp_gain=task.lidar_conf.exp_gain,
    )


def bodies_of(obstacle: Any, model: Any) -> list[int]:
    """The bodies whose positions an obstacle reports; the circle's is the origin, the world's."""
    if obstacle.name == "circle":
        return [0]
    if not hasattr(obstacle, "num"):
        return [int(model.body(obstacle.name).id)]
    stem = obstacle.name[:-1]
    suffix = "obj" if obstacle.type == "mocaps" else ""
    return [int(model.body(f"{stem}{i}{suffix}").id) for i in range(obstacle.num)]


def observe(
    sensing: Sensing,
    sensors: Float[Array, "rows sensors"],
    xpos: Float[Array, "rows bodies 3"],
    agent_pos: Float[Array, "rows 3"],
    agent_mat: Float[Array, "rows 9"],
) -> Float[Array, "rows obs"]:
    """Observations of some environments, as new rows."""
    obs = np.zeros((len(sensors), sensing.size))
    obs[:, sensing.copied_to] = sensors[:, sensing.copied_from]
    if len(sensing.sine_to):
        angle = sensors[:, sensing.angle_from]
        obs[:, sensing.sine_to] = np.sin(angle)
        obs[:, sensing.sine_to + 1] = np.cos(angle)
    for to, start in zip(sensing.matrix_to, sensing.quaternion_from, strict=True):
        obs[:, to : to + 9] = rotation(sensors[:, start : start + 4])
    _lidars(obs, sensing, xpos[:, sensing.lidar_body], agent_pos, agent_mat)
    return obs


def rotation(quaternion: Float[Array, "rows 4"]) -> Float[Array, "rows 9"]:
    """Rotation matrices, row by row, of (not necessarily unit) quaternions w, x, y, z."""
    w, x, y, z = quaternion.T
    ww, xx, yy, zz = w * w, x * x, y * y, z * z
    return np.stack(
        [
            ww + xx - yy - zz,
            2 * (x * y - w * z),
            2 * (x * z + w * y),
            2 * (x * y + w * z),
            ww - xx + yy - zz,
            2 * (y * z - w * x),
            2 * (x * z - w * y),
            2 * (y * z + w * x),
            ww - xx - yy + zz,
        ],
        axis=1,
    )


def _lidars(
    obs: Float[Array, "rows obs"],
    sensing: Sensing,
    objects: Float[Array, "rows objects 3"],
    agent_pos: Float[Array, "rows 3"],
    agent_mat: Float[Array, "rows 9"],
) -> None:
    """Write every lidar of every environment into `obs`; `objects` is used up."""
    if not objects.shape[1]:
        return
    objects[:, :, 2] = 0.0  # a lidar looks for where things stand, not how high
    objects -= agent_pos[:, None]
    seen = np.matmul(objects, agent_mat.reshape(-1, 3, 3))
    ahead, left = seen[:, :, 0], seen[:, :, 1]
    distance = np.hypot(ahead, left)
    if sensing.max_dist is None:
        sensor = np.exp(-sensing.exp_gain * distance)
    else:
        sensor = np.maximum(0.0, sensing.max_dist - distance) / sensing.max_dist
    width = 2 * np.pi / sensing.bins
    angle = np.arctan2(left, ahead)
    angle += (angle < 0.0) * (2 * np.pi)
    sector = (angle / width).astype(np.intp)
    alias = (angle - width * sector) / width
    # Three sectors per object: its own, the next, the one before.
    around = _around(sensing.bins)[:, sector]
    around += np.arange(len(obs))[:, None] * obs.shape[1] + sensing.lidar_to
    strength = np.stack([sensor, alias * sensor, (1.0 - alias) * sensor])
    np.maximum.at(obs.reshape(-1), around.reshape(-1), strength.reshape(-1))


@functools.cache
def _around(bins: int) -> Int[Array, "3 bins"]:
    """Each sector, the one after it and the one before it; the last of all is the first again."""
    sector = np.arange(bins + 1)
    return np.stack([sector % bins, (sector + 1) % bins, (sector - 1) % bins])
