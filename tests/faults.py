"""How do tests make the disk refuse, tear or lose exactly one of a program's writes?

Inside `Disk`, everything that changes files below a folder is counted: opening for writing, each
write, flush to disk, rename, removal, truncation. The operation whose turn it is fails as it is
told; where the process "dies", every later operation dies too, so that nothing is cleaned up.
"""

import builtins
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from kcpr_safety.training.lock import LOCK_FILE

KINDS = ("enospc", "eio", "partial", "dies before", "dies after", "dies within")


class Died(BaseException):
    """The process is gone: nothing that handles errors may handle this."""


class Disk:
    """Counts the operations below `folder`; the one with number `turn` fails as `kind` says."""

    def __init__(self, folder: Path, turn: int = -1, kind: str = "enospc") -> None:
        self.folder, self.turn, self.kind = folder, turn, kind
        self.operations: list[tuple[str, str]] = []
        self.dead = False
        self._streams: list[Any] = []

    def __enter__(self) -> "Disk":
        self._patch = pytest.MonkeyPatch()
        self._open = builtins.open
        self._patch.setattr(builtins, "open", self._opened)
        for name in ("replace", "unlink", "rename", "rmdir"):
            self._patch.setattr(os, name, self._watched(name, getattr(os, name)))
        self._patch.setattr(os, "fsync", self._fsync)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        for stream in self._streams:
            stream.close()  # has no buffer, so that nothing more is written

    def operation(
        self, name: str, path: Any, whole: Callable[[], Any], half: Callable[[], Any] | None = None
    ) -> Any:
        """Count one operation and let it happen, or not."""
        if self.dead:
            raise Died
        self.operations.append((name, Path(path).name))
        if len(self.operations) - 1 != self.turn:
            return whole()
        if self.kind in ("enospc", "eio"):
            number = errno.ENOSPC if self.kind == "enospc" else errno.EIO
            raise OSError(number, os.strerror(number))
        if self.kind in ("partial", "dies within") and half is not None:
            half()
        if self.kind == "partial":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.kind == "dies after":
            whole()
        self.dead = True
        raise Died

    def _below(self, path: Any) -> bool:
        # The lock is the kernel's affair: it lets go of it when a process really dies.
        named = isinstance(path, str | os.PathLike) and Path(path).name != LOCK_FILE
        return named and Path(path).is_relative_to(self.folder)

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *given: Any, **named: Any) -> Any:
            if not self._below(path):
                return real(path, *given, **named)
            return self.operation(name, path, lambda: real(path, *given, **named))

        return call

    def _fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if self._below(path):
            # Not passed on: what is tested is the order, not this machine's disk.
            self.operation("fsync", path, lambda: None)

    def _opened(self, path: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        if not self._below(path) or not set(mode) & set("wax+") or "b" not in mode:
            return self._open(path, mode, *given, **named)

        def unbuffered() -> Any:
            self._streams.append(self._open(path, mode, buffering=0))
            return self._streams[-1]

        return _Stream(self, self.operation("open", path, unbuffered), path)


class _Stream:
    """A file open for writing, seen by the `Disk`."""

    def __init__(self, disk: Disk, stream: Any, path: Any) -> None:
        self._disk, self._stream, self._path = disk, stream, path

    def write(self, data: bytes) -> int:
        def half() -> None:
            self._stream.write(data[: len(data) // 2])

        def whole() -> int:
            return int(self._stream.write(data))

        return int(self._disk.operation("write", self._path, whole, half))

    def writelines(self, parts: Iterable[Any]) -> None:
        self.write(b"".join(bytes(part) for part in parts))

    def truncate(self, size: int) -> None:
        self._disk.operation("truncate", self._path, lambda: self._stream.truncate(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
