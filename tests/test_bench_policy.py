"""Does `bench policy` time what it says, leave out only what cannot run, and print its table?"""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cpp import program
from fakes import fake_discrete_policy, fake_policy, fake_run
from hypothesis import given
from hypothesis import strategies as st

from kcpr_safety.assured import assured, unassured
from kcpr_safety.cli import main
from kcpr_safety.deploy.bundle import export_bundle
from kcpr_safety.errors import FileFault, SettingsError
from kcpr_safety.studies import bench_policy as bench_policy_module
from kcpr_safety.studies import policy_forms
from kcpr_safety.studies.bench_policy import PolicyBench, bench_policy, measure, percentile

FIGURES = {"p50_us", "p99_us", "p999_us", "max_us", "cold_us", "hot_us"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    return Path(export_bundle(fake_run(folder / "run", fake_policy(4)), folder / "bundle")["path"])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_percentile_is_the_smallest_observed_time_that_covers_its_share(
    times: list[float], share: float
) -> None:
    value = percentile(times, share)
    assert value in times
    assert sum(t <= value for t in times) >= share * len(times) - 1e-9
    assert sum(t < value for t in times) < share * len(times) + 1e-9


def test_each_call_is_timed_in_a_slot_of_its_own_once_per_period() -> None:
    moments: list[tuple[str, float]] = []
    calls = {
        "short": lambda: moments.append(("short", time.perf_counter())),
        "long": lambda: (moments.append(("long", time.perf_counter())), time.sleep(0.001)),
    }
    figures = measure(calls, ticks=20, period_s=0.02, hot_calls=5)
    assert set(figures) == set(calls)
    assert all(set(row) == FIGURES for row in figures.values())
    assert figures["long"]["p50_us"] > 1000 > figures["short"]["p50_us"]
    paced = moments[2 * 101 :][:40]
    assert [name for name, _ in paced] == ["short", "long"] * 20
    gaps = np.diff([at for name, at in paced if name == "short"])
    assert np.median(gaps) == pytest.approx(0.02, rel=0.2)


def test_what_is_derived_follows_from_the_table() -> None:
    row = dict.fromkeys(FIGURES, 10.0)
    done = PolicyBench(
        "T-v0",
        0.05,
        1000,
        {
            "empty_python": row | {"p999_us": 4.0},
            "act_torchscript_python": row | {"p999_us": 54.0, "hot_us": 40.0},
            "bare_torchscript_python": row | {"p50_us": 5.0, "hot_us": 16.0},
        },
        {},
    )
    assert done.p999_over_empty_us == {"python": 50.0}
    assert done.act_over_bare == {"python, once per period": 2.0, "python, back to back": 2.5}


def test_the_bare_network_is_the_reward_modules() -> None:
    policy = fake_policy(1)
    x = torch.linspace(-1, 1, policy.contract.obs_size).unsqueeze(0)
    for i in range(3):
        weight, bias = (policy.tensors[f"actor.{i}.{kind}"][0] for kind in ("weight", "bias"))
        y = (x if i == 0 else y.relu()) @ weight + bias
    torch.testing.assert_close(policy_forms.bare_network(policy)(x), y)
    assert policy_forms.bare_network(fake_discrete_policy(1))(x).shape == (1, 5)


def test_no_periods_and_no_bundle_are_one_sentence(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least 1"):
        bench_policy(bundle, ticks=0)
    with pytest.raises(FileFault):
        bench_policy(tmp_path)


def test_the_command_wants_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "policy"]) == 2
    assert "name a run or a bundle" in capsys.readouterr().err


def test_a_run_gets_its_latency_as_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fake_run(tmp_path / "run", fake_policy(4))
    row = dict.fromkeys(FIGURES, 10.0)
    done = PolicyBench("T-v0", 0.05, 7, {"act_eager": row}, {"act_aotinductor": "no compiler"})
    monkeypatch.setattr(bench_policy_module, "bench_policy", lambda bundle, ticks: done)
    assert main(["bench", "policy", str(run), "--ticks", "7"]) == 0
    card = json.loads((Path(export_bundle(run, tmp_path / "b")["path"]) / "card.json").read_bytes())
    assert card["latency"]["act_eager"] == row
    assert card["latency"]["ticks"] == 7
    assert card["latency"]["absent"] == {"act_aotinductor": "no compiler"}


def test_what_cannot_run_is_left_out_with_its_reason(bundle: Path, tmp_path: Path) -> None:
    policy = fake_policy(4)
    contents = {p.name: p.read_bytes() for p in bundle.iterdir() if p.suffix != ".onnx"}
    compilers = pytest.MonkeyPatch()
    with compilers.context() as patch:
        patch.setattr(policy_forms.shutil, "which", lambda _: None)
        eager = assured(policy, unassured(policy))
        forms, absent = policy_forms.python_forms(contents, policy, eager, tmp_path)
    assert set(absent) == {"act_onnxruntime", "act_aotinductor"}
    assert "controller.onnx" in absent["act_onnxruntime"]
    assert "g++" in absent["act_aotinductor"]
    assert {"empty_python", "act_eager", "act_torchscript_python"} < set(forms)
    for call in forms.values():
        call()


@pytest.mark.slow
def test_every_form_is_in_the_json(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program()
    assert main(["bench", "policy", str(bundle), "--ticks", "20", "--json"]) == 0
    out, err = capfd.readouterr()
    latency = json.loads(out)
    needed = {
        *("empty_python", "act_eager", "act_torchscript_python", "bare_torchscript_python"),
        *("empty_cpp", "act_torchscript_cpp", "bare_torchscript_cpp", "act_plain_c", "step_cpp"),
        *("act_rehearsed_cpp", "step_rehearsed_cpp"),
    }
    optional = {"act_onnxruntime", "act_aotinductor"}
    assert needed <= set(latency) <= needed | optional
    for name in optional - set(latency):
        assert f"without {name}" in err
    for row in latency.values():
        assert set(row) == FIGURES
        assert 0 <= row["p50_us"] <= row["p99_us"] <= row["p999_us"] <= row["max_us"]
    assert main(["bench", "policy", str(bundle), "--ticks", "20"]) == 0
    assert "act / bare network" in capfd.readouterr().out
