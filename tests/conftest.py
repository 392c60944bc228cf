"""What holds for every test?  One thread, no display, no colour, nothing from the outside."""

import os

# Before torch or MuJoCo is imported anywhere: small networks only lose by more threads, and one
# thread gives the same numbers every time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["NO_COLOR"] = "1"
os.environ["MPLBACKEND"] = "Agg"
