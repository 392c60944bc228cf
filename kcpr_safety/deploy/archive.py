"""When are the bytes of a `controller.pt` certainly what the exporter wrote, before LibTorch runs?

TorchScript's own writer records source paths and counters of its process. `canonical` keeps only
what the module needs, in one fixed layout: equal modules give equal bytes, anywhere. On reading,
an archive is parsed and laid out again; if that is not the very same bytes, no reader may see it.
So two zip readers cannot disagree about it, and nothing can hide in it. Entries are stored, never
compressed, each on a 64-byte boundary.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from kcpr_safety.assured import ALL_METHODS
from kcpr_safety.errors import FileFault

ROOT = "archive/"
EXTRA = "extra/"
MAX_BYTES = 64 * 2**20
MAX_ENTRIES = 512
_ALIGNMENT = 64
_LOCAL_HEADER = 30
"""Bytes before an entry's name in the zip format."""

# Source positions and a hash over them: where the exporter was installed is nobody's business.
_DROPPED = re.compile(r".*\.debug_pkl|\.data/serialization_id")
_ALLOWED = re.compile(
    r"data\.pkl|constants\.pkl|version|byteorder|(data|constants)/\d+|code/(\w+/)*\w+\.py"
    r"|extra/[a-z]+\.(json|safetensors)"
)
_NEEDED = ("data.pkl", "constants.pkl", "version")


def canonical(archive: bytes, extras: Mapping[str, bytes]) -> bytes:
    """A TorchScript archive in the fixed layout, with `extras` as its extra files."""
    entries = {
        name: content
        for name, content in _entries(archive, stored=False).items()
        if not _DROPPED.fullmatch(name) and not name.startswith(EXTRA)
    }
    return laid_out(entries | {EXTRA + name: extras[name] for name in sorted(extras)})


def extras_of(archive: bytes, name: str) -> dict[str, bytes]:
    """Check every byte of a `controller.pt` that can be checked; give its extra files."""
    try:
        entries = _entries(archive, stored=True)
        same = laid_out(entries) == archive
    except (zipfile.BadZipFile, EOFError, ValueError, OSError, RuntimeError) as error:
        raise FileFault(f"{name} is not a TorchScript archive, or is damaged ({error})") from error
    except (NotImplementedError, zipfile.LargeZipFile) as error:
        raise FileFault(f"{name} is an archive of a foreign kind ({error})") from error
    missing = [entry for entry in _NEEDED if entry not in entries]
    if missing or not any(entry.startswith("code/") for entry in entries):
        raise FileFault(f"{name} is not TorchScript: it lacks {', '.join(missing) or 'code'}")
    odd = [entry for entry in entries if not _ALLOWED.fullmatch(entry)]
    if odd:
        raise FileFault(f"{name} holds an entry that no controller has: {odd[0]!r}")
    if not same:
        raise FileFault(f"{name} was not written by this package's exporter, or was changed since")
    return {k.removeprefix(EXTRA): v for k, v in entries.items() if k.startswith(EXTRA)}


def load_script(archive: bytes, name: str) -> torch.jit.ScriptModule:
    """The module in an archive whose `extras_of` has been taken."""
    try:
        with quiet():
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(archive), map_location="cpu"
            )
    except Exception as error:  # TorchScript's own class has no parent but this
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileFault(f"{name} cannot be loaded by LibTorch: {words}") from error
    missing = [method for method in ALL_METHODS if not hasattr(module, method)]
    if missing:
        raise FileFault(f"{name} lacks the method {', '.join(missing)}")
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Without TorchScript's announcement that it will not be developed further."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`?torch\.jit\.", DeprecationWarning)
        yield


def stored_entries(archive: bytes) -> dict[str, bytes]:
    """Name below the root -> content of an archive in which nothing is compressed."""
    return _entries(archive, stored=True)


def _entries(archive: bytes, *, stored: bool) -> dict[str, bytes]:
    """Name below the root -> content, in the order of the file."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        infos = opened.infolist()
        names = [info.filename for info in infos]
        if len(set(names)) != len(names):
            raise ValueError("two entries of one name")
        if len(infos) > MAX_ENTRIES or sum(info.file_size for info in infos) > MAX_BYTES:
            raise ValueError("more in it than any controller has")
        # Before anything is inflated: a few foreign bytes could become very many.
        if stored and any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise ValueError("compressed entries")
        foreign = [name for name in names if not name.startswith(ROOT)]
        if foreign:
            raise ValueError(f"an entry outside {ROOT}")
        return {info.filename.removeprefix(ROOT): opened.read(info) for info in infos}


def laid_out(entries: Mapping[str, bytes]) -> bytes:
    """The archive of entries below the root, in the fixed layout."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(ROOT + name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, wherever this runs
            start = buffer.tell() + _LOCAL_HEADER + len(info.filename.encode()) + 4
            padding = -start % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
            archive.writestr(info, content)
    return buffer.getvalue()
