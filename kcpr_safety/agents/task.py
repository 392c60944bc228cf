"""What does a learner have to know about its task?"""

from typing import NamedTuple


class Task(NamedTuple):
    """Sizes and limits; learners know nothing else of it."""

    obs_size: int
    action_size: int
    """Numbers of an action, or commands to choose among."""
    budget: float
    """Allowed punishment per episode."""
    time_limit: int
    """Steps per full episode."""
    streams: tuple[tuple[str, float], ...] = ()
    """Parts of the punishment with budgets of their own: name, allowed punishment per episode."""
