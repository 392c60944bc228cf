"""Which command trains and judges a whole suite?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from kcpr_safety.cli import show
from kcpr_safety.cli.options import OPTIONAL, Count, Folder
from kcpr_safety.errors import SettingsError

_SUITE = arg(metavar="{quick,demo,velocity,navigation,full}|FILE.toml")


@dataclass(frozen=True)
class Benchmark:
    """Train and judge tasks x agents x seeds, and write the safety benchmark report.

    Whatever interrupts it (Ctrl-C, a kill, a power cut), the same command goes on: finished cells
    are kept, unfinished ones resume from their checkpoints.
    """

    examples: ClassVar[str] = """
  kcpr-safety benchmark quick                      18 short trainings: what the page looks like
  kcpr-safety benchmark demo                       three agents on the demo's task
  kcpr-safety benchmark velocity --jobs 8
  kcpr-safety benchmark navigation --agents kcpr sac-lag --seeds 0 1 2 --steps 1_000_000
  kcpr-safety benchmark my-suite.toml --out runs/mine
  kcpr-safety benchmark full --ray auto --out /shared/full      on a Ray cluster's machines
"""
    suite: Annotated[Positional[str], _SUITE]
    """A shipped suite (suites/), or a file of one's own."""
    agents: tuple[str, ...] = ()
    """Agents in place of the suite's."""
    seeds: tuple[int, ...] = ()
    """Training seeds in place of the suite's."""
    steps: Count = None
    """Environment steps of every training in place of the suite's."""
    jobs: Count = None
    """Trainings at once, one core each; not given: as many as there are cores."""
    ray: Annotated[str | None, arg(metavar="ADDRESS", help_behavior_hint=OPTIONAL)] = None
    """Run on this Ray cluster (auto: the one begun here by `ray start --head`). The output folder
    must be one that its machines share."""
    no_videos: bool = False
    """Do not film a nominal and the worst episode of each agent on each task."""
    out: Folder = None
    """Where everything goes; not given: runs/benchmark-SUITE."""
    json: bool = False
    """One JSON object on stdout, nothing else (progress goes to stderr)."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety.studies import benchmark, suites
        from kcpr_safety.studies.benchmark_places import Cluster, Here

        if self.jobs is not None and self.jobs < 1:
            raise SettingsError(f"{self.jobs} jobs train nothing; ask for at least 1")
        suite = suites.narrowed(suites.load_suite(self.suite), self.agents, self.seeds, self.steps)
        out = self.out or Path("runs") / f"benchmark-{suite.name}"
        place = Cluster(self.ray, self.jobs) if self.ray else Here(self.jobs)
        try:
            record = benchmark.run(suite, out, place, videos=not self.no_videos)
        finally:
            place.close()
        return record, 1 if record["failed"] else 0

    def show(self, record: dict[str, Any]) -> None:
        console = show.console()
        console.print(f"{record['done']} of {record['cells']} cells done in {record['path']}")
        for failure in record["failed"]:
            console.print(f"failed: {failure['cell']}: {failure['reason']}", markup=False)
        if record["report"]:
            console.print(f"report: {record['report']}")
