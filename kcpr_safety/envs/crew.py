"""How are many independent simulations advanced on a few threads?

MuJoCo releases Python's lock while it computes, so plain threads suffice. Each simulation is
touched by one thread at a time and shares nothing that is written, so trajectories do not depend on
how many threads there are, nor on which of them took which simulation.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from kcpr_safety.errors import SettingsError


class Crew:
    """The calling thread and `threads - 1` helpers."""

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise SettingsError(f"a world needs at least 1 thread, not {threads}")
        self.threads = threads
        self._helpers = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def each(self, work: Callable[[int], None], count: int) -> None:
        """`work(0) ... work(count - 1)`, in any order; errors are raised here."""
        if self._helpers is None:
            for i in range(count):
                work(i)
            return
        # One iterator for all: whoever is free takes the next, so uneven work balances itself.
        turns = iter(range(count))
        helping = [
            self._helpers.submit(_drain, work, turns) for _ in range(min(self.threads, count) - 1)
        ]
        _drain(work, turns)
        for future in helping:
            future.result()

    def close(self) -> None:
        if self._helpers is not None:
            self._helpers.shutdown()


def _drain(work: Callable[[int], None], turns: Iterator[int]) -> None:
    for i in turns:
        work(i)


def default_threads(num_envs: int) -> int:
    """One per core that this process may use, and never more than there are environments."""
    return max(1, min(len(os.sched_getaffinity(0)), num_envs))
