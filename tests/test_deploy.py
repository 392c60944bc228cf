"""Does the bundle give exactly the evaluated policy's actions, from torch alone, as equal bytes?"""

import hashlib
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import (
    STREAMS,
    fake_assurance,
    fake_contract,
    fake_policy,
    fake_run,
    fake_streams,
    seeing_near,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from kcpr_safety.assured import ALL_METHODS, GOLDEN, SCHEMA_VERSION, AssuredController, assured
from kcpr_safety.deploy import Policy, load_policy
from kcpr_safety.deploy.archive import load_script, quiet
from kcpr_safety.deploy.bundle import FILES, export_bundle
from kcpr_safety.deploy.card import check_card
from kcpr_safety.deploy.manifest import SEALS
from kcpr_safety.deploy.parity import (
    TOLERANCE,
    act_error,
    adversarial_observations,
    answers,
    golden_observations,
    max_ulp,
    measure,
)
from kcpr_safety.deploy.runtimes import exported_act, onnx_act
from kcpr_safety.deploy.script import proven, scripted
from kcpr_safety.errors import FileFault
from kcpr_safety.policy_file import read_policy

TESTS = Path(__file__).parent
SHIPPED = TESTS.parent / "policies" / "SafetyHalfCheetahVelocity-v1"
Act = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With every file that a bundle is made of."""
    policy = fake_policy(4)
    run = fake_run(tmp_path_factory.mktemp("deploy") / "run", policy)
    calibration = json.loads((run / "calibration.json").read_text())
    way = {"return_mean": 2500.0, "punishment_mean": 18.0, "over_budget_share": 0.1}
    share, most = ({"nominal": 0.1, "assured": value} for value in (0.05, 30.0))
    stress = {
        "policy_sha256": calibration["policy_sha256"],
        "assurance": calibration["assurance"],
        "eval_seed": 10_000,
        "episodes": 10,
        "faults": [{"fault": "none", "nominal": way, "assured": way}],
        "verdict": {
            "helps": True,
            "over_budget_share": share,
            "punishment_max": most,
            "return_loss_share": 0.01,
        },
    }
    latency = {"act_torchscript": dict.fromkeys(("p50_us", "p99_us", "max_us"), 40.0)}
    (run / "stress.json").write_text(json.dumps(stress))
    (run / "latency.json").write_text(json.dumps(latency))
    return run


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    return export_bundle(run, run.parent / "bundle")


@pytest.fixture(scope="module")
def bundle(result: dict[str, Any]) -> Path:
    return Path(result["path"])


@pytest.fixture(scope="module")
def policy(bundle: Path) -> Policy:
    return load_policy(bundle)


@contextmanager
def torch_only(bundle: Path, width: int, actions: int) -> Iterator[Act]:
    """Actions out of a process that has imported nothing but torch."""
    command = [sys.executable, "-I", str(TESTS / "torch_only_consumer.py")]
    with subprocess.Popen(
        [*command, str(bundle / "controller.pt"), str(width)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None

        def act(obs: np.ndarray) -> np.ndarray:
            child.stdin.write(np.asarray(obs, dtype=np.float32).tobytes())
            child.stdin.flush()
            return np.frombuffer(child.stdout.read(4 * actions), dtype=np.float32)

        yield act
        child.stdin.close()
        message = child.stderr.read().decode()
        assert child.wait(60) == 0, message


def observations(rows: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(7)
    obs = generator.normal(size=(rows, width)) * 10.0 ** generator.integers(-3, 4, (rows, 1))
    obs[::10, 1] = np.nan
    obs[5::10, 2] = np.inf
    return obs


def test_a_process_with_torch_alone_repeats_the_policy_bit_for_bit(run: Path, bundle: Path) -> None:
    policy = load_policy(run)
    with torch_only(bundle, 5, 2) as act:
        for obs in observations(300, 5):
            assert act(obs).tobytes() == policy.act(obs).tobytes()


@pytest.mark.slow
def test_ten_episodes_from_torch_alone_give_the_same_return_and_punishment() -> None:
    if not SHIPPED.is_dir():
        pytest.skip("the trained bundle policies/SafetyHalfCheetahVelocity-v1 is not there yet")
    if importlib.util.find_spec("safety_gymnasium") is None:
        pytest.skip("safety_gymnasium, which simulates the episodes, is not installed")
    eager = load_policy(SHIPPED / "weights.safetensors")
    contract = eager.contract
    with torch_only(SHIPPED, contract.obs_size, contract.action_size) as act:
        deployed = episodes(contract.task, act, 10)
    assert deployed == episodes(contract.task, eager.act, 10)
    assert len({total for total, _ in deployed}) == 10, "ten different episodes"


def episodes(task: str, act: Act, count: int) -> list[tuple[float, float]]:
    """Exact (return, punishment) of `count` episodes in one world."""
    from kcpr_safety.envs import make_world, resolve
    from kcpr_safety.seeds import FIRST_EVALUATION_SEED, evaluation_seeds

    world = make_world(resolve(task), 1, episode_seeds=evaluation_seeds(FIRST_EVALUATION_SEED, 1))
    obs, _ = world.reset()
    sums: list[tuple[float, float]] = []
    total = punished = 0.0
    while len(sums) < count:
        obs, reward, terminated, truncated, infos = world.step(act(obs[0])[None])
        total += float(reward[0])
        punished += float(infos["punishment"][0])
        if terminated[0] or truncated[0]:
            sums.append((total, punished))
            total = punished = 0.0
    world.close()
    return sums


def test_every_source_of_a_policy_answers_alike(run: Path, bundle: Path) -> None:
    obs = observations(40, 5)
    places = [run, run / "policy.safetensors", bundle, bundle / "weights.safetensors"]
    policies = [load_policy(place) for place in places]
    assert [policy.source for policy in policies] == places
    for method in ("act", "fallback", "check"):
        # A policy file alone knows no ranges.
        known = policies[::2] if method == "check" else policies
        one, *others = (getattr(policy, method)(obs) for policy in known)
        assert all(one.tobytes() == other.tobytes() for other in others), method
    assert len({policy.contract for policy in policies}) == 1


def test_act_in_numpy(policy: Policy) -> None:
    obs = observations(20, 5)
    many = policy.act(obs)
    assert many.shape == (20, 2)
    assert many.dtype == np.float32
    for row, expected in zip(obs, many, strict=True):
        assert policy.act(row).shape == (2,)
        assert policy.act(row).tobytes() == expected.tobytes(), "a batch is its rows"
    assert policy.act(np.zeros((0, 5))).shape == (0, 2)
    # float64 beyond float32 counts as infinite.
    assert policy.check(np.array([1e300, 0, 0, 0, 0])) == 1 + 2 + 4
    assert policy.act(np.array([1e300, 0, 0, 0, 0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "obs",
    [
        np.zeros(6),
        np.zeros((2, 4)),
        np.zeros((1, 1, 5)),
        np.zeros(()),
        np.zeros(5, dtype=np.int64),
        np.array(["1"] * 5),
    ],
)
def test_wrong_width_or_type_raises(bundle: Path, run: Path, obs: np.ndarray) -> None:
    for place in (bundle, run):
        with pytest.raises(ValueError, match="observation"):
            load_policy(place).act(obs)


@settings(max_examples=100, deadline=None)
@given(row=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=5, max_size=5))
def test_every_observation_gives_a_finite_action_within_bounds(
    policy: Policy, row: list[float]
) -> None:
    for answer in (policy.act(np.array(row)), policy.fallback(np.array(row))):
        for value, entry in zip(answer, policy.contract.action, strict=True):
            assert entry.low <= value <= entry.high


def test_the_result_and_the_card(run: Path, bundle: Path, result: dict[str, Any]) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    for key in ("task", "agent", "seed", "eval_seed", "steps", "episodes", "budget"):
        assert result[key] == evaluation[key], key
    for key in ("return_mean", "punishment_mean", "over_budget_share"):
        assert result[key] == pytest.approx(evaluation[key], rel=1e-12), key
    assert result["path"] == str(run.parent / "bundle")
    assert result["wall_s"] > 0
    assert result["parity"]["holds"] is True
    card = json.loads((bundle / "card.json").read_text())
    assert card["evidence"]["returns"] == evaluation["returns"]
    assert card["evidence"]["over_budget"]["high"] > evaluation["over_budget_share"]
    assert card["parity"]["golden_max_ulp"] == card["parity"]["adversarial_max_ulp"] == 0
    assert card["interface"]["safe_action"] == [0.0, 0.0]
    assert [entry["name"] for entry in card["contract"]["action"]] == ["motor_0", "motor_1"]
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(manifest["files"]) == set(FILES)
    for name, digest in manifest["files"].items():
        assert digest == hashlib.sha256((bundle / name).read_bytes()).hexdigest()


@pytest.mark.slow
def test_the_card_says_with_whose_weights_training_began(
    run: Path, bundle: Path, tmp_path: Path
) -> None:
    begun = {"task": "SafetySprint-v0", "agent": "kcpr", "seed": 3, "steps": 1500}
    copy = shutil.copytree(run, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["begun_from"] = begun | {"policy_sha256": "ab" * 32}
    (copy / "config.json").write_text(json.dumps(config))
    export_bundle(copy, tmp_path / "bundle")
    card = json.loads((tmp_path / "bundle" / "card.json").read_text())
    assert card["provenance"]["begun_from"] == config["begun_from"]
    text = (tmp_path / "bundle" / "CARD.md").read_text()
    assert "began with the weights of SafetySprint-v0 (kcpr, seed 3, 1,500 steps" in text
    assert "began with the weights" not in (bundle / "CARD.md").read_text()
    config["begun_from"] = {"task": "SafetySprint-v0"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFault, match="begun_from"):
        export_bundle(copy, tmp_path / "other")


def test_a_bundle_tells_of_every_stream(tmp_path: Path) -> None:
    contract = replace(fake_contract(), streams=STREAMS)
    values = [3.0, 20.0, 4.0, 5.0, 6.0, 3.0, 4.0, 5.0, 6.0, 3.0]
    run = fake_run(tmp_path / "run", fake_policy(contract=contract))
    with pytest.raises(FileFault, match="does not judge the streams"):
        export_bundle(run, tmp_path / "bundle")
    record = json.loads((run / "evaluation.json").read_text())
    streams = fake_streams(values, [2.0] * 10)
    (run / "evaluation.json").write_text(json.dumps(record | {"streams": streams}))
    export_bundle(run, tmp_path / "bundle")
    card = json.loads((tmp_path / "bundle" / "card.json").read_text())
    force, speed = card["evidence"]["streams"]
    assert (force["name"], force["budget"], force["punishments"]) == ("force", 12.0, values)
    assert force["over_budget"]["episodes"] == 1 and speed["over_budget"]["episodes"] == 0
    mean = force["punishment_mean"]
    assert mean["low"] < mean["value"] == pytest.approx(5.9) and mean["value"] < mean["high"]
    page = (tmp_path / "bundle" / "CARD.md").read_text()
    assert f"| punishment: force (budget 12) | 5.9 | {mean['low']:.4g} .. " in page
    assert "| episodes over that of force | 10.0% | 0.3% .. 44.5% |" in page
    assert "force, hard steps: 12; speed, fast steps: 15." in page
    card["evidence"]["streams"][0]["budget"] = -1
    with pytest.raises(FileFault, match="evidence/streams/0"):
        check_card(card, "card")


def test_the_controller_carries_its_card(bundle: Path) -> None:
    """With LibTorch's reader, and with nothing but a zip reader."""
    wanted = {"card.json": "", "contract.json": "", "golden.safetensors": ""}
    found = dict(wanted)
    with quiet():
        torch.jit.load(str(bundle / "controller.pt"), _extra_files=found)
    with zipfile.ZipFile(bundle / "controller.pt") as archive:
        for name in wanted:
            content = archive.read(f"archive/extra/{name}")
            as_read = found[name] if isinstance(found[name], bytes) else found[name].encode()
            assert as_read == content
    assert json.loads(found["card.json"]) == json.loads((bundle / "card.json").read_text())


def test_the_same_run_gives_the_same_bytes_in_any_process(
    run: Path, bundle: Path, tmp_path: Path
) -> None:
    """Also from another folder, and after this process has scripted other things."""
    child = (
        "import sys; from pathlib import Path; from kcpr_safety.deploy import export_bundle\n"
        "export_bundle(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", child, str(run), str(tmp_path / "other")]
    subprocess.run(command, check=True, cwd="/")
    card = json.loads((bundle / "card.json").read_text())
    assert card["stress"]
    assert card["latency"]
    for name in (*FILES, *SEALS):
        assert (tmp_path / "other" / name).read_bytes() == (bundle / name).read_bytes(), name


def test_nothing_tells_where_it_was_made(bundle: Path) -> None:
    for name in (*FILES, *SEALS):
        data = (bundle / name).read_bytes()
        assert str(TESTS.parent).encode() not in data
        assert b"site-packages" not in data
    with zipfile.ZipFile(bundle / "controller.pt") as archive:
        assert all(info.date_time == (1980, 1, 1, 0, 0, 0) for info in archive.infolist())


def test_exporting_again_replaces_the_bundle(run: Path, bundle: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (out / "card.json").write_text("an earlier one")
    export_bundle(run, out)
    for name in (*FILES, *SEALS):
        assert (out / name).read_bytes() == (bundle / name).read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"], "no litter"


# Actions that saturate, so that a moved bound shows.
LOUD = seeing_near(fake_policy(5, gain=2.5))


# Ranges so narrow, and thresholds so far within the risks of golden observations (0 to 145), that
# each of them shows when it is moved.
LOUD_ASSURANCE = fake_assurance(
    LOUD,
    seen_low=(-1.0,) * 5,
    seen_high=(1.0,) * 5,
    hard_low=(-3.0,) * 5,
    hard_high=(3.0,) * 5,
    release=20.0,
    engage=60.0,
)


def eager() -> AssuredController:
    return assured(LOUD, LOUD_ASSURANCE)


Forms = tuple[torch.jit.ScriptModule, tuple[Any, Any]]


@pytest.fixture(scope="module")
def deployed() -> Forms:
    """All forms of one controller: TorchScript, and (ONNX, exported program)."""
    files = scripted(LOUD, LOUD_ASSURANCE)
    others = (
        onnx_act(files["controller.onnx"], "onnx"),
        exported_act(files["controller.pt2"], "e"),
    )
    return load_script(files["controller.pt"], "controller.pt"), others


Told = tuple[torch.Tensor, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def told(deployed: Forms) -> Told:
    """All observations that parity is measured on, and what TorchScript says to them."""
    adversarial = adversarial_observations(LOUD.tensors, LOUD.contract, LOUD_ASSURANCE)
    obs = torch.cat([adversarial, golden_observations(LOUD.tensors)])
    return obs, answers(deployed[0], obs)


def test_parity_holds(deployed: Forms) -> None:
    parity = measure(eager(), *deployed, LOUD.tensors, LOUD.contract, LOUD_ASSURANCE)
    assert parity.holds
    # Small differences of large values: this policy is loud.
    assert parity.onnx_max_error < 1e-5
    assert parity.pt2_max_error < 1e-6
    assert deployed[0].self_test() == 0.0
    assert parity.golden_rows == 64
    assert parity.adversarial_rows > 5 * LOUD.contract.obs_size


NUMBERS = ("release", "engage", "width", "dwell", "blend_share", "soft_start")
NOT_OF_ACT = {
    *("default", "slew", "seen_low", "seen_high", "dwell", "blend_share", "soft_start"),
    *("engage", "low", "high", "policy.safe", "policy.least", "policy.most"),
}
"""What other methods read; and the normaliser's clamp, binding only beyond these hard ranges."""
BUFFERS = sorted(
    # The copies that no method of the whole reads.
    set(eager().state_dict())
    - {"initial", *NUMBERS}
    - {f"golden_{name}" for name in ("obs", *GOLDEN)}
)


@pytest.mark.parametrize("name", BUFFERS)
def test_parity_notices_every_changed_constant(deployed: Forms, told: Told, name: str) -> None:
    changed = eager()
    inwards = name.endswith("high") or name in ("slew",)
    values = changed.get_buffer(name).view(-1)
    # Ranges and limits act only where they bind: move all of them, far enough, inwards. And the
    # first entries of `log_...` belong to the nominal, which goes no way aside at any of them.
    if name.split("_")[0] in ("hard", "seen", "policy.log") or name == "slew":
        values += -0.4 if inwards else 0.4
    elif values.is_floating_point():
        # Small for a weight, and still more in every answer than ONNX's roundings may be.
        values[0] += -(2.0**-7) if inwards else 2.0**-7
    else:
        values += 1
    notices(changed, deployed, told, name)


@pytest.mark.parametrize("name", NUMBERS)
def test_parity_notices_every_changed_number(deployed: Forms, told: Told, name: str) -> None:
    changed = eager()
    setattr(changed, name, getattr(changed, name) * (0.5 if name in ("engage", "release") else 2.0))
    notices(changed, deployed, told, name)


def notices(changed: AssuredController, deployed: Forms, told: Told, name: str) -> None:
    """TorchScript differs at all, and where `act` does, the other forms do beyond roundings."""
    obs, script = told
    wanted = answers(changed, obs)
    assert any(max_ulp(wanted[method], script[method]) for method in wanted), name
    for act in deployed[1]:
        error = act_error(act, obs, wanted, LOUD.contract)
        assert (error > TOLERANCE) == (name not in NOT_OF_ACT), (name, error)


def test_the_self_test_notices_changed_weights() -> None:
    controller = proven(LOUD, LOUD_ASSURANCE)
    assert controller.self_test() == 0.0
    controller.get_buffer("critic.twins.last.weight").mul_(1.01)
    assert controller.self_test() > 1e-4
    controller = proven(LOUD, LOUD_ASSURANCE)
    controller.get_buffer("policy.mean")[0] = torch.nan
    assert controller.self_test() > 1e-4


def test_export_refuses_a_controller_that_differs(
    run: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = scripted(LOUD, fake_assurance(LOUD))
    monkeypatch.setattr("kcpr_safety.deploy.bundle.scripted", lambda policy, assurance: other)
    with pytest.raises(FileFault, match=r"differs from the evaluated policy by \d+ ULP"):
        export_bundle(run, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("one", "two", "steps"),
    [
        (1.0, 1.0, 0),
        (1.0, 1.0 + 2.0**-23, 1),
        (1.0, 1.0 - 2.0**-24, 1),
        (-1.0, -1.0 - 2.0**-23, 1),
        (0.0, -0.0, 1),
        (2.0**-149, -(2.0**-149), 3),
        (1.0, 2.0, 2**23),
        (math.inf, math.nan, 2**22),
    ],
)
def test_ulp_by_hand(one: float, two: float, steps: int) -> None:
    assert max_ulp(torch.tensor([0.5, one]), torch.tensor([0.5, two])) == steps


def test_ulp_of_different_shapes() -> None:
    with pytest.raises(ValueError, match="differ"):
        max_ulp(torch.zeros(2), torch.zeros(3))


def test_methods_survive_freezing(bundle: Path) -> None:
    module = load_policy(bundle).controller
    obs = torch.zeros(1, 5)
    assert all(hasattr(module, method) for method in ALL_METHODS)
    assert [out.shape for out in module.act(obs)] == [(1, 2), (1, 1), (1,)]
    assert module.schema_version() == SCHEMA_VERSION
    assert not list(module.parameters())
    assert not list(module.buffers()), "constants, not state"


def test_weights_start_another_training(bundle: Path, run: Path) -> None:
    """The bundle's weights are the run's policy file: critics included, to the bit."""
    one, two = read_policy(bundle), read_policy(run)
    assert (one.steps, one.settings, one.contract) == (two.steps, two.settings, two.contract)
    assert all(torch.equal(one.tensors[key], two.tensors[key]) for key in two.tensors)
