"""How do run folders become one page and one JSON file with the same numbers?

Where anything but run folders is among the places (a benchmark's folder, rows, `progress.csv`), all
of them go onto one page of agents over seeds (`benchmark_build`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kcpr_safety.files import atomic_write
from kcpr_safety.report.benchmark_build import build_benchmark
from kcpr_safety.report.collection import collect, is_plain_run
from kcpr_safety.report.judge import Entry, Group, PartJudgement, compare
from kcpr_safety.report.page import page
from kcpr_safety.report.runs import read_runs
from kcpr_safety.stats import CONFIDENCE, CVAR_LEVEL, Interval

SCHEMA_VERSION = "1"


def build_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of these runs (or rows); returns the page's path.

    `out` is a folder, which gets `report.html` and `report.json`, or a name that ends in `.html`,
    with the JSON file beside it. The same runs give the same bytes.
    """
    out = Path(out)
    target = out if out.suffix == ".html" else out / "report.html"
    if runs and not all(is_plain_run(Path(run)) or not Path(run).exists() for run in runs):
        return build_benchmark(collect(runs), target)
    groups = compare(read_runs(runs))
    record = json.dumps(report_record(groups), indent=1, sort_keys=True, allow_nan=False)
    html = page(groups)
    atomic_write(target.with_suffix(".json"), (record + "\n").encode())
    atomic_write(target, html.encode())
    return target


def report_record(groups: Sequence[Group]) -> dict[str, Any]:
    """The report for machines."""
    return {
        "schema_version": SCHEMA_VERSION,
        "confidence": CONFIDENCE,
        "cvar_level": CVAR_LEVEL,
        "groups": [
            {
                "task": group.task,
                "budget": group.budget,
                "steps": group.steps,
                "time_limit": group.time_limit,
                "cautions": list(group.cautions),
                "runs": [_run(entry) for entry in group.entries],
            }
            for group in groups
        ],
    }


def _run(entry: Entry) -> dict[str, Any]:
    run, judgement, evidence = entry.run, entry.judgement, entry.run.evidence
    record: dict[str, Any] = {
        "label": entry.label,
        "verdict": entry.verdict,
        "task": run.task,
        "agent": run.agent,
        "seed": run.seed,
        "steps": run.steps,
        "budget": run.budget,
        "path": str(run.path),
        "versions": dict(run.versions),
        "notes": list(run.notes),
        "evaluation": None,
    }
    if judgement and evidence:
        record["evaluation"] = {
            "eval_seed": evidence.eval_seed,
            "episodes": evidence.episodes,
            "kept_steps": evidence.steps,
            "policy_sha256": evidence.policy_sha256,
            "return_mean": _interval(judgement.returned),
            "punishment_mean": _interval(judgement.punished),
            "punishment_worst": judgement.worst,
            "punishment_cvar": judgement.cvar,
            "over_budget": {"episodes": judgement.over, **_interval(judgement.share)},
            "predicted_punishment": evidence.predicted_punishment,
            "realised_punishment": evidence.realised_punishment,
            "returns": list(evidence.returns),
            "punishments": list(evidence.punishments),
            "lengths": list(evidence.lengths),
        }
        if judgement.streams:
            record["evaluation"]["streams"] = [
                _part(part, own.punishments)
                for part, own in zip(judgement.streams, evidence.streams, strict=True)
            ]
    return record


def _part(part: PartJudgement, punishments: Sequence[float]) -> dict[str, Any]:
    return {
        "name": part.name,
        "budget": part.budget,
        "verdict": part.verdict,
        "punishment_mean": _interval(part.punished),
        "punishment_worst": part.worst,
        "punishment_cvar": part.cvar,
        "over_budget": {"episodes": part.over, **_interval(part.share)},
        "punishments": list(punishments),
    }


def _interval(interval: Interval) -> dict[str, float | None]:
    """JSON has no infinity: an open side is null."""
    return {key: x if math.isfinite(x) else None for key, x in asdict(interval).items()}
