"""Does the C++ program give the very actions of Python, and refuse whatever is not in order?"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpp import FAULT, LATE, STALE, observations, program, refusal, robot, trusted
from fakes import fake_assurance, fake_policy, fake_run, reseal
from numpy import ndarray

from kcpr_safety.assured import SCHEMA_VERSION
from kcpr_safety.contract import Contract
from kcpr_safety.deploy import load_policy
from kcpr_safety.deploy.archive import canonical, extras_of
from kcpr_safety.deploy.bundle import export_bundle
from kcpr_safety.deploy.keys import generate
from kcpr_safety.deploy.native import SOURCES, build
from kcpr_safety.deploy.script import proven, script_here

pytestmark = pytest.mark.slow

ROWS = 10_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    return Path(export_bundle(fake_run(folder / "run", fake_policy(4)), folder / "bundle")["path"])


@pytest.fixture(scope="module")
def module(bundle: Path) -> torch.jit.ScriptModule:
    loaded = load_policy(bundle).controller
    assert isinstance(loaded, torch.jit.ScriptModule)
    return loaded


@pytest.fixture(scope="module")
def contract(bundle: Path) -> Contract:
    return load_policy(bundle).contract


@pytest.fixture(scope="module")
def obs(contract: Contract, module: torch.jit.ScriptModule) -> ndarray:
    return observations(contract, module, ROWS)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def initial_state(module: torch.jit.ScriptModule) -> torch.Tensor:
    return torch.tensor([json.loads(module.contract())["assurance"]["initial_state"]])


def rows_of(data: bytes, contract: Contract) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Actions, risks, modes and overrulings out of the stdout of `run`."""
    width = contract.action_size
    table = np.frombuffer(data, dtype=np.float32).reshape(-1, width + 3)
    bits = table[:, width + 1 :].copy().view(np.int32)
    return table[:, :width], table[:, width], bits[:, 0], bits[:, 1]


def chained(module: torch.jit.ScriptModule, obs: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """`step` from Python: actions, risks, modes."""
    state = initial_state(module)
    answers: list[tuple[Any, ...]] = []
    with torch.inference_mode():
        for row in torch.from_numpy(obs):
            action, risk, mode, state = module.step(row.unsqueeze(0), state)
            answers.append((action[0].numpy(), risk.item(), mode.item()))
    actions, risks, modes = zip(*answers, strict=True)
    return np.stack(actions), np.float32(risks), np.int32(modes)


def test_a_bundle_that_is_in_order_is_told_so(bundle: Path) -> None:
    done = robot("verify", bundle)
    assert done.returncode == 0, done.stderr
    assert "signed by 'local'" in done.stdout.decode()


@pytest.mark.parametrize("method", ["forward", "act", "nominal", "fallback", "check"])
def test_every_method_equals_python_to_the_last_bit(
    bundle: Path, module: torch.jit.ScriptModule, obs: ndarray, method: str
) -> None:
    done = robot("ask", bundle, "--method", method, stdin=obs.tobytes())
    assert done.returncode == 0, done.stderr
    expected: list[bytes] = []
    with torch.inference_mode():
        for row in torch.from_numpy(obs):
            answer = getattr(module, method)(row.unsqueeze(0))
            parts = answer if isinstance(answer, tuple) else (answer,)
            expected += [part.to(torch.float32).contiguous().numpy().tobytes() for part in parts]
    assert done.stdout == b"".join(expected)


def test_steps_and_their_recording_equal_python_to_the_last_bit(
    bundle: Path,
    module: torch.jit.ScriptModule,
    contract: Contract,
    obs: ndarray,
    tmp_path: Path,
) -> None:
    box = tmp_path / "box"
    # A busy machine may be late; lateness has its own test.
    done = robot("run", bundle, "--deadline", 60, "--record", box, stdin=obs.tobytes())
    assert done.returncode == 0, done.stderr
    actions, risks, modes, overruled = rows_of(done.stdout, contract)
    wanted_actions, wanted_risks, wanted_modes = chained(module, obs)
    assert not overruled.any()
    assert actions.tobytes() == wanted_actions.tobytes()
    assert risks.tobytes() == wanted_risks.tobytes()
    assert (modes == wanted_modes).all()
    assert len(set(modes.tolist())) > 1, "the observations must reach more than one mode"
    replayed = robot("replay", bundle, "--recording", box)
    assert replayed.stdout.decode() == f"{ROWS} recorded steps repeated bit for bit\n"


def test_rehearsals_change_no_answer(bundle: Path, obs: ndarray) -> None:
    plain, rehearsed = (
        robot("run", bundle, "--deadline", 60, *more, stdin=obs[:500].tobytes()).stdout
        for more in ((), ("--rehearse", 2))
    )
    assert plain
    assert plain == rehearsed


def test_a_recording_with_one_changed_bit_is_noticed(
    bundle: Path, contract: Contract, obs: ndarray, tmp_path: Path
) -> None:
    box = tmp_path / "box"
    robot("run", bundle, "--deadline", 60, "--record", box, stdin=obs[:50].tobytes())
    data = bytearray(box.read_bytes())
    data[-1] ^= 1  # the last action's last float
    box.write_bytes(data)
    assert "1 of 50 recorded steps" in refusal(robot("replay", bundle, "--recording", box))
    box.write_bytes(data[:-8])
    assert "cut short" in refusal(robot("replay", bundle, "--recording", box))
    box.write_bytes(b"KCPRBBX1" + bytes(64) + data[72:])
    assert "another bundle" in refusal(robot("replay", bundle, "--recording", box))


def test_the_robots_own_order_of_names_is_respected(
    bundle: Path, contract: Contract, obs: ndarray
) -> None:
    generator = np.random.default_rng(0)
    seen = generator.permutation(contract.obs_size)
    driven = generator.permutation(contract.action_size)[::-1]
    names = ",".join(contract.observation[i].name for i in seen)
    joints = ",".join(contract.action[i].name for i in driven)
    plain = robot("run", bundle, "--deadline", 60, stdin=obs[:200].tobytes())
    done = robot(
        "run",
        bundle,
        *("--deadline", 60, "--observation", names, "--action", joints),
        stdin=obs[:200, seen].tobytes(),
    )
    ours, theirs = rows_of(plain.stdout, contract)[0], rows_of(done.stdout, contract)[0]
    assert ours[:, driven].tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("sensor_0,sensor_1,sensor_2,sensor_3,renamed", "no observation 'sensor_4'"),
        ("sensor_0,sensor_1,sensor_2,sensor_3", "no observation 'sensor_4'"),
        ("sensor_0,sensor_1,sensor_2,sensor_3,sensor_4,more", "knows no observation 'more'"),
        ("sensor_0,sensor_1,sensor_2,sensor_3,sensor_4,sensor_0", "twice"),
    ],
)
def test_another_wiring_is_refused(bundle: Path, names: str, words: str) -> None:
    assert words in refusal(robot("run", bundle, "--observation", names))


