"""Does the command line answer every mistake with one sentence, and machines with pure JSON?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import fake_policy, fake_run

from kcpr_safety.cli import main
from kcpr_safety.cli.commands import COMMANDS
from kcpr_safety.cli.learning import Train
from kcpr_safety.cli.parsing import parse
from kcpr_safety.deploy import export_bundle
from kcpr_safety.errors import EXIT_CODE, KcprError

ROOT = Path(__file__).resolve().parent.parent
TASK = "SafetyHalfCheetahVelocity-v1"


def fault(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence that this command line ends with."""
    assert main(words) == EXIT_CODE
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("kcpr-safety: ")
    assert err.count("\n") == 1, err
    return err


def child(
    *words: str, prelude: str = "", cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, after running `prelude` there."""
    code = f"import sys\n{prelude}\nfrom kcpr_safety.cli import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_unknown_command_names_the_near_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert "'tran'; did you mean train?" in fault(capfd, "tran")


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_option_names_the_near_one(capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert "unknown option '--jsn'; did you mean --json" in fault(capfd, command, "--jsn")


def test_unknown_option_before_any_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert "--version" in fault(capfd, "--versoin")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train"], "TASK is missing"),
        (["export", "runs/x"], "--out is missing"),
        (["train", TASK, "--steps"], "--steps needs a value"),
        (["train", TASK, "--steps", "many"], "--steps takes INT, not 'many'"),
        (["train", TASK, "--seed", "1.5"], "--seed takes INT, not '1.5'"),
        (["train", TASK, "--budget", "low"], "--budget takes FLOAT, not 'low'"),
        (["train", TASK, "twice"], "unexpected argument twice"),
        (["bench", "simulator"], "unknown bench 'simulator'"),
        (["bench", "sim", "--seconds", "0"], "seconds > 0"),
        (["report", "--out", "x"], "at least one run"),
    ],
)
def test_wrong_words(capfd: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    assert sentence in fault(capfd, *words)


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["--steps", "1e6"], 1_000_000),
        (["--steps=2.5E5"], 250_000),
        (["--steps", "300_000"], 300_000),
    ],
)
def test_a_million_may_be_written_as_people_write_it(words: list[str], steps: int) -> None:
    assert parse(Train, "train", "", [TASK, *words]).steps == steps


@pytest.mark.parametrize("words", [["--steps", "1.5e0"], ["--steps", "1e-3"], ["--seed=1e"]])
def test_a_fraction_is_no_count(words: list[str]) -> None:
    with pytest.raises(KcprError, match="takes INT"):
        parse(Train, "train", "", [TASK, *words])


@pytest.mark.parametrize("command", ["train", "bench sim"])
def test_unknown_task_names_the_near_one(capfd: pytest.CaptureFixture[str], command: str) -> None:
    said = fault(capfd, *command.split(), "SafetyHalfCheetaVelocity-v1")
    assert f"did you mean {TASK}" in said


def test_unknown_agent_names_the_near_one(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = fault(capfd, "train", TASK, "--agent", "sac-lagg", "--out", str(tmp_path / "run"))
    assert "unknown agent 'sac-lagg'; did you mean sac-lag" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "export --out x", "resume", "report --out x"])
def test_foreign_files_are_refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    (tmp_path / "notes.txt").write_text("a shopping list")
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("policy.safetensors", "checkpoint.safetensors", "config.json", "metrics.jsonl"):
        (broken / name).write_bytes(b"\x00\x01 not what the name says")
    for place in ("nowhere", "notes.txt", "empty", "broken"):
        said = fault(capfd, *command.split(), str(tmp_path / place))
        assert place in said


def test_output_folder_that_cannot_be_made(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    said = fault(capfd, "train", TASK, "--out", str(tmp_path / "file" / "run"))
    assert str(tmp_path / "file") in said
    assert (tmp_path / "file").read_text() == "in the way"


def test_evaluation_on_seen_seeds_is_refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = real_run(tmp_path)
    assert "10000 or more" in fault(capfd, "evaluate", str(run), "--eval-seed", "8500")


def test_video_of_an_unknown_kind_is_refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = real_run(tmp_path)
    assert ".gif or .mp4" in fault(capfd, "evaluate", str(run), "--video", "episode.avi")


def test_card_with_an_unknown_key(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (ROOT / "tasks" / f"{TASK}.toml").read_text()
    (tmp_path / "tasks").mkdir()
    path = tmp_path / "tasks" / f"{TASK}.toml"
    path.write_text(f"bugdet = 25.0\n{card}")
    monkeypatch.setattr("kcpr_safety.cards.data_root", lambda: tmp_path)
    said = fault(capfd, "train", TASK, "--out", str(tmp_path / "run"))
    assert "bugdet" in said
    assert path.name in said


def test_missing_safety_gymnasium_says_the_command(tmp_path: Path) -> None:
    # A package that is not there: no finder of this process knows it any more.
    prelude = """
import importlib.abc, importlib.machinery, importlib.util
known = importlib.util.find_spec
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "safety_gymnasium":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Blocked())
importlib.util.find_spec = lambda name, package=None: (
    None if name.split(".")[0] == "safety_gymnasium" else known(name, package)
)
"""
    for words in (["tasks"], ["train", TASK, "--out", str(tmp_path / "run")], ["check", TASK]):
        done = child(*words, prelude=prelude)
        assert done.returncode == EXIT_CODE, done.stderr
        assert "pip install --no-deps safety-gymnasium==1.0.0" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    done = child("doctor", "--json", prelude=prelude)
    assert done.returncode == EXIT_CODE
    record = json.loads(done.stdout)
    assert record["blocked_by"] == ["safety-gymnasium"]
    (row,) = (row for row in record["checks"] if row["name"] == "safety-gymnasium")
    assert row["mend"] == "pip install --no-deps safety-gymnasium==1.0.0"


def test_missing_dependency_points_to_the_doctor() -> None:
    done = child("train", TASK, prelude="sys.modules['torch'] = None")
    assert done.returncode == EXIT_CODE
    assert done.stderr == "kcpr-safety: torch is not installed; run: kcpr-safety doctor\n"


def test_help_teaches(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capfd.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in overview
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0
        text = capfd.readouterr().out
        assert f"kcpr-safety {command}" in text.split("Examples:")[1]
        assert "--json" in text


@pytest.mark.parametrize("words", ["tasks", "tasks --all", "policies", "doctor"])
def test_json_is_one_object_and_nothing_else(words: str) -> None:
    # C code and careless libraries print too: a line that a package writes to file descriptor 1
    # while the command runs must not reach the reader.
    noise = """
