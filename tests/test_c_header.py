"""Does the generated C give torch's answers, never allocate, and compile without a warning?"""

import ctypes
import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import fake_discrete_policy, fake_policy, fake_servo_policy, seeing_near
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from kcpr_safety.assurance import Assurance
from kcpr_safety.assured import assured, unassured
from kcpr_safety.deploy.c_header import HEADER, array, c_header, literal
from kcpr_safety.deploy.native import c_library
from kcpr_safety.policy_file import PolicyFile

ROWS = 10_000
SHIM = f"""#include "{HEADER}"
int32_t c_act(const float *obs, float *action, float *risk);
int32_t c_step(const float *obs, kcpr_state *state, float *action, float *risk);
int32_t c_check(const float *obs);
void c_start(kcpr_state *state);
void c_nominal(const float *obs, float *action);
void c_fallback(const float *obs, float *action);
float c_risk(const float *obs, const float *action);
int32_t c_act(const float *obs, float *action, float *risk)
{{
    return kcpr_act(obs, action, risk);
}}
int32_t c_step(const float *obs, kcpr_state *state, float *action, float *risk)
{{
    return kcpr_step(obs, state, action, risk);
}}
int32_t c_check(const float *obs) {{ return kcpr_check(obs); }}
void c_start(kcpr_state *state) {{ kcpr_start(state); }}
void c_nominal(const float *obs, float *action) {{ kcpr_nominal(obs, action); }}
void c_fallback(const float *obs, float *action) {{ kcpr_fallback(obs, action); }}
float c_risk(const float *obs, const float *action) {{ return kcpr_risk(obs, action); }}
"""
BAD = (np.nan, np.inf, -np.inf, 1e30, -1e30)

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler (cc) to compile controller.h with"
)


class Compiled:
    """The header of a policy as a library, called with numpy arrays."""

    def __init__(self, policy: PolicyFile, assurance: Assurance, folder: Path, *options: str):
        text = c_header(policy, assurance)
        path = c_library({HEADER: text, "shim.c": SHIM}, folder / "shim.so", *options)
        self.library = ctypes.CDLL(str(path))
        self.library.c_risk.restype = ctypes.c_float
        self.actions = policy.contract.action_size

    def act(self, obs: ndarray) -> tuple[ndarray, float, int]:
        action, risk = np.empty(self.actions, np.float32), np.empty(1, np.float32)
        mode = self.library.c_act(_at(obs), _at(action), _at(risk))
        return action, float(risk[0]), mode

    def step(self, obs: ndarray, state: ndarray) -> tuple[ndarray, float, int]:
        action, risk = np.empty(self.actions, np.float32), np.empty(1, np.float32)
        mode = self.library.c_step(_at(obs), _at(state), _at(action), _at(risk))
        return action, float(risk[0]), mode

    def start(self) -> ndarray:
        state = np.full(4 + self.actions, np.nan, np.float32)
        self.library.c_start(_at(state))
        return state

    def check(self, obs: ndarray) -> int:
        return int(self.library.c_check(_at(obs)))

    def command(self, kind: str, obs: ndarray) -> ndarray:
        action = np.empty(self.actions, np.float32)
        getattr(self.library, f"c_{kind}")(_at(obs), _at(action))
        return action

    def risk(self, obs: ndarray, action: ndarray) -> float:
        return float(self.library.c_risk(_at(obs), _at(action)))


def _at(values: ndarray) -> ctypes.c_void_p:
    return values.ctypes.data_as(ctypes.c_void_p)


def calibrated(policy: PolicyFile, **changed: Any) -> Assurance:
    """Ranges, thresholds and limits that all matter on `observations`."""
    size = policy.contract.obs_size
    plain = unassured(policy).with_range([-2.0] * size, [2.5] * size, "a test")
    numbers: dict[str, Any] = {
        "fallback": True,
        "release": 0.2,
        "engage": 0.9,
        "dwell_steps": 3,
        "blend_steps": 4,
        "soft_start_steps": 5,
        "slew": tuple(0.3 * (e.high - e.low) for e in policy.contract.action),
    }
    return dataclasses.replace(plain, **numbers | changed)


def observations(size: int, rows: int) -> ndarray:
    generator = np.random.default_rng(5)
    obs = generator.normal(size=(rows, size)) * generator.uniform(0.1, 2.0, (rows, 1))
    for i, value in enumerate((*BAD, 0.0)):
        chosen = np.arange(i, rows, 61)
        obs[chosen, generator.integers(0, size, len(chosen))] = value
    return obs.astype(np.float32)


POLICIES = {
    "continuous": fake_policy(4),
    "discrete": fake_discrete_policy(4),
    "servos": fake_servo_policy(4),
}


