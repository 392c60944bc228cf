"""Does the C++ program give the very actions of Python, and refuse whatever is not in order?"""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fcntl import ioctl
from pathlib import Path
from termios import FIONREAD
from typing import Any

import numpy as np
import pytest
import torch
from cpp import FAULT, LATE, STALE, observations, program, refusal, robot, trusted
from fakes import (
    fake_assurance,
    fake_contract,
    fake_discrete_policy,
    fake_policy,
    fake_run,
    reseal,
)
from numpy import ndarray

from kcpr_safety.assurance import MODE_BITS
from kcpr_safety.assured import SCHEMA_VERSION, AssuredController
from kcpr_safety.cards import data_root
from kcpr_safety.contract import Contract, Entry, Servo
from kcpr_safety.deploy import load_policy
from kcpr_safety.deploy.archive import canonical, extras_of, load_script
from kcpr_safety.deploy.bundle import export_bundle
from kcpr_safety.deploy.keys import generate
from kcpr_safety.deploy.native import SOURCES, build
from kcpr_safety.deploy.parity import answers, golden_observations
from kcpr_safety.deploy.script import proven, script_here
from kcpr_safety.policy_file import PolicyFile

pytestmark = pytest.mark.slow

INVALID = MODE_BITS["invalid"]
SHIPPED = "UnitreeGo1Walk-v0"


def servo_contract(period_s: float = 0.05) -> Contract:
    """A leg as a Go1 has it: it rests where neither zero is nor the bound next to it."""
    bounds = {"hip": (-0.2, 0.2, 0.1), "knee": (0.55, 1.25, 0.9), "calf": (-2.1, -1.5, -1.8)}
    return replace(
        fake_contract(),
        action=tuple(Entry(name, "rad", low, high) for name, (low, high, _) in bounds.items()),
        servos=tuple(
            Servo(name, 40.0, 1.5, rest, 23.7, 20.0) for name, (*_, rest) in bounds.items()
        ),
        period_s=period_s,
    )


POLICIES: dict[str, Callable[[], PolicyFile]] = {
    "plain": lambda: fake_policy(4),
    "discrete": lambda: fake_discrete_policy(4),
    "width 256": lambda: fake_policy(5, width=256),
    "servos": lambda: fake_policy(6, contract=servo_contract()),
}
ROWS = {"plain": 10_000, "discrete": 3_000, "width 256": 500, "servos": 3_000, SHIPPED: 500}


