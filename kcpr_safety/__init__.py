"""What does a program get from `import kcpr_safety`, without paying for torch or a simulator?

    from kcpr_safety import train, evaluate, export, load_policy

Names are loaded on first use: importing the package alone costs nothing, so that tools which only
want the version or an error class start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kcpr_safety.api import (
        Policy,
        Result,
        calibrate,
        evaluate,
        export,
        load_policy,
        report,
        stress,
        train,
        verify,
    )
    from kcpr_safety.errors import KcprError

__version__ = "0.1.0"

__all__ = [
    "KcprError",
    "Policy",
    "Result",
    "__version__",
    "calibrate",
    "evaluate",
    "export",
    "load_policy",
    "report",
    "stress",
    "train",
    "verify",
]

_LAZY = {name: "kcpr_safety.api" for name in __all__ if name != "__version__"} | {
    "KcprError": "kcpr_safety.errors"
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'kcpr_safety' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
