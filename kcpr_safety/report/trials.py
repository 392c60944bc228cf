"""What is one row of evidence: one training, judged, with all that the report says of it?

A row is a JSON object, one a line in a `.jsonl` file or alone in `cells/NAME.json` of a benchmark's
folder. It holds what `evaluate` returns (every episode, not only means) and what the run's folder
tells of its training. `row_of` makes it, `read_trials` reads many: what cannot be used is named as
a `Problem`, never dropped or averaged in silence. Of two rows about one training that agree one is
taken; of two that contradict each other none. Trainings under one label whose settings differ are
not seeds of one agent: each gets those settings into its label.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kcpr_safety.errors import FileFault
from kcpr_safety.evidence import EVIDENCE_FILE, Evidence, evidence_from_json, read_json
from kcpr_safety.files import read_limited
from kcpr_safety.report.runs import Budgets, Row, Run, number
from kcpr_safety.stats.trainings import first_feasible, largest_fall
from kcpr_safety.texts import json_object

TRIAL_SCHEMA = "trial-1"
DETERMINISTIC = "deterministic"
TIMES = ("wall_s", "train_wall_s", "first_feasible_wall_s")
"""What differs between two runs of the same training."""
MAX_BYTES = 256 * 2**20

_POINTS = 60
"""Training points that a row keeps."""

Curve = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with what was to be shown."""

    where: str
    what: str


@dataclass(frozen=True)
class Protocol:
    """What must be equal before two policies may be compared."""

    task: str
    budget: float
    steps: int
    time_limit: int
    mode: str
    streams: Budgets = ()

    def record(self) -> dict[str, Any]:
        """JSON values; streams only where there are some."""
        record = asdict(self)
        return record if self.streams else {k: v for k, v in record.items() if k != "streams"}


@dataclass(frozen=True)
class Trial:
    """One training and the evaluation of the policy that it kept."""

    evidence: Evidence
    label: str
    """Agent, or agent with what was changed of it."""
    overrides: Mapping[str, Any]
    settings: Mapping[str, Any]
    """All that the agent was trained with, overrides included; empty where a row tells of none."""
    time_limit: int
    mode: str
    punishment_training: float | None
    train_wall_s: float | None
    first_feasible: tuple[float, float, float] | None
    """Steps, return and wall-clock [s] of the first validated policy within the budget."""
    largest_fall: float | None
    """By how much a validated return fell below that of the best policy within the budget so far;
    None where no policy was within, or the row does not tell."""
    training: Curve
    """Steps, return, punishment and punishment so far."""
    validation: Curve
    """Steps, return, punishment, predicted and measured discounted punishment."""
    command: str
    versions: Mapping[str, str]
    machine: str
    config_sha256: str
    run: str
    """Name of the run's folder."""

    @property
    def protocol(self) -> Protocol:
        e = self.evidence
        return Protocol(e.task, e.budget, e.steps, self.time_limit, self.mode, e.budgets)

    @property
    def identity(self) -> tuple[Protocol, str, int]:
        return self.protocol, self.label, self.evidence.seed


