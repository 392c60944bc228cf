"""How are a million transitions kept on disk so that a checkpoint writes only the new ones?

    replay/FIRST-STOP.safetensors     transitions FIRST .. STOP - 1 of the run, one float32 row each

A chunk is written once and never changed, so a crash can spoil only the one that is being written,
which no checkpoint names yet. A checkpoint names its chunks with the CRC-32 of their bytes: what it
reads is what it wrote, or is refused. Chunks that no kept checkpoint names are removed.
"""

import re
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from kcpr_safety.errors import FileFault
from kcpr_safety.files import atomic_write, faults_of, read_limited
from kcpr_safety.replay import Replay
from kcpr_safety.tensor_file import pieces, unpack

FOLDER = "replay"
SCHEMA_VERSION = "1"
MOST_ROWS = 2**17
"""Rows in one chunk: what is read at once stays small beside the replay itself."""

_NAME = re.compile(r"\d{12}-\d{12}\.safetensors")
_HEADER_ROOM = 4096


@dataclass(frozen=True)
class Chunk:
    """Transitions `first` .. `stop` - 1 of a run, counted from its beginning."""

    first: int
    stop: int
    crc: int

    @property
    def name(self) -> str:
        return f"{self.first:012d}-{self.stop:012d}.safetensors"

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """From `[first, stop, crc]`; anything else raises `ValueError`."""
        first, stop, crc = record
        if not all(isinstance(number, int) for number in record):
            raise ValueError("a chunk is three whole numbers")
        if not 0 <= first < stop <= first + MOST_ROWS:
            raise ValueError(f"no chunk has the transitions {first} to {stop}")
        return cls(first, stop, crc)


class ReplayLog:
    """The chunks of one run."""

    def __init__(self, run: Path, chunks: Iterable[Chunk] = ()) -> None:
        self.folder = run / FOLDER
        if self.folder.is_symlink():
            raise FileFault(f"{self.folder} is a symbolic link; a run writes into its own folder")
        self.chunks = list(chunks)
        """Those of the newest checkpoint."""
        self._earlier = [self.chunks]

    def append(self, replay: Replay) -> None:
        """Write what is new since the last time; `chunks` then cover the whole replay."""
        oldest = replay.added - len(replay)
        chunks = list(self.chunks)  # the old list is still that of the checkpoint before
        first = max(chunks[-1].stop if chunks else 0, oldest)
        while first < replay.added:
            capacity = replay.rows.shape[0]
            turn = first - first % capacity + capacity
            stop = min(first + MOST_ROWS, replay.added, turn)
            chunks.append(self._write(replay, first, stop))
            first = stop
        self.chunks = [chunk for chunk in chunks if chunk.stop > oldest]

    def _write(self, replay: Replay, first: int, stop: int) -> Chunk:
        # Written from where they stand: a copy of tens of megabytes a minute frays the heap.
        start = first % replay.rows.shape[0]
        rows = replay.rows[start : start + stop - first]
        parts = list(pieces({"rows": rows}, {"schema_version": SCHEMA_VERSION}))
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        chunk = Chunk(first, stop, crc)
        atomic_write(self.folder / chunk.name, lambda stream: stream.writelines(parts))
        return chunk

    def read_into(self, replay: Replay, added: int) -> None:
        """Fill the replay as it was after `added` transitions; `FileFault` where rows lack."""
        capacity, width = replay.rows.shape
        wanted = max(0, added - capacity)
        for chunk in self.chunks:
            path = self.folder / chunk.name
            data = read_limited(path, (chunk.stop - chunk.first) * width * 4 + _HEADER_ROOM)
            if zlib.crc32(data) != chunk.crc:
                raise FileFault(f"{path} is damaged: its bytes are not those that were written")
            tensors, header = unpack(data, str(path))
            rows = tensors.get("rows")
            if header.get("schema_version") != SCHEMA_VERSION or rows is None:
                raise FileFault(f"{path} holds no transitions of schema version {SCHEMA_VERSION}")
            if rows.shape != (chunk.stop - chunk.first, width) or chunk.first > wanted:
                raise FileFault(f"{path} does not hold the transitions that the run needs")
            start = max(wanted, chunk.first)
            if start < chunk.stop:
                places = (torch.arange(start, chunk.stop) % capacity).to(replay.rows.device)
                replay.rows.index_copy_(0, places, rows[start - chunk.first :].to(places.device))
                wanted = chunk.stop
        if wanted != added:
            raise FileFault(f"{self.folder} lacks the transitions {wanted} to {added}")
        replay.take_up(added)

    def forget(self, spare: int = 0) -> None:
        """Remove files that neither the newest checkpoint nor the `spare` before it name."""
        kept = [self.chunks, *self._earlier[:spare]]
        self._earlier = kept[: spare + 1]
        names = {chunk.name for chunks in kept for chunk in chunks}
        if not self.folder.is_dir():
            return
        with faults_of(f"cannot clean {self.folder}"):
            for path in self.folder.iterdir():
                if _NAME.fullmatch(path.name) and path.name not in names:
                    path.unlink()
        with suppress(OSError):
            self.folder.rmdir()  # where nothing is left of it
