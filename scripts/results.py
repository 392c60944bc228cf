"""Judge runs, keep the rows, print the table: where every figure in the README comes from.

    python scripts/results.py judge runs/a runs/b     evaluate each run on 50 episodes; keep a row
    python scripts/results.py table                   write the tables of README.md and of
                                                      docs/experiments.md from the rows
    python scripts/results.py older                   in which settings rows are older than the code
    python scripts/results.py page runs/a runs/b      write docs/results/ from the rows, with films
                                                      of these runs

A row in `results/TASK.jsonl` (`kcpr_safety.report.trials`) holds the stable keys of every result,
every episode, curves, the command that trained the run, versions, machine and hashes. A run with
settings of its own (`--set`) is an ablation: its row says so, and never stands in the README's
table. Judging a run again replaces the row of its agent, settings, seed and steps; what was
evaluated on as many episodes is not evaluated again.
"""

import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from kcpr_safety import envs
from kcpr_safety.agents.families import family_of
from kcpr_safety.agents.settings import AGENTS, BEFORE
from kcpr_safety.api import STABLE_KEYS, evaluate, report
from kcpr_safety.envs.registry import family
from kcpr_safety.report.benchmark_build import ablations
from kcpr_safety.report.collection import CELLS, SUITE_FILE, VIDEOS
from kcpr_safety.report.published import published
from kcpr_safety.report.runs import Run, read_run
from kcpr_safety.report.standings import MEASURES, compare_trials
from kcpr_safety.report.trials import read_trials, row_of
from kcpr_safety.studies.benchmark_films import film_examples
from kcpr_safety.studies.suites import load_suite

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "results"
EXPERIMENTS = ROOT / "docs" / "experiments.md"
ABOUT = "All rows of results/ that hold their episodes; those that do not are named below."
EPISODES = 50
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->"
_IDENTITY = ("agent", "label", "seed", "steps", "budget", "eval_seed", "episodes")


def judge(run: Path) -> dict[str, Any]:
    """Evaluate a run and put its row into the file of its task."""
    evidence = read_run(run).evidence
    if evidence is None or evidence.episodes != EPISODES:
        evaluate(run, episodes=EPISODES)
    judged = read_run(run)
    overrides = changed(judged)
    row = row_of(judged, label_of(judged.agent, overrides), overrides)
    path = RESULTS / f"{row['task']}.jsonl"
    kept = [old for old in read(path) if any(old[key] != row[key] for key in _IDENTITY)]
    kept.append(row)
    kept.sort(key=lambda r: tuple(str(r[key]) for key in _IDENTITY))
    RESULTS.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r, sort_keys=True) + "\n" for r in kept), encoding="utf-8")
    return row


def changed(run: Run) -> dict[str, Any]:
    """The settings in which a run differs from its agent's on its task."""
    own = usual(run.task, run.agent, run.steps, {})
    return {name: value for name, value in run.settings.items() if value != own[name]}


