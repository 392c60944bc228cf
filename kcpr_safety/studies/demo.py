"""What is the whole path, once: train, evaluate, export, report?

Leaves a run folder with everything in it: the run itself, `bundle/`, `report.html` and
`summary.json`. Typed again, it goes on where it was interrupted; a finished demo is first moved
aside, so that nothing is ever lost or mixed.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from kcpr_safety import api
from kcpr_safety.files import atomic_write, faults_of
from kcpr_safety.training.checkpoints import checkpoint_files, read_counters

TASK = "SafetyHalfCheetahVelocity-v1"
STEPS = 200_000
EPISODES = 10
CALIBRATED = 10

SUMMARY_FILE = "summary.json"


def run(out: Path, *, seed: int = 0, steps: int | None = None) -> dict[str, Any]:
    """Do what is still to be done in the folder `out`; returns what `summary.json` holds."""
    started = time.perf_counter()
    make_room(out)
    _train(out, seed, steps or STEPS)
    say(f"judging it on {EPISODES} episodes that training has never seen")
    judged = api.evaluate(out, episodes=EPISODES)
    say("calibrating its predicted punishment on episodes of a third kind")
    api.calibrate(out, episodes=CALIBRATED)
    say(f"exporting a TorchScript controller to {out / 'bundle'}")
    api.export(out, out / "bundle")
    page = api.report(out, out / "report.html")
    summary = {
        **judged.record(),
        "path": str(out),
        "train_wall_s": read_counters(out).wall_s,
        "demo_wall_s": time.perf_counter() - started,
        "bundle": str(out / "bundle"),
        "report": str(page),
    }
    atomic_write(out / SUMMARY_FILE, json.dumps(summary, indent=1, allow_nan=False).encode())
    return summary


def make_room(out: Path) -> None:
    """Move a finished demo aside, and one that stopped before its first checkpoint."""
    if not out.exists() or (not (out / SUMMARY_FILE).exists() and _can_go_on(out)):
        return
    with faults_of(f"cannot move {out} aside"):
        if out.is_dir() and not any(out.iterdir()):
            return
        number = 1
        while (aside := out.with_name(f"{out.name}-{number}")).exists():
            number += 1
        out.rename(aside)
    say(f"the earlier {out} is kept as {aside}")


def _can_go_on(out: Path) -> bool:
    return bool(checkpoint_files(out))


def _train(out: Path, seed: int, steps: int) -> None:
    """From the start, from the last checkpoint, or not at all where training had ended."""
    if not _can_go_on(out):
        say(f"training {TASK} for {steps:,} steps, seed {seed}")
        api.train(TASK, steps=steps, seed=seed, out=out, progress=True)
    elif read_counters(out).finished:
        say(f"{out} is trained already")
    else:
        say(f"going on with the interrupted {out}")
        api.resume(out, progress=True)


def say(sentence: str) -> None:
    """Progress is for people: it goes to stderr, where `--json` does not look."""
    print(f"demo: {sentence}", file=sys.stderr, flush=True)
