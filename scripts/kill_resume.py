"""Does a run that is killed at any moment, and resumed, end as if it had never been stopped?

    .venv/bin/python scripts/kill_resume.py [--kills 100] [--out FOLDER] [--config NAME ...]

Four configurations: fast navigation, fast velocity, the official path, and SAC-Lag whose learner
has two threads and whose replay overflows. Each is trained once without a stop (5 to 15 s), then
again and again: the process gets SIGKILL at a random moment (also while it starts, validates, or
writes a checkpoint: they are written every half second here), is resumed, is killed again with
probability 1/3, and runs to its end. Everything that is left must equal the uninterrupted run: the
policy file to the last byte, every row of metrics but for the clock's columns, and in the final
checkpoint all of the learner, every generator and every counter.

A finished kill is noted in FOLDER/kills.jsonl and not done again: stop and start as you like.
Exit code 1 where anything differed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

SMALL = {"random_steps": 1_000, "width": 64, "batch": 64, "num_envs": 4}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "navigation": {"task": "SafetyPointGoal1-v0", "steps": 8_000, "overrides": SMALL},
    "velocity": {"task": "SafetyHopperVelocity-v1", "steps": 9_000, "overrides": SMALL},
    "official": {
        "task": "SafetyPointGoal1-v0",
        "steps": 4_000,
        "overrides": SMALL | {"updates_per_step": 0.5},
    },
    "sac-lag": {
        "task": "SafetyHalfCheetahVelocity-v1",
        "agent": "sac-lag",
        "steps": 9_000,
        "threads": 2,
        "overrides": SMALL | {"capacity": 3_000, "num_envs": 3},
    },
}
OFFICIAL = "official"
"""The configuration whose worlds take the authors' own path."""
CLOCK = {"wall_s", "steps_per_s", "metrics_bytes"}
"""What may differ: the time of day is no part of a run."""


def child(name: str, run: Path, steps: int | None, period_s: float) -> None:
    """Train or resume `run`, in this process."""
    from kcpr_safety import envs
    from kcpr_safety.envs.official import OfficialWorld
    from kcpr_safety.training import loop
    from kcpr_safety.training.checkpoints import CONFIG_FILE
    from kcpr_safety.training.options import TrainOptions

    loop.CHECKPOINT_PERIOD_S = period_s
    validation.EPISODES = 2
    if name == OFFICIAL:
        envs.make_world = lambda card, num_envs, *, episode_seeds, threads=None: OfficialWorld(
            card, num_envs, episode_seeds
        )
    if (run / CONFIG_FILE).exists():
        loop.resume_run(run)
    else:
        config = {"threads": 1} | CONFIGS[name] | ({} if steps is None else {"steps": steps})
        loop.train_run(TrainOptions(out=run, **config))


def start(name: str, run: Path) -> "subprocess.Popen[bytes]":
    # The parent's own words first: steps and period are the same in every child.
    words = [sys.executable, *sys.argv, "--out", str(run), "--child", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)


def finish(name: str, run: Path) -> None:
    process = start(name, run)
    _, told = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{name} in {run} failed: {told.decode()[-2000:]}")


def kill_once(name: str, run: Path, after_s: float) -> bool:
    """Kill it after some seconds; False where it had ended by itself."""
    process = start(name, run)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    _, told = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{name} in {run} failed: {told.decode()[-2000:]}") from None
    return False


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common, but for the clock."""
    from kcpr_safety.training.checkpoints import read_checkpoint
    from kcpr_safety.training.sinks import read_rows

    found = []
    if (one / "policy.safetensors").read_bytes() != (other / "policy.safetensors").read_bytes():
        found.append("policy.safetensors")
    rows, others = (list(map(timeless, read_rows(run))) for run in (one, other))
    if rows != others:
        which = next(
            (i for i, (a, b) in enumerate(zip(rows, others, strict=False)) if a != b), "count"
        )
        found.append(f"metrics.jsonl, row {which}")
    a, b = (read_checkpoint(run)[0] for run in (one, other))
    for group in ("learner", "world"):
        held, again = getattr(a, group), getattr(b, group)
        keys = sorted({*held, *again})
        found += [f"{group}.{k}" for k in keys if not same(held.get(k), again.get(k))]
    if not same(a.generator, b.generator) or a.policy != b.policy:
        found.append("loop")
    counters, others_counters = timeless(asdict(a.counters)), timeless(asdict(b.counters))
    found += [key for key in counters if counters[key] != others_counters[key]]
    return found


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the clock says."""
    return {
        key: timeless(value) if isinstance(value, dict) else value
        for key, value in row.items()
        if key not in CLOCK
    }


def same(one: Any, other: Any) -> bool:
    """Bit for bit (a NaN equals itself)."""
    if one is None or other is None:
        return False
    a, b = np.asarray(one), np.asarray(other)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def whole_run(name: str, out: Path) -> tuple[Path, float]:
    """The uninterrupted run of a configuration, and its seconds."""
    run, note = out / f"{name}-whole", out / f"{name}-whole.json"
    if not note.exists():
        shutil.rmtree(run, ignore_errors=True)
        started = time.perf_counter()
        finish(name, run)
        note.write_text(json.dumps(time.perf_counter() - started))
    return run, float(json.loads(note.read_text()))


def trial(name: str, number: int, out: Path) -> dict[str, Any]:
    """One killed run, and how it ended."""
    whole, seconds = whole_run(name, out)
    rng = random.Random(f"{name} {number}")
    run = out / f"{name}-killed"
    shutil.rmtree(run, ignore_errors=True)
    kills = []
    moment: float | None = rng.uniform(0.5, seconds)
    while moment is not None:
        killed = kill_once(name, run, moment)
        kills += [round(moment, 3)] if killed else []
        again = killed and not _finished(run) and rng.random() < 1 / 3
        moment = rng.uniform(0.5, seconds / 2) if again else None
    if not _finished(run):
        finish(name, run)
    return {"config": name, "number": number, "kills": kills, "differs": differences(whole, run)}


def _finished(run: Path) -> bool:
    from kcpr_safety.training.checkpoints import checkpoint_files, read_counters

    return bool(checkpoint_files(run)) and read_counters(run).finished


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/kill-resume"))
    parser.add_argument("--config", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--steps", type=int, help="of each run; not given: about 15 s of them")
    parser.add_argument("--period", type=float, default=0.5, help="seconds between checkpoints")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop in time")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.out, given.steps, given.period)
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    note, started = given.out / "kills.jsonl", time.perf_counter()
    done = [json.loads(line) for line in note.read_text().splitlines()] if note.exists() else []
    known = {(row["config"], row["number"]) for row in done}
    for index in range(given.kills):
        name, number = given.config[index % len(given.config)], index // len(given.config)
        if (name, number) in known or time.perf_counter() - started > given.seconds:
            continue
        row = trial(name, number, given.out)
        done.append(row)
        with open(note, "a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    kills = sum(len(row["kills"]) for row in done)
    wrong = [row for row in done if row["differs"]]
    print(f"{len(done)} runs, {kills} kills, {len(wrong)} ended differently")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
