"""Does a signature count exactly where its key is trusted, and does a private key stay private?"""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from fakes import fake_policy, fake_run, reseal

from kcpr_safety.deploy import export_bundle, load_policy
from kcpr_safety.deploy.keys import (
    generate,
    key_folder,
    read_public,
    signing_key,
    trusted_keys,
)
from kcpr_safety.deploy.manifest import manifest_bytes, open_sealed
from kcpr_safety.errors import FileFault, SettingsError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("keys")
    export_bundle(fake_run(root / "run", fake_policy(3, width=8)), root / "bundle")
    return root / "bundle"


@pytest.fixture
def stranger(tmp_path: Path) -> tuple[Path, Path]:
    """A key pair that nobody here trusts."""
    return generate("stranger", tmp_path / "elsewhere")


def test_a_pair_signs_and_verifies_as_rfc_8032_says(tmp_path: Path) -> None:
    """Test vector 2 of RFC 8032, section 7.1."""
    (tmp_path / "rfc.key").write_text(
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb\n"
    )
    key = signing_key(tmp_path / "rfc.key")
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.public.data.hex() == public
    signature = key.sign(bytes.fromhex("72"))
    assert signature.hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert key.public.fits(b"\x72", signature)
    assert not key.public.fits(b"\x73", signature)
    assert not key.public.fits(b"\x72", signature[:-1])


def test_keygen_leaves_a_private_and_a_public_half(stranger: tuple[Path, Path]) -> None:
    private, public = stranger
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert read_public(public) == signing_key(private).public
    seed = private.read_text().strip()
    assert len(seed) == 64
    assert seed not in repr(signing_key(private))
    with pytest.raises(FileFault, match="never replaced"):
        generate("stranger", private.parent)
    assert private.read_text().strip() == seed


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "x" * 65])
def test_key_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="names no key"):
        generate(name, tmp_path)


def test_no_private_key_in_a_repository(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for folder in (tmp_path, tmp_path / "deep" / "inside"):
        with pytest.raises(FileFault, match="in a repository"):
            generate("release", folder)
    assert not list(tmp_path.rglob("*.key"))


def test_what_is_no_key(tmp_path: Path) -> None:
    for text in ("", "00", "zz" * 32, "0" * 63 + "G", "00" * 32 + "\n\n"):
        (tmp_path / "odd.pub").write_text(text)
        with pytest.raises(FileFault, match=r"odd\.pub"):
            read_public(tmp_path / "odd.pub")
    with pytest.raises(FileFault, match=r"does not end in \.pub"):
        read_public(tmp_path / "odd.key")
    with pytest.raises(FileFault, match="keygen"):
        signing_key("nobody")


def test_an_unknown_key_fails_until_it_is_trusted(
    bundle: Path, tmp_path: Path, stranger: tuple[Path, Path]
) -> None:
    private, public = stranger
    other = tmp_path / "other"
    export_bundle(fake_run(tmp_path / "run", fake_policy(3, width=8)), other, private)
    with pytest.raises(FileFault, match=r"manifest\.sig is no signature .* trusted key"):
        load_policy(other)
    assert load_policy(other, [public]).contract == load_policy(bundle).contract


def test_the_card_names_the_key_that_signed(
    bundle: Path, tmp_path: Path, stranger: tuple[Path, Path]
) -> None:
    private, public = stranger
    copy = reseal(Path(shutil.copytree(bundle, tmp_path / "copy")), signing_key(private))
    with pytest.raises(FileFault, match="names another key than stranger"):
        load_policy(copy, [public])


def test_a_key_in_the_bundle_is_never_trusted(
    bundle: Path, tmp_path: Path, stranger: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = stranger
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    shutil.copy(public, copy / "stranger.pub")
    reseal(copy, signing_key(private))
    monkeypatch.chdir(copy)
    with pytest.raises(FileFault, match="trusted key"):
        load_policy(copy)
    # Not even as a signed passenger.
    with pytest.raises(FileFault, match=r"stranger\.pub is no part"):
        load_policy(reseal(copy))


def test_a_file_too_many_or_too_few(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(FileFault, match=r"notes\.txt is not in manifest\.json"):
        load_policy(copy)
    (copy / "notes.txt").unlink()
    (copy / "golden.safetensors").unlink()
    with pytest.raises(FileFault, match=r"golden\.safetensors is missing"):
        load_policy(copy)
    with pytest.raises(FileFault, match=r"golden\.safetensors is not listed"):
        load_policy(reseal(copy))


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (b"{}", "schema version None"),
        (manifest_bytes({}).replace(b'"1"', b'"2"'), "schema version '2'"),
        (manifest_bytes({"../up": "0" * 64}), "no file of a bundle"),
        (manifest_bytes({"manifest.sig": "0" * 64}), "no file of a bundle"),
        (manifest_bytes({"card.json": "0"}), "no SHA-256"),
        (manifest_bytes({}) + b"\n", "one form"),
        (b"[" * 10_000, "nested"),
    ],
)
def test_signed_nonsense(bundle: Path, tmp_path: Path, manifest: bytes, words: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "manifest.json").write_bytes(manifest)
    (copy / "manifest.sig").write_bytes(signing_key().sign(manifest))
    with pytest.raises(FileFault, match=words):
        open_sealed(copy, trusted_keys())


def test_links_are_no_files_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "card.json").rename(tmp_path / "card.json")
    (copy / "card.json").symlink_to(tmp_path / "card.json")
    with pytest.raises(FileFault, match=r"card\.json: .* symbolic link"):
        load_policy(copy)


def test_signing_is_reproducible_and_says_who(bundle: Path) -> None:
    manifest = (bundle / "manifest.json").read_bytes()
    key = signing_key()
    assert key.id == "local"
    assert key.sign(manifest) == (bundle / "manifest.sig").read_bytes()
    assert list(json.loads(manifest)) == ["files", "schema_version"]
    assert sorted(os.listdir(key_folder())) == ["local.key", "local.pub"]
    assert open_sealed(bundle, trusted_keys()).key.id == "local"


def test_no_private_key_is_kept_here() -> None:
    root = Path(__file__).resolve().parent.parent
    kept = [
        p for folder in ("policies", "kcpr_safety", "tests") for p in (root / folder).rglob("*.key")
    ]
    assert kept == []