def test_another_control_period_is_refused(bundle: Path) -> None:
    assert "control period" in refusal(robot("verify", bundle, "--period", 0.02))
    assert robot("verify", bundle, "--period", 0.05).returncode == 0


def test_what_is_stale_or_late_gets_the_safe_action(
    bundle: Path, contract: Contract, obs: ndarray
) -> None:
    safe = np.float32([min(max(0.0, entry.low), entry.high) for entry in contract.action])
    for options, bit in ((("--age", 0.06), STALE), (("--deadline", 1e-9), LATE)):
        done = robot("run", bundle, *options, stdin=obs[:20].tobytes())
        actions, risks, _, overruled = rows_of(done.stdout, contract)
        assert (actions == safe).all()
        assert np.isinf(risks).all()
        assert (overruled == bit).all()
    assert FAULT not in overruled


def test_what_is_stale_replays_too(
    bundle: Path, contract: Contract, obs: ndarray, tmp_path: Path
) -> None:
    options = ("--age", 0.06, "--record", tmp_path / "box")
    robot("run", bundle, *options, stdin=obs[:20].tobytes())
    assert robot("replay", bundle, "--recording", tmp_path / "box").returncode == 0


def test_every_bad_entry_gives_a_finite_command_within_bounds_and_the_mode_of_an_invalid_row(
    bundle: Path, contract: Contract, module: torch.jit.ScriptModule
) -> None:
    ranges = json.loads(module.contract())["assurance"]
    low, high = (np.float32(ranges[side]) for side in ("hard_low", "hard_high"))
    rows = []
    for i in range(contract.obs_size):
        for value in (np.nan, np.inf, -np.inf, 2 * high[i] - low[i], 2 * low[i] - high[i]):
            row = (low + high) / 2
            row[i] = value
            rows.append(row)
    done = robot("run", bundle, "--deadline", 60, stdin=np.stack(rows).tobytes())
    actions, _, modes, overruled = rows_of(done.stdout, contract)
    assert (modes & 4 == 4).all()
    assert not overruled.any()
    for i, entry in enumerate(contract.action):
        assert np.isfinite(actions[:, i]).all()
        assert (actions[:, i] >= np.float32(entry.low)).all()
        assert (actions[:, i] <= np.float32(entry.high)).all()


def test_any_changed_byte_of_any_file_is_refused(copy: Path) -> None:
    generator = np.random.default_rng(1)
    for path in sorted(copy.iterdir()):
        original = path.read_bytes()
        for offset in generator.integers(0, len(original), 3):
            changed = bytearray(original)
            changed[offset] ^= 1 << int(generator.integers(8))
            path.write_bytes(changed)
            sentence = refusal(robot("verify", copy))
            assert path.name in sentence or "manifest" in sentence
        path.write_bytes(original)
    assert robot("verify", copy).returncode == 0


def test_missing_added_and_linked_files_are_refused(copy: Path) -> None:
    for name in sorted(path.name for path in copy.iterdir()):
        hidden = copy.parent / "hidden"
        (copy / name).rename(hidden)
        assert f"{name} is missing" in refusal(robot("verify", copy))
        (copy / name).symlink_to(hidden)
        assert f"{name} is not a regular file" in refusal(robot("verify", copy))
        (copy / name).unlink()
        hidden.rename(copy / name)
    (copy / "more.json").write_text("{}")
    assert "more.json is not in the signed manifest" in refusal(robot("verify", copy))


