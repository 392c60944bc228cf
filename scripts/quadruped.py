"""Does a quadruped walk as it is told: at 0.5 m/s for 20 s, without a fall, within its budget?

    python scripts/quadruped.py train [--robot go1] [--steps N] [--seed 0] [--out RUN] [--threads 2]
    python scripts/quadruped.py judge RUN [--episodes 50] [--speed 0.5] [--validation] [--json]
    python scripts/quadruped.py film RUN --out walk.gif [--seconds 4]

`train` is `kcpr-safety train` with the robot's card, for as many steps as the shipped policy took:
the Go1 from nothing, the Go2 from the shipped Go1, with smaller steps of learning. `judge` walks
the kept policy straight on evaluation seeds, floor, load, motors, delay, pushes and noise drawn
from them, and counts as good an episode that lasts, with the mean speed within 0.1 m/s of the
commanded one and punishment within the budget; with --validation on validation seeds, to choose
settings by. Beside the mean's error it tells the mean error of speeds averaged over one second.
`film` shows the stretch of the first evaluation episode in which most punishment falls. RUN may
be a run folder, a bundle, or the name of a shipped policy.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kcpr_safety import api, envs
from kcpr_safety.cli.show import progress
from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.envs.crew import default_threads
from kcpr_safety.envs.quadruped import QuadrupedWorld
from kcpr_safety.errors import KcprError, SettingsError
from kcpr_safety.policy_file import PolicyFile, locate_policy, read_policy
from kcpr_safety.seeds import (
    FIRST_EVALUATION_SEED,
    FIRST_VALIDATION_SEED,
    EpisodeSeeds,
    consecutive_seeds,
)
from kcpr_safety.stats import mean_interval, share_interval
from kcpr_safety.training.evaluation import OnStep, act_by_row, torch_threads
from kcpr_safety.training.video import record_video

RECIPES: Mapping[str, dict[str, Any]] = {
    "go1": {
        "task": "UnitreeGo1Walk-v0",
        "steps": 1_200_000,
        "overrides": {"m_rate": 5e-6},
    },
    "go2": {
        "task": "UnitreeGo2Walk-v0",
        "steps": 200_000,
        "init": "UnitreeGo1Walk-v0",
        "overrides": {"learning_rate": 3e-4, "m_rate": 5e-6},
    },
}
"""What `api.train` is told, with the `m_rate` that they were judged with. A Go2 that began with
nothing had not walked after 190,000 steps."""
ALLOWED = 0.1  # error of the mean speed [m/s]
BESIDE = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("--robot", choices=RECIPES, default="go1")
    train.add_argument("--steps", type=int, help="not given: the recipe's")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--out", type=Path)
    train.add_argument("--threads", type=int, help="cores of the learner; two runs: 1 each")
    judge = commands.add_parser("judge")
    judge.add_argument("run", type=Path)
    judge.add_argument("--episodes", type=int, default=50)
    judge.add_argument("--speed", type=float, default=0.5, help="commanded, forward [m/s]")
    judge.add_argument("--validation", action="store_true", help="validation seeds, to choose by")
    judge.add_argument("--json", action="store_true")
    film = commands.add_parser("film")
    film.add_argument("run", type=Path)
    film.add_argument("--out", type=Path, required=True, help=".gif or .mp4")
    film.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    try:
        if given.command == "train":
            recipe = RECIPES[given.robot]
            if given.steps is not None:
                recipe = recipe | {"steps": given.steps}
            out = given.out or Path("runs") / f"{recipe['task']}-{given.seed}"
            api.train(**recipe, seed=given.seed, out=out, threads=given.threads, progress=True)
            print(f"{out}; judge it with: python scripts/quadruped.py judge {out}")
        elif given.command == "judge":
            first = FIRST_VALIDATION_SEED if given.validation else FIRST_EVALUATION_SEED
            show(judged(api.locate(given.run), given.episodes, given.speed, first), given.json)
        else:
            place = api.locate(given.run)
            with Console(stderr=True).status(f"filming {place}: half a minute"):
                record_video(place, given.out, FIRST_EVALUATION_SEED, seconds=given.seconds)
    except KcprError as fault:
        print(fault, file=sys.stderr)
        return 2
    return 0


def judged(place: Path, episodes: int, speed: float, first_seed: int) -> dict[str, Any]:
    """Figures of a policy on `episodes` episodes at one commanded speed."""
    policy = read_policy(locate_policy(place))
    with progress(f"{policy.task} at {speed:g} m/s") as on_step, torch_threads():
        seeds = consecutive_seeds(first_seed, BESIDE)
        walks = walked(policy, seeds, episodes, speed, on_step)
    return {**verdict(policy, speed, walks), "first_seed": first_seed}


def walked(
    policy: PolicyFile, seeds: EpisodeSeeds, episodes: int, speed: float, on_step: OnStep
) -> list[dict[str, float]]:
    """Each episode's mean speed, its error by seconds, length, punishment and return."""
    card = envs.resolve(policy.task)
    if card.quadruped is None or episodes < 1 or episodes % BESIDE:
        raise SettingsError(f"{policy.task}: a quadruped and a multiple of {BESIDE} episodes")
    straight = replace(card.quadruped, usual_speed=speed, speed=(speed, speed), turn=(0.0, 0.0))
    world = QuadrupedWorld(card, straight, BESIDE, seeds, default_threads(BESIDE))
    controller = controller_from_tensors(policy.tensors, policy.contract)
    limit, second = straight.time_limit, round(1 / world.contract.period_s)
    walks: list[dict[str, float]] = []
    for start in range(0, episodes, BESIDE):
        obs, _ = world.reset(options={"episodes": [start // BESIDE] * BESIDE})
        table = np.full((limit, 3, BESIDE), math.nan)
        running = np.ones(BESIDE, dtype=bool)
        fell = np.zeros(BESIDE, dtype=bool)
        for step in range(limit):
            obs, reward, terminated, truncated, infos = world.step(act_by_row(controller, obs))
            assert world.motion is not None
            rows = np.stack([world.motion.forward, infos["punishment"], reward])
            table[step] = np.where(running, rows, math.nan)
            fell |= running & terminated
            running &= ~(terminated | truncated)
            on_step(start * limit + (step + 1) * BESIDE, episodes * limit)
            if not running.any():
                break
        walks += [_walk(table[:, :, i], bool(fell[i]), speed, second) for i in range(BESIDE)]
    world.close()
    return walks


def _walk(table: np.ndarray, fell: bool, speed: float, second: int) -> dict[str, float]:
    forward, punishment, reward = table[~np.isnan(table[:, 0])].T
    whole = len(forward) // second * second
    seconds = forward[:whole].reshape(-1, second).mean(axis=1) if whole else forward
    return {
        "speed": float(forward.mean()),
        "error": float(abs(forward.mean() - speed)),
        "error_by_seconds": float(np.abs(seconds - speed).mean()),
        "fell": float(fell),
        "steps": float(len(forward)),
        "punishment": math.fsum(punishment),
        "return": math.fsum(reward),
    }


def verdict(policy: PolicyFile, speed: float, walks: list[dict[str, float]]) -> dict[str, Any]:
    """The means with their intervals, and the share of good episodes."""
    budget = policy.contract.budget
    good = [
        not walk["fell"] and walk["error"] <= ALLOWED and walk["punishment"] <= budget
        for walk in walks
    ]
    share = share_interval(sum(good), len(walks))
    told: dict[str, Any] = {
        "task": policy.task,
        "episodes": len(walks),
        "commanded_speed": speed,
        "budget": budget,
        "falls": sum(walk["fell"] > 0 for walk in walks),
        "over_budget": sum(walk["punishment"] > budget for walk in walks),
        "good_share": sum(good) / len(walks),
        "good_share_interval": [share.low, share.high],
        "walks": walks,
    }
    for name in ("speed", "error", "error_by_seconds", "punishment", "return"):
        interval = mean_interval([walk[name] for walk in walks])
        told[name] = [interval.value, interval.low, interval.high]
    return told


def show(told: dict[str, Any], as_json: bool) -> None:
    """One line each, or all of it."""
    if as_json:
        print(json.dumps(told, sort_keys=True))
        return
    low, high = told["good_share_interval"]
    print(
        f"{told['task']}, {told['episodes']} episodes at {told['commanded_speed']:g} m/s, seeds "
        f"from {told['first_seed']:,}"
    )
    for name, unit in (
        ("speed", "m/s"),
        ("error", "m/s"),
        ("error_by_seconds", "m/s"),
        ("punishment", ""),
    ):
        value, bottom, top = told[name]
        print(f"  {name:17} {value:.3f} [{bottom:.3f}, {top:.3f}] {unit}")
    print(f"  falls {told['falls']}, over the budget of {told['budget']:g}: {told['over_budget']}")
    print(f"  good: {told['good_share']:.0%} [{low:.0%}, {high:.0%}]")


if __name__ == "__main__":
    raise SystemExit(main())
