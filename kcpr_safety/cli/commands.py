"""Which commands are there, what do they take, and what do they call?

Each command is a frozen dataclass: its fields are its options (tyro reads names, types, defaults
and the docstrings below them), `examples` closes its help, and `run` calls the Python API and
returns what `--json` prints. Heavy imports wait until a command runs, so that help is instant.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from tyro.conf import Positional, arg

from kcpr_safety.cli import show
from kcpr_safety.errors import KcprError, UnknownNameError
from kcpr_safety.seeds import FIRST_EVALUATION_SEED

_OPTIONAL = "(optional)"
Count = Annotated[int | None, arg(metavar="INT", help_behavior_hint=_OPTIONAL)]
Number = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=_OPTIONAL)]
Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint=_OPTIONAL)]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=_OPTIONAL)]
Place = Annotated[str | None, arg(metavar="RUN|BUNDLE", help_behavior_hint=_OPTIONAL)]


class Command(Protocol):
    """What `main` needs of a command."""

    examples: ClassVar[str]

    @property
    def json(self) -> bool: ...

    def run(self) -> tuple[dict[str, Any], int]:
        """The record that `--json` prints, and the exit code."""
        ...

    def show(self, record: dict[str, Any]) -> None:
        """Print the record for a person."""
        ...


class ShowsResult:
    """Commands whose record is one result of the API."""

    def show(self, record: dict[str, Any]) -> None:
        show.table(type(self).__name__.lower(), ("", ""), show.result_rows(record))


@dataclass(frozen=True)
class Tasks:
    """List the tasks that can be trained, and by which simulator path."""

    examples: ClassVar[str] = """
  kcpr-safety tasks            those with a card: described, tested, with tuned numbers
  kcpr-safety tasks --all      every registered Safety-Gymnasium id (the rest train with defaults)
"""
    all: bool = False
    """Also those without a task card."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import envs
        from kcpr_safety.cards import load_card

        rows = []
        for row in envs.registered_tasks():
            if row.has_card or self.all:
                card = load_card(row.task) if row.has_card else None
                facts = {"title": card.title, "budget": card.budget} if card else {}
                rows.append(dataclasses.asdict(row) | facts)
        return {"tasks": rows}, 0

    def show(self, record: dict[str, Any]) -> None:
        show.table(
            "tasks",
            ("task", "what it is", "budget", "simulator path"),
            [(r["task"], r.get("title"), r.get("budget"), r["path"]) for r in record["tasks"]],
        )


@dataclass(frozen=True)
class Train(ShowsResult):
    """Train a policy on a task and keep it in a run folder.

    Shows steps per second, return, punishment (cost) against the budget, and how far predicted
    and measured punishment agree. Ctrl-C saves and says how to resume.
    """

    examples: ClassVar[str] = """
  kcpr-safety train SafetyPointGoal1-v0
  kcpr-safety train SafetyPointGoal1-v0 --agent sac-lag --seed 1 --out runs/baseline
  kcpr-safety train SafetyAntVelocity-v1 --steps 500_000 --budget 10
  kcpr-safety train SafetyCarGoal1-v0 --init runs/SafetyPointGoal1-v0-kcpr-seed0
"""
    task: Annotated[Positional[str], arg(metavar="TASK")]
    """Name of a task card, or any registered Safety-Gymnasium id (see: kcpr-safety tasks --all)."""
    agent: Annotated[str, arg(metavar="{kcpr,sac,sac-lag}")] = "kcpr"
    """kcpr couples a reward and a punishment policy; sac ignores punishment; sac-lag weighs it."""
    steps: Count = None
    """Environment steps in all; not given: the default."""
    seed: int = 0
    """Training seed."""
    budget: Number = None
    """Allowed punishment (cost) per episode; not given: the task card's."""
    out: Folder = None
    """Run folder to make; not given: a free name under runs/."""
    envs: Count = None
    """Environments side by side; not given: the default."""
    init: Place = None
    """Start from the weights of this run or bundle."""
    device: str = "cpu"
    """Where to learn: cpu, cuda, cuda:1 ..."""
    tensorboard: bool = False
    """Also write curves for TensorBoard into the run folder."""
    json: bool = False
    """One JSON object on stdout, nothing else (progress goes to stderr)."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api

        result = api.train(
            self.task,
            agent=self.agent,
            steps=self.steps,
            seed=self.seed,
            budget=self.budget,
            out=self.out,
            num_envs=self.envs,
            init=self.init,
            device=self.device,
            progress=True,
            tensorboard=self.tensorboard,
        )
        return result.record(), 0


@dataclass(frozen=True)
class Resume(ShowsResult):
    """Continue an interrupted training run where its last checkpoint stands."""

    examples: ClassVar[str] = "  kcpr-safety resume runs/SafetyPointGoal1-v0-kcpr-seed0"
    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder that `train` made."""
    tensorboard: bool = False
    """Also write curves for TensorBoard into the run folder."""
    json: bool = False
    """One JSON object on stdout, nothing else (progress goes to stderr)."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api

        result = api.resume(self.run_folder, progress=True, tensorboard=self.tensorboard)
        return result.record(), 0


@dataclass(frozen=True)
class Evaluate(ShowsResult):
    """Judge a policy on full episodes with seeds that training has never seen."""

    examples: ClassVar[str] = """
  kcpr-safety evaluate runs/demo --episodes 100
  kcpr-safety evaluate runs/demo/bundle --json
  kcpr-safety evaluate SafetyHalfCheetahVelocity-v1 --video episode.gif
