"""How does a collection of trials become a page, and the same numbers for machines?

    report.html    the page            report.json    everything, with intervals
    report.csv     one line a trial    report.md      the rankings, to paste elsewhere

The same rows give the same bytes.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kcpr_safety.files import atomic_write
from kcpr_safety.report.benchmark_page import benchmark_page, headline, hidden_breaches
from kcpr_safety.report.collection import Collection
from kcpr_safety.report.numbers import short, span
from kcpr_safety.report.standings import MEASURES, Comparison, Standing, ablated
from kcpr_safety.report.tables import VERDICT_WORDS, percent
from kcpr_safety.report.trials import Trial
from kcpr_safety.stats import CONFIDENCE, CVAR_LEVEL, Interval, cvar, over_budget

SCHEMA_VERSION = "benchmark-1"


def build_benchmark(collection: Collection, target: Path) -> Path:
    """Write page, JSON, CSV and Markdown; returns the page's path."""
    record = json.dumps(benchmark_record(collection), indent=1, sort_keys=True, allow_nan=False)
    html = benchmark_page(collection)
    atomic_write(target.with_suffix(".json"), (record + "\n").encode())
    atomic_write(target.with_suffix(".csv"), trials_csv(collection.trials).encode())
    atomic_write(target.with_suffix(".md"), markdown(collection).encode())
    atomic_write(target, html.encode())
    return target


def benchmark_record(collection: Collection) -> dict[str, Any]:
    """The page for machines."""
    found = collection.across
    return {
        "schema_version": SCHEMA_VERSION,
        "title": collection.title,
        "headline": headline(collection),
        "confidence": CONFIDENCE,
        "cvar_level": CVAR_LEVEL,
        "problems": [asdict(problem) for problem in collection.problems],
        "comparisons": [
            {
                "protocol": c.protocol.record(),
                "cautions": list(c.cautions),
                "ranking": [_standing(s) for s in c.standings],
                "ablations": [_standing(s) for s in c.ablations],
            }
            for c in collection.comparisons
        ],
        "across": None
        if found is None
        else {
            "tasks": list(found.tasks),
            "left_out": [{"task": task, "reason": why} for task, why in found.left_out],
            "feasible_score_iqm": {k: _interval(v) for k, v in found.scores.items()},
            "budget_share_iqm": {k: _interval(v) for k, v in found.budgets.items()},
            "probability_of_improvement": [
                {"first": a, "second": b, **_interval(v)} for (a, b), v in found.better.items()
            ],
        },
        "imported": [
            {**asdict(p), "curve": [list(point) for point in p.curve], "budget": _finite(p.budget)}
            for p in collection.imported
        ],
    }


def _standing(s: Standing) -> dict[str, Any]:
    seed, over, episodes, share = s.worst_policy
    streams = [{**asdict(part), "punished": _interval(part.punished)} for part in s.streams]
    return ({"streams": streams} if streams else {}) | {
        "label": s.label,
        "verdict": s.verdict,
        "seeds": [t.evidence.seed for t in s.trials],
        "seeds_feasible": s.feasible,
        "return": _interval(s.returned),
        "punishment": _interval(s.punished),
        "over_budget_share": _interval(s.share),
        "worst_seed": {"seed": seed, "over": over, "episodes": episodes, **_interval(share)},
        "cvar": _interval(s.cvar),
        "punishment_worst": s.worst,
        "punishment_training": None if s.regret is None else _interval(s.regret),
        "first_feasible": [
            None if t.first_feasible is None else [_finite(x) for x in t.first_feasible]
            for t in s.trials
        ],
        "calibration": None if s.calibration is None else asdict(s.calibration),
    }


def trials_csv(trials: Sequence[Trial]) -> str:
    """One line a trial."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV)
    for t in trials:
        e, first = t.evidence, t.first_feasible
        writer.writerow(
            [
                e.task,
                t.label,
                e.agent,
                e.seed,
                e.steps,
                e.budget,
                t.time_limit,
                t.mode,
                e.eval_seed,
                e.episodes,
                e.return_mean,
                e.punishment_mean,
                over_budget(e.punishments, e.budget) / e.episodes,
                cvar(e.punishments),
                max(e.punishments),
                t.punishment_training,
                None if first is None else first[0],
                t.train_wall_s,
                e.predicted_punishment,
                e.realised_punishment,
                e.policy_sha256,
                t.config_sha256,
                t.command,
            ]
        )
    return stream.getvalue()


_CSV = (
    *("task", "label", "agent", "seed", "steps", "budget", "time_limit", "mode", "eval_seed"),
    *("episodes", "return_mean", "punishment_mean", "over_budget_share", "punishment_cvar"),
    *("punishment_worst", "punishment_training", "first_feasible_steps", "train_wall_s"),
    *("predicted_punishment", "realised_punishment", "policy_sha256", "config_sha256", "command"),
)


def markdown(collection: Collection) -> str:
    """The verdict and the rankings."""
    lines = [f"# {headline(collection)}", "", hidden_breaches(collection), ""]
    if collection.problems:
        lines += ["To know:", ""]
        lines += [f"- {p.where} {p.what}" for p in collection.problems]
        lines += [""]
    for c in collection.comparisons:
        lines += [*_ranking(c), "", *ablations(c)]
    return "\n".join(lines)


def _ranking(c: Comparison) -> list[str]:
    p = c.protocol
    head = f"## {p.task}: {p.steps:,} steps, budget {short(p.budget)}"
    columns = ("agent", "verdict", "seeds", "punishment", "episodes over", "CVaR", "return")
    rows = [
        [
            s.label,
            VERDICT_WORDS[s.verdict],
            str(len(s.trials)),
            _words(s.punished, 0.0),
            percent(s.share.value),
            short(s.cvar.value),
            _words(s.returned),
        ]
        for s in (*c.standings, *c.ablations)
    ]
    table = [columns, ["---"] * len(columns), *rows]
    return [head, "", *("| " + " | ".join(row) + " |" for row in table)]


def ablations(c: Comparison) -> list[str]:
    """What the ablations of one task change, as lines of Markdown; empty where there are none."""
    rows = [
        [
            s.label,
            str(len(s.trials)),
            *(["–"] * len(MEASURES) if found is None else map(_words, found.values())),
        ]
        for s, found in ablated(c)
    ]
    if not rows:
        return []
    columns = ["less the whole agent", "seeds", *MEASURES]
    table = [columns, ["---"] * len(columns), *rows]
    return [*("| " + " | ".join(row) + " |" for row in table), ""]


def _words(interval: Interval, low_at: float = -math.inf) -> str:
    if not math.isfinite(interval.high):
        return short(interval.value)
    return f"{short(interval.value)} ({span(max(interval.low, low_at), interval.high)})"


def _interval(interval: Interval) -> dict[str, float | None]:
    return {key: _finite(x) for key, x in asdict(interval).items()}


def _finite(value: float) -> float | None:
    """JSON has no infinity: an open side is null."""
    return value if math.isfinite(value) else None
