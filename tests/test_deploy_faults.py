"""Is every damaged, foreign or hostile file refused in one sentence, and nothing lost meanwhile?"""

import dataclasses
import errno
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import fake_assurance, fake_evaluation, fake_policy, fake_run, reseal
from traps import Trap, torch_saved

import kcpr_safety.deploy.bundle as bundle_module
from kcpr_safety import api
from kcpr_safety.assured import ALL_METHODS
from kcpr_safety.deploy import export_bundle, load_policy
from kcpr_safety.deploy.archive import (
    _entries,
    canonical,
    extras_of,
    laid_out,
    load_script,
    quiet,
)
from kcpr_safety.deploy.bundle import FILES
from kcpr_safety.deploy.manifest import SEALS
from kcpr_safety.deploy.script import proven, script_here, scripted
from kcpr_safety.errors import FileFault
from kcpr_safety.policy_file import write_policy


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles `one` and `two` of different policies for the same robot, and their runs."""
    root = tmp_path_factory.mktemp("faults")
    for seed, name in ((1, "one"), (2, "two")):
        fake_run(root / f"run-{name}", fake_policy(seed, width=8))
        export_bundle(root / f"run-{name}", root / name)
    return root


@pytest.fixture
def bundle(bundles: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles / "one", tmp_path / "bundle"))


def refused(bundle: Path) -> str:
    """The one sentence with which loading is refused."""
    with pytest.raises(FileFault) as fault:
        load_policy(bundle)
    sentence = str(fault.value)
    assert "\n" not in sentence
    assert str(bundle) in sentence
    return sentence


@pytest.mark.parametrize("name", ["weights.safetensors", "CARD.md", "manifest.json"])
def test_a_changed_bundle_is_neither_judged_nor_trained_on(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(FileFault, match=re.escape(name)):
        api.evaluate(bundle, episodes=1)
    out = bundle.parent / "run"
    with pytest.raises(FileFault, match=re.escape(name)):
        api.train("SafetyPointGoal1-v0", init=bundle, out=out)
    assert not out.exists()


FOREIGN = {
    "empty": b"",
    "text": b"not what it says",
    "json": b"{}",
    "list": b"[1, 2]",
    "pickle": pickle.dumps(Trap()),
    "torch.save": torch_saved(),
    "zeros": bytes(4096),
    "deep json": b"[" * 100_000,
}


@pytest.mark.parametrize("name", [*FILES, *SEALS])
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files(bundle: Path, name: str, kind: str) -> None:
    (bundle / name).write_bytes(FOREIGN[kind])
    assert name in refused(bundle)


@pytest.mark.parametrize("name", [*FILES, *SEALS])
def test_truncated_missing_or_swapped_files(bundle: Path, bundles: Path, name: str) -> None:
    path = bundle / name
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 10):
        path.write_bytes(whole[:length])
        assert name in refused(bundle)
    path.write_bytes(whole + b"\0")
    refused(bundle)
    path.unlink()
    assert name in refused(bundle)
    other = (bundles / "two" / name).read_bytes()
    if other != whole:  # both have the same list of components
        path.write_bytes(other)
        refused(bundle)
    path.write_bytes(whole)
    load_policy(bundle)


@pytest.mark.parametrize("name", [*FILES, *SEALS])
def test_any_changed_byte(bundle: Path, name: str) -> None:
    path = bundle / name
    whole = path.read_bytes()
    generator = np.random.default_rng(3)
    for position in generator.integers(0, len(whole), 60):
        changed = bytearray(whole)
        changed[position] ^= int(generator.integers(1, 256))
        path.write_bytes(changed)
        assert name in refused(bundle)


def test_an_unknown_schema_version(bundle: Path) -> None:
    card = json.loads((bundle / "card.json").read_text())
    (bundle / "card.json").write_text(json.dumps({**card, "schema_version": "99"}))
    assert "schema version '99'" in refused(reseal(bundle))


class TestArchives:
    """Of `controller.pt`, LibTorch sees only what the exporter wrote."""

    @pytest.fixture
    def entries(self, bundle: Path) -> dict[str, bytes]:
        return _entries((bundle / "controller.pt").read_bytes(), stored=True)

    def refused(self, archive: bytes) -> str:
        with pytest.raises(FileFault) as fault:
            load_script(archive, "NAME") if extras_of(archive, "NAME") else None
        assert "\n" not in str(fault.value)
        assert "NAME" in str(fault.value)
        return str(fault.value)

    def test_the_layout_is_a_fixed_point(self, bundle: Path, entries: dict[str, bytes]) -> None:
        assert laid_out(entries) == (bundle / "controller.pt").read_bytes()

    def test_hostile_pickle_inside(self, entries: dict[str, bytes]) -> None:
        for name in ("data.pkl", "constants.pkl"):
            trapped = laid_out({**entries, name: pickle.dumps(Trap(), protocol=2)})
            assert "cannot be loaded by LibTorch" in self.refused(trapped)

    def test_an_entry_too_many(self, entries: dict[str, bytes]) -> None:
        for name in ("code/../evil.py", "extra/hat", "evil.so", "data.pkl.debug_pkl"):
            assert "no controller has" in self.refused(laid_out({**entries, name: b""}))

    @pytest.mark.parametrize("name", ["data.pkl", "constants.pkl", "version"])
    def test_an_entry_too_few(self, entries: dict[str, bytes], name: str) -> None:
        del entries[name]
        assert name in self.refused(laid_out(entries))

    def test_no_code(self, entries: dict[str, bytes]) -> None:
        rest = {name: data for name, data in entries.items() if not name.startswith("code/")}
        assert "lacks code" in self.refused(laid_out(rest))

    def test_broken_code(self, entries: dict[str, bytes]) -> None:
        (code,) = (name for name in entries if name.startswith("code/"))
        assert "LibTorch" in self.refused(laid_out({**entries, code: b"class Controller(:"}))

    def test_a_module_without_the_methods(self) -> None:
        buffer = io.BytesIO()
        with quiet():
            torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)
        archive = canonical(buffer.getvalue(), {"card.json": b"{}"})
        assert "lacks the method nominal" in self.refused(archive)

    def test_another_layout(self, entries: dict[str, bytes]) -> None:
        """The same content, differently zipped: two readers could disagree about it."""
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", kind) as archive:
                for name, content in entries.items():
                    archive.writestr("archive/" + name, content)
            self.refused(buffer.getvalue())
        self.refused(b"#!/bin/sh\n" + laid_out(entries))

    def test_an_entry_twice(self, bundle: Path) -> None:
        buffer = io.BytesIO((bundle / "controller.pt").read_bytes())
        with (
            pytest.warns(UserWarning, match="Duplicate"),
            zipfile.ZipFile(buffer, "a") as archive,
        ):
            archive.writestr("archive/data.pkl", b"")
        assert "two entries" in self.refused(buffer.getvalue())

    def test_a_bomb(self) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(50 * 2**20))
        assert "compressed" in self.refused(buffer.getvalue())


def test_answers_that_differ_from_golden_are_refused(bundles: Path, tmp_path: Path) -> None:
    """All hashes right, but another controller: as on a machine that computes something else."""
    bundle = Path(shutil.copytree(bundles / "one", tmp_path / "bundle"))
    extras = extras_of((bundle / "controller.pt").read_bytes(), "x")
    policy = fake_policy(1, width=8, gain=1.001)
    other = canonical(scripted(policy, fake_assurance(policy))["controller.pt"], extras)
    (bundle / "controller.pt").write_bytes(other)
    assert "does not repeat its golden answers" in refused(reseal(bundle))


class Mute(torch.nn.Module):
    """The contract of a controller that has none."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return obs

    @torch.jit.export
    def contract(self) -> str:
        raise ValueError("no contract")


