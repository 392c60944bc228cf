"""How are JSON and TOML read that anybody may have written?

Within limits that no file of this package comes near: how deep values nest, how large a whole
number is (Python's have no end, and floats do). Whatever is wrong is a `ValueError` with a reason;
the reader, who knows the file, makes the sentence. Sizes are limited where files are read.
"""

import json
import re
import tomllib
from typing import Any

MAX_DEPTH = 24
MAX_WHOLE = 2**63

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?')
_BRACKET = re.compile(r"[\[\]{}]")


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text (UTF-8)."""
    try:
        decoded = text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 text ({error.reason} at byte {error.start})") from error
    depth = 0
    # Before anything is built: a parser that recurses must not be asked to.
    for bracket in _BRACKET.finditer(_STRING.sub("", decoded)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return json.loads(decoded, parse_int=_whole)


def json_object(text: str | bytes) -> dict[str, Any]:
    """The object that a JSON text is."""
    value = json_value(text)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def toml_table(data: bytes) -> dict[str, Any]:
    """The table that a TOML text (UTF-8) is."""
    try:
        table = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 text ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from error
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in _inside(value)]
        if any(isinstance(v, int) and abs(v) >= MAX_WHOLE for v in level):
            raise ValueError("a whole number is too large")
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return table


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= MAX_WHOLE:
        raise ValueError("a whole number is too large")
    return int(digits)
