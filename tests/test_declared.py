"""Do environments with a declared punishment step as before, and charge what the card says?"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from fakes import fake_policy
from test_envs_rewind import comes_back
from toys import Sprint

from kcpr_safety import envs
from kcpr_safety.cards import TaskCard, card_names, load_card
from kcpr_safety.cli import main
from kcpr_safety.contract import Contract
from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.envs.declared_world import DeclaredWorld
from kcpr_safety.envs.goals import goal_of
from kcpr_safety.envs.official import make_official, make_plain
from kcpr_safety.envs.world import Outcome
from kcpr_safety.errors import EXIT_CODE, CardError, EnvironmentFault, FileFault
from kcpr_safety.policy_file import write_policy
from kcpr_safety.punishments import Stream
from kcpr_safety.seeds import consecutive_seeds, training_seeds
from kcpr_safety.training.evaluation import evaluate_policy, rollout
from kcpr_safety.training.loop import Training
from kcpr_safety.training.options import TrainOptions
from kcpr_safety.training.runs import train_run
from kcpr_safety.training.stress import Body

DECLARED = [task for task in card_names() if load_card(task).punish]
CHEAP = ["HalfCheetah-v5", "Hopper-v5", "FetchReachDense-v4", "PointMaze_UMazeDense-v3"]


def world(card: TaskCard, num_envs: int) -> Any:
    return envs.make_world(card, num_envs, episode_seeds=training_seeds(3))


def commands(made: Any, steps: int, num_envs: int) -> np.ndarray:
    space = made.single_action_space
    rng = np.random.default_rng(1)
    drawn: np.ndarray = rng.uniform(space.low, space.high, (steps, num_envs, len(space.low)))
    return drawn


@pytest.mark.parametrize("task", CHEAP)
def test_a_world_gives_what_its_environments_give_one_by_one(task: str) -> None:
    side_by_side = world(envs.resolve(task), 3)
    assert isinstance(side_by_side, DeclaredWorld)
    assert [row.path for row in envs.registered_tasks() if row.task == task] == ["declared"]
    obs, _ = side_by_side.reset()
    alone = [make_plain(task)[0] for _ in range(3)]
    for env, row, seed in zip(alone, obs, side_by_side.seeds, strict=True):
        assert np.array_equal(env.reset(seed=int(seed))[0], row)
    charged = 0.0
    for action in commands(side_by_side, 40, 3):
        _, reward, terminated, truncated, infos = side_by_side.step(action)
        for i, env in enumerate(alone):
            row, r, cost, ended, _, _ = env.step(action[i])
            assert (r, cost, ended) == (reward[i], infos["punishment"][i], terminated[i])
            assert np.array_equal(row, infos["final_obs"][i])
            charged += cost
        if (terminated | truncated).any():
            break
    side_by_side.close()
    for env in alone:
        env.close()


def test_the_bare_environment_is_untouched() -> None:
    ours, _ = make_plain("HalfCheetah-v5")
    theirs = gymnasium.make("HalfCheetah-v5").unwrapped
    assert np.array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 6)).astype(np.float32):
        obs, reward, *_ = ours.step(action)
        expected, paid, *_ = theirs.step(action)
        assert np.array_equal(obs, expected)
        assert reward == paid


@pytest.mark.parametrize("task", CHEAP)
def test_declared_worlds_come_back_exactly(task: str) -> None:
    comes_back(lambda: world(envs.resolve(task), 2), 55, 25)


@pytest.mark.slow
@pytest.mark.parametrize("task", DECLARED)
def test_all_declared_worlds_come_back_exactly(task: str) -> None:
    comes_back(lambda: world(envs.resolve(task), 2), 120, 60)


def test_numbers_have_names() -> None:
    contract = world(envs.resolve("Ant-v5"), 1).contract
    names = [entry.name for entry in contract.observation]
    assert len(names) == len(set(names)) == 105
    assert names[:2] == ["root_position_z", "root_quaternion_w"]
    assert names[-1].endswith("_contact_force_z")
    assert {entry.name for entry in contract.action} >= {"hip_1", "ankle_4"}
    contract = world(envs.resolve("Humanoid-v5"), 1).contract
    units = {entry.name: entry.unit for entry in contract.observation}
    assert len(units) == 348
    assert units["torso_mass"] == "kg"
    assert units["actuation_abdomen_z_rate"] == "N m"
    contract = world(envs.resolve("FetchReachDense-v4"), 1).contract
    names = [entry.name for entry in contract.observation]
    assert names[:4] == ["achieved_goal_0", "achieved_goal_1", "achieved_goal_2", "desired_goal_0"]
    assert contract.period_s == pytest.approx(0.04)


@pytest.mark.parametrize("task", ["FetchPush-v4", "HandReachDense-v3", "AntMaze_OpenDense-v5"])
def test_a_goal_is_paid_as_the_environment_pays_it(task: str) -> None:
    made = world(envs.resolve(task), 2)
    goal = made.goal
    assert goal is not None
    made.reset()
    low, high = made.action_space.low, made.action_space.high
    rng = np.random.default_rng(0)
    for _ in range(20):
        _, reward, _, _, infos = made.step(rng.uniform(low, high))
        obs = infos["final_obs"]
        paid = goal.reward(obs[:, list(goal.achieved)], obs[:, list(goal.desired)])
        np.testing.assert_allclose(paid, reward, rtol=1e-5, atol=1e-9)
    # Another goal is another reward: here, to have wanted what was achieved.
    there = obs[:, list(goal.achieved)]
    assert (goal.reward(there, there) > reward).all()


def test_the_force_that_pushes_the_block_is_free() -> None:
    """Sliding takes weight times friction; a card that punishes that forbids its task."""
    card = envs.resolve("FetchPush-v4")
    model = make_plain("FetchPush-v4")[0].model
    block = model.body("object0")
    friction = model.geom_friction[block.geomadr[0], 0]
    slides = float(block.mass[0] * friction * -model.opt.gravity[2])
    assert 15.0 < slides < 25.0
    force = next(punish for punish in card.punish if punish.term == "contact_force")
    assert 3 * slides < force.threshold


def test_bodies_without_goals_have_none() -> None:
    assert world(envs.resolve("Ant-v5"), 1).goal is None


class OneByOne(gymnasium.Env[Any, Any]):
    """Goals whose reward is made for one of them alone."""

    observation_space = gymnasium.spaces.Dict(
        {
            "achieved_goal": gymnasium.spaces.Box(-1.0, 1.0, (2,)),
            "desired_goal": gymnasium.spaces.Box(-1.0, 1.0, (2,)),
            "arm": gymnasium.spaces.Box(-1.0, 1.0, (3,)),
        }
    )

    def compute_reward(self, achieved: Any, desired: Any, _: Any) -> float:
        if achieved[0, 0] > 0.0:
            raise IndexError("one at a time")
        return -float(np.linalg.norm(achieved - desired))


def test_goals_are_found_wherever_they_stand_and_rewards_must_take_batches() -> None:
    goal = goal_of("Mine-v0", OneByOne())
    assert goal is not None
    # Dictionaries are flattened in the order of their keys: achieved_goal, arm, desired_goal.
    assert goal.achieved == (0, 1) and goal.desired == (5, 6)
    with pytest.raises(
        EnvironmentFault, match=r"Mine-v0: compute_reward gives \(\) for goals \(4, 2\)"
    ):
        goal.reward(np.zeros((4, 2)), np.ones((4, 2)))
    with pytest.raises(EnvironmentFault, match=r"Mine-v0: .*compute_reward.*one at a time"):
        goal.reward(np.ones((4, 2)), np.ones((4, 2)))


def test_names_of_masses_hold_masses() -> None:
    """The order of Humanoid's body terms, against the model itself."""
    made = world(envs.resolve("Humanoid-v5"), 1)
    obs, _ = made.reset()
    model = make_plain("Humanoid-v5")[0].model
    for column, entry in enumerate(made.contract.observation):
        if entry.unit == "kg":
            body = entry.name.removesuffix("_mass")
            assert obs[0, column] == pytest.approx(model.body(body).mass[0])


