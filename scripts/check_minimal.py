"""Does an installation without any extra do all that the README claims for it?

    python scripts/check_minimal.py [FOLDER] [--task TASK]

Makes an environment in FOLDER (a temporary one unless given; about a minute), installs the package
with the pins of constraints.txt and no extra, and safety-gymnasium beside it. From elsewhere it
then imports, lists, trains for a moment, resumes what was stopped, evaluates, exports, loads and
reports; and what needs an extra must say so in one sentence.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASK = "SafetyHopperVelocity-v1"
EXTRAS = ("tensorboard", "stable_baselines3", "pytest", "hypothesis", "beartype")

ACT = """
import sys
import numpy as np
from kcpr_safety import load_policy
policy = load_policy(sys.argv[1])
action = policy.act(np.zeros(policy.contract.obs_size, dtype=np.float32))
assert action.shape == (policy.contract.action_size,) and np.isfinite(action).all()
assert not {"mujoco", "gymnasium"} & set(sys.modules)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--task", default=TASK)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kcpr-minimal-") as scratch:
        folder = (given.folder or Path(scratch) / "env").resolve()
        if not (folder / "bin" / "kcpr-safety").exists():
            install(folder)
        check(folder / "bin", Path(scratch), given.task)
    print("minimal installation: imports, trains, resumes, evaluates, exports, loads and reports")
    return 0


def install(folder: Path) -> None:
    run([sys.executable, "-m", "venv", str(folder)], ROOT)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    run([*pip, "-c", str(ROOT / "constraints.txt"), str(ROOT)], ROOT)
    run([*pip, "--no-deps", "safety-gymnasium==1.0.0"], ROOT)


def check(tools: Path, place: Path, task: str) -> None:
    python, command = str(tools / "python"), str(tools / "kcpr-safety")
    found = f"import importlib.util as u; print([n for n in {EXTRAS} if u.find_spec(n)])"
    expect(run([python, "-c", found], place).strip() == "[]", "an extra is installed")
    expect(bool(json.loads(run([command, "tasks", "--json"], place))["tasks"]), "no tasks")
    train = [command, "train", task, "--steps", "6000", "--envs", "4", "--out", "run", "--json"]
    expect(json.loads(run(train, place))["steps"] == 6_000, "train tells of other steps")
    judged = json.loads(run([command, "evaluate", "run", "--episodes", "2", "--json"], place))
    expect(judged["episodes"] == 2, "evaluate tells of other episodes")
    run([command, "export", "run", "--out", "bundle", "--json"], place)
    run([python, "-c", ACT, "bundle"], place)
    run([command, "report", "run", "--out", "page", "--json"], place)
    told = refused([command, "resume", "run"], place)
    expect("finished its 6,000 steps" in told, told)
    told = refused([*train[:-3], "--out", "other", "--tensorboard"], place)
    expect("tensorboard is not installed" in told, told)


def run(words: list[str], place: Path) -> str:
    done = subprocess.run(words, cwd=place, env=environment(), capture_output=True, text=True)
    expect(done.returncode == 0, f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def refused(words: list[str], place: Path) -> str:
    """What it says where it must refuse: one sentence, exit code 2."""
    done = subprocess.run(words, cwd=place, env=environment(), capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("kcpr-safety: ")]
    expect(done.returncode == 2 and len(lines) == 1, f"{words}: {done.returncode} {done.stderr}")
    return lines[0]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"check of the minimal installation failed: {otherwise}")


if __name__ == "__main__":
    sys.exit(main())
