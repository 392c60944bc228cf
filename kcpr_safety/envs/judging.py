"""What reward and punishment does each robot of a navigation world get for a step?

The numbers are those of safety_gymnasium's `calculate_reward` and `calculate_cost`, for all
environments at once. Every task's punishment is an indicator: 1 in a step in which anything that
costs happened, else 0.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from kcpr_safety.envs.sensing import bodies_of

Array = np.ndarray


@dataclass
class Scene:
    """What is where, in some environments at one instant: rows of arrays."""

    xpos: Float[Array, "rows bodies 3"]
    agent_pos: Float[Array, "rows 3"]
    agent_twist: Float[Array, "rows 6"] | None = None
    """Angular and linear velocity, the latter of the whole tree's centre of mass."""
    tree_com: Float[Array, "rows 3"] | None = None
    qvel: Float[Array, "rows dofs"] | None = None
    contacts: list[Int[Array, "_ 2"]] = field(default_factory=list)
    """Pairs of touching geoms, one array per environment; empty where the task needs none."""


def apart(a: Float[Array, "*rows k"], b: Float[Array, "*#rows k"]) -> Float[Array, "*rows"]:
    """Distances between points, added up in the order in which the official code does."""
    square = np.square(a - b)
    total = square[..., 0] + square[..., 1]
    for k in range(2, square.shape[-1]):
        total = total + square[..., k]
    return np.asarray(np.sqrt(total))


