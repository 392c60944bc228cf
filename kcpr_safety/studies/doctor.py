"""What is installed here, what is missing, and which command mends it?

Looks without trusting: a package counts when it imports and does one small thing. Off-screen
rendering is tried in child processes, because a broken driver can take a process down with it.
"""

import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from typing import Any

from kcpr_safety import __version__
from kcpr_safety.cards import data_root
from kcpr_safety.errors import KcprError

OLDEST_PYTHON = (3, 11)
SAFETY_GYMNASIUM = "1.0.0"
_INSTALL_SAFETY_GYMNASIUM = f"pip install --no-deps safety-gymnasium=={SAFETY_GYMNASIUM}"

REQUIRED = {
    "cryptography": "cryptography",
    "gymnasium": "gymnasium",
    "gymnasium-robotics": "gymnasium_robotics",
    "imageio": "imageio",
    "jaxtyping": "jaxtyping",
    "jsonschema": "jsonschema",
    "matplotlib": "matplotlib",
    "mujoco": "mujoco",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "packaging": "packaging",
    "pyyaml": "yaml",
    "rich": "rich",
    "safetensors": "safetensors",
    "torch": "torch",
    "tyro": "tyro",
    "xmltodict": "xmltodict",
}
"""Distribution and module of everything that this package declares."""

_MEND_PHYSICS = "pip install --force-reinstall --no-deps mujoco"
_GL_SECONDS = 30.0
_GL_PROBE = "import mujoco; c = mujoco.GLContext(64, 64); c.make_current(); c.free()"
_GL_MEND = "apt-get install libosmesa6 && export MUJOCO_GL=osmesa"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str
    """A version, or what it does here."""
    state: str
    """ok, untested (another version than the tested one), missing, or broken."""
    mend: str
    """The command that mends it; empty where nothing must be done."""
    needed: bool
    """Is training impossible without it?"""


def examine() -> dict[str, Any]:
    """Everything that was found, as JSON values; `can_train` is the verdict."""
    tested = tested_versions()
    checks = [_python(), *(_package(name, tested) for name in REQUIRED), _safety_gymnasium()]
    checks += [_physics(), _rendering(), _extra("tensorboard", "TensorBoard curves")]
    blocked = [c.name for c in checks if c.needed and c.state in ("missing", "broken")]
    paths = {} if blocked else _task_paths()
    return {
        "can_train": not blocked,
        "blocked_by": blocked,
        "version": __version__,
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all cores"),
        "tasks_by_path": paths,
        "checks": [asdict(check) for check in checks],
    }


def tested_versions() -> dict[str, str]:
    """The versions that `make setup` installs, by distribution name in lower case."""
    path = data_root() / "constraints.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower(): version.strip() for name, version in pins}


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Finding("Python", version, "ok", "", True)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    mend = f"make setup PYTHON=/path/to/python{oldest}"
    return Finding("Python", version, "broken", mend, True)


def _package(name: str, tested: dict[str, str]) -> Finding:
    pin = tested.get(name)
    install = f"pip install '{name}=={pin}'" if pin else f"pip install {name}"
    try:
        version = importlib.metadata.version(name)
        # Some say on import what is no concern here (gymnasium-robotics: other versions of Adroit).
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(REQUIRED[name])
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError):
        return Finding(name, "not installed", "missing", install, True)
    except Exception as error:
        return Finding(name, f"does not import: {_first_line(error)}", "broken", install, True)
    # torch 2.13.0+cpu is torch 2.13.0 as far as versions go.
    if pin and version.split("+")[0] != pin:
        return Finding(name, f"{version} (tested: {pin})", "untested", install, True)
    return Finding(name, version, "ok", "", True)


def _safety_gymnasium() -> Finding:
    name = "safety-gymnasium"
    try:
        from kcpr_safety.envs.compat import safety_gymnasium

        safety_gymnasium()
        version = importlib.metadata.version(name)
    except (importlib.metadata.PackageNotFoundError, KcprError):
        return Finding(name, "not installed", "missing", _INSTALL_SAFETY_GYMNASIUM, True)
    except ModuleNotFoundError as error:
        return Finding(name, f"needs {error.name}", "broken", "see the lines above", True)
    except Exception as error:
        found = f"does not import: {_first_line(error)}"
        return Finding(name, found, "broken", _INSTALL_SAFETY_GYMNASIUM, True)
    if version != SAFETY_GYMNASIUM:
        found = f"{version} (tested: {SAFETY_GYMNASIUM})"
        return Finding(name, found, "untested", _INSTALL_SAFETY_GYMNASIUM, True)
    return Finding(name, version, "ok", "", True)


def _physics() -> Finding:
    name = "MuJoCo physics"
    try:
        import mujoco

        ball = "<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>"
        model = mujoco.MjModel.from_xml_string(ball)
        data = mujoco.MjData(model)
        mujoco.mj_step(model, data)
    except Exception as error:
        return Finding(name, _first_line(error), "broken", _MEND_PHYSICS, True)
    if data.qvel[2] < 0:
        return Finding(name, "a ball falls", "ok", "", True)
    return Finding(name, "a ball does not fall", "broken", _MEND_PHYSICS, True)


def _rendering() -> Finding:
    name = "off-screen rendering (video)"
    chosen = os.environ.get("MUJOCO_GL")
    for backend in [chosen] if chosen else ["egl", "osmesa", "glfw"]:
        environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        command = [sys.executable, "-c", _GL_PROBE]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, timeout=_GL_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            mend = "" if chosen else f"export MUJOCO_GL={backend}"
            return Finding(name, f"works with {backend}", "ok", mend, False)
    return Finding(name, f"fails with {chosen or 'every backend'}", "missing", _GL_MEND, False)


def _extra(name: str, purpose: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), "ok", "", False)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, f"not installed ({purpose})", "missing", f"pip install {name}", False)


def _task_paths() -> dict[str, int]:
    """How many tasks step by which simulator path."""
    from kcpr_safety.envs import registered_tasks

    counts: dict[str, int] = {}
    for row in registered_tasks():
        counts[row.path] = counts.get(row.path, 0) + 1
    return counts


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
