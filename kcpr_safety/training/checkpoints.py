"""What of a running training survives a crash, and in what files?

    config.json              what was asked for: settings, contract, versions; written once
    checkpoint.safetensors   learner, replay and counters: what `resume` continues from
    policy.safetensors       the best policy so far by validation (`policy_file`)
    metrics.jsonl            rows (`sinks`)

Every file is replaced atomically. The checkpoint is safetensors with JSON counters in its header;
nothing here can execute code when it is read.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from kcpr_safety.agents.settings import Settings
from kcpr_safety.contract import Contract
from kcpr_safety.errors import FileFault, KcprError
from kcpr_safety.files import atomic_write, read_limited
from kcpr_safety.tensor_file import pieces, unpack

CONFIG_FILE = "config.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
SCHEMA_VERSION = "1"

_MAX_CONFIG_BYTES = 2**20
_MAX_CHECKPOINT_BYTES = 16 * 2**30
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
    settings: Settings
    contract: Contract
    device: str = "cpu"
    threads: int = 1
    """Cores of the learner; results repeat to the last bit only on the same number."""

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
    """Where a run stands."""

    steps: int
    episodes: list[int]
    """Episodes that each environment has begun."""
    punishment_total: float
    wall_s: float
    metrics_bytes: int
    best: dict[str, Any] | None
    """Validation row of the policy that is kept."""
    owed: float
    """Fraction of an update that is due."""
    replay_added: int
    finished: bool


def versions() -> dict[str, str]:
    """Installed versions of what results depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_config(run: Path, config: Config) -> None:
    """Claim a fresh run folder."""
    if (run / CONFIG_FILE).exists():
        raise FileFault(
            f"{run} already holds a run; continue it with: kcpr-safety resume {run}, "
            "or choose another folder with --out"
        )
    atomic_write(run / CONFIG_FILE, config.to_json().encode())


def read_config(run: Path) -> Config:
    """The configuration of a run folder; anything else raises `FileFault`."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise FileFault(f"{run} is no run folder: it has no {CONFIG_FILE}")
    try:
        record = json.loads(read_limited(path, _MAX_CONFIG_BYTES))
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {record['schema_version']!r} is not known here")
        return Config(
            task=str(record["task"]),
            agent=str(record["agent"]),
            seed=int(record["seed"]),
            steps=int(record["steps"]),
            budget=float(record["budget"]),
            settings=Settings(**record["settings"]),
            contract=Contract.from_json(json.dumps(record["contract"])),
            device=str(record["device"]),
            threads=int(record.get("threads", 1)),
        )
    except (ValueError, TypeError, KeyError, RecursionError, KcprError) as error:
        raise FileFault(f"{path} is not the configuration of a run: {error}") from error


def write_checkpoint(
    run: Path, learner: Mapping[str, Tensor], replay_rows: Tensor, counters: Counters
) -> None:
    """Replace the run's checkpoint."""
    tensors = {f"{_LEARNER}{key}": value for key, value in learner.items()}
    header = {
        "schema_version": SCHEMA_VERSION,
        "counters": json.dumps(asdict(counters), sort_keys=True, allow_nan=False),
    }
    # Piece by piece: the replay may be as large as the memory that is left.
    parts = pieces(tensors | {"replay": replay_rows}, header)
    atomic_write(run / CHECKPOINT_FILE, lambda stream: stream.writelines(parts))


def read_checkpoint(run: Path) -> tuple[dict[str, Tensor], Tensor, Counters]:
    """(learner state, replay rows, counters) of a run; anything else raises `FileFault`."""
    path = run / CHECKPOINT_FILE
    if not path.is_file():
        raise FileFault(f"{run} has no checkpoint to resume from ({CHECKPOINT_FILE} is missing)")
    tensors, header = unpack(read_limited(path, _MAX_CHECKPOINT_BYTES), str(path))
    try:
        if header["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {header['schema_version']!r} is not known here")
        counters = Counters(**json.loads(header["counters"]))
        replay = tensors.pop("replay")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileFault(f"{path} is not a checkpoint of this package: {error}") from error
    learner = {
        key.removeprefix(_LEARNER): value
        for key, value in tensors.items()
        if key.startswith(_LEARNER)
    }
    return learner, replay, counters
