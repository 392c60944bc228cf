"""Is an action that is held for several steps the same as as many equal ones?"""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from fakes import fake_contract, fake_policy, fake_run
from toys import Sprint, only_sprints

from kcpr_safety import envs
from kcpr_safety.agents import Learner
from kcpr_safety.agents.settings import Settings
from kcpr_safety.agents.task import Task
from kcpr_safety.assured import unassured
from kcpr_safety.cards import TaskCard
from kcpr_safety.contract import Contract
from kcpr_safety.deploy import load_policy
from kcpr_safety.deploy.bundle import export_bundle
from kcpr_safety.envs.official import OfficialWorld
from kcpr_safety.errors import FileFault, SettingsError
from kcpr_safety.policy_file import RUN_FILE, read_policy
from kcpr_safety.seeds import training_seeds
from kcpr_safety.training import loop, validation, video
from kcpr_safety.training.evaluation import evaluate_policy
from kcpr_safety.training.options import TrainOptions
from kcpr_safety.training.runs import resume_run, train_run
from kcpr_safety.training.sinks import read_rows
from kcpr_safety.training.stopping import Interrupted

GOAL = "SafetyPointGoal1-v0"
CARD = TaskCard("SafetySprint-v0", "sprint", "", "one fast step", budget=5.0)
FEW = {"width": 8, "batch": 16, "random_steps": 200, "num_envs": 10, "updates_per_step": 0.02}


def sprint(limit: int = 20, **kind: Any) -> Sprint:
    return Sprint(2, lambda i, k: 0, limit=limit, **kind)


def test_a_contract_tells_how_long_actions_are_held() -> None:
    plain = fake_contract()
    held = plain.held(4)
    assert (held.period_s, held.time_limit, held.hold) == (0.2, 250, 4)
    assert held.steps == plain.steps == 1000
    assert held.held(2) == plain.held(8)
    assert Contract.from_json(held.to_json()) == held
    assert "hold" not in json.loads(plain.to_json())  # as it was before there were any
    for hold in (0, 3):
        with pytest.raises(SettingsError, match="not a whole number of actions"):
            plain.held(hold)
    for wrong in ("0", "2.5", "true", '"4"'):
        with pytest.raises(FileFault):
            Contract.from_json(held.to_json().replace('"hold": 4', f'"hold": {wrong}'))


@pytest.mark.parametrize("make", [envs.make_world, OfficialWorld])
def test_a_held_action_is_as_many_equal_ones(make: Any) -> None:
    worlds = [make(envs.resolve(GOAL), 2, episode_seeds=training_seeds(3)) for _ in "ab"]
    plain, held = worlds[0], worlds[1].hold(4)
    assert np.array_equal(plain.reset()[0], held.reset()[0])
    rng = np.random.default_rng(0)
    for _ in range(250):
        action = rng.uniform(-1.0, 1.0, (2, 2))
        steps = [plain.step(action) for _ in range(4)]
        obs, reward, terminated, truncated, infos = held.step(action)
        assert np.array_equal(obs, steps[-1][0])
        assert np.array_equal(reward, np.sum([step[1] for step in steps], axis=0))
        assert np.array_equal(
            infos["punishment"], np.sum([step[4]["punishment"] for step in steps], axis=0)
        )
        assert np.array_equal(infos["final_obs"], steps[-1][4]["final_obs"])
        assert np.array_equal(truncated, steps[-1][3])
        assert not terminated.any()
    assert truncated.all()  # and both began the same episode anew


def test_nothing_counts_after_an_end_within_an_action() -> None:
    world = sprint(far=1.5).hold(4)
    world.reset()
    slow, fast = 1.1, 4.0
    obs, reward, terminated, truncated, infos = world.step(np.array([[fast, 0], [slow, 0]]))
    assert terminated.tolist() == [True, False] and not truncated.any()
    assert reward == pytest.approx([2.0, 4 * 0.1 / 3])  # ends at 2 m, after two steps of 1 m
    assert infos["punishment"].tolist() == [2.0, 4.0]
    assert infos["final_obs"][0].tolist() == [2.0, 1.0]
    assert obs[0].tolist() == [0.0, 0.0]


