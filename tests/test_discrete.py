"""Does a policy that chooses among commands keep its table, its choice and its bits everywhere?"""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import (
    COMMANDS,
    fake_assurance,
    fake_contract,
    fake_discrete_policy,
    fake_policy,
    fake_run,
    reseal,
    seeing_near,
)
from hypothesis import given
from hypothesis import strategies as st
from toys import Sprint

from kcpr_safety.assured import ALL_METHODS, assured
from kcpr_safety.cards import load_card
from kcpr_safety.contract import Contract, Entry
from kcpr_safety.controller import Controller, controller_from_tensors
from kcpr_safety.deploy import load_policy
from kcpr_safety.deploy.archive import load_script
from kcpr_safety.deploy.bundle import FILES, export_bundle
from kcpr_safety.deploy.parity import measure
from kcpr_safety.deploy.runtimes import exported_act, onnx_act
from kcpr_safety.deploy.script import scripted
from kcpr_safety.errors import CardError, FileFault, SettingsError
from kcpr_safety.policy_file import policy_from_bytes, policy_to_bytes
from kcpr_safety.tensor_file import pack
from kcpr_safety.training.evaluation import critic_of, rollout

POLICY = seeing_near(fake_discrete_policy(3))


# ------------------------------------------------------------------------------------- contract


def test_the_table_is_in_json_only_where_there_is_one() -> None:
    contract = POLICY.contract
    assert Contract.from_json(contract.to_json()) == contract
    assert json.loads(contract.to_json())["commands"] == [list(row) for row in COMMANDS]
    assert "commands" not in fake_contract().to_json()


BAD_TABLES: dict[str, Any] = {
    "has one row; a choice needs at least 2": [[0.0, 0.0]],
    "row 1 has 1 numbers; the robot has 2 actuators": [[0.0, 0.0], [0.0]],
    "row 0: motor_0 is nan": [[math.nan, 0.0], [0.0, 0.0]],
    r"row 1: motor_1 is 1.6; it must lie in \[-2, 1.5\] N m": [[0.0, 0.0], [0.0, 1.6]],
    "row 0: motor_0 is -inf": [[-math.inf, 0.0], [0.0, 0.0]],
}


@pytest.mark.parametrize("words", BAD_TABLES)
def test_impossible_tables_are_refused(words: str) -> None:
    table = tuple(tuple(row) for row in BAD_TABLES[words])
    with pytest.raises(SettingsError, match=words) as raised:
        dataclasses.replace(fake_contract(), commands=table)
    assert "\n" not in str(raised.value)
    record = json.loads(fake_contract().to_json()) | {"commands": BAD_TABLES[words]}
    with pytest.raises(FileFault, match=words):
        Contract.from_json(json.dumps(record))


@pytest.mark.parametrize("rows", [3, [1, 2], [["x"], [0]], {"a": 1}])
def test_a_table_of_something_else_is_no_contract(rows: Any) -> None:
    record = json.loads(fake_contract().to_json()) | {"commands": rows}
    with pytest.raises(FileFault, match="not a contract"):
        Contract.from_json(json.dumps(record))


CARD = """
task = "SafetyPointGoal1-v0"
title = "A title"
description = "Words."
punishment = "one step inside"
"""