"""
    path: Annotated[Positional[str], arg(metavar="RUN|BUNDLE")]
    """A run folder, a bundle, or the name of a shipped policy (see: kcpr-safety policies)."""
    episodes: int = 50
    """Full episodes, deterministic policy."""
    eval_seed: int = FIRST_EVALUATION_SEED
    """Seed of the first episode; the others follow one by one."""
    video: File = None
    """Also film the first episode, as .gif (or .mp4 where imageio-ffmpeg is installed)."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api

        result = api.evaluate(
            self.path, episodes=self.episodes, eval_seed=self.eval_seed, video=self.video
        )
        return result.record(), 0


@dataclass(frozen=True)
class Export(ShowsResult):
    """Write a run's policy as a bundle that a robot can load with torch alone."""

    examples: ClassVar[str] = "  kcpr-safety export runs/demo --out my-policy"
    run_folder: Annotated[Positional[str], arg(metavar="RUN")]
    """A run folder; evaluate it first, for a bundle carries its evidence."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write the bundle to."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api

        return api.export(self.run_folder, self.out).record(), 0


@dataclass(frozen=True)
class Policies:
    """List the policies that came with the package."""

    examples: ClassVar[str] = """
  kcpr-safety policies
  kcpr-safety evaluate NAME    judges one of them
"""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api
        from kcpr_safety.deploy.bundle import CARD_FILE
        from kcpr_safety.deploy.card import card_from_bytes
        from kcpr_safety.files import read_limited

        rows = []
        for folder in api.shipped_policies():
            file = folder / CARD_FILE
            card = card_from_bytes(read_limited(file, 2**22), str(file))
            rows.append({"name": folder.name, "path": str(folder), "card": card})
        return {"policies": rows}, 0

    def show(self, record: dict[str, Any]) -> None:
        if not record["policies"]:
            show.console().print("no policies are shipped with this version")
            return
        rows = []
        for row in record["policies"]:
            evidence = row["card"]["evidence"]
            figures = (show.interval(evidence[key]) for key in ("return_mean", "punishment_mean"))
            rows.append((row["name"], *figures, evidence["episodes"], row["path"]))
        columns = ("name", "return [95 %]", "punishment (cost)", "episodes", "path")
        show.table("policies", columns, rows)


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page about one or more runs."""

    examples: ClassVar[str] = "  kcpr-safety report runs/a runs/b --out report"
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")]
    """Run folders."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write the page to."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api

        if not self.runs:
            raise KcprError("name at least one run folder (help: kcpr-safety report --help)")
        return {"path": str(api.report(self.runs, self.out)), "runs": list(self.runs)}, 0

    def show(self, record: dict[str, Any]) -> None:
        show.console().print(f"report: {record['path']}")


@dataclass(frozen=True)
class Check:
    """Check that an environment keeps its promises: spaces, signs, seeds, ends."""

    examples: ClassVar[str] = """
  kcpr-safety check SafetyPointGoal1-v0
  kcpr-safety check my_package:MyRobot-v0    imports my_package first, which registers the id
