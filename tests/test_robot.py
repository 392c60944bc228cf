"""Does a robot of a model and a card observe, pay, punish, end, start and come back as it says?"""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from kcpr_safety import api, envs
from kcpr_safety.cards import load_card
from kcpr_safety.cli import main
from kcpr_safety.envs.robot import RobotWorld
from kcpr_safety.envs.robot_state import Gathered
from kcpr_safety.envs.robot_terms import rewards
from kcpr_safety.errors import EXIT_CODE, CardError, FileFault, KcprError, SettingsError
from kcpr_safety.policy_file import RUN_FILE
from kcpr_safety.training import checkpoints, kept_task
from kcpr_safety.training.options import TrainOptions
from kcpr_safety.training.runs import resume_run, train_run
from kcpr_safety.training.stopping import Interrupted

ARM = """
<mujoco model="arm">
  <compiler angle="radian"/>
  <option timestep="0.01" gravity="0 0 -9.81"/>
  <worldbody>
    <body name="upper" pos="0 0 1">
      <joint name="shoulder" type="hinge" axis="0 1 0" range="-2 2" limited="true" damping="0.5"/>
      <geom name="upper_rod" type="capsule" fromto="0 0 0 0.4 0 0" size="0.03"/>
      <body name="lower" pos="0.4 0 0">
        <joint name="elbow" type="hinge" axis="0 1 0" damping="0.5"/>
        <geom name="lower_rod" type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/>
        <site name="tip" pos="0.3 0 0"/>
        <site name="imu"/>
      </body>
    </body>
    <body name="target" mocap="true" pos="0.5 0 1"><site name="target"/></body>
    <geom name="floor" type="plane" size="2 2 0.1"/>
  </worldbody>
  <actuator>
    <motor name="lift" joint="shoulder" gear="8" ctrllimited="true" ctrlrange="-1 1"/>
    <motor name="bend" joint="elbow" gear="3" ctrllimited="true" ctrlrange="-2 2"/>
  </actuator>
  <sensor><gyro name="turning" site="imu"/></sensor>
  <keyframe><key name="raised" qpos="-0.5 0.3"/></keyframe>
</mujoco>
"""
CARD = """
task = "Arm-v0"
title = "An arm"
description = "It reaches."
punishment = "one step too fast"
budget = 3.0

[robot]
model = "arm.xml"
period_s = 0.02
time_limit = 15
observe = ["joint_position *", "joint_velocity *", "joint_circle elbow", "sensor *",
           "gravity lower", "velocity lower", "height lower", "offset tip target", "command"]

[robot.start]
keyframe = "raised"
joints = 0.2
velocities = 0.5

[[robot.place]]
body = "target"
low = [0.3, 0, 0.9]
high = [0.5, 0, 1.1]

[robot.ends]
height = { body = "lower", low = 0.65 }
reach = { site = "tip", target = "target", within = 0.01 }

[[robot.reward]]
term = "near"
site = "tip"
target = "target"

[[punish]]
term = "joint_velocity"
threshold = 2.0
"""
FEW = {"width": 8, "batch": 16, "random_steps": 40, "num_envs": 4, "updates_per_step": 0.05}


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """The card of an arm, beside its model."""
    (tmp_path / "arm.xml").write_text(ARM)
    (tmp_path / "arm.toml").write_text(CARD)
    return tmp_path / "arm.toml"


def world_of(card: Path, num_envs: int = 3, threads: int = 1) -> RobotWorld:
    world = envs.make_world(
        envs.resolve(str(card)), num_envs, episode_seeds=lambda i, k: 7 * i + k, threads=threads
    )
    assert isinstance(world, RobotWorld)
    return world


def changed(card: Path, old: str, new: str) -> Path:
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))
    return card


# --------------------------------------------------------------------------------- worked examples


def posed(*angles: float, rates: Any = (0.0, 0.0), command: Any = (0.0, 0.0)) -> Any:
    """(model, data) of an arm in a pose."""
    model = mujoco.MjModel.from_xml_string(ARM)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = angles, rates, command
    mujoco.mj_forward(model, data)
    return model, data


def paid(term: dict[str, Any], before: Any, now: Any, arrived: bool = False) -> float:
    total = rewards("card", [term], now[0])
    one, other = Gathered([before[1]]).read(), Gathered([now[1]]).read()
    return float(total(one, other, np.array([arrived]))[0])


