"""Are walls where they are drawn, does the robot drive and see as it should, who is punished?"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kcpr_safety import calibrate, envs, evaluate, export
from kcpr_safety.cards import Maze, TaskCard, card_names, load_card
from kcpr_safety.contract import Contract
from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.envs import burger
from kcpr_safety.envs.maze import MazeEnv, MazeWorld, punishment_of, start_pose
from kcpr_safety.envs.maze_plan import Plan, plan_of
from kcpr_safety.errors import CardError, FileFault, SettingsError
from kcpr_safety.evidence import read_evidence
from kcpr_safety.policy_file import PolicyFile, write_policy
from kcpr_safety.seeds import consecutive_seeds
from kcpr_safety.training.evaluation import rollout

MAZES = [name for name in card_names() if load_card(name).maze]
CORNER = """
+--+
|s |
+  +--+
|s  G |
+--+--+
"""
HALL = """
+--+--+--+--+
|s  s  s  s |
+  +  +  +  +
|s  s  s  s |
+  +  +  +  +
|s  s  s  s |
+  +  +  +  +
|s  s  s  G |
+--+--+--+--+
"""


def world_of(drawing: str = HALL, num_envs: int = 1, **changed: Any) -> MazeWorld:
    card = TaskCard("Test-v0", "title", "words", "near a wall", maze=Maze(drawing, 200))
    card = dataclasses.replace(card, **changed)
    assert card.maze is not None
    world = MazeWorld(card, card.maze, num_envs, consecutive_seeds(0, num_envs), threads=1)
    world.reset()
    return world


def put(world: MazeWorld, x: float, y: float, heading: float) -> None:
    _, data = world.state(0)
    data.qpos[:] = x, y, heading
    data.qvel[:] = 0.0


def pose(world: MazeWorld) -> tuple[float, float, float]:
    _, data = world.state(0)
    return tuple(data.qpos)


# ------------------------------------------------------------------------------------- the plan


def test_a_corner_by_hand() -> None:
    """Two cells up, one to the right; walls of 10 cm about the edges of 1 m cells."""
    plan = plan_of(CORNER, "card")
    assert plan.size == (2.0, 2.0)
    assert plan.goal.tolist() == [1.5, 0.5]
    assert plan.starts.tolist() == [[0.5, 1.5], [0.5, 0.5]]
    assert sorted(plan.walls.round(9).tolist()) == [
        [-0.05, -0.05, 0.05, 2.05],  # the long one on the left
        [-0.05, -0.05, 2.05, 0.05],  # below
        [-0.05, 1.95, 1.05, 2.05],  # above the upper cell
        [0.95, 0.95, 1.05, 2.05],  # right of it
        [0.95, 0.95, 2.05, 1.05],  # above the goal
        [1.95, -0.05, 2.05, 1.05],  # right of the goal
    ]


@pytest.mark.parametrize(
    ("point", "distance"),
    [
        ((0.5, 0.5), 0.45),  # in the middle of a cell, whose inner faces are 0.9 m apart
        ((0.15, 0.8), 0.10),
        ((0.9, 0.9), math.hypot(0.05, 0.05)),  # at the inner corner
        ((0.0, 1.0), 0.0),  # in a wall
    ],
)
def test_clearance_by_hand(point: tuple[float, float], distance: float) -> None:
    plan = plan_of(CORNER, "card")
    assert plan.clearance(np.array([point]))[0] == pytest.approx(distance, abs=1e-12)


def test_geodesic_distance_is_that_of_the_taut_string() -> None:
    """In the open the straight line; around the corner two, over the post's inner corner."""
    hall, corner = plan_of(HALL, "card"), plan_of(CORNER, "card")
    rng = np.random.default_rng(0)
    points = rng.uniform(0.2, 3.8, (200, 2))
    straight = np.hypot(*(points - hall.goal).T)
    # Sixteen directions: never shorter than the string, at most 2.8 % longer, 5 cm between nodes.
    assert (hall.to_goal(points) >= straight - 0.01).all()
    assert (hall.to_goal(points) <= 1.028 * straight + 0.02).all()

    points = np.stack([rng.uniform(0.2, 0.8, 100), rng.uniform(1.2, 1.8, 100)], axis=1)
    post = np.array([0.95, 0.95]) - 0.03 / math.sqrt(2)
    string = np.hypot(*(points - post).T) + math.hypot(*(corner.goal - post))
    seen_directly = points[:, 1] - 0.5 < 0  # nobody: the goal is around the corner
    assert not seen_directly.any()
    error = corner.to_goal(points) - string
    assert (np.abs(error) < 0.028 * string + 0.05).all()