@dataclass(frozen=True)
class Case:
    """A bundle, and what both sides are asked."""

    bundle: Path
    trust: Path
    module: torch.jit.ScriptModule
    contract: Contract
    obs: ndarray

    def robot(
        self, command: str, *options: object, obs: ndarray | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        data = b"" if obs is None else obs.tobytes()
        return robot(command, self.bundle, *options, stdin=data, trust=self.trust)

    @property
    def safe(self) -> ndarray:
        """The safe action that the contract in the file declares."""
        return np.float32(json.loads(self.module.contract())["assurance"]["safe_action"])


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name == SHIPPED:
            bundle = data_root() / "policies" / SHIPPED
            trust = bundle.parent / "trusted"
        else:
            folder = tmp_path_factory.mktemp("cpp")
            run = fake_run(folder / "run", POLICIES[name]())
            bundle, trust = Path(export_bundle(run, folder / "bundle")["path"]), trusted()
        loaded = load_policy(bundle)
        assert isinstance(loaded.controller, torch.jit.ScriptModule)
        obs = observations(loaded.contract, loaded.controller, ROWS[name])
        return Case(bundle, trust, loaded.controller, loaded.contract, obs)

    def case(name: str) -> Case:
        if name not in made:
            made[name] = make(name)
        return made[name]

    return case


every_case = pytest.mark.parametrize("name", ROWS)


@pytest.fixture(scope="module")
def bundle(cases: Callable[[str], Case]) -> Path:
    return cases("plain").bundle


@pytest.fixture(scope="module")
def module(cases: Callable[[str], Case]) -> torch.jit.ScriptModule:
    return cases("plain").module


@pytest.fixture(scope="module")
def contract(cases: Callable[[str], Case]) -> Contract:
    return cases("plain").contract


@pytest.fixture(scope="module")
def obs(cases: Callable[[str], Case]) -> ndarray:
    return cases("plain").obs


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


@every_case
@pytest.mark.parametrize("method", ["forward", "act", "nominal", "fallback", "check"])
def test_every_method_equals_python_to_the_last_bit(
    cases: Callable[[str], Case], name: str, method: str
) -> None:
    case = cases(name)
    done = case.robot("ask", "--method", method, obs=case.obs)
    assert done.returncode == 0, done.stderr
    expected: list[bytes] = []
    with torch.inference_mode():
        for row in torch.from_numpy(case.obs):
            answer = getattr(case.module, method)(row.unsqueeze(0))
            parts = answer if isinstance(answer, tuple) else (answer,)
            expected += [part.to(torch.float32).contiguous().numpy().tobytes() for part in parts]
    assert done.stdout == b"".join(expected)


@every_case
def test_steps_and_their_recording_equal_python_to_the_last_bit(
    cases: Callable[[str], Case], name: str, tmp_path: Path
) -> None:
    case, box = cases(name), tmp_path / "box"
    # A busy machine may be late; lateness has its own test.
    done = case.robot("run", "--deadline", 60, "--record", box, obs=case.obs)
    assert done.returncode == 0, done.stderr
    actions, risks, modes, overruled = rows_of(done.stdout, case.contract)
    wanted_actions, wanted_risks, wanted_modes = chained(case.module, case.obs)
    assert not overruled.any()
    assert actions.tobytes() == wanted_actions.tobytes()
    assert risks.tobytes() == wanted_risks.tobytes()
    assert (modes == wanted_modes).all()
    assert len(set(modes.tolist())) > 1, "the observations must reach more than one mode"
    replayed = case.robot("replay", "--recording", box)
    assert replayed.stdout.decode() == f"{len(case.obs)} recorded steps repeated bit for bit\n"


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
        ("sensor_0,sensor_1,sensor_2,sensor_3,renamed", "names no observation 'sensor_4', which"),
        ("sensor_0,sensor_1,sensor_2,sensor_3", "names no observation 'sensor_4', which"),
        ("sensor_0,sensor_1,sensor_2,sensor_3,sensor_4,more", "knows no observation 'more'"),
        ("sensor_0,sensor_1,sensor_2,sensor_3,sensor_4,sensor_0", "twice"),
    ],
)
def test_another_wiring_is_refused(bundle: Path, names: str, words: str) -> None:
    assert words in refusal(robot("run", bundle, "--observation", names))


def test_a_policy_with_two_observations_of_one_name_is_refused(copy: Path) -> None:
    card = json.loads((copy / "card.json").read_bytes())
    card["contract"]["observation"][1]["name"] = "sensor_0"
    (copy / "card.json").write_text(json.dumps(card))
    done = robot("verify", reseal(copy), "--observation", "sensor_0,sensor_2,sensor_3,sensor_4")
    assert "the policy has more than one observation 'sensor_0'" in refusal(done)


def test_another_control_period_is_refused(bundle: Path) -> None:
    assert "control period" in refusal(robot("verify", bundle, "--period", 0.02))
    assert robot("verify", bundle, "--period", 0.05).returncode == 0


@pytest.mark.parametrize("name", ["plain", "servos", SHIPPED])
def test_what_is_stale_or_late_gets_the_declared_safe_action(
    cases: Callable[[str], Case], name: str
) -> None:
    case = cases(name)
    stale = ("--age", 1.2 * case.contract.period_s, "--deadline", 60)
    for options, bit in ((stale, STALE), (("--deadline", 1e-9), LATE)):
        done = case.robot("run", *options, obs=case.obs[:20])
        actions, risks, modes, overruled = rows_of(done.stdout, case.contract)
        assert (actions == case.safe).all()
        assert np.isinf(risks).all()
        assert (modes == INVALID).all()
        assert (overruled == bit).all()


def test_a_robot_with_a_rest_pose_rests_elsewhere_than_at_its_bounds(
    cases: Callable[[str], Case],
) -> None:
    """What the two tests around this one would not see in a robot whose rest pose is zero."""
    for name in ("servos", SHIPPED):
        case = cases(name)
        nearest = [min(max(0.0, entry.low), entry.high) for entry in case.contract.action]
        assert (case.safe != np.float32(nearest)).any()


