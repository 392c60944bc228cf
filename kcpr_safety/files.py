"""How is a file read or replaced so that a crash, a full disk or a foreign file does no harm?

`atomic_write` fills a temporary file in the same folder, flushes it to the disk and renames it over
the old one: at every moment the path holds either the old bytes or the new ones. `read_limited`
refuses what is no plain file or larger than its kind can be. Whatever the operating system objects
to becomes one `FileFault` sentence that names the path. Standard library only.
"""

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kcpr_safety.errors import FileFault

Content = bytes | Callable[[BinaryIO], None]

_STALE_S = 3600.0
"""A temporary file older than this was left by a process that was killed [s]."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of that path is a file, not a folder",
    errno.EISDIR: "that path is a folder",
    errno.EFBIG: "the file would be larger than allowed here",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "it is a symbolic link, or there is a loop of them",
}


def reason(error: OSError) -> str:
    """What the operating system objects to, in words."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error)


def atomic_write(path: Path, content: Content) -> None:
    """Replace `path` by `content`: bytes, or a function that writes to the open binary file.

    Missing parent folders are made. On any failure the earlier file is untouched, no temporary
    file remains, and what the operating system refused is raised as `FileFault`.
    """
    path = Path(path)
    with faults_of(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            with open(temporary, "xb") as stream:
                if callable(content):
                    content(stream)
                else:
                    stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            # Also on Ctrl-C: nobody else knows this name.
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def without_links(path: str, flags: int) -> int:
    """An `opener` for `open` that refuses a path whose last part is a symbolic link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems cannot; the rename itself is still atomic there.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_limited(path: Path, limit: int, *, links: bool = True) -> bytes:
    """All bytes of a plain file of at most `limit` bytes; anything else raises `FileFault`.

    Without `links`, a symbolic link is no plain file either.
    """
    path = Path(path)
    with faults_of(f"cannot read {path}"):
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no plain file"
            raise FileFault(f"cannot read {path}: it is {kind}")
        with open(path, "rb", opener=None if links else without_links) as stream:
            data = stream.read(limit + 1)
    if len(data) > limit:
        raise FileFault(f"cannot read {path}: it is larger than the {limit:,} bytes of its kind")
    return data


@contextmanager
def faults_of(action: str) -> Iterator[None]:
    """Raise the operating system's objections in here as `FileFault`: "<action>: <reason>"."""
    try:
        yield
    except OSError as error:
        raise FileFault(f"{action}: {reason(error)}") from error


def _sweep(path: Path) -> None:
    """Remove what killed writers of this very path left behind long ago."""
    for litter in path.parent.glob(f".{_literal(path.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - litter.stat().st_mtime > _STALE_S:
                litter.unlink()


def _literal(name: str) -> str:
    """`name` as a glob pattern that matches only itself."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