@pytest.mark.parametrize("task", MAZES)
def test_distance_is_finite_wherever_a_robot_can_be(task: str) -> None:
    plan = world_plan(task)
    points = np.random.default_rng(1).uniform((0, 0), plan.size, (20_000, 2))
    there = points[plan.clearance(points) >= burger.RADIUS - 0.005]
    assert len(there) > 1_000
    distance = plan.to_goal(there)
    inside = np.isfinite(distance)
    assert not np.isnan(distance).any()
    # What is not inside is outside of the maze altogether: further from any start than a cell.
    outside = there[~inside]
    starts = plan.starts[None]
    gap = np.abs(outside[:, None] - starts).max(axis=2).min(axis=1) if len(outside) else np.ones(1)
    assert (gap > 0.5).all()


def world_plan(task: str) -> Plan:
    maze = load_card(task).maze
    assert maze is not None
    return plan_of(maze.drawing, task)


@pytest.mark.parametrize("task", MAZES)
def test_no_start_is_near_a_wall_or_the_goal(task: str) -> None:
    plan = world_plan(task)
    poses = np.array([start_pose(plan, seed) for seed in range(3_000)])
    assert plan.clearance(poses[:, :2]).min() - burger.RADIUS > 0.14
    assert np.hypot(*(poses[:, :2] - plan.goal).T).min() > 0.3
    distance = plan.to_goal(poses[:, :2])
    assert np.isfinite(distance).all()
    cells = {tuple(cell) for cell in np.floor(poses[:, :2]).tolist()}
    assert len(cells) == len(plan.starts), "every start cell is used"
    assert np.abs(np.exp(1j * poses[:, 2]).mean()) < 0.05, "headings all around"
    maze = load_card(task).maze
    assert maze is not None
    fastest = distance.max() / (burger.MOST_SPEED * burger.PERIOD_S)
    assert fastest < 0.6 * maze.time_limit, "the farthest start has time enough"


BAD_DRAWINGS = {
    "cannot be reached from the start in line 2, column 2": "+--+--+\n|s |G |\n+--+--+",
    "open to the outside at the cell in line 2, column 5": "+--+--+\n|s  G  \n+--+--+",
    "open to the outside": "+--+  +\n|s  G |\n+--+--+",
    "0 goals": "+--+--+\n|s  s |\n+--+--+",
    "2 goals": "+--+--+\n|sG G |\n+--+--+",
    "0 starts": "+--+--+\n|   G |\n+--+--+",
    "2 lines of 4 characters": "+--+\n|sG|",
    "3 lines of 5 characters": "+---+\n|s G|\n+---+",
    "0 lines": "",
    "'x' in line 2, column 2": "+--+--+\n|x  G |\n+--+--+",
    "'-' in line 1, column 5": "+--+- +\n|s  G |\n+--+--+",
    "'.' in line 3, column 1": "+--+--+\n|s  G |\n.--+--+",
}


@pytest.mark.parametrize("words", BAD_DRAWINGS)
def test_what_is_no_maze_is_said_in_one_sentence(words: str) -> None:
    with pytest.raises(CardError, match=words) as raised:
        world_of(BAD_DRAWINGS[words])
    assert str(raised.value).startswith("task card Test-v0: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("maze = 3", "'maze' must be a table"),
        ('[maze]\ndrawing = "x"', "'time_limit'"),
        ("[maze]\ntime_limit = 3", "'drawing'"),
        ('[maze]\ndrawing = "x"\ntime_limit = 0', "whole number of steps"),
        ('[maze]\ndrawing = "x"\ntime_limit = 2.5', "whole number of steps"),
        ('[maze]\ndrawing = "x"\ntime_limit = 3\nwalls = 2', "'walls'"),
    ],
)
def test_bad_maze_tables_in_cards(tmp_path: Path, table: str, words: str) -> None:
    path = tmp_path / "card.toml"
    path.write_text(f'task = "A-v0"\ntitle = "A"\ndescription = "A"\npunishment = "A"\n{table}\n')
    with pytest.raises(CardError, match=words) as raised:
        load_card(path)
    assert str(path) in str(raised.value)


# ------------------------------------------------------------------------------------ the robot


