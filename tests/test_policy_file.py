"""Does a policy file come back to the bit, and is everything else refused in one sentence?"""

import dataclasses
import json
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from fakes import fake_contract, fake_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from traps import Trap

from kcpr_safety.contract import Entry
from kcpr_safety.errors import FileFault, KcprError
from kcpr_safety.policy_file import (
    check_tensors,
    layer_count,
    locate_policy,
    policy_from_bytes,
    policy_to_bytes,
    read_policy,
    write_policy,
)
from kcpr_safety.tensor_file import pack, unpack

POLICY = fake_policy(2, width=4)
DATA = policy_to_bytes(POLICY, "policy")


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    write_policy(path, POLICY)
    back = read_policy(path)
    assert back.contract == POLICY.contract
    assert (back.agent, back.task, back.seed, back.steps) == ("kcpr", "SafetyFake-v1", 2, 90_000)
    assert back.settings == POLICY.settings
    assert back.tensors.keys() == POLICY.tensors.keys()
    for key, tensor in POLICY.tensors.items():
        assert torch.equal(back.tensors[key], tensor), key
    assert layer_count(back.tensors, "actor") == layer_count(back.tensors, "critic") == 3


def with_range(low: float, high: float) -> dict[str, torch.Tensor]:
    return {**POLICY.tensors, "obs_low": torch.full((5,), low), "obs_high": torch.full((5,), high)}


def test_files_of_all_schema_versions_come_back() -> None:
    """What training saw is in version 2, nearness in 3; older files have neither."""
    near = {"obs_near": torch.tensor([0.0, 0.0, 10.0, 10.0, 0.0])}
    for tensors, version in (
        (POLICY.tensors, "1"),
        (with_range(-1.0, 2.0), "2"),
        (POLICY.tensors | near, "3"),
        (with_range(-1.0, 2.0) | near, "3"),
    ):
        policy = dataclasses.replace(POLICY, tensors=tensors)
        data = policy_to_bytes(policy, "NAME")
        assert unpack(data, "NAME")[1]["schema_version"] == version
        assert policy_from_bytes(data, "NAME").tensors.keys() == tensors.keys()


def test_half_a_range_is_none() -> None:
    half = {key: value for key, value in with_range(0.0, 1.0).items() if key != "obs_high"}
    for tensors, words in ((half, "lacks the tensor obs_high"), (with_range(1.0, 0.0), "above")):
        with pytest.raises(FileFault, match=words):
            check_tensors(tensors, POLICY.contract, "NAME")


def test_the_library_reads_the_same(tmp_path: Path) -> None:
    """The writer is ours; the format is not."""
    path = tmp_path / "policy.safetensors"
    write_policy(path, POLICY)
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == POLICY.metadata()
        assert set(opened.keys()) == set(POLICY.tensors)
        for key in opened.keys():  # noqa: SIM118
            assert torch.equal(opened.get_tensor(key), POLICY.tensors[key])


def test_all_types_survive() -> None:
    tensors = {
        "wide": torch.tensor([1.5, -0.0, 5e-324], dtype=torch.float64),
        "flag": torch.tensor([True, False, True]),
        "bytes": torch.tensor([1, 2, 255], dtype=torch.uint8),
        "count": torch.tensor(2**62),
        "none": torch.zeros(0, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    back, metadata = unpack(pack(tensors, {"Ünï": "\n"}), "x")
    assert metadata == {"Ünï": "\n"}
    for key, tensor in tensors.items():
        assert back[key].dtype == tensor.dtype
        assert torch.equal(back[key], tensor), key


def test_equal_policies_give_equal_bytes_in_any_process() -> None:
    child = (
        "import sys; from fakes import fake_policy; from kcpr_safety.policy_file import *\n"
        "sys.stdout.buffer.write(policy_to_bytes(fake_policy(2, width=4), 'policy'))\n"
    )
    for _ in range(2):
        tests = Path(__file__).parent
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tests)!r})\n" + child],
            capture_output=True,
            check=True,
        )
        assert done.stdout == DATA


def test_locate(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="holds no policy"):
        locate_policy(tmp_path)
    with pytest.raises(FileFault, match="does not exist"):
        locate_policy(tmp_path / "absent")
    write_policy(tmp_path / "weights.safetensors", POLICY)
    assert read_policy(tmp_path).steps == POLICY.steps
    newer = dataclasses.replace(POLICY, steps=5)
    write_policy(tmp_path / "policy.safetensors", newer)
    assert read_policy(tmp_path).steps == 5
    assert read_policy(tmp_path / "weights.safetensors").steps == POLICY.steps


