"""Do the rooms keep to what they may know?  (The floors themselves are for `lint-imports`.)

import-linter says what a room must not import; for a few rooms the promise is stronger, "nothing
but this", and that is checked here. So is that ARCHITECTURE.md draws the floors as they are.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcpr_safety.cards import card_names

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kcpr_safety"

NOTHING_BUT = {
    "errors": set(),
    "texts": set(),
    "punishments": {"kcpr_safety.errors"},
    "contract": {"kcpr_safety.errors", "kcpr_safety.texts", "kcpr_safety.punishments"},
    "cards": {
        "kcpr_safety.errors",
        "kcpr_safety.files",
        "kcpr_safety.texts",
        "kcpr_safety.punishments",
    },
    "seeds": {"kcpr_safety.errors", "numpy"},
    "stats": {"kcpr_safety.stats", "jaxtyping", "numpy"},
    "files": {"kcpr_safety.errors"},
    "ops": {"kcpr_safety.ops", "kcpr_safety.errors", "torch", "jaxtyping"},
    "controller": {"kcpr_safety.contract", "kcpr_safety.errors", "torch"},
}
"""Room -> everything outside the standard library that it may import."""


def imports(source: Path) -> Iterator[str]:
    """Full names of everything that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports relatively"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


@pytest.mark.parametrize("room", NOTHING_BUT)
def test_room_imports_nothing_but_its_list(room: str) -> None:
    sources = files_of(room)
    assert sources
    for source in sources:
        for name in imports(source):
            known = name.split(".")[0] in sys.stdlib_module_names
            allowed = any(f"{name}.".startswith(f"{prefix}.") for prefix in NOTHING_BUT[room])
            assert known or allowed, f"{source.relative_to(ROOT)} imports {name}"


TASK_ID = re.compile(r"\b(Safety|Unitree)\w+-v\d")


@pytest.mark.parametrize("room", ["training", "agents"])
def test_learning_knows_no_task_by_name(room: str) -> None:
    """What differs from task to task is in cards and contracts; one set of code learns them all."""
    for source in files_of(room):
        text = source.read_text()
        named = [task for task in card_names() if task in text]
        named += [found.group() for found in TASK_ID.finditer(text)]
        assert not named, f"{source.relative_to(ROOT)} names {', '.join(named)}"


def test_every_file_says_what_it_answers() -> None:
    for source in sorted(PACKAGE.rglob("*.py")):
        doc = ast.get_docstring(ast.parse(source.read_text()))
        assert doc, f"{source.relative_to(ROOT)} has no docstring"


def floors() -> list[list[str]]:
    """The floors as import-linter knows them, roof first."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = (
        contract["layers"]
        for contract in config["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    return [[room.strip(" ()") for room in layer.split("|")] for layer in layers]


def test_every_room_stands_on_a_floor() -> None:
    rooms = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))
    }
    assert rooms - {"__init__", "__main__"} == {room for floor in floors() for room in floor}


def test_drawing_shows_the_floors_as_they_are() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    drawn = [
        sorted(word for word in row.split("|")[2].split("`")[1::2]) for row in rows[: len(floors())]
    ]
    assert drawn == [sorted(floor) for floor in floors()]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import kcpr_safety", {"torch", "mujoco", "gymnasium", "numpy", "matplotlib"}),
        ("from kcpr_safety import KcprError", {"torch", "mujoco", "gymnasium", "numpy"}),
        ("from kcpr_safety import load_policy", {"mujoco", "gymnasium", "matplotlib"}),
        ("import kcpr_safety.envs", {"torch"}),
        ("import kcpr_safety.report", {"torch", "mujoco", "gymnasium"}),
    ],
)
def test_imports_cost_no_more_than_they_must(statement: str, absent: set[str]) -> None:
    code = f"import sys\n{statement}\nprint(sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_the_package_is_quick() -> None:
    """Under 0.3 s; the least of a few tries, for other processes are no property of the import."""
    code = (
        "import time; s = time.process_time(); import kcpr_safety; "
        "kcpr_safety.KcprError; print(time.process_time() - s)"
    )
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    assert min(times) < 0.3, times
