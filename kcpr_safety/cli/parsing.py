"""How do words on the command line become one frozen record, or one clear sentence?

tyro knows the types, defaults and help texts of a command (a frozen dataclass). Its error boxes
run over many lines; here every fault becomes a `KcprError` instead: a mistyped option names the
near ones, a wrong value says what was expected.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from kcpr_safety.errors import KcprError, UnknownNameError

T = TypeVar("T")

PROGRAM = "kcpr-safety"
_WIDE = "400"
"""Columns: wide enough that tyro wraps no error sentence."""


def parse(command: type[T], name: str, examples: str, args: Sequence[str]) -> T:
    """`args` as a record of type `command`; `--help` prints its help and leaves with code 0."""
    prog = f"{PROGRAM} {name}"
    if "-h" in args or "--help" in args:
        _help(command, prog, examples)
    _refuse_unknown_options(command, args)
    args = _whole_numbers(command, args)
    complaint = io.StringIO()
    try:
        with _columns(_WIDE), contextlib.redirect_stderr(complaint):
            return _tyro(command, prog, args)
    except SystemExit as error:
        if not error.code:
            raise
        sentence = _one_sentence(complaint.getvalue())
        raise KcprError(f"{sentence} (help: {prog} --help)") from None


def _tyro(command: type[T], prog: str, args: Sequence[str]) -> T:
    return tyro.cli(command, prog=prog, args=args, config=(tyro.conf.FlagCreatePairsOff,))


def _help(command: type[Any], prog: str, examples: str) -> None:
    try:
        _tyro(command, prog, ["--help"])
    except SystemExit:
        print(f"\nExamples:\n{examples.strip(chr(10))}")
        raise


def option_names(command: type[Any]) -> list[str]:
    """Every flag that this command knows."""
    flags = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(command)
        if tyro.conf.Positional not in getattr(field.type, "__metadata__", ())
    ]
    return [*flags, "--help"]


def _whole_numbers(command: type[Any], args: Sequence[str]) -> list[str]:
    """`args` with 1e6, as people write a million, spelt out where a whole number is asked for."""
    hints = get_type_hints(command)
    whole = {
        f"--{name.replace('_', '-')}"
        for name, hint in hints.items()
        if int in (hint, *get_args(hint))
    }
    spelt: list[str] = []
    flag = ""
    for word in args:
        name, sign, value = word.rpartition("=")
        if (name if sign else flag) in whole and re.fullmatch(r"\d+(\.\d+)?[eE]\d", value):
            number = float(value)
            word = f"{name}{sign}{int(number)}" if number.is_integer() else word
        spelt.append(word)
        flag = word
    return spelt


def _refuse_unknown_options(command: type[Any], args: Sequence[str]) -> None:
    known = option_names(command)
    for word in args:
        name = word.split("=", 1)[0].replace("_", "-")
        if re.match(r"--?[A-Za-z]", name) and name not in known:
            raise UnknownNameError("option", word.split("=", 1)[0], known)


# What tyro says, and how it is said here.
_WRONG = r"^Error parsing (\S+): "
_SENTENCES = (
    (r"^Missing from .*?: (\S+) .*$", r"\1 is missing"),
    (r"^Missing value for argument '(\S+)'\..*$", r"\1 needs a value"),
    (_WRONG + r"no type matching \{None\}\|(\S+) .* from \[(.*)\].*$", r"\1 takes \2, not \3"),
    (_WRONG + r"invalid literal for int\(\) .*: ('.*')$", r"\1 takes INT, not \2"),
    (_WRONG + r"could not convert string to float: ('.*')$", r"\1 takes FLOAT, not \2"),
    (_WRONG, r"\1: "),
    (r"^Unrecognized options: ", "unexpected argument "),
)


def _one_sentence(box: str) -> str:
    """The first paragraph inside tyro's box, on one line."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()]
    inside = [line for line in lines if line and not line.startswith(("╭", "╰"))]
    paragraph: list[str] = []
    for line in inside:
        if line.startswith(("──", "Got errors", "For full helptext")):
            break
        paragraph.append(line)
    text = " ".join(paragraph)
    for pattern, sentence in _SENTENCES:
        text = re.sub(pattern, sentence, text)
    return text.rstrip(".") or "cannot read these arguments"


@contextlib.contextmanager
def _columns(width: str) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = width
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def unknown_command(name: str, known: Sequence[str]) -> KcprError:
    """The fault of `kcpr-safety NAME` where there is no such command."""
    if name.startswith("-"):
        return UnknownNameError("option", name, ["--help", "--version"])
    return UnknownNameError("command", name, known)


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[int]:
    """Everything that is printed meanwhile, also by C code, goes to stderr; yields the real one."""
    sys.stdout.flush()
    real = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield real
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)