STRAIGHT = (0.0, 0.0)
"""Both rods along x: the tip is at x = 0.7, the target at x = 0.5, both at z = 1."""


@pytest.mark.parametrize(
    ("term", "worth"),
    [
        ({"term": "alive", "weight": 0.5}, 0.5),
        ({"term": "near", "site": "tip", "target": "target"}, np.exp(-2.0)),
        ({"term": "near", "site": "tip", "target": "target", "scale": 0.2}, np.exp(-1.0)),
        ({"term": "approach", "site": "tip", "target": "target"}, 0.0),
        ({"term": "upright", "body": "lower"}, 1.0),
        ({"term": "arrival"}, 0.0),
        # The share of the first is 1/2, of the second 1/2 of its bound of 2.
        ({"term": "effort"}, -0.25),
        # The elbow circles the shoulder at 0.4 m, 2 rad/s about +y: downwards.
        ({"term": "speed", "body": "lower", "axis": "z"}, -0.8),
        ({"term": "speed", "body": "lower", "weight": 3}, 0.0),
    ],
)
def test_a_reward_is_what_its_line_says(term: dict[str, Any], worth: float) -> None:
    arm = posed(*STRAIGHT, rates=(2.0, 0.0), command=(0.5, -1.0))
    assert paid(term, arm, arm) == pytest.approx(worth, abs=1e-9)


def test_approach_is_the_way_made_good_and_arrival_is_paid_once() -> None:
    term = {"term": "approach", "site": "tip", "target": "target"}
    far, near = posed(*STRAIGHT), posed(0.0, np.pi)  # folded back: the tip at x = 0.1
    assert paid(term, far, near) == pytest.approx(0.2 - 0.4)
    assert paid({"term": "arrival"}, far, near, arrived=True) == 1.0


def test_a_bodys_velocity_is_the_rate_of_its_place() -> None:
    """Against finite differences, of every body, in a wild pose."""
    model, data = posed(0.7, -1.1, rates=(1.3, -2.1))
    state = Gathered([data]).read()
    h = 1e-6
    other = mujoco.MjData(model)
    other.qpos[:] = data.qpos + h * data.qvel
    mujoco.mj_kinematics(model, other)
    for body in range(1, model.nbody):
        rate = (other.xpos[body] - data.xpos[body]) / h
        root = int(model.body_rootid[body])
        assert state.velocity(body, root)[0] == pytest.approx(rate, abs=1e-4)


def test_an_observation_names_its_numbers(card: Path) -> None:
    world = world_of(card, 1)
    obs, _ = world.reset()
    [row] = obs
    data = world.simulations().datas[0]
    index = {entry.name: i for i, entry in enumerate(world.contract.observation)}
    units = {entry.name: entry.unit for entry in world.contract.observation}
    assert row[index["elbow_position"]] == data.qpos[1]
    assert row[index["shoulder_velocity"]] == data.qvel[0]
    assert row[index["elbow_sin"]] == pytest.approx(np.sin(data.qpos[1]))
    assert row[index["turning_y"]] == pytest.approx(data.qvel.sum())
    assert row[index["lower_height"]] == data.xpos[2, 2]
    angle = data.qpos.sum()
    assert row[index["lower_gravity_x"]] == pytest.approx(np.sin(angle))
    assert row[index["lower_gravity_z"]] == pytest.approx(-np.cos(angle))
    offset = data.site("target").xpos - data.site("tip").xpos
    assert row[index["tip_to_target_x"]] == pytest.approx(offset[0])
    world.step(np.array([[0.5, -5.0]]))
    obs, *_ = world.step(np.array([[0.5, -5.0]]))
    assert obs[0, index["command_bend"]] == -2.0
    assert units["turning_x"] == "rad/s"
    assert units["lower_velocity_x"] == "m/s"
    assert [entry.name for entry in world.contract.action] == ["lift", "bend"]


def test_touching_is_punished_and_falling_ends(card: Path) -> None:
    changed(
        card, 'term = "joint_velocity"\nthreshold = 2.0', 'term = "contact"\nbodies = ["lower"]'
    )
    changed(card, 'height = { body = "lower", low = 0.65 }\n', "")
    world = world_of(changed(card, "time_limit = 15", "time_limit = 200"), 1)
    world.reset()
    data = world.simulations().datas[0]
    data.qpos[:] = np.pi / 2, 0.0
    world._model.body("upper").pos[2] = 0.6  # low enough for the tip to be in the floor
    *_, infos = world.step(np.zeros((1, 2)))
    assert infos["punishment"][0] == 1.0