import os, kcpr_safety.cards as cards
root = cards.data_root
def noisy():
    os.write(1, b"noise from C\\n"); print("noise from Python")
    return root()
cards.data_root = noisy
"""
    done = child(*words.split(), "--json", prelude=noise)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert done.stdout.count("\n") == 1
    assert "noise from C" in done.stderr
    assert "noise from Python" in done.stderr


@pytest.mark.parametrize("words", ["--help", "tasks", "tasks --json"])
def test_reader_that_has_left_is_no_fault(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kcpr_safety", *words.split()],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode not in (0, EXIT_CODE)


def test_help_loads_neither_torch_nor_a_simulator() -> None:
    probe = """
import atexit
@atexit.register
def report():
    print(sorted({"torch", "mujoco", "gymnasium"} & set(sys.modules)), file=sys.stderr)
"""
    for words in (["--help"], ["train", "--help"], ["--version"], ["tran"]):
        assert child(*words, prelude=probe).stderr.endswith("[]\n")


def real_run(folder: Path) -> Path:
    """A run folder with a random policy of a real task."""
    from kcpr_safety import envs
    from kcpr_safety.policy_file import write_policy
    from kcpr_safety.seeds import evaluation_seeds

    world = envs.make_world(envs.resolve(TASK), 1, episode_seeds=evaluation_seeds(10_000, 1))
    run = folder / "run"
    run.mkdir()
    write_policy(run / "policy.safetensors", fake_policy(contract=world.contract))
    return run


def test_check_of_a_users_own_environment(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_robots.py").write_text(MY_ROBOTS)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", "my_robots:Good-v0", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["ok"]
    assert main(["check", "my_robots:NoCost-v0", "--json"]) == 1
    record = json.loads(capfd.readouterr().out)
    assert not record["ok"]
    assert any("cost" in finding["sentence"] for finding in record["findings"])
    assert "unknown task" in fault(capfd, "check", "my_robots:Absent-v0")


MY_ROBOTS = """
import gymnasium
import numpy as np


class Good(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3), {}

    def step(self, action):
        info = {"cost": 0.0}
        return self.np_random.uniform(-1, 1, 3), 1.0, False, False, info


class NoCost(Good):
    def step(self, action):
        return (*super().step(action)[:4], {})


gymnasium.register("Good-v0", Good, max_episode_steps=50)
gymnasium.register("NoCost-v0", NoCost, max_episode_steps=50)
"""


def test_shipped_policies_are_listed_and_found_by_name(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kcpr_safety.api.data_root", lambda: tmp_path)
    assert main(["policies"]) == 0
    assert "no policies" in capfd.readouterr().out
    export_bundle(fake_run(tmp_path / "run"), tmp_path / "policies" / "Sprinter")
    assert main(["policies", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["policies"]
    assert row["name"] == "Sprinter"
    evidence = row["card"]["evidence"]
    assert main(["policies"]) == 0
    listed = capfd.readouterr().out
    assert "Sprinter" in listed
    assert f"{evidence['return_mean']['value']:,.0f} [" in listed
    assert "'Runner' is neither" in fault(capfd, "evaluate", "Runner")
    (tmp_path / "policies" / "Sprinter" / "card.json").write_text("{}")
    assert "card.json" in fault(capfd, "policies")