def odd_controller(kind: str) -> bytes:
    """TorchScript that loads, and raises when it is asked."""
    policy = fake_policy(1, width=8)
    controller = proven(policy, fake_assurance(policy))
    if kind == "golden observations of another width":
        controller.golden_obs = torch.zeros(2, 3)
    elif kind == "golden observations without answers":
        controller.set_golden({"obs": torch.zeros(2, 5)})
    else:
        controller.policy.get_buffer("mean").resize_(4)
    return script_here(controller)


@pytest.mark.parametrize(
    "kind",
    [
        "golden observations of another width",
        "golden observations without answers",
        "a normaliser of another width",
    ],
)
def test_a_signed_controller_that_raises_when_it_is_asked(bundle: Path, kind: str) -> None:
    extras = extras_of((bundle / "controller.pt").read_bytes(), "x")
    (bundle / "controller.pt").write_bytes(canonical(odd_controller(kind), extras))
    assert "controller.pt fails when it is asked: " in refused(reseal(bundle))


def test_a_signed_controller_that_raises_instead_of_a_contract(bundle: Path) -> None:
    buffer = io.BytesIO()
    with quiet():
        module = torch.jit.script(Mute())
        for method in set(ALL_METHODS) - {"forward", "contract"}:
            module.define(f"def {method}(self):\n    return 0\n")
        torch.jit.save(module, buffer)
    extras = extras_of((bundle / "controller.pt").read_bytes(), "x")
    (bundle / "controller.pt").write_bytes(canonical(buffer.getvalue(), extras))
    assert "controller.pt fails when it is asked: " in refused(reseal(bundle))


