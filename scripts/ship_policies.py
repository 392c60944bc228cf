"""Which trained runs become the shipped policies?

    python scripts/ship_policies.py RUN... --key FILE [--episodes 50]

Each run folder is evaluated, calibrated and put under faults, as far as it has not been yet, and
its kept policy is exported to `policies/TASK`, signed with the release's private key (whose public
half is in `policies/trusted/`). What is in the run already is taken as it is, so that the same runs
and key give the same bytes. Ends with `verify` on what was written.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from kcpr_safety import api
from kcpr_safety.cli.show import progress
from kcpr_safety.errors import KcprError
from kcpr_safety.evidence import CALIBRATION_FILE, EVIDENCE_FILE, STRESS_FILE
from kcpr_safety.policy_file import read_policy

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--key", type=Path, required=True, help="the release's private key")
    parser.add_argument("--episodes", type=int, default=50, help="judged episodes")
    parser.add_argument("--faulted", type=int, default=5, help="episodes of each fault")
    given = parser.parse_args()
    for run in given.runs:
        try:
            ship(run, given.key, given.episodes, given.faulted)
        except KcprError as fault:
            print(f"{run}: {fault}", file=sys.stderr)
            return 2
    return 0


def ship(run: Path, key: Path, episodes: int, faulted: int) -> None:
    """From a run folder to a verified bundle."""
    started = time.perf_counter()
    task = read_policy(run).task
    if not (run / EVIDENCE_FILE).is_file():
        api.evaluate(run, episodes=episodes)
    if not (run / CALIBRATION_FILE).is_file():
        with progress(f"calibrating {task}") as on_step:
            api.calibrate(run, on_step=on_step)
    if not (run / STRESS_FILE).is_file():
        with progress(f"faults of {task}") as on_step:
            api.stress(run, episodes=faulted, on_step=on_step)
    out = ROOT / "policies" / task
    result = api.export(run, out, key=key)
    found = api.verify(out)
    verdict = json.loads((out / "card.json").read_text())["stress"]["verdict"]
    print(
        f"{task}: return {result.return_mean:.4g}, punishment {result.punishment_mean:.3g}, "
        f"over budget {result.over_budget_share:.0%}; {found['bytes'] / 2**20:.2f} MB; assurance "
        f"{'helps' if verdict['helps'] else 'does not help'}; {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
