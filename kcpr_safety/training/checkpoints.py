"""What of a running training survives a crash, and in what files?

    config.json               what was asked for: settings, contract, versions; written once
    checkpoint-N.safetensors  learner, environments, counters, kept policy: the two newest are held
    replay/                   transitions, in chunks that are written once (`replay_log`)
    policy.safetensors        the best policy so far by validation (`policy_file`)
    metrics.jsonl             rows (`sinks`)
    lock                      who is training here (`lock`)
    task/                     card and model of a run that was given a card's file (`kept_task`)

A run that is resumed ends as if it had never been stopped, bit by bit. Every file is written
aside, flushed and renamed into place. Where the newest checkpoint is damaged, the one before is
taken and the fault is told. All is safetensors with JSON in the header; nothing here can execute
code when it is read.
"""

import ctypes
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcpr_safety.agents.families import AnySettings, family_of
from kcpr_safety.contract import Contract
from kcpr_safety.errors import FileFault, KcprError
from kcpr_safety.files import atomic_write, faults_of, read_limited
from kcpr_safety.replay import Replay
from kcpr_safety.tensor_file import pieces, unpack
from kcpr_safety.texts import json_object, json_value
from kcpr_safety.training.replay_log import Chunk, ReplayLog

CONFIG_FILE = "config.json"
SCHEMA_VERSION = "1"
CHECKPOINT_SCHEMA_VERSION = "4"
GENERATIONS = 2
"""Checkpoints that are kept."""

_RANKED = ("judged_return", "judged_over_budget_share", "overspent")
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,9})\.safetensors")
_FIRST_FORMAT = "checkpoint.safetensors"
_DAMAGED = "checkpoint.damaged"
_MAX_CONFIG_BYTES = 2**20
_MAX_CHECKPOINT_BYTES = 2**30
_PACKAGES = ("kcpr-safety", "torch", "mujoco", "gymnasium", "safety-gymnasium", "numpy")
_LEARNER = "learner."


@dataclass(frozen=True)
class Config:
    """What a run was asked to do; enough to start it again from nothing."""

    task: str
    agent: str
    seed: int
    steps: int
    budget: float
    settings: AnySettings
    contract: Contract
    device: str = "cpu"
    threads: int = 1
    """Cores of the learner; results repeat to the last bit only on the same number."""
    card_sha256: str | None = None
    """Of the task card's file; None: the task has none."""
    begun_from: Mapping[str, Any] | None = None
    """The policy whose weights the run began with: task, agent, seed, steps, SHA-256 of its file;
    None: with weights of its own."""

    def to_json(self) -> str:
        record = asdict(self) | {
            "schema_version": SCHEMA_VERSION,
            "contract": json.loads(self.contract.to_json()),
            "versions": versions(),
            "machine": f"{platform.system()} {platform.machine()}, Python "
            f"{platform.python_version()}",
        }
        return json.dumps(record, indent=1, sort_keys=True, allow_nan=False)


@dataclass(frozen=True)
class Counters:
    """Where a run stands, in plain numbers."""

    steps: int
    punishment_total: float
    wall_s: float
    metrics_bytes: int
    best: dict[str, Any] | None
    """Validation row of the policy that is kept."""
    owed: float
    """Fraction of an update that is due."""
    replay_added: int
    marks: dict[str, int]
    """Steps at the last row of each kind."""
    recent: list[list[float]]
    """Return and punishment of the last training episodes."""
    sums: list[list[float]]
    """Return and punishment so far of every open episode."""
    validation_rounds: int
    """`Validation.rounds`."""
    metrics: dict[str, float]
    """Of the last update."""
    guard: dict[str, int]
    """What the guards count (`guards`)."""
    finished: bool


@dataclass(frozen=True)
class State:
    """All of a run but its transitions."""

    learner: Mapping[str, Tensor]
    world: Mapping[str, np.ndarray]
    generator: Tensor
    """Of the loop: random actions, drawn batches."""
    policy: bytes
    """The policy file that is kept; empty before the first validation."""
    counters: Counters
    faults: tuple[str, ...] = field(default=())
    """Why newer checkpoints could not be read."""


