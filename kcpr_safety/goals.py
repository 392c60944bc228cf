"""Which numbers of an observation are a goal, and what is paid for being somewhere else?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """How a task of goals can be told anew, as if another goal had been meant (hindsight)."""

    achieved: tuple[int, ...]
    """Where an observation says what has been achieved."""
    desired: tuple[int, ...]
    """Where it says what was wanted; as many numbers."""
    reward: Callable[[Any, Any], Any]
    """Reward [n] of having achieved [n, goal] where [n, goal] was desired; arrays of numpy."""