def test_an_episode_ends_by_its_ranges(card: Path) -> None:
    world = world_of(changed(card, "low = 0.65", "low = 0.95, high = 3"), 1)
    world.reset()
    world.simulations().datas[0].qpos[:] = 0.5, 0.0  # the elbow 0.19 m below the shoulder
    _, _, terminated, truncated, _ = world.step(np.zeros((1, 2)))
    assert terminated[0]
    assert not truncated[0]


# ----------------------------------------------------------------------------------- as a world


def test_it_conforms_and_repeats_itself_on_any_number_of_threads(card: Path) -> None:
    findings = envs.check_environment(str(card))
    assert [finding.severity for finding in findings] == ["ok"], findings
    rows = []
    for threads in (1, 2):
        world = world_of(card, 5, threads)
        seen = [world.reset()[0]]
        rng = np.random.default_rng(0)
        for _ in range(40):
            obs, reward, _, _, infos = world.step(rng.uniform(-1, 1, (5, 2)))
            seen.append(np.column_stack([obs, reward, infos["punishment"]]).ravel())
        rows.append(np.concatenate([part.ravel() for part in seen]))
        world.close()
    assert np.array_equal(*rows)


def test_it_comes_back_exactly(card: Path) -> None:
    world, fresh = world_of(card), world_of(card)
    world.reset()
    rng = np.random.default_rng(1)
    for _ in range(22):
        world.step(rng.uniform(-1, 1, (3, 2)))
    fresh.restore(world.snapshot())
    for _ in range(20):
        action = rng.uniform(-1, 1, (3, 2))
        one, other = world.step(action), fresh.step(action)
        for a, b in zip(one[:4], other[:4], strict=True):
            assert np.array_equal(a, b)


def test_starts_are_spread_and_targets_placed(card: Path) -> None:
    world = world_of(card, 40)
    world.reset()
    datas = world.simulations().datas
    places = np.array([data.qpos - (-0.5, 0.3) for data in datas])
    targets = np.array([data.site("target").xpos for data in datas])
    assert np.abs(places).max() <= 0.2
    assert np.abs(places).max() > 0.15
    assert (targets >= [0.3, 0, 0.9]).all()
    assert (targets <= [0.5, 0, 1.1]).all()
    assert len(np.unique(targets[:, 0])) == 40


