"""What is one task, in words and in the few numbers that may differ from the defaults?

A card is a TOML file in `tasks/`:

    task = "SafetyPointGoal1-v0"
    title = "Point robot, goals among hazards"
    description = "..."
    punishment = "centimetres ..."
    budget = 25.0                       # allowed punishment per episode
    success = "..."                     # where an episode's own end is its success: what it means
    commands = [[0.0, 1.0], [1.0, 0.0]] # discrete actions: the actuator commands to choose among

    [maze]                              # a world that is drawn (`envs.maze_plan`)
    drawing = "..."
    time_limit = 300                    # steps of an episode

    environment = "Ant-v5"              # a registered Gymnasium id with a MuJoCo model, punished by
    [options]                           # the terms below; arguments for its constructor
    use_contact_forces = false
    [[punish]]                          # `kcpr-safety tasks --terms` lists the terms
    term = "tilt"
    threshold = 30.0                    # in the term's unit
    weight = 1.0
    form = "share"                      # or "step": 1 for each step beyond the threshold
    bodies = ["torso"]                  # or geoms, joints, actuators, low and high
    stream = "fall"                     # where punishments are kept apart, each with a budget
    [streams.fall]
    budget = 5.0
    meaning = "..."

    [quadruped]                         # a robot that walks (`envs.quadruped`)
    robot = "go1"
    time_limit = 1000                   # steps of an episode
    usual_speed = 0.5                   # commanded in half of the episodes [m/s]
    speed = [0.3, 0.7]                  # in the others, from .. to [m/s]
    turn = [-0.3, 0.3]                  # rate of turn in half of the episodes, else 0 [rad/s]

    [robot]                             # a robot of your own (`envs.robot`), with its model's file
    model = "my_robot.xml"
    period_s = 0.05                     # between two commands [s]
    time_limit = 200                    # steps of an episode; beside it, [[punish]]

    [overrides.learning_rate]           # at most three, shared by all agents
    value = 1e-3
    reason = "why this task needs it"

At most one of maze, environment, quadruped and robot is in a card, with what that kind reads. What
a card does not say holds as the agents have it; that is why overrides are few and explained.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from kcpr_safety.errors import CardError, FileFault, UnknownNameError
from kcpr_safety.files import read_limited
from kcpr_safety.punishments import Punish, Stream, declared
from kcpr_safety.texts import toml_table

MOST_OVERRIDES = 3
MAX_BYTES = 2**16
MAX_MODEL_BYTES = 2**22
"""Of a robot's model."""
MAX_FILE_BYTES = 2**25
"""Of each mesh or picture that it loads."""

_REQUIRED: Mapping[str, type] = {"task": str, "title": str, "description": str, "punishment": str}
_OPTIONAL: Mapping[str, type] = {
    "budget": float,
    "success": str,
    "commands": list,
    "maze": dict,
    "environment": str,
    "options": dict,
    "punish": list,
    "streams": dict,
    "quadruped": dict,
    "robot": dict,
    "overrides": dict,
}
_IGNORED: Mapping[str, tuple[str, ...]] = {
    "maze": ("options", "punish", "streams"),
    "quadruped": ("commands", "options", "punish", "streams"),
    "robot": ("options",),
    "environment": (),
}
"""What makes a card one of a kind, and the keys that mean nothing to that kind."""
_OVERRIDE_KEYS = ("value", "reason")


@dataclass(frozen=True)
class Override:
    """One number that this task needs differently, and why."""

    value: float | int | bool
    reason: str


@dataclass(frozen=True)
class Maze:
    """A maze as its card draws it."""

    drawing: str
    time_limit: int
    """Steps of a full episode."""


@dataclass(frozen=True)
class Quadruped:
    """A walk as its card asks for it."""

    robot: str
    time_limit: int
    """Steps of a full episode."""
    usual_speed: float
    """Commanded forward speed in half of the episodes [m/s]."""
    speed: tuple[float, float]
    """Range of it in the others [m/s]."""
    turn: tuple[float, float]
    """Range of the commanded rate of turn in half of the episodes; 0 in the others [rad/s]."""


@dataclass(frozen=True)
class Robot:
    """A robot as its card describes it; `envs.robot` says whether the words fit the model."""

    model: str
    """Name of the model's file."""
    period_s: float
    """Between two commands [s]."""
    time_limit: int
    """Steps of a full episode."""
    table: Mapping[str, Any]
    """What is observed and paid, how an episode begins and ends."""
    files: Mapping[str, bytes]
    """The model and what it loads, by name."""


