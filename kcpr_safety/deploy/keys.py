"""Whose signature under a bundle counts?

ed25519 (RFC 8032). A key pair is two text files of 64 hexadecimal digits and a newline, named after
the key:

    ID.pub    the public key, 32 bytes: it goes wherever bundles are verified
    ID.key    the private seed, 32 bytes, for its owner's eyes: in no repository and no bundle

Trusted are the public keys in `policies/trusted/` of this package, those in the user's own folder
(where `keygen` leaves a pair), and those that a caller names. What lies inside a bundle is never
asked.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kcpr_safety.cards import data_root
from kcpr_safety.errors import FileFault, SettingsError
from kcpr_safety.files import atomic_write, faults_of, read_limited

PUBLIC, PRIVATE = ".pub", ".key"
TRUSTED_FOLDER = "trusted"
OWN_KEY = "local"
"""Made on this machine the first time that something is exported without naming a key."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX = re.compile(rb"[0-9a-f]{64}\n?")
_MAX_BYTES = 65


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are verified with."""

    id: str
    data: bytes
    """32 bytes."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the 32 bytes, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def fits(self, message: bytes, signature: bytes) -> bool:
        """Whether this key's owner signed the message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.data).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """A key that bundles are signed with."""

    id: str
    seed: bytes
    """32 bytes."""

    def __repr__(self) -> str:
        return f"PrivateKey({self.id!r})"

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.id, self._key().public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """64 bytes; the same for the same message every time."""
        return self._key().sign(message)

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def key_folder() -> Path:
    """The user's own keys: `$XDG_CONFIG_HOME/kcpr-safety/keys`, in `~/.config` where not set."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "kcpr-safety" / "keys"


def generate(key_id: str, folder: Path | None = None) -> tuple[Path, Path]:
    """Make a pair (private file, public file); an existing one is never replaced."""
    if not _ID.fullmatch(key_id):
        raise SettingsError(
            f"'{key_id}' names no key; use letters, digits, dots, dashes and underscores"
        )
    folder = key_folder() if folder is None else Path(folder)
    private, public = (folder / f"{key_id}{suffix}" for suffix in (PRIVATE, PUBLIC))
    repository = next((p for p in folder.resolve().parents if (p / ".git").exists()), None)
    if repository or (folder / ".git").exists():
        raise FileFault(f"{folder} is in a repository; choose a folder outside for a private key")
    for path in (private, public):
        if path.exists():
            raise FileFault(f"{path} exists, and a key is never replaced; choose another name")
    key = PrivateKey(key_id, secrets.token_bytes(32))
    with faults_of(f"cannot write {private}"):
        folder.mkdir(parents=True, exist_ok=True)
        # Never readable by others, not even for a moment.
        descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(_text(key.seed))
    atomic_write(public, _text(key.public.data))
    return private, public


def signing_key(name: str | Path | None = None) -> PrivateKey:
    """The private key in a file, or of that name among the user's own; None: the machine's own."""
    if name is None:
        path = key_folder() / f"{OWN_KEY}{PRIVATE}"
        if not path.exists():
            generate(OWN_KEY)
    else:
        path = Path(name)
        if path.suffix != PRIVATE:
            path = key_folder() / f"{name}{PRIVATE}"
    if not path.exists():
        raise FileFault(f"{path} does not exist; make a key pair with: kcpr-safety keygen ID")
    return PrivateKey(path.stem, _bytes(path))


def read_public(path: Path) -> PublicKey:
    """The public key in a file `ID.pub`."""
    path = Path(path)
    if path.suffix != PUBLIC:
        raise FileFault(f"{path} is no public key: its name does not end in {PUBLIC}")
    return PublicKey(path.stem, _bytes(path))


def trusted_keys(more: Iterable[Path] = ()) -> Sequence[PublicKey]:
    """The package's, the user's own, and those in the files `more`; by key, each once."""
    folders = (data_root() / "policies" / TRUSTED_FOLDER, key_folder())
    paths = [path for folder in folders for path in sorted(folder.glob(f"*{PUBLIC}"))]
    keys = [read_public(path) for path in (*paths, *more)]
    return list({key.data: key for key in keys}.values())


def _bytes(path: Path) -> bytes:
    text = read_limited(path, _MAX_BYTES)
    if not _HEX.fullmatch(text):
        raise FileFault(f"{path} is no key: it must hold 64 hexadecimal digits")
    return bytes.fromhex(text.decode())


def _text(data: bytes) -> bytes:
    return data.hex().encode() + b"\n"