def versions() -> dict[str, str]:
    """Installed versions of what results depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def refuse_existing(run: Path) -> None:
    """Raise `FileFault` where the folder holds a run already."""
    if (run / CONFIG_FILE).exists():
        raise FileFault(
            f"{run} already holds a run; continue it with: kcpr-safety resume {run}, "
            "or choose another folder with --out"
        )


def write_config(run: Path, config: Config) -> None:
    """Make a fresh folder that of a run."""
    refuse_existing(run)
    atomic_write(run / CONFIG_FILE, config.to_json().encode())


def read_config(run: Path) -> Config:
    """The configuration of a run folder; anything else raises `FileFault`."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise FileFault(f"{run} is no run folder: it has no {CONFIG_FILE}")
    try:
        record = json_object(read_limited(path, _MAX_CONFIG_BYTES))
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {record['schema_version']!r} is not known here")
        return Config(
            task=str(record["task"]),
            agent=str(record["agent"]),
            seed=_count(record["seed"]),
            steps=_count(record["steps"]),
            budget=_number_in(record["budget"]),
            settings=family_of(str(record["agent"])).read_settings(record["settings"]),
            contract=Contract.from_json(json.dumps(record["contract"])),
            device=str(record["device"]),
            threads=max(1, _count(record.get("threads", 1))),
            card_sha256=record.get("card_sha256"),
            begun_from=record.get("begun_from"),
        )
    except (ValueError, TypeError, KeyError, KcprError) as error:
        raise FileFault(f"{path} is not the configuration of a run: {error}") from error


def write_checkpoint(run: Path, state: State, replay: Replay, log: ReplayLog) -> None:
    """Add the newest checkpoint; what is older than the one before it is removed."""
    if not state.counters.finished:
        log.append(replay)
    else:
        log.chunks = []  # A finished run cannot be resumed; its transitions only fill the disk.
    groups: dict[str, Mapping[str, Tensor]] = {
        "learner": state.learner,
        "world": {key: torch.from_numpy(array) for key, array in state.world.items()},
        "loop": {
            "generator": state.generator,
            "policy": torch.frombuffer(bytearray(state.policy or b"\0"), dtype=torch.uint8),
        },
    }
    tensors = {f"{group}.{k}": v for group, held in groups.items() for k, v in held.items()}
    header = {
        "schema_version": CHECKPOINT_SCHEMA_VERSION,
        "counters": json.dumps(asdict(state.counters), sort_keys=True, allow_nan=False),
        "chunks": json.dumps([[c.first, c.stop, c.crc] for c in log.chunks]),
    }
    earlier = checkpoint_files(run)
    number = _number(earlier[0]) + 1 if earlier else 1
    parts = pieces(tensors, header)
    atomic_write(run / f"checkpoint-{number}.safetensors", lambda stream: stream.writelines(parts))
    # Only now: until a moment ago the removed ones were the last resort.
    if state.counters.finished:
        _remove(earlier)
        log.forget()
    else:
        _remove(earlier[GENERATIONS - 1 :])
        log.forget(spare=GENERATIONS - 1)
    _return_free_memory()


def _return_free_memory() -> None:
    """Let glibc hand free pages back: else holes left by validations add up over days."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def checkpoint_files(run: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first."""
    if not run.is_dir():
        return []
    with faults_of(f"cannot read {run}"):
        found = [path for path in run.iterdir() if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=_number, reverse=True)


