"""What does a run folder say about one training, and what is wrong with what it says?

Read are `config.json`, `metrics.jsonl` and, if the run has been evaluated, `evaluation.json`. What
cannot be used at all raises `FileFault`; what can be used in part is used, and each gap becomes a
note that the page shows. Nothing is dropped or averaged in silence.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kcpr_safety.errors import FileFault
from kcpr_safety.evidence import EVIDENCE_FILE, Evidence, read_evidence, read_json
from kcpr_safety.files import read_limited
from kcpr_safety.texts import json_object

SCHEMA_VERSION = "1"
MAX_METRICS_BYTES = 512 * 2**20
MAX_FILM_BYTES = 2**20
FILM_NAME, FILM_SUFFIXES = "episode", (".gif", ".mp4")
Row = Mapping[str, Any]
Budgets = tuple[tuple[str, float], ...]
"""Names of streams, each with its budget."""


@dataclass(frozen=True)
class Run:
    """One training run, as its folder tells it."""

    name: str
    path: Path
    task: str
    agent: str
    seed: int
    steps: int
    """Environment steps that were asked for."""
    budget: float
    time_limit: int | None
    versions: Mapping[str, str]
    machine: str
    settings: Mapping[str, Any]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    evidence: Evidence | None
    notes: tuple[str, ...]
    film: tuple[str, bytes] | None = None
    """Suffix and content of `episode.gif` (or .mp4) in the folder: the first evaluated episode."""
    streams: Budgets = ()
    """Parts of the punishment with budgets of their own."""

    def curve(self, kind: str, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric; NaN where a row has none."""
        rows = self.train if kind == "train" else self.validation
        return [float(row["steps"]) for row in rows], [number(row.get(key)) for row in rows]


def number(value: Any) -> float:
    """The value as a float; NaN for everything that is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.nan
    return float(value)


def read_run(path: Path) -> Run:
    """Read one run folder."""
    path = Path(path)
    if not (path / "config.json").is_file():
        what = "is a bundle; a report needs the run" if (path / "card.json").exists() else None
        raise FileFault(f"{path} {what or 'is no run folder: it has no config.json'}")
    run = _from_config(read_json(path / "config.json"), path)
    rows, notes = _read_rows(path / "metrics.jsonl")
    train, superseded = _in_order([row for row in rows if row["kind"] == "train"])
    validation, more = _in_order([row for row in rows if row["kind"] == "validation"])
    if superseded + more:
        notes.append(
            f"{superseded + more} rows were written again by a resumed run; the last count"
        )
    if not train:
        notes.append("metrics.jsonl holds no training row: there are no learning curves")
    for kind, kept in (("training", train), ("validation", validation)):
        for key in ("return_mean", "punishment_mean"):
            gaps = _gaps(kept, key)
            if gaps:
                notes.append(f"{gaps} {kind} rows have no finite {key}: the curve is broken there")
    evidence, remark = _read_evidence(path, run)
    try:
        film = _read_film(path)
    except FileFault as fault:
        film = None
        notes.append(f"its film is not shown: {fault}")
    return replace(
        run,
        train=tuple(train),
        validation=tuple(validation),
        evidence=evidence,
        notes=tuple(notes + remark),
        film=film,
    )


def _read_film(path: Path) -> tuple[str, bytes] | None:
    for suffix in FILM_SUFFIXES:
        file = path / f"{FILM_NAME}{suffix}"
        if file.is_file():
            return suffix, read_limited(file, MAX_FILM_BYTES)
    return None


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read several run folders; the same folder twice is refused."""
    if not paths:
        raise FileFault("a report needs at least one run folder")
    seen: set[Path] = set()
    runs = []
    for path in map(Path, paths):
        if path.resolve() in seen:
            raise FileFault(f"{path} is given twice; a report counts every run once")
        seen.add(path.resolve())
        runs.append(read_run(path))
    return runs


def _from_config(config: Row, path: Path) -> Run:
    where = path / "config.json"
    version = config.get("schema_version")
    if version != SCHEMA_VERSION:
        raise FileFault(f"{where} has schema version {version!r}; this package reads '1'")
    try:
        contract = config.get("contract") or {}
        limit = contract.get("time_limit")
        hold = int(contract.get("hold", 1))
        run = Run(
            name=path.resolve().name,
            path=path,
            task=str(config["task"]),
            agent=str(config["agent"]),
            seed=int(config["seed"]),
            steps=int(config["steps"]),
            budget=float(config["budget"]),
            time_limit=None if limit is None else int(limit) * hold,
            versions={str(k): str(v) for k, v in dict(config.get("versions", {})).items()},
            machine=str(config.get("machine", "")),
            settings=dict(config.get("settings", {})),
            train=(),
            validation=(),
            evidence=None,
            notes=(),
            streams=tuple(
                (str(part["name"]), float(part["budget"])) for part in contract.get("streams", ())
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FileFault(f"{where} is not the configuration of a run: {error!r}") from error
    if not (math.isfinite(run.budget) and run.budget >= 0):
        raise FileFault(f"{where}: the budget is {run.budget}, but must be a number >= 0")
    return run


def _read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """All rows with a kind and a step count; a last line that was cut off becomes a note."""
    if not path.exists():
        return [], ["metrics.jsonl is missing"]
    rows: list[Row] = []
    lines = read_limited(path, MAX_METRICS_BYTES).split(b"\n")
    for number_, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json_object(line)
            usable = isinstance(row["kind"], str) and math.isfinite(row["steps"])
        except (ValueError, TypeError, KeyError) as error:
            if number_ == len(lines):
                return rows, [f"line {number_} of metrics.jsonl was cut off while being written"]
            raise FileFault(f"{path} is damaged in line {number_}: {error}") from error
        if not usable:
            raise FileFault(f"{path} is damaged in line {number_}: kind or steps is no value")
        rows.append(row)
    return rows, []


def _in_order(rows: list[Row]) -> tuple[list[Row], int]:
    """Rows of rising steps; where a resumed run began again, its later rows win."""
    kept: list[Row] = []
    superseded = 0
    for row in rows:
        while kept and kept[-1]["steps"] >= row["steps"]:
            kept.pop()
            superseded += 1
        kept.append(row)
    return kept, superseded


def _gaps(rows: Sequence[Row], key: str) -> int:
    """Rows without the value, once it has begun (before, no episode had ended)."""
    values = [number(row.get(key)) for row in rows]
    begun = next((i for i, value in enumerate(values) if not math.isnan(value)), len(values))
    return sum(math.isnan(value) for value in values[begun:])


def _read_evidence(path: Path, run: Run) -> tuple[Evidence | None, list[str]]:
    """The evaluation, if there is one and it judged the policy that the run holds."""
    if not (path / EVIDENCE_FILE).exists():
        return None, []
    evidence = read_evidence(path)
    for key in ("task", "agent", "seed", "budget"):
        judged, own = getattr(evidence, key), getattr(run, key)
        if judged != own:
            raise FileFault(
                f"{path / EVIDENCE_FILE} is about {key} {judged}, the run about {key} {own}"
            )
    if evidence.budgets != run.streams:
        raise FileFault(
            f"{path / EVIDENCE_FILE} does not judge the streams of the run's contract; run again: "
            f"kcpr-safety evaluate {path}"
        )
    policy = path / "policy.safetensors"
    if evidence.policy_sha256 and policy.exists():
        digest = hashlib.sha256(read_limited(policy, MAX_METRICS_BYTES)).hexdigest()
        if digest != evidence.policy_sha256:
            return None, ["evaluation.json judged another policy than the run holds now; not used"]
    return evidence, []