def test_wheels_follow_the_closed_form() -> None:
    """The data sheet's limits are just within the wheels'; both together are more than they can."""
    wheels = burger.wheel_speeds(np.array([[0.22, 0.0], [0.0, 2.84], [0.1, -1.0], [0.22, 2.84]]))
    assert wheels[0] == pytest.approx([6.6667, 6.6667], abs=1e-4)  # 0.22 / 0.033
    assert wheels[1] == pytest.approx([-6.8848, 6.8848], abs=1e-4)  # 2.84 * 0.08 / 0.033
    assert wheels[2] == pytest.approx([5.4545, 0.6061], abs=1e-4)  # (0.1 +- 0.08) / 0.033
    assert wheels[3] == pytest.approx([-0.2182, 6.8848], abs=1e-4)  # the outer one saturates
    beyond = burger.wheel_speeds(np.array([[9.0, 0.0], [-9.0, 0.0]]))
    assert beyond[:, 0] == pytest.approx([0.22 / 0.033, -0.11 / 0.033])


def test_straight_ahead_is_a_first_order_lag() -> None:
    """x = v (t - T (1 - e^(-t/T))) with T = 0.1 s, in any direction."""
    world = world_of()
    for heading in (0.0, 0.7, -2.0):
        put(world, 2.0, 2.0, heading)
        for step in range(1, 6):
            obs, *_ = world.step(np.array([[0.2, 0.0]]))
            t = 0.2 * step
            way = 0.2 * (t - 0.1 * (1 - math.exp(-t / 0.1)))
            x, y, turned = pose(world)
            assert (x - 2.0, y - 2.0) == pytest.approx(
                (way * math.cos(heading), way * math.sin(heading)), abs=2e-3
            )
            assert turned == pytest.approx(heading, abs=1e-9)
            speed = 0.2 * (1 - math.exp(-t / 0.1))
            assert obs[0, burger.BEAMS + 3] == pytest.approx(speed, abs=0.01)


def test_on_the_spot_it_turns_and_stays() -> None:
    world = world_of()
    put(world, 2.0, 2.0, 0.0)
    lag = 0.0042 / (2 * 5.0 * 0.08**2)
    for step in range(1, 6):
        obs, *_ = world.step(np.array([[0.0, 1.5]]))
        t = 0.2 * step
        x, y, turned = pose(world)
        assert turned == pytest.approx(1.5 * (t - lag * (1 - math.exp(-t / lag))), abs=0.02)
        assert (x, y) == pytest.approx((2.0, 2.0), abs=1e-9)
    assert obs[0, burger.BEAMS + 4] == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("turn", [1.0, -0.5])
def test_a_steady_turn_is_a_circle_of_radius_v_over_w(turn: float) -> None:
    world = world_of()
    put(world, 2.0, 2.0, 0.3)
    for _ in range(5):
        world.step(np.array([[0.14, turn]]))
    track = []
    for _ in range(int(2 * math.pi / abs(turn) / 0.2) + 1):
        track.append(pose(world))
        world.step(np.array([[0.14, turn]]))
    x, y, heading = np.array(track).T
    centre = x - 0.14 / turn * np.sin(heading), y + 0.14 / turn * np.cos(heading)
    assert np.ptp(centre[0]) < 0.01
    assert np.ptp(centre[1]) < 0.01
    assert np.diff(heading) == pytest.approx(np.full(len(track) - 1, turn * 0.2), abs=1e-3)


def first_hit(walls: np.ndarray, origin: np.ndarray, angle: float) -> float:
    """Brute force: the nearest crossing of a ray with any of the four edges of any wall."""
    d = np.array([math.cos(angle), math.sin(angle)])
    nearest = math.inf
    for x, y, far_x, far_y in walls:
        edges = ((0, x, y, far_y), (0, far_x, y, far_y), (1, y, x, far_x), (1, far_y, x, far_x))
        for axis, edge, low, high in edges:
            if abs(d[axis]) < 1e-12:
                continue
            t = (edge - origin[axis]) / d[axis]
            across = origin[1 - axis] + t * d[1 - axis]
            if t >= 0 and low <= across <= high:
                nearest = min(nearest, t)
    return nearest