def test_an_explosion_ends_the_episode_only(card: Path) -> None:
    world = world_of(card, 2)
    world.reset()
    world.simulations().datas[0].qvel[:] = 1e12
    with pytest.warns(envs.UnstablePhysicsWarning):
        obs, reward, terminated, truncated, _ = world.step(np.zeros((2, 2)))
    assert np.isfinite(obs).all()
    assert truncated.tolist() == [True, False]
    assert not terminated.any()
    assert reward[0] == 0.0


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("joint_position *", "joint_position knee", "no joint 'knee'; it has shoulder, elbow"),
        ("joint_position *", "joint_angle *", "begins with joint_position, joint_velocity"),
        ("gravity lower", 'gravity upper", "gravity upper', "upper_gravity_z more than"),
        ("velocities = 0.5", "velocities = nan", "'velocities' must be a number"),
        ("gravity lower", "gravity", "'gravity' takes 1 names, not 0"),
        ('site = "tip"\ntarget', 'site = "toe"\ntarget', "no site 'toe'; it has tip, imu, target"),
        ('term = "near"', 'term = "nearest"', "it may be speed, approach, near"),
        ('term = "near"', 'term = "near"\nspeed = 3', "[[robot.reward]] 1 has unknown keys: speed"),
        ("threshold = 2.0", "threshold = -1", "'threshold' must be at least 0"),
        ("threshold = 2.0", "", "needs a 'threshold' above 0 [rad/s, m/s]"),
        ("threshold = 2.0", "threshold = 2.0\nweight = -1", "'weight' must be at least 0"),
        ('term = "joint_velocity"', 'term = "ugliness"', "unknown term 'ugliness'"),
        ('"joint_velocity"', '"joint_position"\njoints = ["elbow"]', "elbow has no range"),
        ('keyframe = "raised"', 'keyframe = "up"', "no keyframe 'up'; it has raised"),
        ('body = "target"', 'body = "lower"', 'body lower needs mocap="true"'),
        ("low = [0.3, 0, 0.9]", "low = [0.3, 0]", "'low' must be 3 numbers"),
        ("low = [0.3, 0, 0.9]", "low = [0.9, 0, 0.9]", "'low' is above 'high'"),
        ("period_s = 0.02", "period_s = 0.025", "no whole number of the model's physics steps"),
        ("period_s = 0.02", "period_s = 0", "'period_s' must be a number of seconds > 0"),
        ("time_limit = 15", "time_limit = 1.5", "'time_limit' must be a whole number"),
        ("time_limit = 15", "", "lacks 'time_limit'"),
        ('model = "arm.xml"', 'model = "leg.xml"', "no such file"),
        ('model = "arm.xml"', 'model = "../arm.xml"', "must be the name of a file beside the card"),
        (
            'model = "arm.xml"',
            'model = "arm.xml"\nmesh = 1',
            "unknown key 'mesh'; known keys:",
        ),
        ('[[punish]]\nterm = "joint_velocity"\nthreshold = 2.0', "", "punishes nothing"),
        ("budget = 3.0", 'success = "there"', "leave one of them out"),
        ("within = 0.01", "within = 0", "'within' must be a number of at least"),
    ],
)
def test_a_wrong_card_is_one_sentence(
    card: Path, old: str, new: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    changed(card, old, new)
    assert main(["train", str(card), "--out", str(card.parent / "run")]) == EXIT_CODE
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (card.parent / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("</mujoco>", "", "cannot be compiled: XML parse error"),
        ("<worldbody>", '<include file="more.xml"/><worldbody>', "put what it includes into one"),
        ('ctrllimited="true" ctrlrange="-2 2"', "", "actuator bend has no ctrlrange"),
        (
            "<worldbody>",
            '<asset><mesh name="m" file="m.stl"/></asset><worldbody>',
            "loads m.stl",
        ),
        ('damping="0.5"', 'dampening="0.5"', "cannot be compiled"),
    ],
)
def test_a_model_that_does_not_serve_is_one_sentence(
    card: Path, old: str, new: str, said: str
) -> None:
    changed(card.with_name("arm.xml"), old, new)
    with pytest.raises(CardError) as fault:
        world_of(card)
    assert said in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("odd", ["[]", "{}", "nan", "-1", '""', "true", '["*"]', "[[1, 2]]", ""])
def test_whatever_a_card_says_is_a_robot_or_a_fault(card: Path, odd: str) -> None:
    """Every value of the card in turn is replaced by an odd one; or its line is left out."""
    world_of(card, 1).close()  # as it is, it is a robot
    lines = CARD.splitlines()
    for i, line in enumerate(lines):
        name, sign, _ = line.partition(" = ")
        if not sign:
            continue
        changed_line = f"{name} = {odd}" if odd else ""
        card.write_text("\n".join([*lines[:i], changed_line, *lines[i + 1 :]]))
        with contextlib.suppress(KcprError):
            world = world_of(card, 1)
            world.reset()
            world.step(np.zeros((1, 2)))
            world.close()


def test_odd_files_are_refused(card: Path, tmp_path: Path) -> None:
    model = tmp_path / "arm.xml"
    model.rename(tmp_path / "real.xml")
    model.symlink_to(tmp_path / "real.xml")
    with pytest.raises(CardError, match="symbolic link"):
        load_card(card)
    model.unlink()
    os.mkfifo(model)
    with pytest.raises(CardError, match="no plain file"):
        load_card(card)
    model.unlink()
    model.write_bytes(b" " * (2**22 + 1))
    with pytest.raises(CardError, match="larger than"):
        load_card(card)


def test_a_mesh_is_read_from_the_cards_files_alone(card: Path, tmp_path: Path) -> None:
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\n"
    (tmp_path / "block.obj").write_text(corners)
    asset = '<asset><mesh name="block" file="block.obj" scale=".1 .1 .1"/></asset>'
    geom = '<geom type="mesh" mesh="block"/></body>\n    <body name="target"'
    changed(tmp_path / "arm.xml", "<worldbody>", f"{asset}<worldbody>")
    changed(tmp_path / "arm.xml", '</body>\n    <body name="target"', geom)
    changed(card, 'model = "arm.xml"', 'model = "arm.xml"\nfiles = ["block.obj"]')
    assert set(load_card(card).source) == {"arm.toml", "arm.xml", "block.obj"}
    assert world_of(card)._model.nmesh == 1


