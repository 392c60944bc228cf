"""What can a user or a machine get wrong, and how is it said in one sentence?

Every fault that is not a defect of this package is a child of `KcprError`. Its message is one
sentence that names the thing, the place and the valid choices; the command line prints it on
stderr and exits with `EXIT_CODE`. Anything else that escapes is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

EXIT_CODE = 2


class KcprError(Exception):
    """A fault that its reader can mend; `str(error)` is the whole message."""


class UnknownNameError(KcprError):
    """A task, agent, suite or option that does not exist."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        known = sorted(choices)
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known[:12])}"
        more = " ..." if not near and len(known) > 12 else ""
        super().__init__(f"unknown {kind} '{name}'; {hint}{more}")


class MissingPackageError(KcprError):
    """Something that must be installed is not; the sentence holds the command that mends it."""

    def __init__(self, package: str, command: str) -> None:
        super().__init__(f"{package} is not installed; install it with: {command}")


class CardError(KcprError):
    """A task card that cannot be read as one."""


class EnvironmentFault(KcprError):
    """An environment that breaks its contract (spaces, signs, finiteness, order of calls)."""


class AbsentTaskError(EnvironmentFault):
    """A task of the user's own whose module or files are not here."""


class NonFiniteError(EnvironmentFault):
    """A NaN or infinity where a number must be."""


class FileFault(KcprError):
    """A file or folder that is missing, foreign, corrupt or cannot be written."""


class SettingsError(KcprError):
    """A number outside the range in which it means something."""


class TrainingFault(KcprError):
    """Learning itself went wrong (a loss or gradient that is not finite)."""
