"""Does a run keep, judge, save and resume as it promises, and lose nothing when things go wrong?"""

import errno
import hashlib
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import fake_contract
from toys import Sprint

from kcpr_safety import envs
from kcpr_safety.agents import Learner
from kcpr_safety.agents.continuous import EVALUATION
from kcpr_safety.agents.snapshots import with_evaluation
from kcpr_safety.cards import TaskCard
from kcpr_safety.contract import Servo, differences
from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.errors import FileFault, KcprError, NonFiniteError, SettingsError, TrainingFault
from kcpr_safety.policy_file import RUN_FILE, read_policy
from kcpr_safety.punishments import Stream
from kcpr_safety.seeds import consecutive_seeds
from kcpr_safety.stats import Line
from kcpr_safety.training import checkpoints, loop, runs, validation
from kcpr_safety.training.evaluation import Critic, evaluate_policy, rollout
from kcpr_safety.training.options import TrainOptions
from kcpr_safety.training.runs import resume_run, train_run
from kcpr_safety.training.sinks import read_rows
from kcpr_safety.training.stopping import Interrupted
from kcpr_safety.training.validation import CONFIRMING

CARD = TaskCard("SafetySprint-v0", "sprint", "", "one fast step", budget=5.0)
FEW = {"width": 8, "batch": 16, "random_steps": 200, "num_envs": 20, "updates_per_step": 0.02}
"""Settings with which a run takes a moment."""