# ------------------------------------------------------------------------------- in the run folder


def train(card: Path, out: Path, **changes: Any) -> Any:
    values = {"steps": 80, "overrides": FEW, "threads": 1, **changes}
    return train_run(TrainOptions(task=str(card), out=out, **values))


class Stops:
    """A sink that asks for a stop at the first row, as Ctrl-C does."""

    def open(self, *_: Any) -> None:
        pass

    def write(self, row: Any) -> None:
        os.kill(os.getpid(), 2)

    def close(self) -> None:
        pass


def test_a_run_keeps_what_it_needs(card: Path, tmp_path: Path) -> None:
    train(card, tmp_path / "whole", steps=2_400)
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run(
            TrainOptions(task=str(card), out=run, steps=2_400, overrides=FEW, threads=1),
            [Stops()],
        )
    sums = (run / "task" / "SHA256SUMS").read_text().split()
    assert sums[::2] == [hashlib.sha256(text.encode()).hexdigest() for text in (CARD, ARM)]
    assert checkpoints.read_config(run).card_sha256 == sums[0]
    # The originals change and go: the run goes by its own.
    card.with_name("arm.xml").write_text(ARM.replace('gear="8"', 'gear="1"'))
    card.unlink()
    resume_run(run)
    one, other = ((folder / RUN_FILE).read_bytes() for folder in (tmp_path / "whole", run))
    assert one == other
    assert api.evaluate(run, episodes=3).episodes == 3


@pytest.mark.parametrize("name", ["arm.xml", "arm.toml"])
def test_a_kept_file_that_changed_is_refused(card: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    train(card, run)
    kept = run / "task" / name
    kept.write_text(kept.read_text().replace("0.5", "0.6"))
    for refused in (lambda: api.evaluate(run, episodes=1), lambda: resume_run(run)):
        with pytest.raises(FileFault, match=f"{name} has another SHA-256 sum"):
            refused()


def test_damaged_sums_are_refused(card: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(card, run)
    sums = run / kept_task.FOLDER / kept_task.SUMS
    for content in (b"", b"\xff\xfe", sums.read_bytes() * 2, sums.read_bytes()[:-40]):
        sums.write_bytes(content)
        with pytest.raises(KcprError):
            kept_task.kept_card(run)


def test_a_card_may_be_about_an_environment_too(tmp_path: Path) -> None:
    """Its budget and its words hold, and the run keeps it."""
    text = CARD[: CARD.index("[robot]")].replace("Arm-v0", "SafetyPointGoal1-v0")
    (tmp_path / "goal.toml").write_text(text)
    card = envs.resolve(str(tmp_path / "goal.toml"))
    assert (card.task, card.budget, card.robot) == ("SafetyPointGoal1-v0", 3.0, None)


COMMANDS = "budget = 3.0\ncommands = [[0.0, 0.0], [0.5, 0.0], [-0.5, 0.0], [0.0, 1.0], [0.0, -1.0]]"
CHOOSES = {"width": 8, "batch": 16, "random_steps": 40, "num_envs": 4, "exploration_steps": 200}


def test_a_robot_may_choose_among_commands(card: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = changed(card, "budget = 3.0", COMMANDS)
    options = TrainOptions(str(path), run, "kldmp", steps=400, overrides=CHOOSES, threads=1)
    train_run(options)
    policy = api.load_policy(run)
    assert len(policy.contract.commands) == 5
    assert tuple(policy.act([0.0] * policy.contract.obs_size).tolist()) in policy.contract.commands
    assert api.evaluate(run, episodes=2).episodes == 2


def test_choices_that_would_not_hold_streams_are_refused(
    card: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = 'stream = "speed"\n[streams.speed]\nbudget = 1\nmeaning = "fast steps"\n'
    changed(card, "budget = 3.0", COMMANDS).write_text(card.read_text() + stream)
    run = tmp_path / "run"
    with pytest.raises(SettingsError, match=r"streams .*\(speed 1\).*not kldmp"):
        train_run(TrainOptions(str(card), run, "kldmp", steps=400, overrides=CHOOSES, threads=1))
    assert main(["train", str(card), "--agent", "kldmp", "--out", str(run)]) == EXIT_CODE
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "streams out of its card" in err
    assert not run.exists()