@pytest.mark.parametrize(
    ("safe", "words"),
    [
        ([0.1, 0.9], "a safe action of 2 numbers for 3 actuators"),
        ([0.1, 0.5, -1.8], "outside of the bounds of knee"),
        ([0.1, None, -1.8], "declares no safe action"),
        (None, "declares no safe action"),
        ([0.1, 1.0, -1.8], "differ in their assurance"),
    ],
)
def test_a_signed_safe_action_that_is_none_is_refused(
    cases: Callable[[str], Case], tmp_path: Path, safe: object, words: str
) -> None:
    copy = Path(shutil.copytree(cases("servos").bundle, tmp_path / "copy"))
    card = json.loads((copy / "card.json").read_bytes())
    card["assurance"]["safe_action"] = safe
    (copy / "card.json").write_text(json.dumps(card))
    assert words in refusal(robot("verify", reseal(copy)))


def test_what_is_stale_replays_too(bundle: Path, obs: ndarray, tmp_path: Path) -> None:
    options = ("--age", 0.06, "--record", tmp_path / "box")
    robot("run", bundle, *options, stdin=obs[:20].tobytes())
    assert robot("replay", bundle, "--recording", tmp_path / "box").returncode == 0


@every_case
def test_every_bad_entry_gives_the_declared_safe_action_and_the_mode_of_an_invalid_row(
    cases: Callable[[str], Case], name: str
) -> None:
    case = cases(name)
    ranges = json.loads(case.module.contract())["assurance"]
    low, high = (np.float32(ranges[side]) for side in ("hard_low", "hard_high"))
    rows = []
    for i in range(case.contract.obs_size):
        for value in (np.nan, np.inf, -np.inf, 2 * high[i] - low[i], 2 * low[i] - high[i]):
            row = (low + high) / 2
            row[i] = value
            rows.append(row)
    done = case.robot("run", "--deadline", 60, obs=np.stack(rows))
    actions, _, modes, overruled = rows_of(done.stdout, case.contract)
    assert not overruled.any()
    assert (modes == INVALID).all()
    assert (actions == case.safe).all()
    told = np.frombuffer(case.robot("ask", obs=np.stack(rows)).stdout, dtype=np.float32)
    told = told.reshape(len(rows), -1)  # of `act`: action, risk, mode
    assert (told[:, -1] == INVALID).all()
    assert (told[:, : case.contract.action_size] == case.safe).all()


def too_strong(folder: Path) -> torch.jit.ScriptModule:
    """Sign a controller, into a bundle of `fake_policy(4)`, that goes beyond its own contract."""
    policy = fake_policy(4)
    controller: AssuredController = proven(policy, fake_assurance(policy))
    for part in (controller, controller.policy):
        part.get_buffer("high")[0] += 2.0
    controller.policy.get_buffer("half_span")[0] += 1.0
    obs = golden_observations(policy.tensors)
    controller.set_golden({"obs": obs, **answers(controller, obs)})
    extras = extras_of((folder / "controller.pt").read_bytes(), "controller.pt")
    archive = canonical(script_here(controller), extras)
    (folder / "controller.pt").write_bytes(archive)
    reseal(folder)
    return load_script(archive, "controller.pt")


def test_an_answer_out_of_bounds_is_a_fault_and_the_safe_action(
    cases: Callable[[str], Case], copy: Path, tmp_path: Path
) -> None:
    case, module = cases("plain"), too_strong(copy)
    obs, most = case.obs[:300], case.contract.action[0].high
    wanted, faults = [], []
    state = initial_state(module)
    with torch.inference_mode():
        for row in torch.from_numpy(obs):
            action, _, _, after = module.step(row.unsqueeze(0), state)
            faults.append(FAULT if action[0, 0] > most else 0)
            state = state.clone() if faults[-1] else after
            if faults[-1]:  # remembered as the one that was given
                state[0, -len(case.safe) :] = torch.from_numpy(case.safe)
            wanted.append(case.safe if faults[-1] else action[0].numpy())
    done = robot("run", copy, "--deadline", 60, "--record", tmp_path / "b", stdin=obs.tobytes())
    actions, risks, modes, overruled = rows_of(done.stdout, case.contract)
    assert 0 < np.count_nonzero(faults) < len(obs)
    assert (overruled == faults).all()
    assert actions.tobytes() == np.stack(wanted).tobytes()
    assert np.isinf(risks[overruled != 0]).all()
    assert (modes[overruled != 0] == INVALID).all()
    assert robot("replay", copy, "--recording", tmp_path / "b").returncode == 0