@dataclass(frozen=True)
class TaskCard:
    """A task as people and agents need to know it."""

    task: str
    """Environment id."""
    title: str
    description: str
    punishment: str
    """What one unit of punishment (cost) is, in words."""
    budget: float = 25.0
    """Allowed punishment, summed over one full episode."""
    success: str = ""
    """What it means that an episode ends before its time; empty where that is no success."""
    commands: tuple[tuple[float, ...], ...] = ()
    """Actuator commands that a policy chooses among (`contract`); empty: any within the bounds."""
    maze: Maze | None = None
    """Where the task is a maze: its drawing. Otherwise the id is that of an environment."""
    environment: str = ""
    """Where the punishment is declared: the registered id of what is punished."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for that environment's constructor."""
    punish: tuple[Punish, ...] = ()
    streams: tuple[Stream, ...] = ()
    """Punishments that are kept apart, as `punish` first names them; empty: only their sum is."""
    quadruped: Quadruped | None = None
    """Where the task is a quadruped's walk: which robot's, and what it is commanded."""
    robot: Robot | None = None
    """Where the task is a robot that the card describes."""
    overrides: Mapping[str, Override] = field(default_factory=dict)
    sha256: str = ""
    """Of the file's bytes; empty where there is no file."""
    source: Mapping[str, bytes] = field(default_factory=dict)
    """Every file that the card was made from, by name: the card first."""


def data_root() -> Path:
    """Where `tasks/` and `policies/` are: beside the package in a checkout, inside in a wheel."""
    package = Path(__file__).resolve().parent
    packed = package / "_data"
    return packed if packed.is_dir() else package.parent


def card_names() -> list[str]:
    """Tasks that have a card, sorted."""
    return sorted(path.stem for path in (data_root() / "tasks").glob("*.toml"))


_AT_HAND: ContextVar[TaskCard | None] = ContextVar("at_hand", default=None)


@contextmanager
def at_hand(card: TaskCard) -> Iterator[None]:
    """Within: `find_card` knows this one by its task's name, before any other."""
    token = _AT_HAND.set(card)
    try:
        yield
    finally:
        _AT_HAND.reset(token)


def find_card(task: str) -> TaskCard | None:
    """The card of a task's name, or of a file that ends in `.toml`; None where there is none."""
    held = _AT_HAND.get()
    if held is not None and held.task == task:
        return held
    return load_card(task) if task.endswith(".toml") or task in card_names() else None


def load_card(name_or_path: str | Path) -> TaskCard:
    """The card of a task, or the one in a file whose name ends in `.toml`."""
    if str(name_or_path).endswith(".toml"):
        return _read(Path(name_or_path))
    if str(name_or_path) not in card_names():
        raise UnknownNameError("task card", str(name_or_path), card_names())
    return _read(data_root() / "tasks" / f"{name_or_path}.toml")


def _read(path: Path) -> TaskCard:
    try:
        content = read_limited(path, MAX_BYTES)
        record = toml_table(content)
    except FileFault as fault:
        raise CardError(f"task card: {fault}") from fault
    except ValueError as error:
        raise CardError(f"task card {path} is not TOML: {error}") from error
    _check_keys(path, record)
    _check_kind(path, record)
    overrides = {
        name: _override(path, name, item) for name, item in record.get("overrides", {}).items()
    }
    if len(overrides) > MOST_OVERRIDES:
        raise CardError(
            f"task card {path} overrides {len(overrides)} numbers "
            f"({', '.join(sorted(overrides))}); at most {MOST_OVERRIDES} may differ"
        )
    robot = _robot(path, record["robot"]) if "robot" in record else None
    return TaskCard(
        **{key: record[key] for key in _REQUIRED},
        budget=float(record.get("budget", TaskCard.budget)),
        success=record.get("success", TaskCard.success),
        commands=_commands(path, record.get("commands", [])),
        maze=_maze(path, record["maze"]) if "maze" in record else None,
        **declared(f"task card {path}", record),
        quadruped=_quadruped(path, record["quadruped"]) if "quadruped" in record else None,
        robot=robot,
        overrides=overrides,
        sha256=hashlib.sha256(content).hexdigest(),
        source={path.name: content} | (dict(robot.files) if robot else {}),
    )


def _check_keys(path: Path, record: dict[str, Any]) -> None:
    known = {**_REQUIRED, **_OPTIONAL}
    for key, value in record.items():
        if key not in known:
            raise CardError(
                f"task card {path} has an unknown key '{key}'; known keys: {', '.join(known)}"
            )
        if not _is_a(value, known[key]):
            raise CardError(
                f"task card {path}: '{key}' must be {_words(known[key])}, not {value!r}"
            )
    for key in _REQUIRED:
        if not record.get(key):
            raise CardError(f"task card {path} lacks '{key}'; it needs {', '.join(_REQUIRED)}")
    budget = record.get("budget", TaskCard.budget)
    if not (math.isfinite(budget) and budget >= 0):
        raise CardError(f"task card {path}: 'budget' must be finite and at least 0, not {budget}")


def _check_kind(path: Path, record: dict[str, Any]) -> None:
    """Nothing that is written may be left unread."""
    kinds = [kind for kind in _IGNORED if kind in record]
    if len(kinds) > 1:
        raise CardError(
            f"task card {path} has '{kinds[0]}' and '{kinds[1]}', which are two tasks; keep one"
        )
    for kind in kinds:
        for key in _IGNORED[kind]:
            if key in record:
                raise CardError(
                    f"task card {path}: a '{kind}' makes no use of '{key}'; leave that out"
                )