def test_options_reach_the_constructor_and_wrong_ones_are_said() -> None:
    card = replace(envs.resolve("Ant-v5"), options={"include_cfrc_ext_in_observation": False})
    assert world(card, 1).contract.obs_size == 27
    card = replace(card, options={"include_fors": False})
    with pytest.raises(EnvironmentFault, match="include_fors"):
        world(card, 1)
    card = replace(card, options={}, environment="CartPole-v1")
    with pytest.raises(EnvironmentFault, match="no MuJoCo model"):
        world(card, 1)


def test_parts_of_the_punishment_are_kept_apart() -> None:
    plain = envs.resolve("HalfCheetah-v5")
    rows = [replace(row, stream=f"part {i}") for i, row in enumerate(plain.punish)]
    parts = tuple(Stream(row.stream, 5.0 + i, "a part") for i, row in enumerate(rows))
    card = replace(plain, punish=tuple(rows), streams=parts)
    made = world(card, 2)
    made.reset()
    for action in commands(made, 30, 2):
        infos = made.step(action)[4]
        assert infos["streams"].shape == (2, len(rows))
        np.testing.assert_allclose(infos["streams"].sum(axis=1), infos["punishment"])
    contract = made.contract
    assert [part.name for part in contract.streams] == [part.name for part in parts]
    assert Contract.from_json(contract.to_json()) == contract
    assert "streams" not in Contract.to_json(replace(contract, streams=()))


