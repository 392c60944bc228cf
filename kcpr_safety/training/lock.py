"""Who may write into a run folder at this moment?

    RUN/lock      held (flock) by the training process, whose number and machine it tells

The operating system lets go of the lock when its owner ends, however it ends: a file left behind
by a killed process is taken over without asking. A second process is refused in one sentence.
"""

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kcpr_safety.errors import FileFault
from kcpr_safety.files import faults_of

LOCK_FILE = "lock"
_NO_LOCKS_HERE = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)
_MOST_BYTES = 200


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Within: this process alone trains in `run`, whose folder is made; else `FileFault`."""
    path = run / LOCK_FILE
    with faults_of(f"cannot write {path}"):
        run.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
    try:
        with suppress(OSError):  # on a full disk the name is missing, the lock holds
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _owner().encode(), 0)
        yield
    finally:
        # Unlinked while it is held, so that nobody can hold what is no longer there.
        with suppress(OSError):
            path.unlink()
            run.rmdir()  # where nothing came of it
        os.close(descriptor)


def _take(path: Path) -> int:
    """The open lock file, locked; its owner may have removed it while we waited for it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(descriptor, path):
                return descriptor
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                # Some network file systems: better unlocked than not at all.
                return descriptor
            owner = os.pread(descriptor, _MOST_BYTES, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise FileFault(
                f"{path.parent} is being trained by {owner or 'another process'}; wait for it, "
                "stop it with Ctrl-C, or choose another folder with --out"
            ) from None
        os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
    try:
        there, here = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _owner() -> str:
    return f"process {os.getpid()} on {platform.node() or 'this machine'}"