def row_of(
    run: Run, label: str | None = None, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The row of an evaluated run, whose agent differs from `run.agent` by `overrides`."""
    if run.evidence is None:
        raise FileFault(
            f"{run.path} has no evaluation of its policy; run: kcpr-safety evaluate {run.path}"
        )
    judged = read_json(run.path / EVIDENCE_FILE)
    config = read_limited(run.path / "config.json", MAX_BYTES)
    threads = json_object(config).get("threads", 1)
    punished = [_punished(row, run.budget) for row in run.validation]
    at = first_feasible(punished, run.budget)
    # A validation without a number counts as no fall and as no policy within.
    told = [
        (row["return_mean"], p)
        for row, p in zip(run.validation, punished, strict=True)
        if not math.isnan(number(row.get("return_mean")) + p)
    ]
    first = {} if at is None else run.validation[at]
    last = run.train[-1] if run.train else {}
    walls = [row.get("wall_s") for row in (*run.train, *run.validation)]
    changed = "".join(f" --set {name}={value}" for name, value in (overrides or {}).items())
    return judged | {
        "schema_version": TRIAL_SCHEMA,
        "path": run.name,
        "label": label or run.agent,
        "overrides": dict(overrides or {}),
        "mode": DETERMINISTIC,
        "time_limit": run.time_limit,
        "punishment_training": last.get("punishment_total"),
        "punishment_worst": max(run.evidence.punishments),
        "train_wall_s": max((number(w) for w in walls if w is not None), default=None),
        "first_feasible_steps": first.get("steps"),
        "first_feasible_return": first.get("return_mean"),
        "first_feasible_wall_s": first.get("wall_s"),
        "largest_fall": largest_fall([r for r, _ in told], [p for _, p in told], run.budget),
        "training": _thinned(
            run.train, ("steps", "return_mean", "punishment_mean", "punishment_total")
        ),
        "validation": _thinned(
            run.validation,
            (
                "steps",
                "return_mean",
                "punishment_mean",
                "predicted_punishment",
                "measured_discounted_punishment",
            ),
        ),
        "command": f"kcpr-safety train {run.task} --agent {run.agent} --steps {run.steps} "
        f"--seed {run.seed} --budget {run.budget:g} --threads {threads}{changed}",
        "settings": dict(run.settings),
        "versions": dict(run.versions),
        "machine": run.machine,
        "config_sha256": hashlib.sha256(config).hexdigest(),
    }


def _punished(row: Row, budget: float) -> float:
    """A validation's mean punishment; more than any budget where a stream is over its own."""
    over = any(
        number(p.get("punishment_mean")) > number(p.get("budget")) for p in row.get("streams", ())
    )
    return math.inf if over else number(row.get("punishment_mean"))


def untimed(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without what differs between two runs of the same training."""
    return {key: value for key, value in row.items() if key not in TIMES}


def trial_from(row: Mapping[str, Any], name: str) -> Trial:
    """The trial that a row tells of; `name` is what a fault calls it."""
    version = row.get("schema_version")
    if version != TRIAL_SCHEMA:
        raise FileFault(
            f"{name} is of schema {version!r}; this page is made of rows of {TRIAL_SCHEMA!r}"
        )
    evidence = evidence_from_json(row, name)
    try:
        steps, at, wall = (
            _number(row.get(f"first_feasible_{key}")) for key in ("steps", "return", "wall_s")
        )
        return Trial(
            evidence=evidence,
            label=str(row["label"]),
            overrides=dict(row["overrides"]),
            settings=dict(row.get("settings", {})),
            time_limit=int(row["time_limit"] or 0),
            mode=str(row["mode"]),
            punishment_training=_number(row.get("punishment_training")),
            train_wall_s=_number(row.get("train_wall_s")),
            first_feasible=None
            if steps is None
            else (steps, math.nan if at is None else at, math.nan if wall is None else wall),
            largest_fall=_number(row.get("largest_fall")),
            training=_curve(row.get("training", []), 4),
            validation=_curve(row.get("validation", []), 5),
            command=str(row["command"]),
            versions={str(k): str(v) for k, v in dict(row["versions"]).items()},
            machine=str(row.get("machine", "")),
            config_sha256=str(row.get("config_sha256", "")),
            run=str(row.get("path", "")),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFault(f"{name} is no row of a benchmark: {error!r}") from error


def read_rows(path: Path) -> tuple[list[tuple[str, Row]], list[Problem]]:
    """Rows by name of a `.json` or `.jsonl` file, and the lines that are none."""
    rows: list[tuple[str, Row]] = []
    problems = []
    content = read_limited(path, MAX_BYTES)
    lines = content.splitlines() if path.suffix == ".jsonl" else [content]
    for i, line in enumerate(lines, start=1):
        name = f"{path.name}, line {i}" if path.suffix == ".jsonl" else path.name
        if not line.strip():
            continue
        try:
            rows.append((name, json_object(line)))
        except ValueError as error:
            problems.append(Problem(name, f"is no row: {error}"))
    return rows, problems


def read_trials(rows: Iterable[tuple[str, Row]]) -> tuple[list[Trial], list[Problem]]:
    """The trials of named rows, in the order of task, agent and seed, and what is wrong."""
    parsed: list[tuple[str, Row]] = []
    trials: list[Trial] = []
    problems = []
    for name, row in rows:
        try:
            trials.append(trial_from(row, name))
        except FileFault as fault:
            problems.append(Problem(name, str(fault).removeprefix(name).strip()))
            continue
        parsed.append((name, row))
    trials, mixed = _told_apart(trials)
    problems += mixed
    found: dict[tuple[Protocol, str, int], list[tuple[str, Row, Trial]]] = {}
    for (name, row), trial in zip(parsed, trials, strict=True):
        found.setdefault(trial.identity, []).append((name, row, trial))
    trials = []
    for same in found.values():
        name, row, trial = same[0]
        others = ", ".join(other for other, _, _ in same[1:])
        if len(same) == 1:
            trials.append(trial)
        elif all(_text(other) == _text(row) for _, other, _ in same[1:]):
            trials.append(trial)
            problems.append(Problem(others, f"repeats {name}; counted once"))
        else:
            told = f"and {others} contradict each other about one training; none is used"
            problems.append(Problem(name, told))
    trials.sort(key=lambda t: (t.evidence.task, t.evidence.steps, t.label, t.evidence.seed))
    return trials, problems


def _told_apart(trials: Sequence[Trial]) -> tuple[list[Trial], list[Problem]]:
    """The same trials; where one label stands for different settings, these are in the labels."""
    alike: dict[tuple[Protocol, str], list[Trial]] = {}
    for trial in trials:
        alike.setdefault((trial.protocol, trial.label), []).append(trial)
    differ = {key: differing([t.settings for t in same]) for key, same in alike.items()}
    problems = [
        Problem(
            protocol.task,
            f"has trainings of {label} over {protocol.steps:,} steps with different settings "
            f"({', '.join(names)}): shown apart, never taken for seeds of one agent",
        )
        for (protocol, label), names in differ.items()
        if names
    ]
    named = []
    for trial in trials:
        names = differ[trial.protocol, trial.label]
        told = [f"{name} {trial.settings.get(name, 'untold')}" for name in names]
        named.append(replace(trial, label=", ".join([trial.label, *told])))
    return named, problems


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all; one that is not told of differs."""
    names = sorted({name for each in settings for name in each})
    return [n for n in names if any(each.get(n) != settings[0].get(n) for each in settings)]


def _text(row: Row) -> str:
    return json.dumps(untimed(row), sort_keys=True)


def _thinned(rows: Sequence[Row], keys: Sequence[str]) -> list[list[float | None]]:
    """At most `_POINTS` of the rows, the last among them."""
    count = len(rows)
    chosen = sorted({round((i + 1) * count / _POINTS) - 1 for i in range(_POINTS)} - {-1})
    picked = rows if count <= _POINTS else [rows[i] for i in chosen]
    return [[_number(row.get(key)) for key in keys] for row in picked]


def _number(value: Any) -> float | None:
    found = number(value)
    return None if math.isnan(found) else found


def _curve(points: Any, width: int) -> Curve:
    """Points with NaN where there is no number."""
    curve = tuple(tuple(number(value) for value in point) for point in points)
    if any(len(point) != width or math.isnan(point[0]) for point in curve):
        raise ValueError(f"a curve's points must be {width} values, steps first")
    return curve