@pytest.fixture(scope="module", params=list(POLICIES))
def policy(request: pytest.FixtureRequest) -> PolicyFile:
    return POLICIES[request.param]


@pytest.fixture(scope="module")
def compiled(policy: PolicyFile, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(policy, calibrated(policy), tmp_path_factory.mktemp("c"))


@pytest.fixture
def eager(policy: PolicyFile) -> Iterator[torch.nn.Module]:
    with torch.inference_mode():
        yield assured(policy, calibrated(policy))


def spans(policy: PolicyFile) -> ndarray:
    return np.float32([entry.high - entry.low for entry in policy.contract.action])


def test_ten_thousand_answers_are_those_of_torch(
    policy: PolicyFile, compiled: Compiled, eager: Any
) -> None:
    apart, risks, modes = [], [], set()
    for row in observations(policy.contract.obs_size, ROWS):
        obs = torch.from_numpy(row[None])
        action, risk, mode = eager.act(obs)
        ours, our_risk, our_mode = compiled.act(row)
        assert our_mode == mode.item()
        apart.append(np.abs(ours - action[0].numpy()) / spans(policy))
        if not our_mode & 4:
            risks.append(abs(our_risk - risk.item()) / (1.0 + risk.item()))
        modes.add(our_mode)
        assert compiled.check(row) == eager.check(obs).item()
    # Where torch's own float32 sums are off by more than this, nobody can agree to better.
    assert np.quantile(apart, 0.999) <= 1e-6
    assert np.max(apart) <= 5e-6
    assert np.max(risks) <= 5e-6
    assert modes == ({0, 1, 2, 4} if not policy.contract.commands else {0, 1, 4})


def test_sums_in_double_are_within_a_millionth_of_exact_arithmetic(tmp_path: Path) -> None:
    policy = POLICIES["continuous"]
    exact = assured(policy, calibrated(policy)).double()
    exact.policy.refuse = lambda obs: None
    compiled = Compiled(policy, calibrated(policy), tmp_path, "-DKCPR_SUM=double")
    for row in observations(5, ROWS)[::5]:
        for kind in ("nominal", "fallback"):
            wanted = getattr(exact, kind)(torch.from_numpy(row[None].astype(np.float64)))
            apart = np.abs(compiled.command(kind, row) - wanted[0].numpy()) / spans(policy)
            assert apart.max() <= 1e-6


def test_steps_with_memory_are_those_of_torch(
    policy: PolicyFile, compiled: Compiled, eager: Any
) -> None:
    state, ours = torch.tensor([calibrated(policy).initial_state]), compiled.start()
    assert ours.tolist() == state[0].tolist()
    modes = set()
    for row in observations(policy.contract.obs_size, 2000):
        action, _, mode, state = eager.step(torch.from_numpy(row[None]), state)
        our_action, _, our_mode = compiled.step(row, ours)
        assert our_mode == mode.item()
        np.testing.assert_allclose(our_action, action[0], atol=1e-5 * spans(policy).max())
        np.testing.assert_allclose(ours, state[0], atol=1e-5 * spans(policy).max())
        modes.add(our_mode)
    assert {0, 1, 4} <= modes


def test_both_modules_and_the_risk_are_those_of_torch(
    policy: PolicyFile, compiled: Compiled, eager: Any
) -> None:
    generator = np.random.default_rng(0)
    for row in observations(policy.contract.obs_size, 500):
        obs = torch.from_numpy(row[None])
        for kind in ("nominal", "fallback"):
            wanted = getattr(eager, kind)(obs)[0].numpy()
            assert np.abs(compiled.command(kind, row) - wanted).max() <= 5e-6 * spans(policy).max()
        action = generator.uniform(-2.0, 2.0, policy.contract.action_size).astype(np.float32)
        risk = eager.risk(obs, torch.from_numpy(action[None])).item()
        assert compiled.risk(row, action) == pytest.approx(risk, rel=1e-4, abs=1e-5)


@given(st.data())
def test_any_bad_entry_gives_a_finite_command_within_bounds_and_the_invalid_mode(
    compiled: Compiled, policy: PolicyFile, data: st.DataObject
) -> None:
    size = policy.contract.obs_size
    row = np.float32(data.draw(st.lists(st.floats(-2, 2, width=32), min_size=size, max_size=size)))
    spoiled = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    for i in spoiled:
        row[i] = data.draw(st.sampled_from((*BAD, 17.0, -17.0)))
    for action, _, mode in (compiled.act(row), compiled.step(row, compiled.start())):
        assert mode == 4
        for value, entry in zip(action, policy.contract.action, strict=True):
            assert np.float32(entry.low) <= value <= np.float32(entry.high)


def test_a_damaged_state_begins_again(compiled: Compiled, policy: PolicyFile) -> None:
    row = np.zeros(policy.contract.obs_size, np.float32)
    fresh, damaged = compiled.start(), compiled.start()
    damaged[:] = np.nan
    first, again = compiled.step(row, fresh), compiled.step(row, damaged)
    assert first[0].tobytes() == again[0].tobytes()
    assert fresh.tobytes() == damaged.tobytes()


def test_without_a_fallback_only_the_nominal_policy_acts(
    policy: PolicyFile, tmp_path: Path
) -> None:
    compiled = Compiled(policy, unassured(policy), tmp_path)
    for row in observations(policy.contract.obs_size, 300):
        action, _, mode = compiled.act(row)
        assert mode in (0, 4)
        assert action.tobytes() == compiled.command("nominal", row).tobytes()


def test_a_layer_norm_in_the_critics_is_in_the_c_too(tmp_path: Path) -> None:
    policy = dataclasses.replace(fake_policy(4), settings={"layer_norm": True})
    compiled = Compiled(policy, calibrated(policy), tmp_path)
    eager = assured(policy, calibrated(policy))
    plain = assured(fake_policy(4), calibrated(policy))
    for row in observations(5, 100)[30:]:
        obs = torch.from_numpy(row[None])
        if compiled.check(row) & 3:
            continue
        risk = eager.act(obs)[1].item()
        assert compiled.act(row)[1] == pytest.approx(risk, rel=1e-4, abs=1e-5)
    assert risk != plain.act(obs)[1].item()


def test_what_is_near_looks_larger_in_the_c_too(tmp_path: Path) -> None:
    policy = seeing_near(fake_policy(4))
    compiled = Compiled(policy, calibrated(policy), tmp_path)
    eager = assured(policy, calibrated(policy)).policy
    plain = assured(fake_policy(4), calibrated(policy)).policy
    differ = 0
    for row in observations(5, 100):
        obs = torch.from_numpy(row[None])
        if compiled.check(row) & 1:
            continue
        nominal = compiled.command("nominal", row)
        assert nominal == pytest.approx(eager.nominal(obs)[0].numpy(), rel=1e-4, abs=1e-5)
        differ += not np.allclose(nominal, plain.nominal(obs)[0].numpy(), atol=1e-2)
    assert differ > 20


def test_the_header_alone_compiles_everywhere_and_never_allocates(
    policy: PolicyFile, tmp_path: Path
) -> None:
    text = c_header(policy, calibrated(policy))
    assert text == c_header(policy, calibrated(policy))
    (tmp_path / HEADER).write_text(text)
    (tmp_path / "main.c").write_text(f'#include "{HEADER}"\nint main(void) {{ return 0; }}\n')
    for options in (("-std=c99",), ("-std=c11", "-O2"), ("-std=c99", "-DKCPR_SUM=double")):
        subprocess.run(
            ["cc", *options, "-Wall", "-Wextra", "-Werror", "-pedantic", "main.c", "-lm"],
            cwd=tmp_path,
            check=True,
        )
    assert set(re.findall(r"#include <(.*)>", text)) == {"math.h", "stdint.h"}
    assert not re.search(r"\b(malloc|calloc|realloc|free|alloca)\b", text)


def test_a_name_cannot_end_the_comment() -> None:
    policy = fake_policy(1)
    entries = tuple(
        dataclasses.replace(e, name="*/ int x; /*") for e in policy.contract.observation
    )
    contract = dataclasses.replace(policy.contract, observation=entries)
    text = c_header(dataclasses.replace(policy, contract=contract), calibrated(policy))
    assert "int x" not in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


@given(st.floats(width=32, allow_nan=False))
def test_a_constant_is_the_same_float_again(value: float) -> None:
    text = literal(value)
    if text.endswith("INFINITY"):
        assert np.isinf(value)
    else:
        assert re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?f", text)
        assert "." in text or "e" in text
        assert np.float32(text.removesuffix("f")) == np.float32(value)


def test_nan_is_no_constant() -> None:
    with pytest.raises(ValueError, match="NaN"):
        literal(float("nan"))


def test_an_array_counts_its_own_numbers() -> None:
    assert array("x", [1.0, -0.5]) == "static const float x[2] = {\n    1.0f, -0.5f,\n};"


def test_the_command_writes_the_header_of_a_bundle(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from fakes import fake_run

    from kcpr_safety.cli import main
    from kcpr_safety.deploy.bundle import export_bundle

    bundle = export_bundle(fake_run(tmp_path / "run", fake_policy(4)), tmp_path / "bundle")["path"]
    assert main(["header", bundle, "--out", str(tmp_path / HEADER), "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert (tmp_path / HEADER).stat().st_size == record["bytes"]
    assert main(["header", str(tmp_path), "--out", str(tmp_path / "no.h")]) == 2
    assert not (tmp_path / "no.h").exists()
