"""Can a foreign file make this package run, hang, swell or write where it must not?"""

import ast
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import fake_contract, fake_policy, fake_run
from hypothesis import given, settings
from hypothesis import strategies as st

from kcpr_safety.agents.settings import BEFORE, Settings, settings_from
from kcpr_safety.cards import load_card
from kcpr_safety.contract import Contract
from kcpr_safety.deploy.archive import MAX_ENTRIES, ROOT, extras_of
from kcpr_safety.deploy.bundle import FILES, export_bundle
from kcpr_safety.deploy.load import load_policy, open_bundle
from kcpr_safety.deploy.manifest import SEALS
from kcpr_safety.errors import CardError, FileFault, KcprError, SettingsError
from kcpr_safety.policy_file import policy_from_bytes, policy_to_bytes
from kcpr_safety.tensor_file import MAX_HEADER_BYTES, MAX_TENSORS, pack, unpack
from kcpr_safety.texts import MAX_DEPTH, json_object, json_value, toml_table
from kcpr_safety.training.replay_log import ReplayLog
from kcpr_safety.training.sinks import JsonLines

ROOT_FOLDER = Path(__file__).resolve().parent.parent


# --------------------------------------------------------------------------------------- limits

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=30)
@given(JSON)
def test_within_the_limits_json_is_json(value: Any) -> None:
    text = json.dumps(value)
    assert repr(json_value(text)) == repr(json.loads(text))
    assert repr(json_value(text.encode())) == repr(json.loads(text))


@given(st.text(st.sampled_from('[]{}",:\\a1')))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    try:
        value = json_value(text)
    except ValueError:
        return
    assert repr(value) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        '{"a":' * 100_000,
        "[" * 10_000_000,
        '{"a": %s}' % ("9" * 100),
        "-" + "9" * 19,
        b"\xff",
        "",
        "nul",
    ],
    ids=["deep", "deeper", "deepest", "long", "wide", "bytes", "empty", "word"],
)
def test_json_beyond_them_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        json_value(text)