class Halves(Sprint):
    """Whose punishment has two parts: a quarter and three quarters of it."""

    def _advance(self, action: np.ndarray) -> Outcome:
        outcome = super()._advance(action)
        parts = outcome.punishment[:, None] * np.array([0.25, 0.75])
        return replace(outcome, streams=parts)


def test_an_evaluation_adds_each_part_up() -> None:
    made = Halves(2, consecutive_seeds(0, 2), limit=8)
    policy = fake_policy(contract=made.contract)
    controller = controller_from_tensors(policy.tensors, policy.contract)
    fast = np.array([[4.0, 0.0], [-2.0, 0.0]])
    done = rollout(controller, made, 3, act=lambda _, obs: fast)
    assert done.punishments == (8.0, 0.0, 8.0)
    assert done.streams == ((2.0, 6.0), (0.0, 0.0), (2.0, 6.0))
    plain = Sprint(2, consecutive_seeds(0, 2), limit=8)
    done = rollout(controller, plain, 2, act=lambda _, obs: fast)
    assert done.streams == ((), ())


def test_an_evaluation_reports_each_part_beside_its_budget(tmp_path: Path) -> None:
    made = world(envs.resolve("FetchPush-v4"), 1)
    policy = replace(fake_policy(contract=made.contract), settings={"width": 32})
    write_policy(tmp_path / "policy.safetensors", policy)
    record = evaluate_policy(tmp_path / "policy.safetensors", 2, 10_000)
    assert [(row["name"], row["budget"]) for row in record["streams"]] == [
        ("force", 2.0),
        ("workspace", 1.0),
    ]
    total = sum(row["punishment_mean"] for row in record["streams"])
    assert total == pytest.approx(record["punishment_mean"])


def test_a_policy_is_judged_by_the_budgets_that_it_was_held_to(tmp_path: Path) -> None:
    made = world(envs.resolve("FetchPush-v4"), 1)

    def judged(*streams: Stream) -> dict[str, Any]:
        contract = replace(made.contract, streams=streams)
        policy = replace(fake_policy(contract=contract), settings={"width": 32})
        write_policy(tmp_path / "policy.safetensors", policy)
        return evaluate_policy(tmp_path / "policy.safetensors", 1, 10_000)

    force, workspace = made.contract.streams
    record = judged(replace(force, budget=0.5), workspace)
    assert [row["budget"] for row in record["streams"]] == [0.5, 1.0]
    assert "streams" not in judged()
    with pytest.raises(FileFault, match=r"held to the streams force, and .* has force, workspace"):
        judged(force)


def test_a_budget_for_the_total_alone_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "FetchPush-v4", "--out", str(tmp_path / "run"), "--budget", "10"]
    assert main(words) == EXIT_CODE
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "leave its streams' (force 2, workspace 1) as they are" in err
    assert not (tmp_path / "run").exists()


def test_the_cards_own_budget_may_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a benchmark name it in their commands."""
    monkeypatch.setattr(Training, "run", lambda self, _: self.config)
    monkeypatch.setattr(Training, "claim", lambda _: None)
    told = TrainOptions(task="FetchPush-v4", out=tmp_path / "run", budget=3.0, threads=1)
    assert train_run(told).budget == 3.0  # type: ignore[attr-defined]


def test_bodies_are_found_for_faults_and_bare_physics() -> None:
    """Each environment's own model and state, which an official step then moves."""
    made = world(envs.resolve("Hopper-v5"), 2)
    made.reset()
    found = made.simulations()
    assert found is not None
    assert len({id(model) for model in found.models}) == len({id(d) for d in found.datas}) == 2
    assert found.substeps * found.models[0].opt.timestep == pytest.approx(made.contract.period_s)
    before = [data.time for data in found.datas]
    made.step(np.zeros((2, 3)))
    after = [data.time for data in found.datas]
    np.testing.assert_allclose(np.subtract(after, before), made.contract.period_s)
    mass = found.models[1].body_mass.sum()
    Body(fake_policy(), 2, mass=1.3, friction=1.0).prepare(made)
    assert found.models[1].body_mass.sum() == pytest.approx(1.3 * mass)
    made.close()