def without(key: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in POLICY.tensors.items() if name != key}


BROKEN = {
    "obs_mean": without("obs_mean"),
    "obs_scale must be positive": {**POLICY.tensors, "obs_scale": torch.zeros(5)},
    "actor.1.weight": without("actor.1.weight"),
    "layers 0, 1": {k: v for k, v in POLICY.tensors.items() if not k.startswith("critic.1")},
    "the critic must": {k: v for k, v in POLICY.tensors.items() if not k.startswith("critic")},
    "lacks the tensor critic.2.bias": without("critic.2.bias"),
    "hat": {**POLICY.tensors, "hat": torch.zeros(1)},
    "not torch.float32": {**POLICY.tensors, "obs_mean": torch.zeros(5, dtype=torch.float64)},
    "not finite": {**POLICY.tensors, "obs_mean": torch.full((5,), torch.nan)},
    r"shape \[6\]": {**POLICY.tensors, "obs_mean": torch.zeros(6)},
    r"asks for \[2, 4, 4\]": {**POLICY.tensors, "actor.2.weight": torch.zeros(2, 4, 6)},
    r"actor.1.weight has shape \[2, 3, 4\]": {
        **POLICY.tensors,
        "actor.1.weight": torch.zeros(2, 3, 4),
    },
    "must have 2 members": {
        k: v[:1] if k.startswith("actor") else v for k, v in POLICY.tensors.items()
    },
}


@pytest.mark.parametrize("words", BROKEN)
def test_other_tensors_are_refused_on_both_sides(words: str, tmp_path: Path) -> None:
    broken = dataclasses.replace(POLICY, tensors=BROKEN[words])
    with pytest.raises(FileFault, match=words):
        write_policy(tmp_path / "policy", broken)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileFault, match=words) as fault:
        policy_from_bytes(pack(broken.tensors, broken.metadata()), "NAME")
    assert str(fault.value).startswith("NAME")


def test_unbounded_actions_are_refused() -> None:
    contract = dataclasses.replace(fake_contract(), action=(Entry("hip", "N m"),) * 2)
    with pytest.raises(FileFault, match="hip needs finite bounds"):
        policy_to_bytes(dataclasses.replace(POLICY, contract=contract), "NAME")


HEADERS = {
    "has no schema_version": {"schema_version": None},
    "has schema version '4'": {"schema_version": "4"},
    "version 3, but not its tensors: obs_near": {"schema_version": "3"},
    "version 2, but not its tensors": {"schema_version": "2"},
    "missing or adds seed": {"seed": None},
    "missing or adds hat": {"hat": "1"},
    "damaged header: not a contract": {"contract": "{}"},
    "damaged header: Expecting": {"settings": "{"},
    "no JSON object": {"settings": "[]"},
    "damaged header: invalid literal": {"steps": "many"},
    "its contract SafetyFake-v1": {"task": "Other-v0"},
}


@pytest.mark.parametrize("words", HEADERS)
def test_other_headers_are_refused(words: str) -> None:
    changed = {**POLICY.metadata(), **HEADERS[words]}
    metadata = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(FileFault, match=words):
        policy_from_bytes(pack(POLICY.tensors, metadata), "NAME")


FOREIGN = {
    "empty": b"",
    "text": b"hello",
    "json": json.dumps({"__metadata__": {}}).encode(),
    "pickle": pickle.dumps(Trap()),
    "huge header": b"\xff" * 8 + DATA[8:],
    "zeros": bytes(1000),
    "truncated": DATA[:-1],
    "half": DATA[: len(DATA) // 2],
    "longer": DATA + b"\0",
    "no metadata": pack(POLICY.tensors, {}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(FileFault) as fault:
        read_policy(path)
    assert str(path) in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_file_of_endless_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    with open(path, "wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(FileFault, match="larger than"):
        read_policy(path)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(DATA) - 1), value=st.integers(0, 255))
def test_a_changed_byte_raises_or_gives_a_valid_policy(position: int, value: int) -> None:
    """Never a traceback of another kind: corruption ends as `KcprError` or as other numbers."""
    data = bytearray(DATA)
    data[position] = value
    with suppress(KcprError):
        policy = policy_from_bytes(bytes(data), "NAME")
        check_tensors(policy.tensors, policy.contract, "NAME")
