"""Which commands re-examine what the method's source claims, and draw its grid-worlds?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from kcpr_safety.cli import show
from kcpr_safety.cli.options import File, Folder, Number
from kcpr_safety.errors import UnknownNameError


@dataclass(frozen=True)
class Reproduce:
    """Compare klDMP with its baselines over many seeds, and write a page.

    Trains DQN, SQL, DMP, softDMP and klDMP on four grid-worlds, and on a maze if asked. What is
    finished is kept: stop it whenever you like, the same command goes on.
    """

    examples: ClassVar[str] = """
  kcpr-safety reproduce rprl --quick          two grid-worlds, 3 seeds, under three minutes
  kcpr-safety reproduce rprl                  four grid-worlds, 10 seeds, all ablations
  kcpr-safety reproduce rprl --maze           and 5 seeds on a maze (half an hour)
  kcpr-safety reproduce rprl --json > rprl.json
"""
    what: Annotated[Positional[str], arg(metavar="{rprl}")]
    """What to reproduce."""
    quick: bool = False
    """Two grid-worlds, 3 seeds, no ablations."""
    maze: bool = False
    """Also train every agent on a maze."""
    out: Folder = None
    """Where rows and page go; not given: runs/rprl or runs/rprl-quick."""
    json: bool = False
    """One JSON object on stdout, nothing else (progress goes to stderr)."""

    def run(self) -> tuple[dict[str, Any], int]:
        if self.what != "rprl":
            raise UnknownNameError("comparison", self.what, ["rprl"])
        from kcpr_safety.studies import rprl

        out = self.out or Path("runs/rprl-quick" if self.quick else "runs/rprl")
        return rprl.run(out, quick=self.quick, maze=self.maze), 0

    def show(self, record: dict[str, Any]) -> None:
        columns = ("agent", "return", "punishment", "punishment in training", "success")
        keys = ("return_mean", "punishment_mean", "punishment_training", "success")
        show.table(
            "mean over the grid-worlds, with its interval over seeds",
            columns,
            [
                (agent, *(show.interval(figures[key]) for key in keys))
                for agent, figures in record["agents"].items()
            ],
        )
        show.console().print(f"\nthe whole page: {record['page']}")


@dataclass(frozen=True)
class Grid:
    """Solve a grid-world exactly and draw it: values, policies, and the KL between the two."""

    examples: ClassVar[str] = """
  kcpr-safety grid corridor
  kcpr-safety grid corridor --softening 0.2 --out corridor.png
  kcpr-safety grid cliff --temperature inf      the greedy limit
  kcpr-safety grid my-drawing.txt               a drawing of # . S G x p
"""
    name: Annotated[Positional[str], arg(metavar="{corridor,cliff,rooms,windy-cliff}|FILE.txt")]
    """A grid-world, or a text file with a drawing of one."""
    softening: float = 0.6
    """b in [0, 1): how strongly each module's policy is the other's prior."""
    temperature: float = 10.0
    """h, inverse, of the reward module: any real number, 0, inf or -inf."""
    punishment_temperature: Number = None
    """h, inverse, of the punishment module; not given: the same."""
    out: File = None
    """Also draw a figure (.png, .svg or .pdf)."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety.studies import grids

        h = self.temperature
        other = h if self.punishment_temperature is None else self.punishment_temperature
        return grids.solve_and_draw(self.name, (h, other, self.softening), self.out), 0

    def show(self, record: dict[str, Any]) -> None:
        from kcpr_safety.studies import grids

        grids.show(record, show.console())