class Nudged(gymnasium.Env[np.ndarray, int]):
    """A pendulum that is pushed left, not at all, or right."""

    XML = """<mujoco><option timestep="0.02"/><worldbody><body name="rod">
      <joint name="hinge" axis="0 1 0" damping=".1"/> <geom size=".1" pos="0 0 -.5"/>
    </body></worldbody><actuator><motor name="push" joint="hinge"/></actuator></mujoco>"""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(self.XML)
        self.data = mujoco.MjData(self.model)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gymnasium.spaces.Discrete(3, start=5)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[0] = self.np_random.uniform(-1, 1)
        return self.obs(), {}

    def obs(self) -> np.ndarray:
        return np.append(self.data.qpos, self.data.qvel)

    def step(self, action: int) -> Any:
        assert self.action_space.contains(action), action
        self.data.ctrl[0] = action - 6
        mujoco.mj_step(self.model, self.data)
        return self.obs(), 1.0, False, False, {}


NUDGED = """
task = "KcprNudged-v0"
title = "A pendulum"
description = "Stay."
punishment = "a change of mind"
[[punish]]
term = "action_rate"
threshold = 0.5
"""


@pytest.fixture
def nudged(tmp_path: Path) -> Iterator[Path]:
    """The card of an environment with choices."""
    gymnasium.register("KcprNudged-v0", entry_point=Nudged, max_episode_steps=30)
    path = tmp_path / "nudged.toml"
    path.write_text(NUDGED)
    yield path
    del gymnasium.registry["KcprNudged-v0"]


def test_choices_are_punished_too(nudged: Path) -> None:
    made = world(load_card(nudged), 2)
    contract = made.contract
    assert [entry.name for entry in contract.action] == ["choice"]
    assert contract.commands == ((5.0,), (6.0,), (7.0,))
    assert contract.period_s == pytest.approx(0.02)
    made.reset()
    alone, _ = make_plain(str(nudged))
    alone.reset(seed=int(made.seeds[0]))
    charges = []
    for choices in ([5, 6], [5, 7], [6, 7], [7, 5], [7, 5]):
        obs, _, _, _, infos = made.step(np.array(choices, dtype=float)[:, None])
        charges.append(infos["punishment"].tolist())
        row, _, cost, *_ = alone.step(choices[0])
        assert (row.tolist(), cost) == (obs[0].tolist(), charges[-1][0])
    assert charges == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 0]], "one step or two: another choice"
    assert [f.severity for f in envs.check_environment(str(nudged))] == ["ok"]
    comes_back(lambda: world(load_card(nudged), 2), 40, 20)


def test_commands_beside_choices_are_refused(nudged: Path) -> None:
    nudged.write_text("commands = [[0.0], [1.0]]\n" + NUDGED)
    with pytest.raises(CardError, match=r"'commands' .* a choice already"):
        world(load_card(nudged), 1)


def test_robotics_is_imported_without_its_notice() -> None:
    code = "from kcpr_safety import envs; envs.resolve('FetchReachDense-v4')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == done.stdout == ""


def test_pictures_are_of_the_inner_environment() -> None:
    env = make_official("Hopper-v5", render_mode="rgb_array", width=64, height=48)
    assert env.inner.unwrapped.width == 64
    env.close()


def test_the_terms_are_listed() -> None:
    command = [sys.executable, "-m", "kcpr_safety", "tasks", "--terms", "--json"]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["terms"]
    assert {"term": "tilt", "unit": "deg"}.items() <= next(
        row for row in listed if row["term"] == "tilt"
    ).items()
    assert len(listed) == 12


def test_the_ant_in_the_maze_is_called_as_the_ant_outside() -> None:
    """So that a policy of one can begin in the other; and the names mean what they say."""
    env = make_plain("AntMaze_OpenDense-v5")[0]
    maze = env.entries()[0]
    outside = world(envs.resolve("SafetyAntVelocity-v1"), 1).contract.observation
    shared = {(entry.name, entry.unit) for entry in maze} & {(e.name, e.unit) for e in outside}
    assert len(shared) == len(outside) == 27
    env.reset(seed=1)
    obs = [env.step(command)[0] for command in np.sin(np.arange(160.0)).reshape(20, 8)][-1]
    named = {entry.name: value for entry, value in zip(maze, obs, strict=True)}
    data = env.data
    assert named["achieved_goal_0"] == data.qpos[0]
    assert named["root_position_z"] == data.qpos[2]
    for joint in ("hip_1", "ankle_1", "hip_4", "ankle_4"):
        assert named[f"{joint}_angle"] == data.joint(joint).qpos[0]
        assert named[f"{joint}_rate"] == data.joint(joint).qvel[0]
    force = data.body("back_leg").cfrc_ext[5]
    assert named["back_leg_contact_force_z"] == np.clip(force, -1.0, 1.0)
