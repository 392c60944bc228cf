"""Does the simulator stay whole over a million random steps: memory, finiteness, threads?

    .venv/bin/python scripts/soak.py [steps per task]

Ten tasks, a tenth of the steps each. Every task runs on one thread and on two, side by side, and
every row of both is compared bit by bit (worlds never pass on a number that is not finite: they
raise). Memory is read when a quarter is done and at the end. Exit code 1 where anything slipped.
"""

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from kcpr_safety import envs

TASKS = (
    "SafetyPointGoal1-v0",
    "SafetyPointButton1-v0",
    "SafetyPointPush2-v0",
    "SafetyPointCircle1-v0",
    "SafetyCarGoal2-v0",
    "SafetyAntCircle1-v0",
    "SafetyRacecarPush1-v0",
    "SafetyDoggoCircle2-v0",
    "SafetyHalfCheetahVelocity-v1",
    "SafetyHumanoidVelocity-v1",
)
STEPS = 100_000
ENVS = 8
MOST_GROWTH_MB = 8.0


def resident_mb() -> float:
    """Memory of this process that is in use [MB]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def largest_arena_mb(world: Any) -> float:
    """The most of its arena that any simulation has used so far [MB]."""
    return max(data.maxuse_arena for data in world._datas) / 1e6


def soak(task: str, steps: int) -> bool:
    """One task; True where nothing slipped."""
    card = envs.resolve(task)
    one, two = (
        envs.make_world(card, ENVS, episode_seeds=lambda i, k: 1000 * i + k, threads=threads)
        for threads in (1, 2)
    )
    rng = np.random.default_rng(0)
    low, high = one.single_action_space.low, one.single_action_space.high  # type: ignore[attr-defined]
    same = np.array_equal(one.reset()[0], two.reset()[0])
    calls = max(1, steps // (2 * ENVS))
    arena = early = 0.0
    start = time.perf_counter()
    for call in range(calls):
        action = rng.uniform(low, high, (ENVS, len(low)))
        a, b = one.step(action), two.step(action)
        same &= all(np.array_equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
        same &= all(np.array_equal(a[4][key], b[4][key]) for key in ("punishment", "final_obs"))
        if call % 50 == 0 or call == calls - 1:
            arena = max(arena, largest_arena_mb(one))
        if call == calls // 4:
            early = resident_mb()
    seconds = time.perf_counter() - start
    growth = resident_mb() - early
    print(
        f"{task:30s} {2 * calls * ENVS:8d} steps {2 * calls * ENVS / seconds:7.0f} /s  "
        f"growth {growth:+5.1f} MB  arena {arena:.2f} MB  unstable {one.unstable_episodes}  "
        f"threads {'equal' if same else 'DIFFER'}",
        flush=True,
    )
    one.close()
    two.close()
    return same and growth < MOST_GROWTH_MB


if __name__ == "__main__":
    warnings.simplefilter("ignore", envs.UnstablePhysicsWarning)
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    whole = [soak(task, steps) for task in TASKS]
    sys.exit(0 if all(whole) else 1)
