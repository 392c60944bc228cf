"""Does a discrete agent train, resume, evaluate and export like any other, on a grid-world?"""

import json
from pathlib import Path

import pytest
import torch

from kcpr_safety import api
from kcpr_safety.cli import main
from kcpr_safety.errors import EXIT_CODE, SettingsError
from kcpr_safety.policy_file import read_policy
from kcpr_safety.training import loop, runs
from kcpr_safety.training.options import TrainOptions

TASK = "GridCorridor-v0"
SMALL = {"width": 16, "batch": 16, "random_steps": 200, "exploration_steps": 1_000}


def options(folder: Path, agent: str, **changed: object) -> TrainOptions:
    given: dict[str, object] = {
        "task": TASK,
        "out": folder,
        "agent": agent,
        "steps": 1_600,
        "threads": 1,
    }
    given["overrides"] = SMALL
    return TrainOptions(**{**given, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("agent", ["dqn", "softdmp", "kldmp-split"])
def test_a_run_goes_from_nothing_to_a_bundle(tmp_path: Path, agent: str) -> None:
    runs.train_run(options(tmp_path / "run", agent))
    policy = read_policy(tmp_path / "run")
    assert len(policy.contract.commands) == 4
    judged = api.evaluate(tmp_path / "run", episodes=3)
    assert judged.details["success_share"] in (0.0, 1.0)
    report = api.calibrate(tmp_path / "run", episodes=2)["calibration"]
    assert report["episodes"] == 2
    if agent == "kldmp-split":
        api.export(tmp_path / "run", tmp_path / "bundle")
    act = api.load_policy(tmp_path / ("bundle" if agent == "kldmp-split" else "run")).act
    obs = [0.0] * len(policy.contract.observation)
    obs[0] = 1.0
    assert tuple(act(obs).tolist()) in policy.contract.commands


@pytest.mark.parametrize("agent", ["kldmp", "kldmp-routed"])
def test_a_killed_run_ends_like_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    """Saved half-way, killed and gone on with: the same learner at the end, bit by bit."""
    ended: list[loop.Training] = []
    run = loop.Training.run
    monkeypatch.setattr(
        loop.Training, "run", lambda self, sinks: ended.append(self) or run(self, sinks)
    )
    runs.train_run(options(tmp_path / "whole", agent))
    store = loop.Training._store

    def stop_half_way(self: loop.Training, *given: object) -> object:
        obs = store(self, *given)  # type: ignore[arg-type]
        if self.steps == 800:
            self._save(0, finished=False)
            raise KeyboardInterrupt
        return obs

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_store", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            runs.train_run(options(tmp_path / "run", agent))
    runs.resume_run(tmp_path / "run")
    whole, resumed = ended[0], ended[-1]
    assert resumed.steps == whole.steps
    for name, tensor in whole.family.snapshot(whole.learner).items():
        assert tensor.equal(resumed.family.snapshot(resumed.learner)[name]), name
    assert torch.equal(whole.replay.rows, resumed.replay.rows)


def test_weights_can_be_started_from(tmp_path: Path) -> None:
    runs.train_run(options(tmp_path / "first", "kldmp"))
    again = options(tmp_path / "second", "dqn", init=tmp_path / "first", steps=400)
    assert runs.train_run(again).record()["steps"] == 400


def test_an_agent_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"asks for a choice among 4 commands, which kcpr does"):
        runs.train_run(options(tmp_path / "run", "kcpr", overrides={}))
    other = options(tmp_path / "run", "kldmp", task="SafetyHalfCheetahVelocity-v1")
    with pytest.raises(SettingsError, match=r"continuous actions.*kcpr, sac, sac-lag"):
        runs.train_run(other)
    assert not (tmp_path / "run").exists()


def test_bad_numbers_are_one_sentence_on_the_command_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for given, sentence in (
        ("softening=1.0", "softening is 1.0; it must lie in [0, 1)"),
        ("softening=-0.5", "softening is -0.5; it must lie in [0, 1]"),
        ("softning=0.5", "did you mean softening"),
    ):
        words = ["train", TASK, "--agent", "kldmp", "--set", given, "--out", str(tmp_path / "run")]
        assert main(words) == EXIT_CODE
        out, err = capfd.readouterr()
        assert out == "" and sentence in err and err.count("\n") == 1


def test_the_metrics_are_those_of_a_run(tmp_path: Path) -> None:
    runs.train_run(options(tmp_path / "run", "kldmp", steps=2_400))
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    trained = [row for row in rows if row["kind"] == "train"][-1]
    assert trained["lambda"] == pytest.approx(0.6)
    assert trained["updates"] > 0 and trained["exploration"] == pytest.approx(0.05)
    assert [row for row in rows if row["kind"] == "validation"]
