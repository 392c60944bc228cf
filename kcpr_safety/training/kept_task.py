"""Which card does a run go by that was given as a file?

Its own copy: `task/` in the run folder holds the card, the robot's model and what that loads, byte
by byte, and `SHA256SUMS` (as `sha256sum -c` reads it). From the moment that a run begins, the
files that it was made from are never looked at again: they may move, change or go. The copies may
not: one that differs from its sum is refused.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kcpr_safety.cards import TaskCard, at_hand, load_card
from kcpr_safety.errors import CardError, FileFault
from kcpr_safety.files import atomic_write, read_limited

FOLDER = "task"
SUMS = "SHA256SUMS"
_MAX_SUMS_BYTES = 2**16
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")


def keep(run: Path, card: TaskCard) -> None:
    """Copy what a card was made from into the run."""
    for name, content in card.source.items():
        atomic_write(run / FOLDER / name, content)
    atomic_write(run / FOLDER / SUMS, _sums(card).encode())


def kept_card(place: Path) -> TaskCard | None:
    """The card that a run keeps; None where it goes by one of the package's."""
    sums = place / FOLDER / SUMS
    if not sums.is_file():
        return None
    try:
        rows = read_limited(sums, _MAX_SUMS_BYTES, links=False).decode()
    except UnicodeDecodeError as error:
        raise FileFault(f"{sums} is no list of SHA-256 sums") from error
    names = [match[2] for match in _LINE.finditer(rows)]
    cards = [name for name in names if name.endswith(".toml")]
    if len(cards) != 1:
        raise FileFault(f"{sums} names {len(cards)} task cards instead of one")
    try:
        card = load_card(sums.with_name(cards[0]))
    except CardError as error:
        raise FileFault(f"the card that {place} keeps is damaged: {error}") from error
    if sorted(_sums(card).splitlines()) != sorted(rows.splitlines()):
        told = {match[2]: match[1] for match in _LINE.finditer(rows)}
        changed = [n for n, c in card.source.items() if told.get(n) != _sha256(c)]
        raise FileFault(
            f"{sums.parent} is not what the run began with: {', '.join(changed) or 'a file'} has "
            "another SHA-256 sum; a changed robot is a new run: kcpr-safety train CARD"
        )
    return card


@contextmanager
def task_of(place: Path) -> Iterator[None]:
    """Within: the name of a run's task means the card that the run keeps, if it keeps one."""
    card = kept_card(place)
    if card is None:
        yield
        return
    with at_hand(card):
        yield


def _sums(card: TaskCard) -> str:
    return "".join(f"{_sha256(content)}  {name}\n" for name, content in card.source.items())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
