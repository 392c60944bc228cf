"""Are the files of a bundle, to the last byte, those that a trusted key signed?

    manifest.json   {"files":{NAME:SHA-256 in hexadecimal,...},"schema_version":"1"}
                    keys sorted, no spaces, ASCII, no newline: one text for one content
    manifest.sig    64 bytes: the ed25519 signature over the bytes of manifest.json

The signature is verified first, then the manifest is read, then every file is read once and hashed;
only what passed is handed on, from memory. Nothing else of a bundle is parsed before. A file too
many is a fault as much as one that is missing.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kcpr_safety.deploy.keys import PrivateKey, PublicKey
from kcpr_safety.errors import FileFault
from kcpr_safety.files import faults_of, read_limited
from kcpr_safety.texts import json_object

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
SEALS = (MANIFEST_FILE, SIGNATURE_FILE)
SCHEMA_VERSION = "1"
SIGNATURE_BYTES = 64
MAX_BYTES = 64 * 2**20
_MAX_MANIFEST_BYTES = 2**16
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Sealed:
    """What a trusted key signed."""

    contents: Mapping[str, bytes]
    """File name -> bytes, without manifest and signature."""
    key: PublicKey


def seal(contents: Mapping[str, bytes], key: PrivateKey) -> dict[str, bytes]:
    """The contents with their manifest and signature."""
    manifest = manifest_bytes(
        {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    )
    return {**contents, MANIFEST_FILE: manifest, SIGNATURE_FILE: key.sign(manifest)}


def manifest_bytes(digests: Mapping[str, str]) -> bytes:
    """The one text that a manifest of these files has."""
    record = {"schema_version": SCHEMA_VERSION, "files": dict(digests)}
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def open_sealed(folder: Path, trusted: Sequence[PublicKey]) -> Sealed:
    """Every file of a bundle, if all of them are what one of the `trusted` keys signed."""
    manifest_path, signature_path = folder / MANIFEST_FILE, folder / SIGNATURE_FILE
    manifest = read_limited(manifest_path, _MAX_MANIFEST_BYTES, links=False)
    signature = read_limited(signature_path, SIGNATURE_BYTES, links=False)
    key = next((key for key in trusted if key.fits(manifest, signature)), None)
    if key is None:
        known = ", ".join(key.id for key in trusted) or "none"
        raise FileFault(
            f"{signature_path} is no signature of {MANIFEST_FILE} by a trusted key ({known}): one "
            "of the two was changed, or the key is unknown here (add it with --trust ID.pub)"
        )
    digests = _digests(manifest, str(manifest_path))
    with faults_of(f"cannot read {folder}"):
        found = {path.name for path in folder.iterdir()} - set(SEALS)
    for name in sorted(found - set(digests)):
        raise FileFault(f"{folder / name} is not in {MANIFEST_FILE}: no part of this bundle")
    for name in sorted(set(digests) - found):
        raise FileFault(f"{folder / name} is missing: {MANIFEST_FILE} lists it")
    return Sealed({name: _hashed(folder / name, digests[name]) for name in sorted(digests)}, key)


def _digests(manifest: bytes, name: str) -> dict[str, str]:
    """The hashes in a manifest whose signature is good: written by a trusted key's owner."""
    try:
        record = json_object(manifest)
        version, files = record.get("schema_version"), record.get("files")
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema version {version!r}; this package reads '{SCHEMA_VERSION}'")
        if set(record) != {"schema_version", "files"} or not isinstance(files, dict):
            raise ValueError("its keys are not schema_version and files")
        for file, digest in files.items():
            if not _NAME.fullmatch(file) or file in SEALS:
                raise ValueError(f"{file!r:.80} is no file of a bundle")
            if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                raise ValueError(f"the hash of {file} is no SHA-256")
        if manifest_bytes(files) != manifest:
            raise ValueError("it is not written in the one form")
    except ValueError as error:
        raise FileFault(f"{name} is no manifest of a bundle: {error}") from error
    return files


def _hashed(path: Path, digest: str) -> bytes:
    data = read_limited(path, MAX_BYTES, links=False)
    if hashlib.sha256(data).hexdigest() != digest:
        raise FileFault(
            f"{path} was changed after it was signed: its SHA-256 is not that of {MANIFEST_FILE}"
        )
    return data