class Strict(gymnasium.Env[np.ndarray, np.ndarray]):
    """Ends after three steps, and then refuses to be stepped."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros(1), {}

    def step(self, action: np.ndarray) -> Any:
        assert self.steps < 3, "it is over"
        self.steps += 1
        return np.array([float(self.steps)]), 1.0, 0.5, self.steps == 3, False, {}


def test_what_has_ended_is_not_stepped_on() -> None:
    gymnasium.register("KcprTestStrict-v0", entry_point=Strict, max_episode_steps=8)
    try:
        card = envs.resolve("KcprTestStrict-v0")
        world = OfficialWorld(card, 2, lambda i, k: 0).hold(4)
        world.reset()
        for _ in range(2):
            _, reward, terminated, _, infos = world.step(np.zeros((2, 1)))
            assert terminated.all() and reward.tolist() == [3.0, 3.0]
            assert infos["punishment"].tolist() == [1.5, 1.5]
            assert infos["final_obs"].tolist() == [[3.0], [3.0]]
    finally:
        del gymnasium.registry["KcprTestStrict-v0"]


def test_a_held_world_comes_back_exactly() -> None:
    def make() -> Any:
        world = envs.make_world(envs.resolve(GOAL), 2, episode_seeds=training_seeds(3), threads=1)
        return world.hold(5)

    world, other = make(), make()
    world.reset()
    rng = np.random.default_rng(0)
    for _ in range(30):
        world.step(rng.uniform(-1.0, 1.0, (2, 2)))
    assert np.array_equal(other.restore(world.snapshot()), world.snapshot()["obs"])
    action = rng.uniform(-1.0, 1.0, (2, 2))
    assert np.array_equal(world.step(action)[0], other.step(action)[0])


def test_what_the_future_is_worth_does_not_depend_on_the_hold() -> None:
    """A budget that is spent evenly has the value 1 either way, to within a hold."""
    plain = Learner(Settings(), Task(3, 2, 25.0, 1000), num_envs=1, seed=0)
    held = Learner(Settings(hold=4), Task(3, 2, 25.0, 250, hold=4), num_envs=1, seed=0)
    assert held.gamma == pytest.approx(0.99**4)
    assert held.normaliser.return_scale.gamma == held.gamma
    assert held.punishment_scale == pytest.approx(plain.punishment_scale, rel=0.02)
    policy = fake_policy(contract=fake_contract().held(4))
    assert unassured(policy).gamma == pytest.approx(0.99**4)


def test_a_bundle_tells_the_robot_its_longer_period(tmp_path: Path) -> None:
    policy = fake_policy(contract=fake_contract().held(4))
    export_bundle(fake_run(tmp_path / "run", policy), tmp_path / "bundle")
    assert load_policy(tmp_path / "bundle").contract == policy.contract


def test_a_film_shows_every_step_and_asks_once_a_command() -> None:
    asked, taken = [], []

    def controller(rows: torch.Tensor) -> torch.Tensor:
        asked.append(float(rows[0, 0]))
        return rows

    class Line:
        def reset(self, seed: int) -> Any:
            return np.zeros(1), {}

        def step(self, action: np.ndarray) -> Any:
            taken.append(float(action[0]))
            return np.array([float(len(taken))]), 0.0, 0.5, False, False, {}

    looked: list[int] = []
    assert video._played(Line(), controller, 0, 6, 4, looked.append) == [0.5] * 6
    assert (asked, taken, looked) == ([0.0, 4.0], [0.0] * 4 + [4.0] * 2, [0, 1, 2, 3, 4, 5])


@pytest.fixture
def toy_world(monkeypatch: pytest.MonkeyPatch) -> None:
    only_sprints(monkeypatch, CARD)
    monkeypatch.setattr(validation, "EPISODES", 2)
    monkeypatch.setattr(loop, "_LOG_EVERY", 400)


def options(out: Path, **changed: Any) -> TrainOptions:
    return TrainOptions(CARD.task, out, steps=2_000, overrides={**FEW, "hold": 4, **changed})


class Stops:
    """A sink that interrupts the run at its first validation."""

    def open(self, *_: Any) -> None:
        pass

    def write(self, row: Any) -> None:
        if row["kind"] == "validation":
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("toy_world")
def test_a_run_counts_steps_of_the_task(tmp_path: Path) -> None:
    train_run(options(tmp_path / "run"))
    rows = read_rows(tmp_path / "run")
    assert rows[-1]["steps"] == 2_000
    first = next(row for row in rows if row["kind"] == "train")
    updates = [row["updates"] for row in rows if row["kind"] == "train"]
    assert first["steps"] <= 200 + 400 + 40
    assert updates[-1] == pytest.approx(0.02 * (2_000 - 200), abs=2)
    policy = read_policy(tmp_path / "run" / RUN_FILE)
    assert (policy.contract.hold, policy.contract.time_limit) == (4, 5)
    done = evaluate_policy(tmp_path / "run", episodes=4, eval_seed=10_000)
    assert done["lengths"] == [20] * 4  # in the task's steps, as those of any other policy


@pytest.mark.slow
@pytest.mark.usefixtures("toy_world")
def test_a_run_whose_actions_are_held_resumes_as_if_never_stopped(tmp_path: Path) -> None:
    train_run(options(tmp_path / "whole"))
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train_run(options(tmp_path / "halves"), [Stops()])
    resume_run(tmp_path / "halves")
    one, other = (read_policy(tmp_path / name / RUN_FILE) for name in ("whole", "halves"))
    for name, tensor in one.tensors.items():
        assert tensor.equal(other.tensors[name]), name


@pytest.mark.usefixtures("toy_world")
def test_a_hold_must_fit_the_episode(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="20 steps an episode"):
        train_run(options(tmp_path / "run", hold=3))
    assert not (tmp_path / "run").exists()