@pytest.fixture(autouse=True)
def toy_world(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every world is a Sprint; the returned dict changes what kind."""
    kind: dict[str, Any] = {}

    def make_world(card: TaskCard, num_envs: int, *, episode_seeds: Any, **_: Any) -> Sprint:
        world = Sprint(num_envs, episode_seeds, **kind)
        world.contract = replace(world.contract, budget=card.budget)
        return world

    monkeypatch.setattr(envs, "resolve", lambda task: CARD)
    monkeypatch.setattr(envs, "make_world", make_world)
    return kind


def options(out: Path, **changed: Any) -> TrainOptions:
    values = {"task": CARD.task, "out": out, "steps": 2_000, "overrides": FEW, **changed}
    return TrainOptions(**values)


class Meddler:
    """A sink that calls a function at the first row of a kind."""

    def __init__(self, kind: str, act: Any) -> None:
        self.kind, self.act = kind, act

    def open(self, run: Path, task: str, total_steps: int, budget: float) -> None:
        pass

    def write(self, row: Any) -> None:
        if row["kind"] == self.kind and self.act:
            act, self.act = self.act, None
            act()

    def close(self) -> None:
        pass


def test_a_run_leaves_its_files_and_a_summary_with_the_stable_keys(tmp_path: Path) -> None:
    summary = train_run(options(tmp_path / "run"))
    record = summary.record()
    stable = "task agent seed eval_seed steps wall_s return_mean punishment_mean episodes"
    assert list(record)[:9] == stable.split()
    assert {"over_budget_share", "budget", "path"} <= set(record)
    json.dumps(record, allow_nan=False)
    rows = read_rows(tmp_path / "run")
    assert [row["kind"] for row in rows[:2]] == ["untaught", "train"]
    assert {row["kind"] for row in rows} == {"untaught", "train", "validation"}
    policy = read_policy(tmp_path / "run")
    assert policy.steps == record["kept_steps"]
    assert policy.contract.budget == 5.0


@pytest.mark.parametrize(("fast", "suffered", "less"), [(0.0, 10.0, 1.6), (0.9, 1.0, 1.0)])
def test_a_run_begins_by_what_untaught_robots_suffer(
    tmp_path: Path, toy_world: dict[str, Any], fast: float, suffered: float, less: float
) -> None:
    """Half of 20 random steps are above a limit of 0, 1.6 times the aim of 6.4."""
    toy_world["fast"] = fast
    held = FEW | {"m_rate": 0.0, "m_gain": 0.0}
    train_run(options(tmp_path / "run", budget=8.0, overrides=held))
    first, *rows = read_rows(tmp_path / "run")
    assert first["untaught_punishment"] == pytest.approx(suffered, abs=1.0)
    expected = 0.1 * 6.4 / first["untaught_punishment"] if less > 1.0 else 0.1
    assert first["untaught_episodes"] == 100
    for row in rows:
        if row["kind"] == "train":
            assert row["coupling_m"] == pytest.approx(expected)


def test_nobody_is_watched_for_a_weight_that_nothing_moves(tmp_path: Path) -> None:
    train_run(options(tmp_path / "run", agent="sac"))
    assert "untaught" not in {row["kind"] for row in read_rows(tmp_path / "run")}


def test_a_run_that_begins_with_a_policy_begins_by_what_that_suffers(tmp_path: Path) -> None:
    train_run(options(tmp_path / "first"))
    train_run(options(tmp_path / "second", init=tmp_path / "first"))
    random, own = (read_rows(tmp_path / name)[0] for name in ("first", "second"))
    assert own["kind"] == "untaught"
    assert own["untaught_punishment"] <= CARD.budget < random["untaught_punishment"]


def test_the_same_seed_gives_the_same_policy_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_run(options(tmp_path / name, seed=seed))
    first, again, other = ((tmp_path / n / RUN_FILE).read_bytes() for n in "abc")
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("told", "asked", "threads"), [("", None, 2), ("1", None, 1), ("8", None, 2), ("1", 2, 2)]
)
def test_the_learners_threads(
    monkeypatch: pytest.MonkeyPatch, told: str, asked: int | None, threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert runs.learner_threads(asked) == threads
    with pytest.raises(SettingsError, match="this machine has 1 to 4 to give"):
        runs.learner_threads(5)


def test_it_does_not_matter_whether_the_world_steps_beside_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_run(options(tmp_path / "inline", threads=1))
    monkeypatch.setattr(loop, "_simulator", lambda threads: ThreadPoolExecutor(1))
    train_run(options(tmp_path / "beside", threads=1))
    inline, beside = ((tmp_path / n / RUN_FILE).read_bytes() for n in ("inline", "beside"))
    assert inline == beside


def test_the_learning_rate_hears_how_far_training_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[float] = []
    update = Learner.update

    def listening(self: Any, batch: Any, *, measure: bool = True) -> Any:
        heard.append(self.progress)
        return update(self, batch, measure=measure)

    monkeypatch.setattr(Learner, "update", listening)
    train_run(options(tmp_path / "run"))
    # Learning begins after 200 of 2,000 steps, and the last updates come before the last 20.
    assert heard == sorted(heard)
    assert heard[0] == pytest.approx(0.12, abs=0.03)
    assert heard[-1] == pytest.approx(0.98, abs=0.03)


def test_training_data_say_which_ends_are_true(
    tmp_path: Path, toy_world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncation bootstraps, termination does not, and next_obs is the true last observation."""
    toy_world.update(limit=6, far=2.0)
    kept: list[loop.Training] = []
    original = loop.Training.run
    monkeypatch.setattr(
        loop.Training, "run", lambda self, sinks: kept.append(self) or original(self, sinks)
    )
    train_run(options(tmp_path / "run", steps=400))
    rows = kept[0].replay.rows[: len(kept[0].replay)]
    batch = kept[0].replay.layout.read(rows)
    far = batch.next_obs[:, 0].abs() > 2.0
    assert 0 < far.sum() < len(rows)
    assert torch.equal(batch.continues == 0.0, far)
    # Position moves by the (normalised) speed, also across the end of an episode.
    torch.testing.assert_close(batch.next_obs[:, 0], batch.obs[:, 0] + batch.action[:, 0])
    torch.testing.assert_close(batch.reward, batch.action[:, 0])
    assert torch.equal(batch.punishment, (batch.action[:, 0] > 0).float())


def test_the_kept_policy_is_the_best_feasible_one(tmp_path: Path) -> None:
    # So noisy a policy is still feasible when it is first looked at.
    train_run(options(tmp_path / "run", steps=24_000, overrides=FEW | {"entropy_target": -1.0}))
    rows = [row for row in read_rows(tmp_path / "run") if row["kind"] == "validation"]
    feasible = [row for row in rows if row["feasible"]]
    best = max(feasible, key=lambda row: row["judged_return"])
    assert best["judged_episodes"] == CONFIRMING
    assert read_policy(tmp_path / "run").steps == best["steps"]
    assert rows[0]["kept"]


def test_learning_obeys_the_budget_where_sac_ignores_it(tmp_path: Path) -> None:
    """Reward is speed, every step at positive speed is punished, 5 of 20 are allowed."""
    # Here is nothing between all and nothing: in full proportion the weight would swing with it.
    calm = {"m_start": 2.0, "m_gain": 0.3}
    settings = FEW | calm | {"learning_rate": 1e-2, "updates_per_step": 0.1, "gamma": 0.9}
    results = {}
    for agent in ("kcpr", "sac"):
        train_run(options(tmp_path / agent, steps=5_000, agent=agent, overrides=settings))
        last = [r for r in read_rows(tmp_path / agent) if r["kind"] == "validation"][-1]
        results[agent] = (last["return_mean"], last["punishment_mean"])
    assert results["sac"][0] > 15.0
    assert results["sac"][1] > 15.0
    assert results["kcpr"][1] <= 5.0


def test_an_interrupted_run_resumes_to_its_end(tmp_path: Path) -> None:
    stop = Meddler("validation", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="kcpr-safety resume"):
        train_run(options(tmp_path / "run", steps=12_000), [stop])
    counters = checkpoints.read_counters(tmp_path / "run")
    assert 0 < counters.steps < 12_000
    assert counters.replay_added == counters.steps
    lines_before = read_rows(tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as stream:
        stream.write('{"kind": "train", "steps": 999999}\n')  # as if killed after the checkpoint
    resume_run(tmp_path / "run")
    rows = read_rows(tmp_path / "run")
    assert rows[: len(lines_before)] == lines_before
    assert rows[-1]["steps"] == 12_000
    assert [row["steps"] for row in rows] == sorted(row["steps"] for row in rows)
    with pytest.raises(FileFault, match="finished"):
        resume_run(tmp_path / "run")


def test_a_full_disk_stops_the_run_and_spares_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_PERIOD_S", 0.0)
    real = os.fsync

    def full() -> None:
        def fail(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(FileFault, match="disk is full"):
        train_run(options(tmp_path / "run"), [Meddler("train", full)])
    monkeypatch.setattr(os, "fsync", real)
    counters = checkpoints.read_counters(tmp_path / "run")
    assert counters.steps > 0
    assert not list((tmp_path / "run").glob("*.tmp"))
    resume_run(tmp_path / "run")


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    train_run(options(tmp_path / "run", steps=400))
    before = (tmp_path / "run" / RUN_FILE).read_bytes()
    with pytest.raises(FileFault, match="already holds a run"):
        train_run(options(tmp_path / "run", seed=1))
    assert (tmp_path / "run" / RUN_FILE).read_bytes() == before


def test_a_number_that_is_none_from_the_environment_stops_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Sprint._advance

    def broken(self: Sprint, action: np.ndarray) -> Any:
        outcome = original(self, action)
        if self.elapsed[0] == 3:
            outcome.obs[2, 1] = np.nan
        return outcome

    monkeypatch.setattr(Sprint, "_advance", broken)
    with pytest.raises(NonFiniteError, match=r"last_action.*environment 2, episode seed \d+, step"):
        train_run(options(tmp_path / "run"))


def test_a_learner_that_diverged_stops_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Learner.update

    def broken(self: Any, batch: Any, *, measure: bool = True) -> Any:
        return original(self, batch, measure=measure) | {"critic_loss": torch.tensor(float("nan"))}

    monkeypatch.setattr(Learner, "update", broken)
    with pytest.raises(TrainingFault, match="critic_loss became not finite"):
        train_run(options(tmp_path / "run", steps=6_000))


@pytest.mark.parametrize(
    "changed",
    [
        {"agent": "ppo"},
        {"steps": 1},
        {"seed": 10_000},
        {"budget": float("nan")},
        {"budget": -1.0},
        {"num_envs": 0},
        {"device": "cuda:9"},
        {"init": Path("nowhere")},
        {"overrides": {"coupling": -1.0}},
    ],
    ids=str,
)
def test_bad_options_are_one_sentence_and_leave_no_folder(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    with pytest.raises(KcprError) as caught:
        train_run(options(tmp_path / "run", **changed))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_can_start_from_another_ones_policy(tmp_path: Path) -> None:
    train_run(options(tmp_path / "first"))
    train_run(options(tmp_path / "second", seed=1, init=tmp_path / "first"))
    train_run(options(tmp_path / "fresh", seed=1))
    second, fresh = (read_policy(tmp_path / name).tensors for name in ("second", "fresh"))
    assert not torch.equal(second["actor.0.weight"], fresh["actor.0.weight"])
    first = read_policy(tmp_path / "first")
    begun = checkpoints.read_config(tmp_path / "second").begun_from
    assert begun is not None and begun["task"] == first.task and begun["steps"] == first.steps
    file = (tmp_path / "first" / "policy.safetensors").read_bytes()
    assert begun["policy_sha256"] == hashlib.sha256(file).hexdigest()
    assert checkpoints.read_config(tmp_path / "fresh").begun_from is None


def test_critics_learn_first_only_of_a_policy_that_there_is(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="without --init there is none"):
        train_run(options(tmp_path / "run", overrides=FEW | {"critics_first": 10}))
    assert not (tmp_path / "run").exists()


def test_a_warm_start_acts_with_its_policy_from_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_run(options(tmp_path / "first"))

    def random(_: Any) -> None:
        raise AssertionError("a random action")

    monkeypatch.setattr(loop.Training, "_random_action", random)
    train_run(options(tmp_path / "second", init=tmp_path / "first"))
    with pytest.raises(AssertionError, match="a random action"):
        train_run(options(tmp_path / "fresh"))


def test_evaluation_does_not_depend_on_how_many_episodes_run_side_by_side(tmp_path: Path) -> None:
    train_run(options(tmp_path / "run", steps=1_000))
    policy = read_policy(tmp_path / "run")
    controller = controller_from_tensors(policy.tensors, policy.contract)
    results = []
    for side_by_side in (1, 3, 7):
        world = Sprint(side_by_side, consecutive_seeds(10_000, side_by_side))
        results.append(rollout(controller, world, 7, Critic(policy)))
    assert results[0].returns == results[1].returns == results[2].returns
    assert results[0].punishments == results[1].punishments == results[2].punishments


def test_episodes_that_end_early_are_counted_once(tmp_path: Path) -> None:
    train_run(options(tmp_path / "run", steps=1_000))
    policy = read_policy(tmp_path / "run")
    controller = controller_from_tensors(policy.tensors, policy.contract)
    world = Sprint(3, consecutive_seeds(10_000, 3), far=1.0, limit=40)
    done = rollout(controller, world, 5, Critic(policy))
    assert len(done.lengths) == 5
    assert min(done.lengths) < 40
    for total, length in zip(done.returns, done.lengths, strict=True):
        assert abs(total) <= length


def test_the_realised_punishment_is_the_discounted_future(tmp_path: Path) -> None:
    """A policy that is always punished: 1 / (1 - gamma) from every step that counts."""
    train_run(options(tmp_path / "run", steps=400, overrides=FEW | {"gamma": 0.5}))
    policy = read_policy(tmp_path / "run")
    controller = controller_from_tensors(policy.tensors, policy.contract)
    done = rollout(
        controller, Sprint(2, consecutive_seeds(0, 2), fast=-9.0, limit=60), 2, Critic(policy)
    )
    assert done.punishments == (60.0, 60.0)
    assert done.realised == pytest.approx(2.0, rel=1e-3)
    assert [tenth.steps for tenth in done.reliability] == [10] * 10, "60 - 5 horizons of 2, twice"
    assert [t.realised for t in done.reliability] == pytest.approx([2.0] * 10, rel=1e-3)
    predicted = [tenth.predicted for tenth in done.reliability]
    assert predicted == sorted(predicted)
    assert sum(predicted) / 10 == pytest.approx(done.predicted)


def test_the_kept_evaluation_critic_is_right_on_the_episodes_that_judged_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q_C of the file is the line of Q_C as learned, and the policy is what it was."""
    found: list[tuple[Any, Any]] = []

    def watched(controller: Any, world: Any, episodes: int, critic: Any, **more: Any) -> Any:
        done = rollout(controller, world, episodes, critic, **more)
        found.append((critic, done))
        return done

    monkeypatch.setattr(validation, "rollout", watched)
    numbers = FEW | {"gamma": 0.5}
    train_run(options(tmp_path / "run", steps=1_000, overrides=numbers))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row.get("kept")][-1]
    line = Line(kept["critic_offset"], kept["critic_slope"])
    learned, done = next(pair for pair in found if pair[1].line == line)
    assert done.line != Line(0.0, 1.0)
    policy = read_policy(tmp_path / "run")
    obs, action = np.random.default_rng(0).normal(size=(2, 50, 4))
    action = action[:, : policy.contract.action_size]
    obs = obs[:, : policy.contract.obs_size]
    raw, right = learned(obs, action), Critic(policy)(obs, action)
    np.testing.assert_allclose(right, line.offset + line.slope * raw, atol=1e-5)
    assert line.offset + line.slope * done.predicted == pytest.approx(done.realised)
    other = with_evaluation(policy.tensors, Line(1.0, 2.0), 3.0)
    for name, tensor in policy.tensors.items():
        rows = EVALUATION.start if name.startswith("critic.2.") else None
        assert torch.equal(other[name][:rows], tensor[:rows]), "only Q_C's last layer changes"


def test_evaluation_refuses_seeds_that_training_may_have_seen(tmp_path: Path) -> None:
    train_run(options(tmp_path / "run", steps=400))
    with pytest.raises(SettingsError, match="may have been trained on"):
        evaluate_policy(tmp_path / "run", 2, 9_999)
    with pytest.raises(SettingsError, match="at least 1"):
        evaluate_policy(tmp_path / "run", 0, 10_000)


def test_evaluation_refuses_a_policy_of_another_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_run(options(tmp_path / "run", steps=400))
    original = envs.make_world

    def renamed(*args: Any, **kwargs: Any) -> Sprint:
        world = original(*args, **kwargs)
        first, *rest = world.contract.observation
        world.contract = replace(
            world.contract, observation=(replace(first, name="altitude"), *rest)
        )
        return world

    monkeypatch.setattr(envs, "make_world", renamed)
    with pytest.raises(FileFault, match="contract"):
        evaluate_policy(tmp_path / "run", 1, 10_000)


SERVO = Servo("knee", 40.0, 1.0, 0.0, 23.7, 30.1)
WALK = replace(
    fake_contract(),
    servos=(replace(SERVO, joint="hip"), SERVO),
    streams=(Stream("fall", 2.0, "falls"),),
)
DIFFERENCES: list[tuple[dict[str, Any], str]] = [
    ({"servos": (WALK.servos[0], replace(SERVO, kp=50.0))}, "servo of knee has kp 40.0, that of"),
    ({"servos": (replace(SERVO, joint="hip", kd=2.0), SERVO)}, "servo of hip has kd 1.0, that of"),
    ({"servos": (WALK.servos[0], replace(SERVO, rest=0.1))}, "servo of knee has rest 0.0, that of"),
    ({"servos": ()}, "has 2 servos, SafetyFake-v1 here has 0"),
    ({"period_s": 0.02}, "acts every 0.05 s, but SafetyFake-v1 here takes 0.02 s a step"),
    ({"time_limit": 500}, "episodes have 1000 steps, those of SafetyFake-v1 here 500"),
    ({"streams": ()}, "held to the streams fall, and SafetyFake-v1 here has none"),
    ({"streams": (Stream("slip", 2.0, "slips"),)}, "streams fall, and SafetyFake-v1 here has slip"),
    ({"commands": ((0.0, 0.0), (0.1, 0.1))}, "commands contract (0 entries)"),
]


@pytest.mark.parametrize(("changed", "said"), DIFFERENCES)
def test_each_difference_of_a_task_has_a_sentence(changed: dict[str, Any], said: str) -> None:
    (sentence,) = differences(WALK, replace(WALK, **changed))
    assert said in sentence
    assert "\n" not in sentence


def test_budgets_are_the_policys_own() -> None:
    here = replace(WALK, budget=7.0, streams=(Stream("fall", 3.0, "falls"),))
    assert list(differences(WALK, here)) == []


def test_all_differences_are_told_and_words_are_none() -> None:
    odd: dict[str, Any] = {"period_s": 1.0, "time_limit": 3, "streams": ()}
    assert len([*differences(WALK, replace(WALK, **odd))]) == 3
    other = replace(WALK, punishment="said anew", streams=(Stream("fall", 2.0, "said anew"),))
    assert [*differences(WALK, replace(other, budget=1.0))] == []


def test_what_a_contract_calls_closeness_is_seen_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = envs.make_world

    def with_a_lidar(*args: Any, **kwargs: Any) -> Sprint:
        world: Any = plain(*args, **kwargs)
        first, *others = world.contract.observation
        observation = (replace(first, low=0.0, high=1.0), *others)
        world.contract = replace(world.contract, observation=observation)
        return world

    monkeypatch.setattr(envs, "make_world", with_a_lidar)
    run = tmp_path / "run"
    train_run(options(run))
    policy = read_policy(run)
    assert policy.schema_version == "3"
    near = policy.tensors["obs_near"]
    assert near[0] == 10.0
    assert not bool(near[1:].any())
    assert evaluate_policy(run, 2, 10_000)["episodes"] == 2


def test_evaluation_refuses_a_task_of_another_length(
    tmp_path: Path, toy_world: dict[str, Any]
) -> None:
    train_run(options(tmp_path / "run", steps=400))
    toy_world["limit"] = 30
    with pytest.raises(FileFault, match="episodes have 20 steps, those of SafetySprint-v0 here 30"):
        evaluate_policy(tmp_path / "run", 1, 10_000)
