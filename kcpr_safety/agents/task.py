"""What does a learner have to know about its task?"""

from typing import NamedTuple

from kcpr_safety.goals import Goal

MOST_RATIO = 100.0
"""How many times as much as the total a stream may weigh at the same m."""


class Task(NamedTuple):
    """Sizes and limits; learners know nothing else of it."""

    obs_size: int
    action_size: int
    """Numbers of an action, or commands to choose among."""
    budget: float
    """Allowed punishment per episode."""
    time_limit: int
    """Actions per full episode."""
    streams: tuple[tuple[str, float], ...] = ()
    """Parts of the punishment with budgets of their own: name, allowed punishment per episode."""

    goal: Goal | None = None
    """What its episodes are after, where observations say so."""
    closeness: tuple[bool, ...] = ()
    """Which observations tell how close something is (`Contract.closeness`); empty if none does."""
    hold: int = 1
    """Steps of the task that each action is held for; to a learner that is one step."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """The total's budget over each stream's, so that a stream counts in units of its own.

        A stream's budget may be nothing: it counts as at least a hundredth of the total's.
        """
        least = max(self.budget, 1.0) / MOST_RATIO
        return tuple(max(self.budget, least) / max(own, least) for _, own in self.streams)