class TestExport:
    def test_needs_evidence(self, tmp_path: Path) -> None:
        run = fake_run(tmp_path / "run")
        (run / "evaluation.json").unlink()
        with pytest.raises(FileFault, match="kcpr-safety evaluate"):
            export_bundle(run, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"seed": 9}, "judged seed 9"),
            ({"agent": "sac"}, "judged agent sac"),
            ({"task": "Other-v0"}, "judged task Other-v0"),
            ({"policy_sha256": "0" * 64}, "judged another policy"),
            ({"policy_sha256": None}, "judged another policy"),
            ({"predicted_punishment": "much"}, "no evaluation of a policy"),
            ({"realised_punishment": float("inf")}, "not finite"),
            ({"reliability": [{"steps": 9}]}, "it lacks 'predicted'"),
            (
                {"reliability": [{"steps": 9, "predicted": 1.0, "realised": float("nan")}]},
                "not finite",
            ),
            ({"returns": []}, "holds no episode"),
            ({"returns": [1.0]}, "differ in number"),
            ({"episodes": 50}, "promises 50 episodes and lists 10"),
            ({"punishments": [float("nan")] * 10}, "not finite"),
            ({"punishments": [-1.0] * 10, "punishment_mean": -1.0}, "negative punishment"),
            ({"return_mean": 9e9}, "its episodes give"),
            ({"returns": None}, "no evaluation of a policy"),
            ({"eval_seed": "x"}, "no evaluation of a policy"),
        ],
    )
    def test_evidence_must_fit(
        self, tmp_path: Path, changed: dict[str, object], words: str
    ) -> None:
        run = fake_run(tmp_path / "run")
        record = {**fake_evaluation(fake_policy()), **changed}
        (run / "evaluation.json").write_text(json.dumps(record))
        with pytest.raises(FileFault, match=words):
            export_bundle(run, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()

    def test_evidence_lacks_a_key(self, tmp_path: Path) -> None:
        run = fake_run(tmp_path / "run")
        (run / "evaluation.json").write_text("{}")
        with pytest.raises(FileFault, match="lacks 'task'"):
            export_bundle(run, tmp_path / "bundle")

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(FileFault, match="does not exist"):
            export_bundle(tmp_path / "absent", tmp_path / "bundle")

    def test_a_folder_with_other_things_is_not_replaced(self, tmp_path: Path) -> None:
        run = fake_run(tmp_path / "run", fake_policy(width=4))
        before = sorted(os.listdir(run))
        with pytest.raises(FileFault, match=r"calibration\.json is no part of a bundle"):
            export_bundle(run, run)
        assert sorted(os.listdir(run)) == before
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileFault, match="file is no part of a bundle"):
            export_bundle(run, tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"
        with pytest.raises(FileFault, match="cannot write"):
            export_bundle(run, tmp_path / "file" / "below")

    @pytest.mark.parametrize("broken", FILES)
    def test_a_full_disk_leaves_the_earlier_bundle(
        self, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        bundle = Path(shutil.copytree(bundles / "two", tmp_path / "bundle"))
        contents = {name: (bundles / "one" / name).read_bytes() for name in FILES}
        write = bundle_module.atomic_write

        def refuse(path: Path, data: bytes) -> None:
            if path.name == broken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, data)

        monkeypatch.setattr(bundle_module, "atomic_write", refuse)
        with pytest.raises(FileFault, match="the disk is full"):
            bundle_module.write_folder(bundle, contents)
        for name in FILES:
            assert (bundle / name).read_bytes() == (bundles / "two" / name).read_bytes()
        assert os.listdir(tmp_path) == ["bundle"]

    def test_a_rename_that_fails_puts_the_earlier_bundle_back(
        self, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = Path(shutil.copytree(bundles / "two", tmp_path / "bundle"))
        rename = Path.rename

        def refuse(path: Path, target: Path) -> Path:
            if path.name.endswith(".new"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(FileFault, match="cannot write"):
            bundle_module.write_folder(bundle, {"card.json": b""})
        assert os.listdir(tmp_path) == ["bundle"]
        assert sorted(os.listdir(bundle)) == sorted((*FILES, *SEALS))

    def test_a_policy_for_another_robot_is_not_mixed_in(
        self, bundles: Path, tmp_path: Path
    ) -> None:
        """A signed card still has to fit the weights' contract."""
        bundle = Path(shutil.copytree(bundles / "one", tmp_path / "bundle"))
        policy = fake_policy(1, width=8)
        contract = dataclasses.replace(policy.contract, period_s=0.02)
        write_policy(bundle / "weights.safetensors", dataclasses.replace(policy, contract=contract))
        assert "differ in their contract" in refused(reseal(bundle))


def test_nothing_in_the_package_unpickles() -> None:
    """`torch.jit.load` stands in one place, behind the check of the archive."""
    package = Path(bundle_module.__file__).parent.parent
    sources = {path: path.read_text("utf-8") for path in package.rglob("*.py")}
    unpickling = re.compile(r"\btorch\.load\(|\bimport (pickle|shelve|joblib|dill)\b|allow_pickle")
    assert [path.name for path, text in sources.items() if unpickling.search(text)] == []
    loading = [path.name for path, text in sources.items() if "jit.load(" in text]
    # The page of a bundle tells a robot's programmer how; the robot's own process does not have us.
    assert sorted(loading) == ["archive.py", "consumer.py", "render.py"]