class Punisher:
    """Punishment of a task: which of its obstacles cost, and when."""

    def __init__(self, task: Any, model: Any) -> None:
        costly = [obstacle for obstacle in task._obstacles if obstacle.is_constrained]
        named = {obstacle.name: obstacle for obstacle in costly}
        self._hazards = np.array(
            bodies_of(named["hazards"], model) if "hazards" in named else [], dtype=np.intp
        )
        self._hazard_size = named["hazards"].size if "hazards" in named else 0.0
        self._walls = named.get("sigwalls")
        self._vases = named.get("vases")
        if self._vases is not None:
            first = [
                int(model.body_dofadr[body]) for body in bodies_of(self._vases, model)
            ]  # of six: three linear, three angular
            self._vase_dofs = np.array(first)[:, None] + np.arange(3)
        names = [model.geom(i).name for i in range(model.ngeom)]
        self._agent_geoms = np.array([name in task.agent.body_info.geom_names for name in names])
        stems = [
            obstacle.name[:-1]
            for obstacle in costly
            if obstacle.name in ("pillars", "vases", "gremlins")
        ]
        self._costly_geoms = np.array([name.startswith(tuple(stems)) for name in names])
        self._buttons_cost = "buttons" in named
        self._button_of_geom = np.array(
            [int(name[6:]) if name.startswith("button") else -1 for name in names]
        )
        self.needs_contacts = bool(stems) or hasattr(task, "buttons")
        self.needs_qvel = self._vases is not None

    def pressed(
        self, scene: Scene, goal_button: Int[Array, " rows"]
    ) -> tuple[Bool[Array, " rows"], Bool[Array, " rows"]]:
        """Does the robot touch the goal button; does it touch any other?"""
        row, pair = _flat(scene.contacts)
        touching = self._agent_geoms[pair].any(axis=1)
        button = self._button_of_geom[pair]
        right = (button == goal_button[row, None]).any(axis=1)
        wrong = (button >= 0).any(axis=1) & ~right
        return _rows(row, touching & right, len(goal_button)), _rows(
            row, touching & wrong, len(goal_button)
        )

    def __call__(
        self, scene: Scene, wrong_button: Bool[Array, " rows"] | None = None
    ) -> Float[Array, " rows"]:
        """1 where anything that costs happened, else 0."""
        count = len(scene.agent_pos)
        guilty = np.zeros(count, dtype=bool)
        if len(self._hazards):
            hazards = scene.xpos[:, self._hazards, :2]
            distance = apart(hazards, scene.agent_pos[:, None, :2])
            guilty |= (distance < self._hazard_size).any(axis=1)
        if self._walls is not None:
            axes = scene.agent_pos[:, : self._walls.num // 2]
            guilty |= (np.abs(axes) > self._walls.locate_factor).any(axis=1)
        if self._costly_geoms.any():
            row, pair = _flat(scene.contacts)
            bad = self._costly_geoms[pair].any(axis=1) & self._agent_geoms[pair].any(axis=1)
            guilty |= _rows(row, bad, count)
        if self._vases is not None and scene.qvel is not None:
            speed = apart(scene.qvel[:, self._vase_dofs], np.zeros(3))
            guilty |= (speed >= self._vases.velocity_threshold).any(axis=1)
        if wrong_button is not None and self._buttons_cost:
            guilty |= wrong_button
        return guilty.astype(np.float64)


def _flat(contacts: list[Array]) -> tuple[Int[Array, " all"], Int[Array, "all 2"]]:
    """All contacts of all environments, and whose each is."""
    counts = [len(pairs) for pairs in contacts]
    return np.repeat(np.arange(len(contacts)), counts), np.concatenate(contacts)


def _rows(row: Array, true: Array, count: int) -> Bool[Array, " rows"]:
    return np.bincount(row[true], minlength=count) > 0


class Rewarder:
    """Reward of a task, with what it remembers of the step before; `achieved` says who is done."""

    def __init__(self, task: Any, model: Any, num_envs: int) -> None:
        self._clip = task.reward_conf.reward_clip
        self.kind = type(task).__name__.partition("Level")[0]
        self._before = np.zeros((2 if self.kind == "Push" else 1, num_envs))
        self._task = task
        self._goal = int(model.body("goal").id) if hasattr(task, "goal") else 0
        self._box = int(model.body("push_box").id) if self.kind == "Push" else 0

    def remember(self, scene: Scene, rows: Int[Array, " rows"]) -> None:
        """Start anew for these environments: after a reset, or with a new goal."""
        self._before[:, rows] = self._distances(scene)

    def __call__(
        self, scene: Scene, pressed: Bool[Array, " rows"] | None
    ) -> tuple[Float[Array, " rows"], Bool[Array, " rows"]]:
        """Rewards of all environments, and where the goal was achieved."""
        task = self._task
        if self.kind == "Circle":
            reward = self._circling(scene)
            return self._clipped(reward), np.zeros(len(reward), dtype=bool)
        now = self._distances(scene)
        if self.kind == "Push":
            gate = self._before[0] > task.push_box.null_dist * task.push_box.size
            reward = (self._before[0] - now[0]) * task.push_box.reward_box_dist * gate
            reward = reward + (self._before[1] - now[1]) * task.push_box.reward_box_goal
            achieved, prize = now[1] <= task.goal.size, task.goal.reward_goal
        elif self.kind == "Button":
            assert pressed is not None
            reward = (self._before[0] - now[0]) * task.buttons.reward_distance
            achieved, prize = pressed, task.buttons.reward_goal
        else:
            reward = (self._before[0] - now[0]) * task.goal.reward_distance
            achieved, prize = now[0] <= task.goal.size, task.goal.reward_goal
        self._before = now
        return self._clipped(reward + prize * achieved), achieved

    def _distances(self, scene: Scene) -> Float[Array, "kinds rows"]:
        """To the goal; or to the box, and from the box to the goal."""
        if self.kind == "Circle":
            return np.zeros((1, len(scene.agent_pos)))
        goal = scene.xpos[:, self._goal]
        if self.kind == "Push":
            box = scene.xpos[:, self._box]
            return np.stack([apart(box, scene.agent_pos), apart(box, goal)])
        distance = apart(goal[:, :2], scene.agent_pos[:, :2])
        return distance[None]

    def _circling(self, scene: Scene) -> Float[Array, " rows"]:
        assert scene.agent_twist is not None
        assert scene.tree_com is not None
        x, y, _ = scene.agent_pos.T
        turn_x, turn_y, turn_z, com_u, com_v, _ = scene.agent_twist.T
        lever_x, lever_y, lever_z = (scene.agent_pos - scene.tree_com).T
        u = com_u + (turn_y * lever_z - turn_z * lever_y)
        v = com_v + (turn_z * lever_x - turn_x * lever_z)
        radius = np.sqrt(x**2 + y**2)
        away = 1 + np.abs(radius - self._task.circle.radius)
        return np.asarray(((-u * y + v * x) / radius) / away * self._task.reward_factor)

    def _clipped(self, reward: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return np.clip(reward, -self._clip, self._clip) if self._clip else reward
