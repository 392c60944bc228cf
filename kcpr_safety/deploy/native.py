"""How does C++ or C of this package become a program on this machine?

`robot_program` builds `cpp/` (kcpr-robot, on the LibTorch of the installed torch wheel) once per
state of its sources, torch and machine, into the user's cache; 40 s the first time, nothing after.
`c_library` compiles a generated `controller.h` with a few lines around it.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from kcpr_safety.errors import FileFault, MissingPackageError
from kcpr_safety.files import faults_of

SOURCES = Path(__file__).parent / "cpp"
PROGRAM = "kcpr-robot"
DEBIAN = "apt-get install g++ cmake make libssl-dev nlohmann-json3-dev"
_HEADERS = ("openssl/evp.h", "nlohmann/json.hpp")


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/kcpr-safety`, in `~/.cache` where not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kcpr-safety"


def missing_tool() -> str | None:
    """What the C++ program cannot be built without and is not here; None: all is."""
    for tool in ("g++", "cmake", "make"):
        if shutil.which(tool) is None:
            return tool
    include = "".join(f"#include <{header}>\n" for header in _HEADERS)
    done = _run(["g++", "-std=c++20", "-fsyntax-only", "-xc++", "-"], include)
    return None if done.returncode == 0 else "libssl-dev or nlohmann-json3-dev"


def robot_program() -> Path:
    """The path of kcpr-robot; built first where it is not in the cache."""
    found = cache_folder() / f"{PROGRAM}-{_state()}"
    return found if found.is_file() else build(SOURCES / "main.cpp", found)


def build(source: Path, out: Path) -> Path:
    """Compile a C++ file that includes `controller.hpp` as the program `out`; about 40 s."""
    if (tool := missing_tool()) is not None:
        raise MissingPackageError(tool, DEBIAN)
    with faults_of(f"cannot write {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent) as folder:
            given = {"CMAKE_PREFIX_PATH": torch.utils.cmake_prefix_path, "KCPR_SOURCE": source}
            options = [f"-D{key}={value}" for key, value in given.items()]
            for command in (
                ["cmake", "-S", str(SOURCES), "-B", folder, *options],
                ["cmake", "--build", folder],
            ):
                done = _run(command)
                if done.returncode != 0:
                    faults = [line for line in done.stderr.splitlines() if "rror" in line]
                    words = faults[0] if faults else f"{command[0]} failed"
                    raise FileFault(f"{source} cannot be built here: {words.strip()}")
            os.replace(Path(folder) / PROGRAM, out)
    return out


def c_library(sources: dict[str, str], out: Path, *options: str) -> Path:
    """Compile C99 files (name -> text) as a shared library `out`, no warning allowed."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise MissingPackageError("a C compiler", "apt-get install gcc")
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    with TemporaryDirectory() as folder:
        for name, text in sources.items():
            (Path(folder) / name).write_text(text)
        units = [str(Path(folder) / name) for name in sources if name.endswith(".c")]
        done = _run(
            [compiler, *strict, "-O3", *options, "-shared", "-fPIC", *units, "-o", str(out), "-lm"]
        )
    if done.returncode != 0:
        raise FileFault(f"the generated C does not compile: {done.stderr.strip()[:500]}")
    return out


def _state() -> str:
    """A name for what a build is made of."""
    digest = hashlib.sha256(f"{torch.__version__} {torch.__file__} {platform.machine()}".encode())
    for path in sorted(SOURCES.glob("*")):
        if path.suffix in (".cpp", ".hpp", ".txt"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