"""
    env_id: Annotated[Positional[str], arg(metavar="ENV_ID")]
    """A registered environment id, with `module:` before it if a module must be imported."""
    json: bool = False
    """One JSON object on stdout, nothing else; exit code 1 if a promise is broken."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import envs

        # An id that is unknown here is a mistake in the command, no finding about the environment.
        envs.resolve(self.env_id)
        findings = [dataclasses.asdict(finding) for finding in envs.check_environment(self.env_id)]
        broken = any(finding["severity"] == "error" for finding in findings)
        return {"env_id": self.env_id, "ok": not broken, "findings": findings}, int(broken)

    def show(self, record: dict[str, Any]) -> None:
        rows = [(finding["severity"], finding["sentence"]) for finding in record["findings"]]
        show.table(f"check {self.env_id}", ("", ""), rows)


@dataclass(frozen=True)
class Bench:
    """Measure steps per second of the simulator, the learner, or the whole training loop."""

    examples: ClassVar[str] = """
  kcpr-safety bench sim --task SafetyPointGoal1-v0
  kcpr-safety bench loop --seconds 30
"""
    what: Annotated[Positional[str], arg(metavar="{sim,learner,loop}")]
    """What to measure."""
    task: str = "SafetyHalfCheetahVelocity-v1"
    """The task to measure with."""
    agent: Annotated[str, arg(metavar="{kcpr,sac,sac-lag}")] = "kcpr"
    """The agent to measure with."""
    envs: Count = None
    """Environments side by side; not given: the default."""
    seconds: float = 10.0
    """How long to measure [s]."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety.studies import bench

        if self.what not in bench.BENCHES:
            raise UnknownNameError("bench", self.what, bench.BENCHES)
        return bench.run(self.what, self.task, self.agent, self.envs, self.seconds), 0

    def show(self, record: dict[str, Any]) -> None:
        show.table(f"bench {self.what}", ("", ""), record.items())


@dataclass(frozen=True)
class Doctor:
    """Say what is installed, what is missing, and the exact command that mends it."""

    examples: ClassVar[str] = "  kcpr-safety doctor    exits 0 when training is possible, else 2"
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety.errors import EXIT_CODE
        from kcpr_safety.studies import doctor

        record = doctor.examine()
        return record, 0 if record["can_train"] else EXIT_CODE

    def show(self, record: dict[str, Any]) -> None:
        rows = [(c["name"], c["found"], c["state"], c["mend"]) for c in record["checks"]]
        show.table("doctor", ("what", "found", "state", "mend with"), rows)
        if record["tasks_by_path"]:
            paths = [f"{count} {path}" for path, count in sorted(record["tasks_by_path"].items())]
            show.console().print(f"\ntasks by simulator path: {', '.join(paths)}")
        verdict = "training is possible" if record["can_train"] else "training is not possible"
        show.console().print(f"{verdict} here")


@dataclass(frozen=True)
class Demo:
    """Train, evaluate, export and report a safe policy in about ten minutes."""

    examples: ClassVar[str] = """
  kcpr-safety demo             leaves runs/demo/ with the run, bundle/, report.html, summary.json
  kcpr-safety demo --seed 1    the same from another training seed
"""
    seed: int = 0
    """Training seed."""
    steps: Count = None
    """Environment steps; not given: the demo's."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/demo")
    """Where to leave everything; an interrupted demo is resumed, a finished one is kept aside."""
    json: bool = False
    """One JSON object on stdout, nothing else (progress goes to stderr)."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety.studies import demo

        return demo.run(self.out, seed=self.seed, steps=self.steps), 0

    def show(self, record: dict[str, Any]) -> None:
        show.table("demo", ("", ""), show.result_rows(record))
        show.console().print(f"""
where to go next
  open {self.out}/report.html
  kcpr-safety evaluate {self.out} --episodes 100
  kcpr-safety evaluate {self.out} --video episode.gif
  python -c "from kcpr_safety import load_policy; print(load_policy('{self.out}/bundle'))"
  kcpr-safety tasks""")


COMMANDS: dict[str, type[Command]] = {
    command.__name__.lower(): command
    for command in (
        Demo,
        Tasks,
        Train,
        Resume,
        Evaluate,
        Export,
        Report,
        Policies,
        Check,
        Bench,
        Doctor,
    )
}