def _commands(path: Path, rows: list[Any]) -> tuple[tuple[float, ...], ...]:
    """Rows of numbers; whether they fit the robot is for the contract to say, which knows it."""
    for i, row in enumerate(rows):
        if not isinstance(row, list) or not all(_is_a(value, float) for value in row):
            raise CardError(
                f"task card {path}: row {i} of 'commands' must be a list of numbers, not {row!r}"
            )
    return tuple(tuple(float(value) for value in row) for row in rows)


def _maze(path: Path, item: dict[str, Any]) -> Maze:
    """Only what is written; `envs.maze_plan` says whether it is a maze."""
    drawing, limit = item.get("drawing"), item.get("time_limit")
    if set(item) != {"drawing", "time_limit"} or not isinstance(drawing, str):
        raise CardError(
            f"task card {path}: 'maze' must have a 'drawing' in characters and a 'time_limit' in "
            f"steps, not {', '.join(map(repr, item)) or 'nothing'}"
        )
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise CardError(f"task card {path}: 'time_limit' must be a whole number of steps >= 1")
    return Maze(drawing, limit)


def _quadruped(path: Path, item: dict[str, Any]) -> Quadruped:
    """Only what is written; `envs.unitree` says whether there is such a robot."""
    where = f"task card {path}: 'quadruped'"
    if set(item) != {field.name for field in fields(Quadruped)}:
        keys = ", ".join(field.name for field in fields(Quadruped))
        raise CardError(f"{where} must have the keys {keys} and no others")
    robot, limit, usual = item["robot"], item["time_limit"], item["usual_speed"]
    if not isinstance(robot, str):
        raise CardError(f"{where}: 'robot' must be text, not {robot!r}")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise CardError(f"{where}: 'time_limit' must be a whole number of steps >= 1")
    if not _is_a(usual, float) or not math.isfinite(usual):
        raise CardError(f"{where}: 'usual_speed' must be a number, not {usual!r}")
    ranges = {}
    for key in ("speed", "turn"):
        pair = item[key]
        numbers = isinstance(pair, list) and all(_is_a(x, float) and math.isfinite(x) for x in pair)
        if not numbers or len(pair) != 2 or pair[0] > pair[1]:
            raise CardError(f"{where}: '{key}' must be two numbers, from and to, not {pair!r}")
        ranges[key] = (float(pair[0]), float(pair[1]))
    return Quadruped(robot, limit, float(usual), ranges["speed"], ranges["turn"])


_LONGEST_S, _MOST_STEPS = 3600.0, 1_000_000
_ROBOT_KEYS = ("model", "period_s", "time_limit", "observe")
_ROBOT_EXTRAS = ("files", "reward", "ends", "start", "place")


def _robot(path: Path, item: dict[str, Any]) -> Robot:
    """Its numbers, and the bytes of its files; the rest only as it is written."""
    where = f"task card {path}: [robot]"
    known = (*_ROBOT_KEYS, *_ROBOT_EXTRAS)
    for key in item:
        if key not in known:
            raise CardError(f"{where} has an unknown key '{key}'; known keys: {', '.join(known)}")
    for key in _ROBOT_KEYS:
        if key not in item:
            raise CardError(f"{where} lacks '{key}'; it needs {', '.join(_ROBOT_KEYS)}")
    period, limit, others = item["period_s"], item["time_limit"], item.get("files", [])
    if not _is_a(period, float) or not 0 < period < _LONGEST_S:
        raise CardError(f"{where}: 'period_s' must be a number of seconds > 0, not {period!r}")
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= _MOST_STEPS:
        raise CardError(
            f"{where}: 'time_limit' must be a whole number of steps, 1 to {_MOST_STEPS}"
        )
    if not isinstance(others, list):
        raise CardError(f"{where}: 'files' must be a list of names, not {others!r}")
    names = [item["model"], *others]
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name or name.startswith("."):
            raise CardError(f"{where}: {name!r} must be the name of a file beside the card")
    try:
        limits = [MAX_MODEL_BYTES, *[MAX_FILE_BYTES] * len(others)]
        files = {
            name: read_limited(path.parent / name, most, links=False)
            for name, most in zip(names, limits, strict=True)
        }
    except FileFault as fault:
        raise CardError(f"{where}: {fault}") from fault
    table = {key: item[key] for key in ("observe", *_ROBOT_EXTRAS[1:]) if key in item}
    return Robot(item["model"], float(period), limit, table, files)


def _override(path: Path, name: str, item: object) -> Override:
    where = f"task card {path}: override '{name}'"
    if not isinstance(item, dict) or set(item) - set(_OVERRIDE_KEYS):
        raise CardError(
            f"{where} must be a table with the keys {' and '.join(_OVERRIDE_KEYS)} only"
        )
    value, reason = item.get("value"), item.get("reason")
    if not isinstance(value, bool | int | float):
        raise CardError(f"{where} needs a 'value' that is a number or true/false, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise CardError(f"{where} needs a finite 'value', not {value!r}")
    if not isinstance(reason, str) or not reason.strip():
        raise CardError(f"{where} needs a 'reason' in words: why does this task need it?")
    return Override(value=value, reason=reason)


def _is_a(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words(kind: type) -> str:
    return {str: "text", float: "a number", dict: "a table", list: "a list of lists"}[kind]
