"""What can a Python program do with this package?

    from kcpr_safety import train, evaluate, export, load_policy, report

    run = train("SafetyPointGoal1-v0", steps=200_000, seed=1)
    print(evaluate(run.path, episodes=100).return_mean)
    export(run.path, "my-policy")
    action = load_policy("my-policy").act(obs)

The command line is a thin coat over these functions. They print nothing unless `progress` is asked
for, raise children of `KcprError` for whatever a caller can mend, and keep their names, parameters
and result keys under semantic versioning.

Each function imports what it needs when it is called: loading a policy takes no simulator.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcpr_safety.cards import data_root
from kcpr_safety.deploy import Policy, export_bundle
from kcpr_safety.deploy import load_policy as load_bundle
from kcpr_safety.errors import AbsentTaskError, FileFault, MissingPackageError
from kcpr_safety.evidence import EVIDENCE_FILE, STRESS_FILE
from kcpr_safety.files import atomic_write
from kcpr_safety.policy_file import RUN_FILE
from kcpr_safety.seeds import FIRST_EVALUATION_SEED, evaluation_seeds

if TYPE_CHECKING:
    from kcpr_safety.policy_file import PolicyFile
    from kcpr_safety.training.sinks import Sink

__all__ = [
    "EVALUATION_EPISODES",
    "Policy",
    "Result",
    "calibrate",
    "evaluate",
    "export",
    "load_policy",
    "locate",
    "report",
    "resume",
    "shipped_policies",
    "stress",
    "train",
    "verify",
]

EVALUATION_EPISODES = 50
CALIBRATION_EPISODES = 20
STRESS_EPISODES = 10

OnStep = Callable[[int, int], None]
"""(steps done, steps in all)"""

StrPath = str | Path


@dataclass(frozen=True)
class Result:
    """What came out of training, evaluating or exporting; the same keys everywhere."""

    task: str
    agent: str
    seed: int
    """Training seed."""
    eval_seed: int | None
    """Seed of the first judged episode; the others follow one by one."""
    steps: int
    """Environment steps that the policy was trained for."""
    wall_s: float
    """Time that this call took [s]."""
    return_mean: float | None
    """Mean reward sum of an episode."""
    punishment_mean: float | None
    """Mean punishment (cost) sum of an episode."""
    episodes: int
    over_budget_share: float | None
    """Share of episodes whose punishment was above the budget."""
    budget: float
    """Allowed punishment per episode."""
    path: Path
    """The run, the evaluation file or the bundle."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What only this kind of result has, such as the lists of returns and punishments."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any], **changed: Any) -> "Result":
        """The result that a JSON record (or what the loops return) holds."""
        merged = {**record, **changed}
        values = {key: merged.pop(key, None) for key in STABLE_KEYS}
        values["path"] = Path(values["path"])
        return cls(**values, details=merged)

    def record(self) -> dict[str, Any]:
        """Everything as JSON values: the stable keys first, then the details."""
        stable = {key: getattr(self, key) for key in STABLE_KEYS}
        return {**stable, "path": str(self.path), **self.details}


STABLE_KEYS = tuple(name for name in Result.__dataclass_fields__ if name != "details")