def test_brackets_in_texts_do_not_count() -> None:
    text = json.dumps({"a": "[" * 1_000 + '\\"' * 10})
    assert json_value(text) == json.loads(text)
    with pytest.raises(ValueError, match="no JSON object"):
        json_object("[]")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5_000 + "]" * 5_000,
        ".".join("a" for _ in range(MAX_DEPTH + 2)) + " = 1",
        "a = " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "a = " + "9" * 400,
        "a = \ud800",
    ],
    ids=["brackets", "dots", "just", "long", "surrogate"],
)
def test_toml_beyond_the_limits_is_refused(tmp_path: Path, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    with pytest.raises(ValueError, match=r"."):
        toml_table(data)
    path = tmp_path / "card.toml"
    path.write_bytes(data)
    with pytest.raises(CardError) as fault:
        load_card(path)
    assert "\n" not in str(fault.value)


def test_cards_are_small_plain_files(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_bytes(b"# \n" * 100_000)
    with pytest.raises(CardError, match="larger than the"):
        load_card(path)
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(CardError, match="no plain file"):
        load_card(tmp_path / "pipe.toml")


@pytest.mark.parametrize(
    "change",
    [
        {"time_limit": "soon"},
        {"time_limit": 0},
        {"time_limit": 1.5},
        {"budget": None},
        {"budget": -1},
        {"period_s": True},
        {"period_s": float("inf")},
        {"task": 3},
        {"punishment": ["a"]},
    ],
    ids=str,
)
def test_contracts_hold_values_of_their_kind(change: dict[str, Any]) -> None:
    record = {**json.loads(fake_contract().to_json()), **change}
    with pytest.raises(FileFault, match="not a contract"):
        Contract.from_json(json.dumps(record))


@pytest.mark.parametrize(
    "record",
    [
        7,
        {"width": "wide"},
        {"width": 1.5},
        {"width": None},
        {"gamma": float("nan")},
        {"width": float("inf")},
        {"layer_norm": 1},
        {"unknown": 1},
        {"gamma": [0.9]},
    ],
    ids=str,
)
def test_settings_of_another_kind_are_refused(record: Any) -> None:
    with pytest.raises(KcprError):
        settings_from(record)


def test_headers_of_tensor_files_are_limited() -> None:
    for length in (MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1):
        with pytest.raises(FileFault, match="a header of"):
            unpack(struct.pack("<Q", length) + b"{}", "NAME")
    many = {f"t{i}": torch.zeros(0) for i in range(MAX_TENSORS + 1)}
    with pytest.raises(FileFault, match="1,025 tensors"):
        unpack(pack(many, {}), "NAME")
    deep = ('{"__metadata__":' + '{"a":' * 40 + "1" + "}" * 41).encode()
    with pytest.raises(FileFault, match="nested more than"):
        unpack(struct.pack("<Q", len(deep)) + deep, "NAME")


def archive(entries: Iterator[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, content in entries:
            opened.writestr(name, content)
    return buffer.getvalue()


def test_archives_are_limited_before_they_are_inflated() -> None:
    many = archive((f"{ROOT}data/{i}", b"") for i in range(MAX_ENTRIES + 1))
    with pytest.raises(FileFault, match="more in it than any controller has"):
        extras_of(many, "NAME")
    bomb = archive(iter([(f"{ROOT}data.pkl", bytes(80 * 2**20))]), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**18
    with pytest.raises(FileFault, match="more in it than any controller has"):
        extras_of(bomb, "NAME")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "archive/../../x", "archive/code/../../x.py"]
)
def test_archives_with_paths_that_lead_out_are_refused(name: str) -> None:
    data = archive(iter([(f"{ROOT}data.pkl", b""), (name, b"")]))
    with pytest.raises(FileFault):
        extras_of(data, "NAME")


# --------------------------------------------------------------------------------- links, writing


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("safe")
    export_bundle(fake_run(folder / "run"), folder / "bundle")
    return folder / "bundle"


@pytest.mark.parametrize("name", [*FILES, *SEALS])
def test_links_in_bundles_are_refused(tmp_path: Path, bundle: Path, name: str) -> None:
    copy = tmp_path / "bundle"
    copy.mkdir()
    for file in (*FILES, *SEALS):
        (copy / file).write_bytes((bundle / file).read_bytes())
    open_bundle(copy)
    (copy / name).unlink()
    (copy / name).symlink_to(bundle / name)
    with pytest.raises(FileFault, match="symbolic link"):
        open_bundle(copy)


def test_a_run_writes_through_no_link(tmp_path: Path) -> None:
    """A run folder from somebody else, whose files lead to one's own."""
    run, mine = tmp_path / "run", tmp_path / "mine"
    run.mkdir()
    mine.mkdir()
    (mine / "notes").write_text("precious")
    (run / "metrics.jsonl").symlink_to(mine / "notes")
    with pytest.raises(FileFault, match="symbolic link"):
        JsonLines().open(run, "task", 1, 1.0)
    (run / "replay").symlink_to(mine)
    with pytest.raises(FileFault, match="symbolic link"):
        ReplayLog(run)
    assert (mine / "notes").read_text() == "precious"


# ----------------------------------------------------------------------------------- no unpickler

UNPICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
    "torch.load",
    "torch.serialization",
    "torch.package",
    "numpy.load",
    "yaml.load",
    "yaml.unsafe_load",
}


def names_used(source: Path) -> Iterator[str]:
    """Modules that are imported and dotted names that are used, `np` and `torch` as themselves."""
    known = {"np": "numpy"}
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{known.get(node.value.id, node.value.id)}.{node.attr}"


def test_no_line_of_the_package_names_an_unpickler() -> None:
    for source in sorted((ROOT_FOLDER / "kcpr_safety").rglob("*.py")):
        used = set(names_used(source)) & UNPICKLERS
        assert not used, f"{source.relative_to(ROOT_FOLDER)} uses {used}"


def test_no_unpickler_runs_whatever_is_read(tmp_path: Path, bundle: Path) -> None:
    """Python tells its auditors of every class that an unpickler looks up: there is none, though
    the files are pickles wherever they may be; and their payload stays unrun."""
    payload = tmp_path / "payload"
    code = f"""
import sys, warnings
from pathlib import Path
heard = []
sys.addaudithook(lambda event, args: heard.append(event) if event.startswith("pickle.") else None)
from kcpr_safety import load_policy, envs
from kcpr_safety.cards import load_card
from kcpr_safety.errors import KcprError
from kcpr_safety.evidence import read_evidence
from kcpr_safety.report.runs import read_run
from kcpr_safety.training.checkpoints import read_checkpoint, read_config
from kcpr_safety.training.evaluation import evaluate_policy
import pickle
class Evil:
    def __reduce__(self):
        return (open, ({str(payload)!r}, "w"))
evil = pickle.dumps(Evil())
heard.clear()
policy = load_policy({str(bundle)!r})
assert heard == [], heard
folder = Path({str(tmp_path)!r}) / "evil"
folder.mkdir()
names = ["config.json", "checkpoint-1.safetensors", "policy.safetensors", "metrics.jsonl",
         "evaluation.json", "card.json", "controller.pt", "weights.safetensors",
         "golden.safetensors", "x.toml"]
for name in names:
    (folder / name).write_bytes(evil)
readers = [load_policy, read_run, read_config, read_checkpoint, read_evidence,
           lambda p: load_card(p / "x.toml"), lambda p: evaluate_policy(p, 1, 10_000),
           lambda p: load_policy(p / "policy.safetensors")]
for read in readers:
    try:
        read(folder)
    except KcprError:
        continue
    raise SystemExit(f"{{read}} took a pickle")
assert heard == [], heard
assert not Path({str(payload)!r}).exists()
pickle.loads(evil)
assert heard == ["pickle.find_class"], "the auditor does not listen"
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------- versions


def test_every_format_names_an_unknown_version(tmp_path: Path) -> None:
    policy = fake_policy()
    data = policy_to_bytes(policy, "policy")
    tensors, header = unpack(data, "policy")
    with pytest.raises(FileFault, match="schema version '7'"):
        policy_from_bytes(pack(tensors, header | {"schema_version": "7"}), "NAME")
    run = fake_run(tmp_path / "run", policy)
    config = json.loads((run / "config.json").read_text()) | {"schema_version": "7"}
    (run / "config.json").write_text(json.dumps(config))
    from kcpr_safety.report.runs import read_run
    from kcpr_safety.training.checkpoints import read_config

    for read in (read_run, read_config):
        with pytest.raises(FileFault, match="schema version '7'"):
            read(run)
    assert load_policy(run).contract == policy.contract


def test_what_a_setting_may_be_is_said() -> None:
    with pytest.raises(SettingsError, match="width is 'wide'; it must be a int"):
        settings_from({"width": "wide"})


def test_files_older_than_a_setting_mean_what_learners_did_before() -> None:
    record = asdict(Settings())
    assert settings_from(record) == Settings()
    for name in BEFORE:
        del record[name]
    assert settings_from(record) == replace(Settings(), **BEFORE) != Settings()


def test_a_few_thousand_mutated_inputs(tmp_path: Path) -> None:
    """The first inputs of every kind; `scripts/fuzz.py` goes on to a million."""
    words = [sys.executable, str(ROOT_FOLDER / "scripts" / "fuzz.py"), "--inputs", "1"]
    done = subprocess.run(
        [*words, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6,500 inputs" in done.stdout
