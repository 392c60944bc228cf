"""How does what an environment does wrong become one sentence for its user?

A broken promise (`promises`) or an exception leaves as `EnvironmentFault`, with the line of code
that it came from; what this machine lacks is said with what installs it.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from kcpr_safety.envs import promises
from kcpr_safety.errors import EnvironmentFault, KcprError


def refuse(
    task: str,
    faults: Iterable[promises.Fault],
    where: Callable[[int], str] | None = None,
    environment: int = 0,
) -> None:
    """Raise `EnvironmentFault` for the first of them, if there is one."""
    for fault in faults:
        place = f" {where(environment)}" if where else ""
        raise EnvironmentFault(f"{task}: {fault.told}{place}; {fault.mend}")


@contextlib.contextmanager
def said_plainly(task: str, doing: str) -> Iterator[None]:
    """Whatever an environment raises leaves the block as one sentence."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise plain(task, doing, error) from error


def plain(task: str, doing: str, error: BaseException) -> Exception:
    """What an environment raised, as one sentence with the line of code that it came from."""
    fault = translated(task, error)
    if isinstance(fault, KcprError):
        return fault
    return EnvironmentFault(f"{task}: {promises.raised(doing, error).told}")


def translated(task: str, error: BaseException) -> BaseException:
    """What this machine lacks, in one sentence; any other error as it is, for that is a defect."""
    text = " ".join(str(error).split())
    if any(sign in text.lower() for sign in ("resource not found", "error opening file")):
        missing = text.rsplit("'", 2)[-2] if text.count("'") > 1 else text
        return EnvironmentFault(f"{task} needs a file that this machine does not have: {missing}")
    gl_words = (
        "gladLoadGL",
        "OpenGL",
        "EGL",
        "GLContext",
        "glGetError",
        "OSMesa",
        "GLFW",
        "glfw",
        "libGL",
    )
    if any(word in text for word in gl_words) or type(error).__module__.startswith("OpenGL"):
        return EnvironmentFault(
            f"{task} takes pictures and needs OpenGL: install libegl1 and set MUJOCO_GL=egl, or "
            f"libosmesa6 and MUJOCO_GL=osmesa ({text[:120]})"
        )
    return error
