"""Does a process that keeps its freed memory no longer pay for it again?"""

import subprocess
import sys

import pytest

_FAULTS = """
import resource
import numpy as np
from kcpr_safety.training.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        arrays = [np.ones(500_000) for _ in range(10)]  # 40 MB, freed at the next round
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
def test_memory_that_is_freed_is_used_again_without_page_faults() -> None:
    # In a process of its own: what others here have freed is kept, too.
    told = subprocess.check_output([sys.executable, "-c", _FAULTS], text=True)
    given_back, kept = map(int, told.split())
    assert kept < 1_000 < given_back