@pytest.mark.parametrize("task", ["MazeU-v0", "MazeLarge-v0"])
def test_the_lidar_sees_what_brute_force_sees(task: str) -> None:
    world = envs.make_world(
        envs.resolve(task), 40, episode_seeds=consecutive_seeds(0, 40), threads=2
    )
    obs, _ = world.reset()
    rng = np.random.default_rng(0)
    for _ in range(3):
        obs, *_, infos = world.step(rng.uniform(world.action_space.low, world.action_space.high))
        assert not infos["_final_obs"].any()
    seen = 0
    for i in range(40):
        _, data = world.state(i)  # type: ignore[attr-defined]
        x, y, heading = data.qpos
        sensor = np.array([x - 0.032 * math.cos(heading), y - 0.032 * math.sin(heading)])
        for k in range(24):
            angle = heading + 2 * math.pi * k / 24
            hit = first_hit(world.plan.walls, sensor, angle)  # type: ignore[attr-defined]
            assert obs[i, k] == pytest.approx(min(max(hit, 0.12), 3.5), abs=1e-6)
            seen += 0.12 < hit < 3.5
    assert seen > 800
    world.close()


def test_lidar_range_by_hand() -> None:
    """In a hall of 3.9 m: beyond 3.5 m it sees no wall, below 0.12 m nothing nearer."""
    world = world_of()
    put(world, 0.3, 2.0, 0.0)
    obs, *_ = world.step(np.zeros((1, 2)))
    ahead, left, behind = obs[0, 0], obs[0, 6], obs[0, 12]
    assert ahead == 3.5  # 3.95 - 0.268
    # The sensor sits 32 mm behind the axle, so looking left it is at x = 0.268.
    assert left == pytest.approx(1.95)
    assert behind == pytest.approx(0.3 - 0.032 - 0.05)
    put(world, 0.17, 2.0, 0.0)
    obs, *_ = world.step(np.zeros((1, 2)))
    assert obs[0, 12] == 0.12  # truly 0.088


def test_goal_in_polar_coordinates() -> None:
    """The goal is at (3.5, 0.5); from (2, 2) it is 45 degrees to the right of straight ahead."""
    world = world_of()
    put(world, 2.0, 2.0, 0.0)
    obs, *_ = world.step(np.zeros((1, 2)))
    distance, sine, cosine = obs[0, burger.BEAMS : burger.BEAMS + 3]
    assert distance == pytest.approx(1.5 * math.sqrt(2))
    assert (sine, cosine) == pytest.approx((-math.sqrt(0.5), math.sqrt(0.5)))


def test_nothing_tells_where_in_the_world_the_robot_is() -> None:
    """The same maze drawn with an unreachable column to its left gives the same observations."""
    moved = "\n".join(f"   {line}" for line in CORNER.strip("\n").splitlines())
    one = world_of(CORNER)
    other = world_of(f"+{moved[1:]}")
    assert other.plan.goal[0] == one.plan.goal[0] + 1
    put(one, 0.5, 1.4, 0.4)
    put(other, 1.5, 1.4, 0.4)
    for world in (one, other):
        world._to_goal[:] = world.plan.to_goal(np.array([pose(world)[:2]]))
    for action in ([0.2, 0.3], [0.2, -1.0], [0.1, 2.0]):
        steps = [world.step(np.array([action])) for world in (one, other)]
        for a, b in zip(steps[0][:2], steps[1][:2], strict=True):
            assert a == pytest.approx(b, abs=1e-9)


# ------------------------------------------------------------------------- reward and punishment


def test_punishment_by_hand() -> None:
    clearance = np.array([-0.001, 0.0, 0.0049, 0.0051, 0.025, 0.05, 0.0999, 0.1, 1.0])
    expected = [1.0, 1.0, 1.0, 0.949, 0.75, 0.5, 0.001, 0.0, 0.0]
    assert punishment_of(clearance) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.05 + 0.105 + 0.2, 0.0),
        (0.05 + 0.105 + 0.1001, 0.0),
        (0.05 + 0.105 + 0.05, 0.5),
        (0.05 + 0.105 + 0.01, 0.9),
        (0.05 + 0.105 + 0.001, 1.0),
    ],
)
def test_a_robot_at_rest_beside_a_wall_is_punished_by_its_clearance(
    x: float, expected: float
) -> None:
    world = world_of()
    put(world, x, 2.0, 0.5)
    *_, infos = world.step(np.zeros((1, 2)))
    assert infos["punishment"][0] == pytest.approx(expected, abs=1e-6)
    assert infos["collision"][0] == (expected == 1.0)


