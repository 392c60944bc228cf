"""What holds for every test?  One thread, no display, no colour, nothing from the outside.

Hypothesis draws the same examples every time, so that `make test` judges a change and not its luck;
`make test-full` (`--hypothesis-profile=explore`) looks for new ones. Neither times an example: a
busy machine is no defect.
"""

import os

import pytest
from hypothesis import settings

# Before torch or MuJoCo is imported anywhere: small networks only lose by more threads, and one
# thread gives the same numbers every time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["NO_COLOR"] = "1"
os.environ["MPLBACKEND"] = "Agg"

settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def own_keys(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Bundles of tests are signed with a key of this session's own."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
