"""Can MuJoCo be imported with the OpenGL that the environment variable MUJOCO_GL asks for?

MuJoCo loads that library while it is imported, and where it is missing fails with an error about
none of this. Imported first of all in this room, so that the fault is said in one sentence.
"""

import os

from kcpr_safety.errors import EnvironmentFault, MissingPackageError

try:
    import mujoco as mujoco
except ModuleNotFoundError as error:
    raise MissingPackageError(str(error.name), f"pip install {error.name}") from error
except (ImportError, AttributeError, RuntimeError, OSError) as error:
    asked = os.environ.get("MUJOCO_GL", "")
    raise EnvironmentFault(
        f"MuJoCo cannot be imported with MUJOCO_GL={asked!r}: its OpenGL library is missing; unset "
        "MUJOCO_GL, or install libegl1 for MUJOCO_GL=egl, libosmesa6 for MUJOCO_GL=osmesa"
    ) from error