def test_a_wall_stops_the_robot_and_lets_it_go() -> None:
    world = world_of()
    put(world, 0.5, 2.0, math.pi)
    for _ in range(15):
        *_, infos = world.step(np.array([[0.22, 0.0]]))
    assert infos["punishment"][0] == 1.0
    assert infos["collision"].all()
    assert pose(world)[0] - 0.05 - burger.RADIUS == pytest.approx(0.0, abs=0.004)
    for _ in range(8):
        *_, infos = world.step(np.array([[-0.11, 0.0]]))
    assert infos["punishment"][0] == 0.0
    assert not infos["collision"].any()


def test_reward_is_the_way_made_good_and_the_goal() -> None:
    """Straight to the goal from 1 m: 0.8 m or a little more of way, and 1 for being there."""
    world = world_of()
    put(world, 2.5, 0.5, 0.0)
    world._to_goal[:] = 1.0
    total = 0.0
    for _ in range(40):
        _, reward, terminated, truncated, infos = world.step(np.array([[0.2, 0.0]]))
        total += reward[0]
        if terminated[0]:
            break
    assert terminated[0]
    assert not truncated[0]
    left = infos["final_obs"][0, burger.BEAMS]
    assert 0.15 < left <= 0.2
    assert total == pytest.approx(1.0 - left + 1.0, abs=1e-6)


def test_to_and_fro_earns_nothing() -> None:
    world = world_of()
    put(world, 2.0, 2.0, -0.6)
    world._to_goal[:] = world.plan.to_goal(np.array([[2.0, 2.0]]))
    total = sum(float(world.step(np.array([[0.1, 0.0]]))[1][0]) for _ in range(10))
    assert total > 0.1
    total += sum(float(world.step(np.array([[-0.1, 0.0]]))[1][0]) for _ in range(10))
    assert total == pytest.approx(0.0, abs=0.02)


def test_the_time_limit_truncates() -> None:
    world = world_of()
    for step in range(1, 201):
        *_, terminated, truncated, _ = world.step(np.zeros((1, 2)))
        assert truncated[0] == (step == 200)
        assert not terminated[0]


# -------------------------------------------------------------------------- worlds, cards, seeds


def trace(task: str, threads: int) -> list[np.ndarray]:
    card = envs.resolve(task)
    world = envs.make_world(card, 6, episode_seeds=consecutive_seeds(0, 6), threads=threads)
    rng = np.random.default_rng(3)
    rows = [world.reset(options={"episodes": [4] * 6})[0]]
    for _ in range(120):
        action = rng.uniform(world.action_space.low, world.action_space.high)
        obs, reward, terminated, truncated, infos = world.step(action)
        rows += [obs, reward, infos["punishment"], terminated, truncated]
    world.close()
    return rows


@pytest.mark.parametrize("task", ["MazeL-v0", "MazeLargeDiscrete-v0"])
def test_seeds_give_the_same_episodes_on_one_and_two_threads(task: str) -> None:
    one, again, two = trace(task, 1), trace(task, 1), trace(task, 2)
    for a, b, c in zip(one, again, two, strict=True):
        assert a.tobytes() == b.tobytes() == c.tobytes()
    assert not np.array_equal(one[0][0], one[0][1])


def test_one_robot_alone_is_a_row_of_many() -> None:
    card = load_card("MazeU-v0")
    assert card.maze is not None
    alone = MazeEnv(card, card.maze)
    world = envs.make_world(card, 3, episode_seeds=consecutive_seeds(50, 3))
    rows, _ = world.reset()
    obs, _ = alone.reset(seed=51)
    assert obs.tobytes() == rows[1].tobytes()
    for _ in range(20):
        action = np.array([0.2, 0.4])
        rows, reward, *_, infos = world.step(np.tile(action, (3, 1)))
        obs, own, cost, terminated, truncated, _ = alone.step(action)
        assert obs.tobytes() == rows[1].tobytes()
        assert (own, cost) == (reward[1], infos["punishment"][1])
        assert not (terminated or truncated)
    alone.close()
    world.close()


def test_unstable_physics_ends_the_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo logs what it warns of
    world = world_of(num_envs=2)
    _, data = world.state(1)
    data.qvel[:] = np.nan
    with pytest.warns(envs.UnstablePhysicsWarning, match="environment 1"):
        obs, reward, terminated, truncated, infos = world.step(np.zeros((2, 2)))
    assert truncated.tolist() == [False, True]
    assert not terminated.any()
    assert np.isfinite(obs).all()
    assert np.isfinite(infos["final_obs"]).all()
    assert (reward[1], infos["punishment"][1]) == (0.0, 0.0)


