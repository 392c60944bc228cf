"""Does a run that is killed at any moment, and resumed, end as if it had never been stopped?

    .venv/bin/python scripts/kill_resume.py [--kills 100] [--out FOLDER] [--config NAME ...]

Five configurations: fast navigation, fast velocity, the official path, SAC-Lag whose learner has
two threads and whose replay overflows, and klDMP with two buffers in a maze. Each is trained once
without a stop (5 to 15 s), then again and again: the process gets SIGKILL at a random moment (also
while it starts, validates, or writes a checkpoint: they are written every half second here), is
resumed, is killed again with probability 1/3, and runs to its end. Everything that is left must
equal the uninterrupted run: the policy file to the last byte, every row of metrics but for the
clock's columns, and in the final checkpoint all of the learner, every generator and every counter.

A finished kill is noted in FOLDER/kills.jsonl and not done again: stop and start as you like.
Exit code 1 where anything differed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kcpr_safety import envs
from kcpr_safety.envs.official import OfficialWorld
from kcpr_safety.training import loop, runs, validation
from kcpr_safety.training.checkpoints import (
    CONFIG_FILE,
    checkpoint_files,
    read_checkpoint,
    read_counters,
)
from kcpr_safety.training.options import TrainOptions
from kcpr_safety.training.sinks import read_rows

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
    "discrete": {
        "task": "MazeLDiscrete-v0",
        "agent": "kldmp-routed",
        "steps": 9_000,
        "overrides": SMALL | {"capacity": 3_000},
    },
}
OFFICIAL = "official"
"""The configuration whose worlds take the authors' own path."""
FOREVER_S = 3600.0
CLOCK = {"wall_s", "steps_per_s", "metrics_bytes"}
"""What may differ: the time of day is no part of a run."""


def child(name: str, run: Path, steps: int | None, period_s: float) -> None:
    """Train or resume `run`, in this process."""
    loop.CHECKPOINT_PERIOD_S = period_s
    validation.EPISODES = 2
    if name == OFFICIAL:
        envs.make_world = lambda card, num_envs, *, episode_seeds, threads=None: OfficialWorld(
            card, num_envs, episode_seeds
        )
    if (run / CONFIG_FILE).exists():
        runs.resume_run(run)
    else:
        config = {"threads": 1} | CONFIGS[name] | ({} if steps is None else {"steps": steps})
        runs.train_run(TrainOptions(out=run, **config))


class Process:
    """A training in a process of its own, forked after the imports, which take longer than it."""

    def __init__(self, name: str, run: Path, steps: int | None, period_s: float) -> None:
        self.what = f"{name} in {run}"
        self.told = run.with_name(run.name + ".err")
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.dup2(os.open(self.told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
                child(name, run, steps, period_s)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def ended_within(self, seconds: float) -> bool:
        """Did it end by itself? Where it failed, that is raised."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                if status:
                    raise RuntimeError(f"{self.what} failed: {self.told.read_text()[-2000:]}")
                return True
            time.sleep(0.002)
        return False

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common, but for the clock."""
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


class Trials:
    """Killed runs of the configurations, beside the whole ones."""

    def __init__(self, out: Path, steps: int | None, period_s: float) -> None:
        self.out, self.how = out, (steps, period_s)

    def whole_run(self, name: str) -> tuple[Path, float]:
        """The uninterrupted run of a configuration, and its seconds."""
        run, note = self.out / f"{name}-whole", self.out / f"{name}-whole.json"
        if not note.exists():
            shutil.rmtree(run, ignore_errors=True)
            started = time.perf_counter()
            Process(name, run, *self.how).ended_within(FOREVER_S)
            note.write_text(json.dumps(time.perf_counter() - started))
        return run, float(json.loads(note.read_text()))

    def trial(self, name: str, number: int) -> dict[str, Any]:
        """One killed run, and how it ended."""
        whole, seconds = self.whole_run(name)
        rng = random.Random(f"{name} {number}")
        run = self.out / f"{name}-killed"
        shutil.rmtree(run, ignore_errors=True)
        kills: list[float] = []
        moment: float | None = rng.uniform(0.0, seconds)
        while moment is not None:
            process = Process(name, run, *self.how)
            if process.ended_within(moment):
                break
            process.kill()
            kills.append(round(moment, 3))
            again = not _finished(run) and rng.random() < 1 / 3
            moment = rng.uniform(0.0, seconds / 2) if again else None
        if not _finished(run):
            Process(name, run, *self.how).ended_within(FOREVER_S)
        return {
            "config": name,
            "number": number,
            "kills": kills,
            "differs": differences(whole, run),
        }


def _finished(run: Path) -> bool:
    return bool(checkpoint_files(run)) and read_counters(run).finished


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/kill-resume"))
    parser.add_argument("--config", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--steps", type=int, help="of each run; not given: about 15 s of them")
    parser.add_argument("--period", type=float, default=0.5, help="seconds between checkpoints")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop in time")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    trials = Trials(given.out, given.steps, given.period)
    note, started = given.out / "kills.jsonl", time.perf_counter()
    done = [json.loads(line) for line in note.read_text().splitlines()] if note.exists() else []
    known = {(row["config"], row["number"]) for row in done}
    for index in range(given.kills):
        name, number = given.config[index % len(given.config)], index // len(given.config)
        if (name, number) in known or time.perf_counter() - started > given.seconds:
            continue
        row = trials.trial(name, number)
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