def test_only_a_trusted_key_counts(copy: Path, tmp_path: Path) -> None:
    _, other = generate("other", tmp_path / "keys")
    assert "not a trusted key's signature" in refusal(robot("verify", copy, trust=other))
    assert robot("verify", copy, trust=trusted().parent).returncode == 0
    shutil.copy(trusted(), copy)
    reseal(copy)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no trusted key" in refusal(robot("verify", copy, trust=empty))
    other.write_text("ab" * 31)
    assert "64 hexadecimal digits" in refusal(robot("verify", copy, trust=other))


def test_a_signed_bundle_of_another_schema_is_refused(copy: Path) -> None:
    card = json.loads((copy / "card.json").read_bytes())
    (copy / "card.json").write_text(json.dumps({**card, "schema_version": "2.0"}))
    reseal(copy)
    assert "unknown schema version" in refusal(robot("verify", copy))


def test_a_signed_card_of_another_robot_is_refused(copy: Path) -> None:
    card = json.loads((copy / "card.json").read_bytes())
    card["contract"]["observation"][1]["name"] = "renamed"
    (copy / "card.json").write_text(json.dumps(card))
    reseal(copy)
    assert "differ in their contract's observation" in refusal(robot("verify", copy))


def test_a_signed_controller_of_another_interface_is_refused(copy: Path) -> None:
    policy = fake_policy(4)
    controller = proven(policy, fake_assurance(policy))
    controller.version = SCHEMA_VERSION + 1
    extras = extras_of((copy / "controller.pt").read_bytes(), "controller.pt")
    (copy / "controller.pt").write_bytes(canonical(script_here(controller), extras))
    assert f"interface version {SCHEMA_VERSION + 1}" in refusal(robot("verify", reseal(copy)))


class _Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_malicious_pickle_is_never_run(copy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "run"
    malice = pickle.dumps(_Malice(mark))
    for path in sorted(copy.iterdir()):
        original = path.read_bytes()
        path.write_bytes(malice)
        refusal(robot("verify", copy))
        if path.name == "controller.pt":
            assert path.name in refusal(robot("verify", reseal(copy)))
        path.write_bytes(original)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["frobnicate"], "unknown command 'frobnicate'"),
        (["verify"], "needs a bundle folder"),
        (["verify", "x"], "--trust is missing"),
        (["verify", "x", "--trust", "y"], "no bundle folder"),
        (["verify", "x", "--turst", "y"], "unknown option '--turst'"),
        (["verify", "x", "--trust"], "--trust needs a value"),
    ],
)
def test_bad_words_are_one_sentence(words: list[str], sentence: str) -> None:
    done = subprocess.run([str(program()), *words], capture_output=True, check=False)
    assert sentence in refusal(done)


def test_a_bad_number_is_one_sentence(bundle: Path) -> None:
    assert "--deadline takes a number" in refusal(robot("run", bundle, "--deadline", "soon"))


def test_a_million_steps_with_gradients_on_leave_memory_flat(bundle: Path) -> None:
    done = robot("soak", bundle, "--steps", 1_000_000, "--deadline", 60)
    record = json.loads(done.stdout)
    assert record["steps"] == 1_000_000
    assert record["overruled"] == 0
    assert record["end_kb"] - record["start_kb"] < 512, record


def test_forty_lines_of_python_with_torch_alone_act_alike(
    bundle: Path, module: torch.jit.ScriptModule, obs: ndarray, copy: Path
) -> None:
    consumer = SOURCES / "consumer.py"
    assert len(consumer.read_text().splitlines()) <= 40

    def consume(folder: Path) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-I", str(consumer), str(folder)]
        return subprocess.run(command, input=obs[:500].tobytes(), capture_output=True, check=False)

    done = consume(bundle)
    with torch.inference_mode():
        rows = [module.act(row.unsqueeze(0))[0] for row in torch.from_numpy(obs[:500])]
    assert done.stdout == torch.cat(rows).numpy().tobytes(), done.stderr
    data = bytearray((copy / "controller.pt").read_bytes())
    data[1000] ^= 1
    (copy / "controller.pt").write_bytes(data)
    assert b"controller.pt is not the file" in consume(copy).stderr


def test_the_lines_of_the_card_give_actions_in_an_empty_folder(
    bundle: Path, tmp_path: Path
) -> None:
    program()
    (lines,) = re.findall(r"```cpp\n(.*?)```", (bundle / "CARD.md").read_text(), re.DOTALL)
    (name, trust) = re.findall(r'open_bundle\("([^"]+)", "([^"]+)"\)', lines)[0]
    shutil.copytree(bundle, tmp_path / name)
    (tmp_path / trust).mkdir()
    shutil.copy(trusted(), tmp_path / trust)
    (tmp_path / "mine.cpp").write_text(lines)
    mine = build(tmp_path / "mine.cpp", tmp_path / "mine")
    done = subprocess.run([mine], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len([float(word) for word in done.stdout.split()]) == 2