def test_every_maze_has_a_card_for_either_kind_of_action() -> None:
    continuous = [name for name in MAZES if "Discrete" not in name]
    assert {"MazeL-v0", "MazeU-v0", "MazeLarge-v0"} <= set(continuous)
    for name in continuous:
        one, other = load_card(name), load_card(name.replace("-v0", "Discrete-v0"))
        assert (one.maze, one.budget, one.success) == (other.maze, other.budget, other.success)
        assert one.punishment == other.punishment
        assert one.success
        assert (one.commands, len(other.commands)) == ((), 6)
        world = envs.make_world(other, 1, episode_seeds=consecutive_seeds(0, 1))
        assert world.contract.commands == other.commands
        world.close()


def test_commands_must_fit_the_robot() -> None:
    with pytest.raises(SettingsError, match=r"row 1: forward_speed is 0.5; .* \[-0.11, 0.22\] m/s"):
        world_of(commands=((0.0, 0.0), (0.5, 0.0)))


def test_mazes_are_listed_and_found() -> None:
    rows = {row.task: row for row in envs.registered_tasks()}
    for name in MAZES:
        assert (rows[name].family, rows[name].path, rows[name].has_card) == ("maze", "fast", True)
        assert envs.resolve(name).maze is not None


# ----------------------------------------------------------------------------- success, judged


def straight_on(contract: Contract) -> PolicyFile:
    """Takes the first command, whatever it sees."""
    count = len(contract.commands)
    tensors = {
        "obs_mean": torch.zeros(contract.obs_size),
        "obs_scale": torch.ones(contract.obs_size),
        "q.0.weight": torch.zeros(2, contract.obs_size, count),
        "q.0.bias": torch.zeros(2, 1, count),
        "logit_weights": torch.tensor([1.0, 0.0]),
    }
    tensors["q.0.bias"][0, 0, 0] = 1.0
    return PolicyFile(tensors, contract, "kldmp", 0, 1)


def test_success_and_collisions_of_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Straight on: one metre before the goal into it, elsewhere into the wall, 1.35 m ahead."""
    places = {0: np.array([2.5, 0.5, 0.0]), 1: np.array([2.5, 3.5, 0.0])}
    monkeypatch.setattr("kcpr_safety.envs.maze.start_pose", lambda plan, seed: places[seed])
    world = world_of(num_envs=2, commands=((0.2, 0.0), (0.0, 1.0)))
    monkeypatch.setattr(world, "_episode_seeds", lambda i, k: i)
    policy = straight_on(world.contract)
    done = rollout(controller_from_tensors(policy.tensors, policy.contract), world, 2)
    assert done.terminated == (True, False)
    assert done.collisions is not None
    assert done.collisions[0] == 0
    # The way takes 6.7 s and the lag 0.1 s: 34 steps of 200.
    assert done.collisions[1] == pytest.approx(200 - 34, abs=1)
    assert done.lengths == (pytest.approx(21, abs=1), 200)


def test_evaluation_and_bundle_tell_of_success_and_collisions(tmp_path: Path) -> None:
    world = envs.make_world(
        envs.resolve("MazeLDiscrete-v0"), 1, episode_seeds=consecutive_seeds(0, 1)
    )
    write_policy(tmp_path / "policy.safetensors", straight_on(world.contract))
    record = evaluate(tmp_path, episodes=12).record()
    successes, collisions = record["successes"], record["collisions"]
    assert len(successes) == len(collisions) == 12
    assert record["success_share"] == sum(successes) / 12 < 1.0
    assert record["collision_share"] == sum(count > 0 for count in collisions) / 12 > 0.0
    calibrate(tmp_path, episodes=4)
    export(tmp_path, tmp_path / "bundle")
    evidence = json.loads((tmp_path / "bundle" / "card.json").read_text())["evidence"]
    assert evidence["success"]["episodes"] == sum(successes)
    assert evidence["collision"]["episodes"] == sum(count > 0 for count in collisions)
    assert evidence["collision"]["low"] < record["collision_share"] <= evidence["collision"]["high"]
    judged = json.loads((tmp_path / "evaluation.json").read_text())
    for key, value in (("successes", [1] * 12), ("collisions", [0])):
        (tmp_path / "evaluation.json").write_text(json.dumps(judged | {key: value}))
        with pytest.raises(FileFault, match=key):
            read_evidence(tmp_path)
