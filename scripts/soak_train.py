"""Does training stay as fast and as small after an hour as after a minute?

    nice python scripts/soak_train.py train RUN [--minutes 75] [--task TASK]
    python scripts/soak_train.py judge RUN [--out FIGURE.png]

`train` trains without an end, with checkpoints (every minute, or --period), validation and, every
ten minutes, a whole evaluation of the policy so far; every 20 s it notes steps, memory, file
handles, threads, wall and CPU time of the process in RUN/soak.jsonl. Typed again, it goes on.
`judge` fits a line to memory, to steps per CPU second and to steps per second after warm-up, and
prints each slope with its 95 % interval: Student's t, of means over nearly seven minutes, since
neighbouring values are alike (`tests/test_soak.py` counts how often it holds the truth). Steps per
CPU second feel what shares the core's caches; steps per second also what takes its time: nothing
else should run, or something that never changes.
Exit code 1 where an interval of memory or of steps per CPU second does not contain zero.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from kcpr_safety.stats import t_quantile

TASK = "SafetyPointGoal1-v0"
SMALL = {"width": 64, "batch": 64, "capacity": 100_000, "num_envs": 4}
FOREVER = 10_000_000
"""Steps that no soak of 75 minutes reaches; a validation comes every 40th part of them."""
NOTE_S = 20.0
EVALUATE_S = 600.0
WARM_UP_S = 1800.0
"""Until the replay is full and a few validations have found their memory."""
BLOCK = 20
"""Notes whose mean counts once: neighbours are alike, means of nearly seven minutes hardly are."""
SOAK_FILE = "soak.jsonl"


class Notes:
    """A sink that notes the process's figures, evaluates now and then, and ends the run in time."""

    def __init__(self, run: Path, minutes: float) -> None:
        self.run, self.limit_s = run, minutes * 60
        self.rows = rows_of(run) if (run / SOAK_FILE).exists() else []
        self.before = self.rows[-1] if self.rows else {"wall_s": 0.0, "cpu_s": 0.0}
        self.started, self.noted, self.evaluated = time.perf_counter(), 0.0, time.perf_counter()
        self.evaluations = self.validations = 0

    def open(self, run: Path, task: str, total_steps: int, budget: float) -> None:
        pass

    def write(self, row: Any) -> None:
        now = time.perf_counter()
        self.validations += row["kind"] == "validation"
        if row["kind"] != "train":
            return
        if now - self.evaluated > EVALUATE_S and (self.run / "policy.safetensors").exists():
            # As a user does it beside a training: in a process of its own.
            evaluate = ["evaluate", str(self.run), "--episodes", "5", "--json"]
            subprocess.run(
                [sys.executable, "-m", "kcpr_safety", *evaluate],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            self.evaluated = time.perf_counter()
            self.evaluations += 1
        if now - self.noted > NOTE_S:
            self.noted = now
            self._note(row)
        if self.before["wall_s"] + now - self.started > self.limit_s:
            os.kill(os.getpid(), 2)  # as Ctrl-C: everything is saved

    def _note(self, row: Any) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        note = {
            "steps": row["steps"],
            "wall_s": self.before["wall_s"] + time.perf_counter() - self.started,
            "cpu_s": self.before["cpu_s"] + usage.ru_utime + usage.ru_stime,
            "memory_mb": int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6,
            "handles": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "disk_mb": sum(p.stat().st_size for p in self.run.rglob("*") if p.is_file()) / 1e6,
            "evaluations": self.evaluations,
            "validations": self.validations,
            "started": self.started,
        }
        with open(self.run / SOAK_FILE, "a") as stream:
            stream.write(json.dumps(note) + "\n")

    def close(self) -> None:
        pass


def train(run: Path, task: str, minutes: float, period_s: float) -> None:
    from kcpr_safety.training import loop, runs
    from kcpr_safety.training.options import TrainOptions
    from kcpr_safety.training.stopping import Interrupted

    loop.CHECKPOINT_PERIOD_S = period_s
    notes = Notes(run, minutes)
    try:
        if (run / "config.json").exists():
            runs.resume_run(run, [notes])
        else:
            options = TrainOptions(task=task, out=run, steps=FOREVER, overrides=SMALL)
            runs.train_run(options, [notes])
    except Interrupted as stopped:
        print(stopped)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / SOAK_FILE).read_text().splitlines()]


def slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Of the least-squares line through the means of blocks, with its 95 % interval."""
    blocks = len(x) // BLOCK
    if blocks < 3:
        raise SystemExit(f"{len(x)} notes after warm-up; a slope needs {3 * BLOCK}: train on")
    shape = (blocks, BLOCK)
    x, y = (values[-blocks * BLOCK :].reshape(shape).mean(axis=1) for values in (x, y))
    middle, height = np.polyfit(x, y, 1)
    residuals = y - height - middle * x
    variance = (residuals @ residuals) / (blocks - 2) / np.square(x - x.mean()).sum()
    half = t_quantile(0.975, blocks - 2) * float(variance) ** 0.5
    return float(middle), float(middle) - half, float(middle) + half


def judge(run: Path, out: Path | None) -> int:
    rows = rows_of(run)
    wall = np.array([row["wall_s"] for row in rows])
    figures = {"memory [MB]": np.array([row["memory_mb"] for row in rows])[1:]}
    started = np.array([row["started"] for row in rows])
    same = started[1:] == started[:-1]  # not across a restart
    for name, clock in (("steps per CPU second", "cpu_s"), ("steps per second", "wall_s")):
        steps = np.diff([row["steps"] for row in rows])
        figures[name] = steps / np.diff([row[clock] for row in rows])
    wall = wall[1:]
    judged = np.array([min(row["evaluations"], row["validations"]) > 0 for row in rows])[1:]
    warm = (wall > WARM_UP_S) & judged & same
    hours = wall[warm] / 3600
    failed = False
    for name, values in figures.items():
        middle, low, high = slope(hours, values[warm])
        mean = float(values[warm].mean())
        flat = low <= 0 <= high
        failed |= not flat and name != "steps per second"
        print(
            f"{name:22s} mean {mean:9.2f}  slope {middle:+8.3f} per hour, "
            f"95 % [{low:+.3f}, {high:+.3f}] = [{low / mean:+.2%}, {high / mean:+.2%}]  "
            f"{'contains zero' if flat else 'DOES NOT CONTAIN ZERO'}"
        )
    for name in ("handles", "threads", "disk_mb"):
        quarter, last = rows[len(rows) // 4][name], rows[-1][name]
        print(f"{name:22s} {quarter:.1f} at a quarter, {last:.1f} at the end")
    print(f"{rows[-1]['steps']:,} steps in {rows[-1]['wall_s'] / 60:.1f} minutes")
    if out is not None:
        draw(wall / 60, figures, warm, out)
    return int(failed)


def draw(minutes: np.ndarray, figures: dict[str, np.ndarray], warm: Any, out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(figures), 1, sharex=True, figsize=(7, 6), dpi=120)
    for axis, (name, values) in zip(axes, figures.items(), strict=True):
        axis.plot(minutes, values, ".", ms=2)
        fitted = np.polyval(np.polyfit(minutes[warm], values[warm], 1), minutes[warm])
        axis.plot(minutes[warm], fitted, lw=1)
        axis.set_ylabel(name)
        axis.set_ylim(0, None)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(out)
    print(f"drawn: {out}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "judge"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=75.0)
    parser.add_argument("--period", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.what == "train":
        train(given.run, given.task, given.minutes, given.period)
        return 0
    return judge(given.run, given.out)


if __name__ == "__main__":
    sys.exit(main())