def test_a_card_may_hold_a_table_and_a_meaning_of_the_end(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text(CARD + 'success = "at the goal"\ncommands = [[0, 1], [0.5, -1.0]]\n')
    card = load_card(path)
    assert card.commands == ((0.0, 1.0), (0.5, -1.0))
    assert card.success == "at the goal"
    path.write_text(CARD)
    assert (load_card(path).commands, load_card(path).success) == ((), "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("commands = 3", "'commands' must be a list of lists"),
        ("commands = [1.0, 2.0]", "row 0 of 'commands' must be a list of numbers"),
        ('commands = [[0.0], ["x"]]', "row 1 of 'commands' must be a list of numbers"),
        ("commands = [[true]]", "row 0 of 'commands'"),
        ("success = 1", "'success' must be text"),
    ],
)
def test_other_tables_in_cards_are_refused(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "card.toml"
    path.write_text(CARD + line + "\n")
    with pytest.raises(CardError, match=words) as raised:
        load_card(path)
    assert str(path) in str(raised.value)


# ---------------------------------------------------------------------------------- policy file


def test_round_trip() -> None:
    back = policy_from_bytes(policy_to_bytes(POLICY, "policy"), "policy")
    assert back.contract == POLICY.contract
    assert back.tensors.keys() == POLICY.tensors.keys()
    assert all(torch.equal(back.tensors[key], POLICY.tensors[key]) for key in back.tensors)


def changed(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    names = {key.replace("_dot_", "."): value for key, value in tensors.items()}
    merged = {**POLICY.tensors, **names}
    return {key: value for key, value in merged.items() if value is not None}


BROKEN = {
    "lacks the tensor logit_weights": changed(logit_weights=None),
    r"logit_weights has shape \[3\]": changed(logit_weights=torch.ones(3)),
    "prefers no command": changed(logit_weights=torch.zeros(2)),
    "not finite": changed(logit_weights=torch.tensor([math.inf, 1.0])),
    r"asks for \[2, 32, 5\]": changed(q_dot_2_dot_weight=torch.zeros(2, 32, 4)),
    "lacks the tensor q.1.bias": changed(q_dot_1_dot_bias=None),
    "the q must have layers": {k: v for k, v in POLICY.tensors.items() if not k.startswith("q")},
    "'actor.0.weight', but its contract has 5 commands": changed(
        actor_dot_0_dot_weight=torch.zeros(2, 5, 4)
    ),
    "'critic.0.bias', but its contract has 5 commands": changed(
        critic_dot_0_dot_bias=torch.zeros(2, 1, 4)
    ),
    "must have 2 members": {
        k: v[:1] if k.startswith("q") else v for k, v in POLICY.tensors.items()
    },
}


@pytest.mark.parametrize("words", BROKEN)
def test_other_tensors_are_refused_on_both_sides(words: str) -> None:
    broken = dataclasses.replace(POLICY, tensors=BROKEN[words])
    with pytest.raises(FileFault, match=words):
        policy_to_bytes(broken, "NAME")
    with pytest.raises(FileFault, match=words):
        policy_from_bytes(pack(broken.tensors, broken.metadata()), "NAME")


@pytest.mark.parametrize("name", ["q.0.weight", "logit_weights"])
def test_a_continuous_policy_has_no_values_of_commands(name: str) -> None:
    policy = fake_policy()
    tensors = {**policy.tensors, name: POLICY.tensors[name]}
    with pytest.raises(FileFault, match=f"'{name}', but its contract has no table"):
        policy_to_bytes(dataclasses.replace(policy, tensors=tensors), "NAME")


# ----------------------------------------------------------------------------------- controller


def by_hand(weights: tuple[float, float]) -> Controller:
    """One sensor; three commands whose values are Q_R = (0, x, 2x) and Q_P = (0, -1, -8)."""
    contract = Contract(
        task="SafetyFake-v1",
        observation=(Entry("bearing", "rad"),),
        action=(Entry("speed", "m/s", -0.25, 0.5), Entry("turn", "rad/s", 1.0, 2.0)),
        period_s=0.2,
        time_limit=100,
        budget=5.0,
        punishment="too near",
        commands=((0.0, 1.0), (0.25, 1.5), (0.5, 2.0)),
    )
    tensors = {
        "obs_mean": torch.zeros(1),
        "obs_scale": torch.ones(1),
        "q.0.weight": torch.tensor([[[0.0, 1.0, 2.0]], [[0.0, 0.0, 0.0]]]),
        "q.0.bias": torch.tensor([[[0.0, 0.0, 0.0]], [[0.0, -1.0, -8.0]]]),
        "logit_weights": torch.tensor(weights),
    }
    return controller_from_tensors(tensors, contract)


@pytest.mark.parametrize(
    ("weights", "bearing", "row"),
    [
        ((1.0, 0.0), 3.0, 2),  # reward alone: 0, 3, 6
        ((1.0, 0.0), -3.0, 0),  # 0, -3, -6
        ((1.0, 0.0), 0.0, 0),  # all equal: the first
        ((1.0, 1.0), 3.0, 1),  # 0, 3 - 1, 6 - 8
        ((1.0, 1.0), 9.0, 2),  # 0, 9 - 1, 18 - 8
        ((0.5, 1.0), 3.0, 1),  # 0, 1.5 - 1, 3 - 8
        ((0.5, 1.0), 1.0, 0),  # 0, .5 - 1, 1 - 8
        ((1.0, -1.0), -3.0, 2),  # pain-seeking: 0, -3 + 1, -6 + 8
    ],
)
def test_the_preferred_row_by_hand(weights: tuple[float, float], bearing: float, row: int) -> None:
    controller = by_hand(weights)
    obs = torch.tensor([[bearing]])
    table = [[0.0, 1.0], [0.25, 1.5], [0.5, 2.0]]
    assert controller(obs).tolist() == controller.nominal(obs).tolist() == [table[row]]
    assert controller.fallback(obs).tolist() == [table[0]], "least punishment, whatever it pays"


def test_an_invalid_observation_gives_the_safe_action() -> None:
    """Zero within the bounds, though no row of the table is (0, 1) at a bearing of 9."""
    controller = by_hand((1.0, 0.0))
    for value in (math.nan, math.inf, -math.inf):
        obs = torch.tensor([[9.0], [value]])
        assert controller(obs).tolist() == [[0.5, 2.0], [0.0, 1.0]]
        assert controller.fallback(obs).tolist() == [[0.0, 1.0], [0.0, 1.0]]
        assert controller.check(obs).tolist() == [0, 1]


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


@given(row=st.lists(FLOATS, min_size=5, max_size=5), gain=st.sampled_from([1.0, 1e3, 1e13, 1e30]))
def test_every_observation_is_answered_with_a_row_or_the_safe_action(
    row: list[float], gain: float
) -> None:
    policy = fake_discrete_policy(1, gain=gain)
    controller = controller_from_tensors(policy.tensors, policy.contract)
    known = {tuple(torch.tensor(command).tolist()) for command in COMMANDS}
    obs = torch.tensor([row], dtype=torch.float32)
    for action in (controller(obs), controller.fallback(obs)):
        assert tuple(action[0].tolist()) in known
        if not all(math.isfinite(x) for x in row):
            assert action.tolist() == [[0.0, 0.0]]


# ----------------------------------------------------------------------- evaluation and bundle


def test_evaluation_executes_the_chosen_rows() -> None:
    """Sprint pays the normalised speed: rows give -1, 0 and 1; the policy always takes the last."""
    world = Sprint(2, lambda i, k: i + 2 * k, limit=4)
    world.contract = dataclasses.replace(
        world.contract, commands=((-2.0, 0.0), (1.0, 0.0), (4.0, 0.5))
    )
    tensors = {
        "obs_mean": torch.zeros(2),
        "obs_scale": torch.ones(2),
        "q.0.weight": torch.zeros(2, 2, 3),
        "q.0.bias": torch.tensor([[[0.0, 1.0, 2.0]], [[0.0, 0.0, 0.0]]]),
        "logit_weights": torch.tensor([1.0, 0.5]),
    }
    policy = dataclasses.replace(POLICY, tensors=tensors, contract=world.contract)
    controller = controller_from_tensors(policy.tensors, policy.contract)
    done = rollout(controller, world, 3, critic_of(policy))
    assert done.returns == (4.0, 4.0, 4.0)
    assert done.punishments == (4.0, 4.0, 4.0)
    assert math.isnan(done.predicted) and done.reliability == ()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = fake_run(tmp_path_factory.mktemp("discrete") / "run", POLICY)
    result = export_bundle(run, run.parent / "bundle")
    assert result["parity"]["holds"] is True
    return run.parent / "bundle"


def test_the_bundle_answers_bit_for_bit_like_the_run(bundle: Path) -> None:
    generator = np.random.default_rng(7)
    obs = generator.normal(size=(200, 5)) * 10.0 ** generator.integers(-3, 4, (200, 1))
    obs[::10, 1] = np.nan
    places = [bundle.parent / "run", bundle, bundle / "weights.safetensors"]
    for method in ("act", "fallback", "check"):
        # A policy file alone knows no ranges.
        known = places[:2] if method == "check" else places
        one, *others = (getattr(load_policy(place), method)(obs) for place in known)
        assert all(one.tobytes() == other.tobytes() for other in others), method
    chosen = {tuple(row) for row in load_policy(bundle).act(obs).tolist()}
    assert len(chosen) > 2, "a policy that chooses"


def test_the_card_says_that_commands_are_chosen(bundle: Path) -> None:
    card = json.loads((bundle / "card.json").read_text())
    assert card["contract"]["commands"] == [list(row) for row in COMMANDS]
    assert "commands" in card["interface"]["action"]
    assert card["interface"]["safe_action"] == [0.0, 0.0]
    assert card["parity"]["golden_max_ulp"] == card["parity"]["adversarial_max_ulp"] == 0


def test_the_same_run_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    export_bundle(bundle.parent / "run", tmp_path / "other")
    for name in FILES:
        assert (tmp_path / "other" / name).read_bytes() == (bundle / name).read_bytes(), name


def test_a_bundle_with_another_table_is_refused(bundle: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    card = json.loads((out / "card.json").read_text())
    card["contract"]["commands"][0][0] = 0.125
    (out / "card.json").write_text(json.dumps(card))
    with pytest.raises(FileFault, match="differ in their contract"):
        load_policy(reseal(out))


ASSURANCE = fake_assurance(POLICY)
Forms = tuple[torch.jit.ScriptModule, tuple[Any, Any]]


@pytest.fixture(scope="module")
def deployed() -> Forms:
    files = scripted(POLICY, ASSURANCE)
    others = (
        onnx_act(files["controller.onnx"], "onnx"),
        exported_act(files["controller.pt2"], "e"),
    )
    return load_script(files["controller.pt"], "controller.pt"), others


def test_parity_holds(deployed: Forms) -> None:
    parity = measure(
        assured(POLICY, ASSURANCE), *deployed, POLICY.tensors, POLICY.contract, ASSURANCE
    )
    assert parity.holds
    assert parity.golden_rows == 64
    assert parity.adversarial_rows > 5 * POLICY.contract.obs_size
    assert all(hasattr(deployed[0], method) for method in ALL_METHODS)


@pytest.mark.parametrize(
    "name",
    # `most` is the largest finite number: no observation but an infinite one tells two such apart.
    sorted(set(controller_from_tensors(POLICY.tensors, POLICY.contract).state_dict()) - {"most"}),
)
def test_parity_notices_every_changed_constant(deployed: Forms, name: str) -> None:
    """A choice hides small changes; these are large enough to change one."""
    other = assured(POLICY, ASSURANCE)
    buffer = other.get_buffer(f"policy.{name}")
    if name in ("commands", "safe"):
        buffer.view(-1)[0] += 2.0**-10
    else:
        buffer.view(-1)[0] += 5.0 * (1.0 + buffer.abs().max())
    assert not measure(other, *deployed, POLICY.tensors, POLICY.contract, ASSURANCE).holds
