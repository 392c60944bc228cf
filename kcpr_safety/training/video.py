"""What does one episode of a policy look like?

Filmed in a child process: off-screen rendering depends on drivers that may take a process down or
complain at its end, and must choose their backend before anything else is loaded.
"""

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcpr_safety.errors import (
    EXIT_CODE,
    EnvironmentFault,
    FileFault,
    KcprError,
    MissingPackageError,
)
from kcpr_safety.files import faults_of

FORMATS = (".gif", ".mp4")
WIDTH, HEIGHT = 320, 240
_MOST_FRAMES_PER_S = {".gif": 12.5, ".mp4": 50.0}


def best_format() -> str:
    """The smaller kind of file where it can be written, else the one that needs nothing more."""
    return ".gif" if importlib.util.find_spec("imageio_ffmpeg") is None else ".mp4"


def record_video(place: Path, out: Path, eval_seed: int, *, seconds: float | None = None) -> None:
    """Film the episode that starts from `eval_seed`, with the policy of a run, bundle or file.

    With `seconds`, only the stretch of that length in which the most punishment falls.
    """
    if out.suffix not in FORMATS:
        raise FileFault(f"'{out}' is no video file; let its name end in {' or '.join(FORMATS)}")
    if out.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingPackageError("imageio-ffmpeg", "pip install imageio-ffmpeg")
    environment = dict(os.environ)
    if not (environment.get("DISPLAY") or environment.get("MUJOCO_GL")):
        environment["MUJOCO_GL"] = "egl"
    command = [sys.executable, "-m", __name__, str(place), str(out), str(eval_seed)]
    command += [] if seconds is None else [str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == EXIT_CODE:
        raise EnvironmentFault(done.stdout.strip())
    if done.returncode != 0 or not out.is_file():
        raise EnvironmentFault(
            f"{out} could not be filmed (exit code {done.returncode}); "
            "`kcpr-safety doctor` says whether off-screen rendering works here"
        )


def film(place: Path, out: Path, eval_seed: int, seconds: float | None = None) -> None:
    """The child's work: step the official environment, keep every n-th picture, write the file.

    With `seconds` the episode is played twice: pictures take longer than physics, so that the first
    time none is made.
    """
    import imageio.v3

    from kcpr_safety import envs
    from kcpr_safety.controller import controller_from_tensors
    from kcpr_safety.policy_file import read_policy
    from kcpr_safety.training.kept_task import task_of

    policy = read_policy(place)
    controller = controller_from_tensors(policy.tensors, policy.contract)
    with task_of(place):
        env: Any = envs.make_official(
            policy.task, render_mode="rgb_array", width=WIDTH, height=HEIGHT
        )
    contract = policy.contract
    period, hold = contract.period_s / contract.hold, contract.hold
    stride = max(1, round(1.0 / (_MOST_FRAMES_PER_S[out.suffix] * period)))
    limit = contract.steps
    shown = range(-(-limit // stride))
    if seconds is not None:
        costs = _played(env, controller, eval_seed, limit, hold, lambda step: None)
        punished = [math.fsum(costs[i : i + stride]) for i in range(0, len(costs), stride)]
        shown = most_punished(punished, max(1, round(seconds / (period * stride))))
    frames: list[np.ndarray] = []

    def look(step: int) -> None:
        if step % stride == 0 and step // stride in shown:
            frames.append(env.render())

    _played(env, controller, eval_seed, min(limit, shown.stop * stride), hold, look)
    fresh = out.with_name(f".{out.stem}.new{out.suffix}")
    with faults_of(f"cannot write {out}"):
        if out.suffix == ".gif":
            imageio.v3.imwrite(fresh, frames, duration=1000.0 * period * stride, loop=0)
        else:
            imageio.v3.imwrite(fresh, frames, fps=1.0 / (period * stride))
        fresh.replace(out)


def _played(
    env: Any, controller: Any, seed: int, steps: int, hold: int, look: Callable[[int], None]
) -> list[float]:
    """Punishment of each step of an episode; `look(step)` comes before it."""
    import torch

    obs, _ = env.reset(seed=seed)
    punished: list[float] = []
    for step in range(steps):
        look(step)
        if step % hold == 0:
            with torch.inference_mode():
                row = torch.as_tensor(np.asarray(obs).ravel(), dtype=torch.float32)
                action = controller(row[None])[0].numpy().astype(np.float64)
        obs, _, cost, terminated, truncated, _ = env.step(action)
        punished.append(float(cost))
        if terminated or truncated:
            break
    return punished


def most_punished(punished: Sequence[float], length: int) -> range:
    """The `length` pictures in a row in which most punishment falls; the first such row."""
    if len(punished) <= length:
        return range(len(punished))
    sums = np.convolve(punished, np.ones(length), mode="valid")
    start = int(sums.argmax())
    return range(start, start + length)


if __name__ == "__main__":
    try:
        film(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:]))
    except KcprError as fault:
        sys.stdout.write(str(fault))
        sys.exit(EXIT_CODE)