def train(
    task: str,
    *,
    agent: str = "kcpr",
    steps: int | None = None,
    seed: int = 0,
    budget: float | None = None,
    out: StrPath | None = None,
    num_envs: int | None = None,
    init: StrPath | None = None,
    trust: Iterable[StrPath] = (),
    device: str = "cpu",
    threads: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = False,
    tensorboard: bool = False,
    track: Sequence[str] = (),
) -> Result:
    """Train a policy and keep it in a run folder (`result.path`).

    `task` is a task card's name or file, any registered Safety-Gymnasium id, or `module:Id-v0`;
    `agent` is kcpr, sac, sac-lag, sac-pid, td3-lag or a discrete one; `budget` replaces the card's
    allowed punishment per episode (refused where streams have budgets of their own: change those
    together, in a copy of the card); `init` is a run or bundle to start from (`trust` adds public
    keys that a bundle may be signed with); `threads` is how many cores the learner may use
    (default 2; give 1 to each of two runs side by side);
    `overrides` replaces numbers of the agent (`agents.settings.Settings`); `progress` shows a
    live display on stderr; `tensorboard` also writes curves for TensorBoard, and `track` names
    further services (wandb, mlflow). What is left None has the task's default. An existing run
    is never overwritten. Ctrl-C saves everything and raises a `KcprError` that says how to go
    on.
    """
    from kcpr_safety.training.options import TrainOptions
    from kcpr_safety.training.runs import train_run

    options = TrainOptions(
        task=task,
        agent=agent,
        steps=steps,
        seed=seed,
        budget=budget,
        out=_fresh_folder(out, f"{_short(task)}-{agent}-seed{seed}"),
        num_envs=num_envs,
        init=None if init is None else _sound(locate(init), trust),
        device=device,
        threads=threads,
        overrides=overrides or {},
    )
    return Result.from_record(train_run(options, _sinks(progress, tensorboard, track)).record())


def resume(
    run: StrPath,
    *,
    progress: bool = False,
    tensorboard: bool = False,
    track: Sequence[str] = (),
) -> Result:
    """Continue an interrupted training run from its last checkpoint."""
    from kcpr_safety.training.runs import resume_run

    sinks = _sinks(progress, tensorboard, track)
    return Result.from_record(resume_run(Path(run), sinks).record())


def evaluate(
    path: StrPath,
    *,
    episodes: int = EVALUATION_EPISODES,
    eval_seed: int = FIRST_EVALUATION_SEED,
    video: StrPath | None = None,
    trust: Iterable[StrPath] = (),
) -> Result:
    """Judge a run's or bundle's deterministic policy on full episodes.

    Episode i starts from seed `eval_seed + i`; seeds that training may have seen are refused. The
    result of a run is kept as `evaluation.json` beside it. `video` films the first episode
    (.gif, or .mp4 where imageio-ffmpeg is installed). A bundle must be signed by a trusted key, to
    which `trust` adds files; a changed byte raises `FileFault`.
    """
    from kcpr_safety.training.evaluation import evaluate_policy
    from kcpr_safety.training.video import record_video

    place = _sound(locate(path), trust)
    if video is not None:
        record_video(place, Path(video), eval_seed)
    record = evaluate_policy(place, episodes, eval_seed)
    result = Result.from_record(record, path=str(place))
    if (place / RUN_FILE).is_file():
        text = json.dumps(result.record(), indent=1, allow_nan=False)
        atomic_write(place / EVIDENCE_FILE, text.encode())
    return result


def export(run: StrPath, out: StrPath, *, key: StrPath | None = None) -> Result:
    """Write a run's policy as a signed bundle: controller.pt, weights, card, golden vectors.

    `key` is a private key that `keygen` made (its file or its name); not given: this machine's own.
    """
    return Result.from_record(export_bundle(locate(run), Path(out), key))


