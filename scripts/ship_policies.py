"""Which trained runs become the shipped policies?

    python scripts/ship_policies.py RUN|BUNDLE... --key FILE [--episodes 50]

Each run folder is evaluated, calibrated, put under faults and asked against the clock, as far as it
has not been yet, and its kept policy is exported to `policies/TASK`, signed with the release's
private key (whose public half is in `policies/trusted/`). What is in the run already is taken as it
is, so that the same runs and key give the same bytes. Ends with `verify` on what was written.

A bundle that is shipped already is shipped anew, in today's interface: with the policy and the
evidence that are in it; where its card does not hold every episode, as many are judged again.
With --again it is calibrated and put under faults again, too, by the rules of today.
Latency is measured where --latency says so, for nothing else may run beside it.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from kcpr_safety import api
from kcpr_safety.cli.show import progress
from kcpr_safety.deploy.load import is_bundle, open_bundle
from kcpr_safety.errors import KcprError
from kcpr_safety.evidence import CALIBRATION_FILE, EVIDENCE_FILE, LATENCY_FILE, STRESS_FILE
from kcpr_safety.policy_file import BUNDLE_FILE, RUN_FILE, read_policy
from kcpr_safety.studies.bench_policy import bench_run

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("places", nargs="+", type=Path, metavar="RUN|BUNDLE")
    parser.add_argument("--key", type=Path, required=True, help="the release's private key")
    parser.add_argument("--episodes", type=int, default=50, help="judged episodes")
    parser.add_argument("--faulted", type=int, default=5, help="episodes of each fault")
    parser.add_argument("--again", action="store_true", help="calibration and faults of bundles")
    parser.add_argument("--latency", type=int, metavar="TICKS", help="control periods to time")
    given = parser.parse_args()
    for place in given.places:
        try:
            with TemporaryDirectory() as folder:
                run = unpacked(place, Path(folder), given.again) if is_bundle(place) else place
                ship(run, given.key, given.episodes, given.faulted, given.latency)
        except KcprError as fault:
            print(f"{place}: {fault}", file=sys.stderr)
            return 2
    return 0


def unpacked(bundle: Path, run: Path, again: bool = False) -> Path:
    """A run folder with what a bundle holds of the run that it came from; without what is to be
    found out `again`."""
    opened = open_bundle(bundle)
    card, data = opened.card, opened.sealed.contents[BUNDLE_FILE]
    about = {"task": card["identity"]["task"], "policy_sha256": hashlib.sha256(data).hexdigest()}
    (run / RUN_FILE).write_bytes(data)
    origin = card["provenance"]
    config = {"versions": origin["training_versions"], "card_sha256": origin["task_card_sha256"]}
    config |= {"begun_from": origin["begun_from"]} if "begun_from" in origin else {}
    kept = {"config.json": config, STRESS_FILE: card["stress"], LATENCY_FILE: card["latency"]}
    kept[CALIBRATION_FILE] = {
        **about,
        "assurance": card["assurance"],
        "calibration": card["calibration"],
    }
    evidence = card["evidence"]
    told = {name: value for name, value in evidence.items() if name not in _DERIVED}
    if {"success", "collision"} & evidence.keys():  # of these the card has no episodes
        told = api.evaluate(bundle, episodes=evidence["episodes"]).record()
    elif "streams" in told:
        told["streams"] = [
            {name: value for name, value in part.items() if name not in _DERIVED}
            for part in told["streams"]
        ]
    kept[EVIDENCE_FILE] = {
        **told,
        **about,
        "agent": card["identity"]["agent"],
        "seed": card["identity"]["seed"],
        "steps": evidence["training_steps"],
    }
    left_out = (CALIBRATION_FILE, STRESS_FILE) if again else ()
    for name, record in kept.items():
        if record is not None and name not in left_out:
            (run / name).write_text(json.dumps(record))
    return run


_DERIVED = ("return_mean", "punishment_mean")
"""What a card has with intervals and an evaluation without."""


def ship(run: Path, key: Path, episodes: int, faulted: int, ticks: int | None) -> None:
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
    if ticks is not None:
        bench_run(run, ticks)
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