def usual(task: str, agent: str, steps: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """An agent's settings on a task as the code stands."""
    card = {name: of.value for name, of in envs.resolve(task).overrides.items()}
    return asdict(family_of(agent).settings(agent, {**card, **overrides}, steps))


def older(row: dict[str, Any]) -> str:
    """The settings, overrides apart, in which a row's agent is not as the code stands."""
    today = usual(row["task"], row["agent"], row["steps"], row["overrides"])
    if family(row["task"]) == "velocity":  # observes no closeness: as before there was nearness
        del today["nearness"]
    own = complete(row)["settings"]
    own = {name: own.get(name, "none") for name in sorted(today)}
    return ", ".join(f"{name} {value}" for name, value in own.items() if value != today[name])


def complete(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the settings that there were not yet when it was made."""
    return row | {"settings": {**BEFORE, **row["settings"]}}


def label_of(agent: str, overrides: dict[str, Any]) -> str:
    """What the suite of ablations calls the agent; else what was changed of it."""
    for variant in load_suite("ablations").variants:
        if (variant.agent, dict(variant.overrides)) == (agent, overrides):
            return variant.label
    return ", ".join([agent, *(f"{name} {value}" for name, value in overrides.items())])


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of one task's file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def table() -> str:
    """The README's table: a line for each task, number of steps and agent, over training seeds."""
    lines = [
        "| task, steps | agent | seeds | return | punishment, each seed | "
        "worst seed's episodes over budget | punishment in training | settings | "
        "published return (steps) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    told: set[str] = set()
    for (task, steps, agent, of), rows in sorted(groups().items()):
        returns = [row["return_mean"] for row in rows]
        punished = ", ".join(f"{row['punishment_mean']:.1f}" for row in rows)
        seeds = ", ".join(str(row["seed"]) for row in rows)
        worst = max(row["over_budget_share"] for row in rows)
        suffered = mean([row["punishment_training"] for row in rows])
        spread = f" ({short(min(returns))} to {short(max(returns))})" if len(rows) > 1 else ""
        lines.append(
            f"| {task}, {steps:,} | {agent} | {seeds} | {short(mean(returns))}{spread} | "
            f"{punished} | {worst:.0%} | {suffered:,.0f} | {'older' if of else 'as now'} | "
            f"{'' if task in told else records(task)} |"
        )
        told.add(task)
    return "\n".join(lines) + "\n"


def records(task: str) -> str:
    """The best published returns within the budget: of at most 1,000,000 steps, and of any."""
    equal = [p for p in published(task) if p.feasible and not p.unequal]
    soon = [p for p in equal if p.steps <= 1_000_000]
    best = [max(some, key=lambda p: p.return_mean) for some in (soon, equal) if some]
    told = dict.fromkeys(f"{short(p.return_mean)} ({p.steps / 1e6:g}M)" for p in best)
    return "; ".join(told) or "none"


def groups() -> dict[tuple[str, int, str, str], list[dict[str, Any]]]:
    """Rows of each task, number of steps and agent that are of equal settings, seed after seed.

    The last part of the key says in which settings they are older than the code.
    """
    found: dict[tuple[str, int, str, str], list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(RESULTS.glob("*.jsonl")):
        for row in sorted(read(path), key=lambda row: int(row["seed"])):
            if not row["overrides"]:
                found[row["task"], row["steps"], row["agent"], older(row)].append(row)
    return found


def page(runs: list[Path]) -> Path:
    """The benchmark page of all rows that are kept, with films of these runs."""
    rows = [complete(row) for path in sorted(RESULTS.glob("*.jsonl")) for row in read(path)]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / CELLS).mkdir()
        names = [f"{row['task']}-{row['steps']}-{i}" for i, row in enumerate(rows)]
        for name, row in zip(names, rows, strict=True):
            (scratch / CELLS / f"{name}.json").write_text(json.dumps(row), encoding="utf-8")
        suite = {"title": "this project's results", "description": ABOUT, "cells": names}
        (scratch / SUITE_FILE).write_text(json.dumps(suite), encoding="utf-8")
        film_examples(scratch / VIDEOS, [(run, row_of(read_run(run))) for run in runs])
        return report(scratch, PAGE)


def short(value: float) -> str:
    """Four digits at most."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def contributions() -> str:
    """The ablations of every task, each beside the whole agent; SAC-Lag is kcpr uncoupled.

    Rows whose settings differ in more than the thing asked for are not held together: of those that
    can be, the ones nearest to the code as it stands.
    """
    lines: list[str] = []
    for path in sorted(RESULTS.glob("*.jsonl")):
        alike: dict[tuple[int, str], list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        for i, row in enumerate(read(path), start=1):
            told = f"{path.name}, line {i}", complete(uncoupled(row))
            alike[row["steps"], older(row)].append(told)
        written: set[int] = set()
        for (steps, of), rows in sorted(alike.items(), key=lambda a: len(a[0][1])):
            if steps not in written and (found := held_together(rows, of)):
                lines += found
                written.add(steps)
    return "\n".join(lines) or "No two rows can be held together yet.\n"


def held_together(rows: list[tuple[str, dict[str, Any]]], of: str) -> list[str]:
    """Ablations among rows of one task that are alike in all else; `of`: what has changed since."""
    trials, problems = read_trials(rows)
    if problems:
        raise SystemExit("; ".join(f"{p.where} {p.what}" for p in problems))
    lines: list[str] = []
    for comparison in compare_trials(trials):
        if found := ablations(comparison):
            p = comparison.protocol
            whole = next((s for s in comparison.standings if s.label == "kcpr"), None)
            if whole is None:
                continue
            means = ", ".join(
                f"{name} {short(mean(value(t) for t in whole.trials))}"
                for name, value in MEASURES.items()
            )
            seeds = f"kcpr ({len(whole.trials)} seeds)"
            since = f" Settings that are others today: {of}." if of else ""
            lines += [f"{p.task}, {p.steps:,} steps; {seeds}: {means}.{since}", "", *found]
    return lines


def uncoupled(row: dict[str, Any]) -> dict[str, Any]:
    """SAC-Lag's row as that of kcpr without its coupling, which is what it is."""
    if row["agent"] != "sac-lag":
        return row
    overrides = {**AGENTS["sac-lag"], **row["overrides"]}
    return row | {"agent": "kcpr", "label": f"{row['label']} (no coupling)", "overrides": overrides}


def between(text: str, inside: str) -> str:
    """The text with what stands between the marks replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + inside + END + after


def experiments(text: str) -> str:
    """docs/experiments.md with its table of ablations replaced."""
    return between(text, contributions())


def readme(text: str) -> str:
    """The README with its table replaced."""
    note = (
        f"Deterministic policy, {EPISODES} full episodes a seed on evaluation seeds that training "
        "never meets, budget 25;\nmean (and range) over training seeds. Published: the best "
        "return whose mean punishment is within the budget, of 1 million steps at most and\nof "
        "any number. Each row of [results/](results/) holds the command that trained it; "
        "`python scripts/results.py judge RUN` made it,\n"
        "`python scripts/results.py table` this table.\n\n"
    )
    return between(text, note + table())


def main() -> int:
    match sys.argv[1:]:
        case ["judge", *runs] if runs:
            for run in runs:
                row = judge(Path(run))
                print(json.dumps({key: row[key] for key in STABLE_KEYS}), flush=True)
        case ["page", *runs]:
            print(page([Path(run) for run in runs]))
        case ["table"]:
            for path, written in ((ROOT / "README.md", readme), (EXPERIMENTS, experiments)):
                path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
        case ["older"]:
            for (task, steps, agent, of), rows in sorted(groups().items()):
                seeds = ", ".join(str(row["seed"]) for row in rows)
                print(f"{task}, {steps:,}, {agent}, seeds {seeds}: {of or 'as now'}")
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