def calibrate(
    run: StrPath, *, episodes: int = CALIBRATION_EPISODES, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Find a run's ranges and thresholds on validation seeds; kept in it as `calibration.json`."""
    from kcpr_safety.training.calibration import calibrate_run

    return calibrate_run(_run_folder(run), episodes, on_step)


def stress(
    place: StrPath,
    *,
    episodes: int = STRESS_EPISODES,
    eval_seed: int = FIRST_EVALUATION_SEED,
    trust: Iterable[StrPath] = (),
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Inject faults, with and without runtime assurance; a run keeps the table as `stress.json`."""
    from kcpr_safety.deploy.bundle import read_calibration
    from kcpr_safety.deploy.load import is_bundle, open_bundle
    from kcpr_safety.policy_file import read_policy
    from kcpr_safety.training import stress as faults
    from kcpr_safety.training.kept_task import task_of

    folder = locate(place)
    if is_bundle(folder):
        opened = open_bundle(folder, [Path(file) for file in trust])
        policy, assurance = opened.policy, opened.assurance
    else:
        policy = read_policy(_run_folder(folder))
        assurance, _ = read_calibration(folder, policy)
    with task_of(folder):
        record = faults.stress(policy, assurance, episodes, eval_seed, on_step=on_step)
    if (folder / RUN_FILE).is_file():
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
        atomic_write(folder / STRESS_FILE, text.encode())
    return {"path": str(folder), **record}


def verify(bundle: StrPath, *, trust: Iterable[StrPath] = ()) -> dict[str, Any]:
    """Prove a bundle here: signature, hashes, schema, golden answers, parity, contract of its task.

    Raises `KcprError` with the file and the reason.
    """
    from kcpr_safety.deploy.verify import verify_bundle

    folder = locate(bundle)
    opened, record = verify_bundle(folder, [Path(file) for file in trust])
    return {**record, "task_contract": _check_task(opened.policy)}


def _check_task(policy: "PolicyFile") -> str:
    """Whether the task, where it can be simulated, still has the policy's contract."""
    try:
        from kcpr_safety.training.evaluation import world_of
    except ImportError as error:
        return f"not checked: {error.name} is not installed"
    try:
        world_of(policy, 1, evaluation_seeds(FIRST_EVALUATION_SEED, 1)).close()
    except AbsentTaskError:
        return f"not checked: there is no {policy.task} here"
    except MissingPackageError as fault:
        return f"not checked: {fault}"
    return "the same as the task's"


def _run_folder(run: StrPath) -> Path:
    folder = locate(run)
    if not (folder / RUN_FILE).is_file():
        raise FileFault(f"{folder} is no run folder: it has no {RUN_FILE}")
    return folder


def load_policy(path: StrPath, *, trust: Iterable[StrPath] = ()) -> Policy:
    """A policy to act with: `load_policy(path).act(obs)`; `path` is a bundle, a run or a name.

    A bundle must be signed by a key of the package, by one of the user's own or by one in `trust`.
    """
    return load_bundle(locate(path), [Path(file) for file in trust])


def report(runs: Iterable[StrPath] | StrPath, out: StrPath) -> Path:
    """Write one self-contained HTML page about these runs, or about a benchmark's folder, rows
    (`.jsonl`) or OmniSafe's `progress.csv`; returns its path."""
    from kcpr_safety.report import build_report

    places = [runs] if isinstance(runs, str | Path) else list(runs)
    return build_report([locate(place) for place in places], Path(out))


def shipped_policies() -> list[Path]:
    """The bundles that came with the package."""
    return sorted(card.parent for card in (data_root() / "policies").glob("*/card.json"))


def locate(path: StrPath) -> Path:
    """An existing path as it is; otherwise the shipped policy of that name."""
    place = Path(path)
    if place.exists():
        return place
    shipped = {bundle.name: bundle for bundle in shipped_policies()}
    if str(path) in shipped:
        return shipped[str(path)]
    named = f"; shipped policies: {', '.join(shipped)}" if shipped else ""
    raise FileFault(f"'{path}' is neither a run or bundle folder nor a shipped policy{named}")


def _sound(place: Path, trust: Iterable[StrPath]) -> Path:
    """The same place; of a bundle every file must be what a trusted key signed."""
    from kcpr_safety.deploy.keys import trusted_keys
    from kcpr_safety.deploy.load import is_bundle
    from kcpr_safety.deploy.manifest import open_sealed

    if is_bundle(place):
        open_sealed(place, trusted_keys(Path(file) for file in trust))
    return place


def _sinks(progress: bool, tensorboard: bool, track: Sequence[str]) -> "list[Sink]":
    from kcpr_safety.training.sinks import live_sinks
    from kcpr_safety.training.trackers import trackers

    names = [*(["tensorboard"] if tensorboard else []), *track]
    return [*live_sinks(progress), *trackers(names)]


def _short(task: str) -> str:
    """A task's name without the module or folder that it comes from."""
    return Path(task.rpartition(":")[2]).name.removesuffix(".toml")


def _fresh_folder(out: StrPath | None, name: str) -> Path:
    """Where a new run goes: the folder asked for, or the first free name under `runs/`."""
    if out is not None:
        return Path(out)
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder
