"""What do all commands have in common?

Each is a frozen dataclass: its fields are its options (tyro reads names, types, defaults and the
docstrings below them), `examples` closes its help, and `run` calls the Python API and returns what
`--json` prints. Heavy imports wait until a command runs, so that help is instant.
"""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from tyro.conf import UseAppendAction, arg

from kcpr_safety.cli import show
from kcpr_safety.errors import SettingsError

OPTIONAL = "(optional)"
Count = Annotated[int | None, arg(metavar="INT", help_behavior_hint=OPTIONAL)]
Number = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=OPTIONAL)]
Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint=OPTIONAL)]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=OPTIONAL)]
Settings = Annotated[
    tuple[str, ...], arg(metavar="NAME=NUMBER", help_behavior_hint="(repeatable)"), UseAppendAction
]
Place = Annotated[str | None, arg(metavar="RUN|BUNDLE", help_behavior_hint=OPTIONAL)]
Trust = Annotated[tuple[str, ...], arg(metavar="ID.pub", help_behavior_hint=OPTIONAL)]


def parse_settings(pairs: tuple[str, ...]) -> dict[str, bool | int | float]:
    """Numbers by name from NAME=NUMBER texts."""
    parsed: dict[str, bool | int | float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            value = json.loads(text)
            if not isinstance(value, bool | int | float):
                raise ValueError
        except ValueError as error:
            raise SettingsError(
                f"--set takes NAME=NUMBER, such as gamma=0.995, not '{pair}'"
            ) from error
        parsed[name.strip().replace("-", "_")] = value
    return parsed


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
