"""How does a process keep the memory that its arrays give back?

The C library hands large arrays back to the operating system when they are freed, and asks for them
again a millisecond later; every page of 4 KiB then costs a fault. What the learner can, it keeps in
buffers of its own (`networks`), but some of torch's kernels allow none: hundreds of faults.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names of two parameters (malloc.h)."""
_KEPT = 512 * 2**20
"""Bytes that may lie free before any are handed back."""
_LARGEST = 32 * 2**20
"""Arrays above this still come from the operating system and go back there: glibc's own limit."""


def keep_freed_memory() -> None:
    """From now on and for the whole process; without effect where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGEST)