def test_another_size_is_a_fault_and_ros2_control_is_told_of_every_safe_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ROS is not here: `tests/ros` stands in for as much of it as the skeleton touches."""
    program()
    policy = fake_policy(6, contract=servo_contract(period_s=1.0))  # nobody is late here
    bundle = Path(export_bundle(fake_run(tmp_path / "run", policy), tmp_path / "bundle")["path"])
    stand_in = Path(__file__).parent / "ros"
    monkeypatch.setenv("CPLUS_INCLUDE_PATH", str(stand_in))
    probe = build(stand_in / "probe.cpp", tmp_path / "probe")
    done = subprocess.run([probe, bundle, trusted()], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    good, *wrong = rows[:4]
    assert good[1] == "0"
    safe = np.float32(policy.contract.rest)
    assert [row[0] for row in wrong] == ["short", "long", "none"]
    for row in wrong:
        assert row[1:3] == [str(FAULT), str(INVALID)]
        assert (np.float32(row[3:]) == safe).all()
    ros = rows[4:]
    assert [row[1] for row in ros] == ["0", "1", "0"], "ERROR for what is not finite, and only then"
    assert (np.float32(ros[1][3:]) == safe).all()
    assert ros[0][3:] == good[3:]


class TestTheBlackBox:
    """It is there whatever ends the run."""

    def started(self, bundle: Path, box: Path, **streams: Any) -> subprocess.Popen[bytes]:
        # A shell starts what runs in its background deaf to SIGINT.
        heeding = ["env", "--default-signal=INT,TERM,HUP"]
        words = [program(), "run", bundle, "--trust", trusted(), "--deadline", "60"]
        return subprocess.Popen([*heeding, *words, "--record", box], **streams)

    def replayed(self, bundle: Path, box: Path) -> str:
        done = robot("replay", bundle, "--recording", box)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def test_a_place_that_cannot_be_written_is_told_before_the_first_step(
        self, bundle: Path, obs: ndarray, tmp_path: Path
    ) -> None:
        for place in (tmp_path / "absent" / "box", tmp_path):
            done = robot("run", bundle, "--record", place, stdin=obs[:3].tobytes())
            assert f"{place} cannot be written" in refusal(done)

    def test_a_last_observation_that_is_cut_short(
        self, bundle: Path, obs: ndarray, tmp_path: Path
    ) -> None:
        done = robot("run", bundle, "--record", tmp_path / "b", stdin=obs[:3].tobytes() + b"\0")
        assert done.returncode == 2
        assert done.stderr == b"kcpr-robot: the last observation is cut short\n"
        assert self.replayed(bundle, tmp_path / "b").startswith("3 recorded steps")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_while_it_waits(
        self, bundle: Path, obs: ndarray, contract: Contract, tmp_path: Path, number: int
    ) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.started(bundle, tmp_path / "b", **pipes) as child:
            assert child.stdin
            assert child.stdout
            child.stdin.write(obs[:3].tobytes() + b"half")
            child.stdin.flush()
            child.stdout.read(3 * 4 * (contract.action_size + 3))
            child.send_signal(number)
            assert child.wait(60) == 128 + number
        assert self.replayed(bundle, tmp_path / "b").startswith("3 recorded steps")

    def test_a_signal_while_nobody_reads_the_answers(
        self, bundle: Path, obs: ndarray, tmp_path: Path
    ) -> None:
        (tmp_path / "obs").write_bytes(obs.tobytes())
        with (
            (tmp_path / "obs").open("rb") as stream,
            self.started(bundle, tmp_path / "b", stdin=stream, stdout=subprocess.PIPE) as child,
        ):
            assert child.stdout
            waiting = bytearray(4)
            while int.from_bytes(waiting, sys.byteorder) < 60_000:  # of the 65,536 of a pipe
                time.sleep(0.05)
                ioctl(child.stdout, FIONREAD, waiting)
            time.sleep(0.5)
            child.terminate()
            assert child.wait(60) == 128 + signal.SIGTERM
        assert "repeated bit for bit" in self.replayed(bundle, tmp_path / "b")

    def test_a_reader_that_has_gone(self, bundle: Path, obs: ndarray, tmp_path: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.started(bundle, tmp_path / "b", **pipes) as child:
            assert child.stdout
            child.stdout.close()
            child.stdout = None
            _, stderr = child.communicate(obs[:1].tobytes(), timeout=60)
        assert child.returncode == 2
        assert stderr == b"kcpr-robot: stdout cannot be written\n"
        assert self.replayed(bundle, tmp_path / "b").startswith("1 recorded steps")

    def test_an_earlier_one_is_not_lost_to_a_run_that_never_ends(
        self, bundle: Path, obs: ndarray, tmp_path: Path
    ) -> None:
        robot("run", bundle, "--record", tmp_path / "b", stdin=obs[:7].tobytes())
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self.started(bundle, tmp_path / "b", **pipes) as child:
            assert child.stdin
            assert child.stdout
            child.stdin.write(obs[:1].tobytes())
            child.stdin.flush()
            child.stdout.read(1)
            child.kill()
        assert self.replayed(bundle, tmp_path / "b").startswith("7 recorded steps")

    def test_the_newest_hundred_thousand_steps_are_kept_and_replayed_however_large(
        self, tmp_path: Path
    ) -> None:
        policy = fake_policy(2, contract=fake_contract(obs=160), width=8)
        run = fake_run(tmp_path / "run", policy)
        bundle = Path(export_bundle(run, tmp_path / "bundle")["path"])
        obs = np.random.default_rng(2).normal(size=(1_000, 160)).astype(np.float32)
        data = obs.tobytes() * 100 + obs[:3].tobytes()
        box = tmp_path / "box"
        done = robot("run", bundle, "--deadline", 60, "--record", box, stdin=data)
        assert done.returncode == 0, done.stderr
        header = 8 + 64 + 3 * 4 + 8
        size = box.stat().st_size
        assert size > 64 * 2**20, "more than a file of a bundle may have"
        stride = (size - header) // 100_000
        with box.open("rb") as stream:
            for row in (0, 1, 99_999):
                stream.seek(header + row * stride)
                assert int.from_bytes(stream.read(8), sys.byteorder) == row + 3, "oldest first"
        assert self.replayed(bundle, box).startswith("100000 recorded steps")


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
        (["replay", "x", "--trust", "y"], "replay needs --recording FILE"),
        (["ask", "x", "--trust", "y", "--method", "nonsense"], "unknown method 'nonsense'"),
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

    def consume(*words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-I", str(consumer), *map(str, words)]
        return subprocess.run(command, input=stdin, capture_output=True, check=False)

    def fault(*words: object, stdin: bytes = b"") -> str:
        done = consume(*words, stdin=stdin)
        assert done.returncode == 2
        (sentence,) = done.stderr.decode().splitlines()
        return sentence

    done = consume(bundle, stdin=obs[:500].tobytes())
    with torch.inference_mode():
        rows = [module.act(row.unsqueeze(0))[0] for row in torch.from_numpy(obs[:500])]
    assert done.stdout == torch.cat(rows).numpy().tobytes(), done.stderr
    assert "takes one argument, the folder of a bundle" in fault()
    assert f"{copy.parent / 'manifest.json'}" in fault(copy.parent)
    assert "the last observation is cut short" in fault(copy, stdin=obs[:2].tobytes()[:-1])
    data = bytearray((copy / "controller.pt").read_bytes())
    data[1000] ^= 1
    (copy / "controller.pt").write_bytes(data)
    assert "controller.pt is not the file that was signed" in fault(copy)


def test_the_lines_of_the_card_give_actions_in_an_empty_folder(
    bundle: Path, tmp_path: Path
) -> None:
    """Its C++ is built and run by the very commands that it prints."""
    program()
    page = (bundle / "CARD.md").read_text()
    (lines,) = re.findall(r"```cpp\n(.*?)```", page, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    (name, trust) = re.findall(r'open_bundle\("([^"]+)", "([^"]+)"\)', lines)[0]
    shutil.copytree(bundle, tmp_path / name)
    (tmp_path / trust).mkdir()
    shutil.copy(trusted(), tmp_path / trust)
    (tmp_path / "mine.cpp").write_text(lines)
    # As in a shell where the environment of the package is active.
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = str(SOURCES.parent.parent.parent)
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": search, "PYTHONPATH": modules},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len([float(word) for word in done.stdout.splitlines()[-1].split()]) == 2