def read_checkpoint(run: Path, replay: Replay | None = None) -> tuple[State, ReplayLog]:
    """The newest state that is whole, its transitions in `replay`; `FileFault` where none is.

    A damaged newer one is set aside, so that it is never taken for a good one later.
    """
    faults: list[str] = []
    paths = checkpoint_files(run)
    for path in paths:
        try:
            state, log = _read(path)
            if replay is not None and not state.counters.finished:
                log.read_into(replay, state.counters.replay_added)
        except FileFault as fault:
            faults.append(str(fault))
            continue
        for damaged in paths[: len(faults)]:
            with suppress(OSError):
                os.replace(damaged, run / _DAMAGED)
        return State(**{**vars(state), "faults": tuple(faults)}), log
    if faults:
        raise FileFault(f"{run} cannot be resumed: {'; '.join(faults)}")
    if (run / _FIRST_FORMAT).exists():
        raise FileFault(
            f"{run} was trained by an earlier version, whose checkpoints cannot be continued; "
            f"start a new run from its policy with: kcpr-safety train TASK --init {run}"
        )
    raise FileFault(f"{run} has no checkpoint to resume from")


def read_counters(run: Path) -> Counters:
    """Where the run of a folder stands by its newest checkpoint that can be read."""
    return read_checkpoint(run)[0].counters


def clear(run: Path) -> None:
    """Remove what a run left that was killed before it had begun."""
    _remove(checkpoint_files(run))
    ReplayLog(run).forget()


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with faults_of(f"cannot remove {path}"):
            path.unlink()


def _number(path: Path) -> int:
    match = _CHECKPOINT.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _read(path: Path) -> tuple[State, ReplayLog]:
    tensors, header = unpack(read_limited(path, _MAX_CHECKPOINT_BYTES), str(path))
    try:
        if header["schema_version"] != CHECKPOINT_SCHEMA_VERSION:
            raise ValueError(
                f"schema version {header['schema_version']!r} is not known here; a new run can "
                f"start from its policy (kcpr-safety train TASK --init {path.parent})"
            )
        counters = _counters(json_object(header["counters"]))
        chunks = [Chunk.from_record(record) for record in json_value(header["chunks"])]
        groups: dict[str, dict[str, Tensor]] = {"learner": {}, "world": {}, "loop": {}}
        for name, tensor in tensors.items():
            group, _, key = name.partition(".")
            groups[group][key] = tensor
        policy = groups["loop"]["policy"].numpy().tobytes()
        state = State(
            learner=groups["learner"],
            world={key: tensor.numpy() for key, tensor in groups["world"].items()},
            generator=groups["loop"]["generator"],
            policy=b"" if policy == b"\0" else policy,
            counters=counters,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise FileFault(f"{path} is not a checkpoint of this package: {error}") from error
    return state, ReplayLog(path.parent, chunks)


def _counters(record: Any) -> Counters:
    """The counters in a header, every one of its type; else ValueError, TypeError or KeyError."""
    best = record["best"]
    if best is not None:
        # What later validations are compared with.
        best = dict(best) | {"feasible": bool(best["feasible"])}
        best |= {key: _number_in(best[key]) for key in _RANKED}
    if not isinstance(record["finished"], bool):
        raise ValueError("'finished' is neither true nor false")
    return Counters(
        steps=_count(record["steps"]),
        punishment_total=_number_in(record["punishment_total"]),
        wall_s=_number_in(record["wall_s"]),
        metrics_bytes=_count(record["metrics_bytes"]),
        best=best,
        owed=_number_in(record["owed"]),
        replay_added=_count(record["replay_added"]),
        marks={str(key): _count(value) for key, value in dict(record["marks"]).items()},
        recent=[_row_of(pair, 2) for pair in record["recent"]],
        sums=[_row_of(row, None) for row in record["sums"]],
        validation_rounds=_count(record["validation_rounds"]),
        metrics={str(key): _number_in(value) for key, value in dict(record["metrics"]).items()},
        guard={str(key): _count(value) for key, value in dict(record["guard"]).items()},
        finished=record["finished"],
    )


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _number_in(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no number")
    return float(value)


def _row_of(values: Any, length: int | None) -> list[float]:
    row = [_number_in(value) for value in list(values)]
    if length is not None and len(row) != length:
        raise ValueError(f"a row of {length} numbers has {len(row)}")
    return row
