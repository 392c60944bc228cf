"""Does a write either happen completely or leave everything as it was?"""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from kcpr_safety import files
from kcpr_safety.errors import FileFault
from kcpr_safety.files import atomic_write, read_limited


def test_bytes_and_writers(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file.bin"
    atomic_write(target, b"first")
    assert target.read_bytes() == b"first"
    atomic_write(target, lambda stream: [stream.write(part) for part in (b"sec", b"ond")] and None)
    assert target.read_bytes() == b"second"
    assert os.listdir(target.parent) == ["file.bin"]


def test_new_files_get_the_usual_permissions(tmp_path: Path) -> None:
    atomic_write(tmp_path / "ours", b"")
    (tmp_path / "usual").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_refusal_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, call: str
) -> None:
    target = tmp_path / "checkpoint"
    atomic_write(target, b"earlier")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(FileFault) as fault:
        atomic_write(target, b"later")
    assert str(fault.value) == f"cannot write {target}: {words}"
    assert target.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_a_writer_that_fails_leaves_the_earlier_file(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    target = tmp_path / "checkpoint"
    atomic_write(target, b"earlier")

    def writer(stream: BinaryIO) -> None:
        stream.write(b"half of")
        raise kind

    with pytest.raises(kind):
        atomic_write(target, writer)
    assert target.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_file_size_limit_of_the_real_system(tmp_path: Path) -> None:
    """No mock: the kernel itself refuses the bytes, as it does on a full disk."""
    target = tmp_path / "checkpoint"
    atomic_write(target, b"earlier")
    child = (
        "import resource, sys; from pathlib import Path\n"
        "from kcpr_safety.errors import FileFault; from kcpr_safety.files import atomic_write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: atomic_write(Path(sys.argv[1]), bytes(5000))\n"
        "except FileFault as fault: print(fault)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, str(target)], capture_output=True, text=True, check=True
    )
    assert "would be larger than allowed" in done.stdout
    assert target.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_killed_writer_leaves_the_earlier_file(tmp_path: Path) -> None:
    """SIGKILL in the middle of a write; the litter is swept by a later write, once it is old."""
    target = tmp_path / "check[1]point"
    atomic_write(target, b"earlier")
    child = (
        "import os, signal, sys; from pathlib import Path; from kcpr_safety.files import *\n"
        "def writer(stream):\n"
        "    stream.write(b'half'); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic_write(Path(sys.argv[1]), writer)\n"
    )
    subprocess.run([sys.executable, "-c", child, str(target)], check=False)
    assert target.read_bytes() == b"earlier"
    (litter,) = (path for path in tmp_path.iterdir() if path != target)
    atomic_write(target, b"later")
    assert litter.exists(), "it may still belong to a running process"
    old = time.time() - 2 * files._STALE_S
    os.utime(litter, (old, old))
    atomic_write(target, b"latest")
    assert os.listdir(tmp_path) == [target.name]


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for path in (tmp_path / "file" / "below", tmp_path / "folder", Path("/proc/nothing/here")):
        with pytest.raises(FileFault, match=f"cannot write {path}: "):
            atomic_write(path, b"")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_limited(path, 5) == b"12345"
    with pytest.raises(FileFault, match="larger than the 4 bytes"):
        read_limited(path, 4)
    with pytest.raises(FileFault, match="it is a folder"):
        read_limited(tmp_path, 5)
    with pytest.raises(FileFault, match="no such file"):
        read_limited(tmp_path / "absent", 5)
    with pytest.raises(FileFault, match="it is no plain file"):
        read_limited(Path("/dev/zero"), 5)
