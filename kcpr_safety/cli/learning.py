"""Which commands make a policy, judge it and hand it on?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg

from kcpr_safety.cli import show
from kcpr_safety.cli.options import (
    OPTIONAL,
    Count,
    File,
    Folder,
    Number,
    Place,
    Settings,
    ShowsResult,
    Trust,
    parse_settings,
)
from kcpr_safety.errors import KcprError
from kcpr_safety.seeds import FIRST_EVALUATION_SEED


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
  kcpr-safety train SafetyHopperVelocity-v1 --set gamma=0.995 --set width=256
  kcpr-safety train GridCorridor-v0 --agent kldmp --steps 20_000
  kcpr-safety train my_module:MyRobot-v0
  kcpr-safety train ./my_robot.toml
  kcpr-safety train SafetyPointPush1-v0 --init runs/SafetyPointGoal1-v0-kcpr-seed0
"""
    task: Annotated[Positional[str], arg(metavar="TASK")]
    """Name of a task card, any registered Safety-Gymnasium id (see: kcpr-safety tasks --all), your
    own environment as module:Id-v0, or your own card, ./my_robot.toml (docs/bring_your_own.md)."""
    agent: Annotated[
        str, arg(metavar="{kcpr,sac,sac-lag,sac-pid,td3-lag,kldmp,softdmp,dmp,sql,dqn}")
    ] = "kcpr"
    """kcpr couples a reward and a punishment policy; sac ignores punishment; sac-lag, sac-pid and
    td3-lag weigh it by a multiplier.
    Tasks that let a policy choose among commands take kldmp, softdmp, dmp, sql or dqn."""
    steps: Count = None
    """Environment steps in all; not given: the default."""
    seed: int = 0
    """Training seed."""
    budget: Number = None
    """Allowed punishment (cost) per episode; not given: the task card's. Refused where the task has
    streams with budgets of their own: change those together, in a copy of its card."""
    out: Folder = None
    """Run folder to make; not given: a free name under runs/."""
    envs: Count = None
    """Environments side by side; not given: the default."""
    init: Place = None
    """Start from the weights of this run or bundle, of this task or another with the same actions:
    observations of the same name and unit are matched, the others begin without influence."""
    trust: Trust = ()
    """Further public keys that a bundle to start from may be signed with."""
    device: str = "cpu"
    """Where to learn: cpu, cuda, cuda:1 ..."""
    threads: Count = None
    """Cores of the learner; not given: 2 (or OMP_NUM_THREADS, if less). Two runs: 1 each."""
    set: Settings = ()
    """Replace numbers of the agent, for research; a wrong name lists the right ones."""
    tensorboard: bool = False
    """Also write curves for TensorBoard into the run folder."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Also send rows to these services (extras of the same names)."""
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
            trust=self.trust,
            device=self.device,
            threads=self.threads,
            overrides=parse_settings(self.set),
            progress=True,
            tensorboard=self.tensorboard,
            track=self.track,
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
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Also send rows to these services (extras of the same names)."""
    json: bool = False
    """One JSON object on stdout, nothing else (progress goes to stderr)."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api

        result = api.resume(
            self.run_folder, progress=True, tensorboard=self.tensorboard, track=self.track
        )
        return result.record(), 0


@dataclass(frozen=True)
class Evaluate(ShowsResult):
    """Judge a policy on full episodes with seeds that training has never seen."""

    examples: ClassVar[str] = """
  kcpr-safety evaluate runs/demo --episodes 100
  kcpr-safety evaluate runs/demo/bundle --json
  kcpr-safety evaluate runs/demo --video runs/demo/episode.gif      the report shows this film
"""
    path: Annotated[Positional[str], arg(metavar="RUN|BUNDLE")]
    """A run folder, a bundle, or the name of a shipped policy (see: kcpr-safety policies)."""
    episodes: int = 50
    """Full episodes, deterministic policy."""
    eval_seed: int = FIRST_EVALUATION_SEED
    """Seed of the first episode; the others follow one by one."""
    video: File = None
    """Also film the first episode, as .gif (or .mp4 where imageio-ffmpeg is installed); a report
    shows RUN/episode.gif."""
    trust: Trust = ()
    """Further public keys that a bundle may be signed with."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api

        result = api.evaluate(
            self.path,
            episodes=self.episodes,
            eval_seed=self.eval_seed,
            video=self.video,
            trust=self.trust,
        )
        return result.record(), 0


@dataclass(frozen=True)
class Export(ShowsResult):
    """Write a run's policy as a bundle that a robot can load with torch alone."""

    examples: ClassVar[str] = """
  kcpr-safety export runs/demo --out my-policy
  kcpr-safety export runs/demo --out my-policy --key my-lab    made by: kcpr-safety keygen my-lab
"""
    run_folder: Annotated[Positional[str], arg(metavar="RUN")]
    """A run folder; evaluate it first, for a bundle carries its evidence."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write the bundle to."""
    key: Annotated[str | None, arg(metavar="ID|FILE", help_behavior_hint=OPTIONAL)] = None
    """Private key to sign with (see: kcpr-safety keygen --help); not given: this machine's own."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api

        return api.export(self.run_folder, self.out, key=self.key).record(), 0


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page about runs, or about agents over seeds and tasks."""

    examples: ClassVar[str] = """
  kcpr-safety report runs/a runs/b --out report
  kcpr-safety report runs/benchmark-quick --out report        a benchmark's folder
  kcpr-safety report results runs/PPOLag-seed-000 --out report    rows, and a run of OmniSafe's
"""
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN|BENCHMARK|ROWS|CSV...")]
    """Run folders alone: a page of these runs. With a benchmark's folder, .jsonl files of rows (or
    a folder of them) or OmniSafe's progress.csv among them: a page of agents over seeds."""
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
