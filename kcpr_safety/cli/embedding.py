"""Which command writes a policy as C, for a robot without PyTorch?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from kcpr_safety.cli import show
from kcpr_safety.cli.options import Trust


@dataclass(frozen=True)
class Header:
    """Write a bundle's controller as one C99 header: no allocation, for hard real time."""

    examples: ClassVar[str] = """
  kcpr-safety header my-policy --out controller.h
  cc -std=c99 -O3 -march=native robot.c -lm       where robot.c includes controller.h
"""
    path: Annotated[Positional[str], arg(metavar="BUNDLE")]
    """A bundle, or the name of a shipped policy (see: kcpr-safety policies)."""
    out: Annotated[Path, arg(metavar="FILE")]
    """Where to write the header; an existing file is replaced."""
    trust: Trust = ()
    """Further public keys that a bundle may be signed with."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api
        from kcpr_safety.deploy.c_header import write_header

        text = write_header(api.locate(self.path), self.out, map(Path, self.trust))
        return {"path": str(self.out), "bytes": len(text)}, 0

    def show(self, record: dict[str, Any]) -> None:
        show.table("header", ("", ""), list(record.items()))
