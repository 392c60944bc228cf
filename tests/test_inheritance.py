"""Does a policy that begins on another robot act there as it did on its own?"""

from dataclasses import replace

import pytest
import torch
from fakes import COMMANDS, fake_contract, fake_policy
from torch import Tensor

from kcpr_safety.agents import discrete_snapshots
from kcpr_safety.agents.continuous import Learner
from kcpr_safety.agents.discrete import DiscreteLearner
from kcpr_safety.agents.discrete_settings import discrete_settings
from kcpr_safety.agents.settings import Settings
from kcpr_safety.agents.snapshots import policy_tensors, warm_start
from kcpr_safety.agents.task import Task
from kcpr_safety.contract import Contract, Entry
from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.errors import TrainingFault
from kcpr_safety.policy_file import PolicyFile, check_tensors
from kcpr_safety.training.inheritance import inherited, shared_entries

KNOWN = fake_contract(obs=5, actions=3)
ORDER, ACTIONS = (3, 0, 4, 1), (2, 0, 1)
"""What the other robot observes and drives of it, in its own order; sensor_2 it has not."""


def other(extra: int = 2) -> Contract:
    seen = [KNOWN.observation[i] for i in ORDER]
    new = [Entry(f"goal_{i}", "m") for i in range(extra)]
    return replace(
        KNOWN,
        task="SafetyOther-v1",
        observation=(new[0], *seen, *new[1:]),
        action=tuple(KNOWN.action[i] for i in ACTIONS),
    )


def blind_to_what_is_lost(policy: PolicyFile) -> PolicyFile:
    """The same policy without any use for sensor_2, which the other robot does not have."""
    tensors = {name: tensor.clone() for name, tensor in policy.tensors.items()}
    for name in ("actor.0.weight", "critic.0.weight"):
        tensors[name][:, 2] = 0.0
    return replace(policy, tensors=tensors)


def value(tensors: dict[str, Tensor], obs: Tensor, action: Tensor) -> Tensor:
    """All critics, as plainly as it can be said."""
    normal = (obs - tensors["obs_mean"]) * tensors["obs_scale"]
    x = torch.cat([normal, action], -1).expand(6, *obs.shape[:1], -1)
    for i in range(3):
        x = x @ tensors[f"critic.{i}.weight"] + tensors[f"critic.{i}.bias"]
        x = x.relu() if i < 2 else x
    return x


def test_it_acts_as_it_did_whatever_is_new_there() -> None:
    policy = blind_to_what_is_lost(fake_policy(contract=KNOWN))
    there = other()
    tensors = inherited(policy, there)
    check_tensors(tensors, there, "test")
    old, new = torch.randn(64, 5), torch.randn(64, 2)
    seen = torch.cat([new[:, :1], old[:, ORDER], new[:, 1:]], 1)
    before = controller_from_tensors(policy.tensors, KNOWN)
    after = controller_from_tensors(tensors, there)
    for act in ("nominal", "fallback"):
        expected = getattr(before, act)(old)[:, ACTIONS]
        torch.testing.assert_close(getattr(after, act)(seen), expected)
    action = torch.rand(64, 3) * 2 - 1
    expected = value(dict(policy.tensors), old, action)
    torch.testing.assert_close(value(tensors, seen, action[:, ACTIONS]), expected)


def test_on_its_own_robot_nothing_changes() -> None:
    policy = fake_policy(contract=KNOWN)
    tensors = inherited(policy, KNOWN)
    assert tensors.keys() == policy.tensors.keys()
    assert all(torch.equal(tensors[name], policy.tensors[name]) for name in tensors)
    assert shared_entries(policy, KNOWN) == 5


def test_a_discrete_policy_too() -> None:
    known = replace(fake_contract(), commands=COMMANDS)
    task = Task(5, len(COMMANDS), 25.0, 1000)
    learner = DiscreteLearner(discrete_settings("kldmp", {"width": 8}), task, 1, 0)
    policy = PolicyFile(discrete_snapshots.policy_tensors(learner), known, "kldmp", 0, 100)
    there = replace(known, observation=tuple(reversed(known.observation)))
    obs = torch.randn(32, 5)
    before = controller_from_tensors(policy.tensors, known)(obs)
    after = controller_from_tensors(inherited(policy, there), there)(obs.flip(1))
    assert torch.equal(before, after)


def test_a_unit_is_part_of_a_name() -> None:
    policy = fake_policy(contract=KNOWN)
    observation = (Entry("sensor_0", "km/h"), *KNOWN.observation[1:])
    assert shared_entries(policy, replace(KNOWN, observation=observation)) == 4


def test_what_was_never_seen_has_no_range_until_it_is() -> None:
    there = other()
    policy = fake_policy(contract=KNOWN)
    seen = {"obs_low": torch.full((5,), -2.0), "obs_high": torch.full((5,), 2.0)}
    policy = replace(policy, tensors={**policy.tensors, **seen})
    learner = Learner(Settings(width=32), Task(6, 3, 25.0, 1000), num_envs=1, seed=0)
    warm_start(learner, inherited(policy, there))
    learner.normaliser.add(torch.full((1, 6), 7.0), torch.zeros(1), torch.zeros(1).bool())
    tensors = policy_tensors(learner)
    assert tensors["obs_low"].tolist() == [7.0, -2.0, -2.0, -2.0, -2.0, 7.0]
    assert tensors["obs_high"].tolist() == [7.0] * 6


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (
            replace(KNOWN, observation=tuple(Entry(f"x_{i}", "m") for i in range(5))),
            r"knows nothing \(x_0, x_1, x_2 and 2 more against sensor_0",
        ),
        (
            replace(KNOWN, action=(Entry("wheel", "1", -1.0, 1.0), *KNOWN.action[1:])),
            "driven by wheel, motor_1, motor_2, a policy of SafetyFake-v1 drives motor_0",
        ),
        (replace(KNOWN, action=KNOWN.action[:2]), "driven by motor_0, motor_1, a policy"),
    ],
)
def test_a_robot_that_has_too_little_of_it_is_refused(there: Contract, told: str) -> None:
    with pytest.raises(TrainingFault, match=told):
        inherited(fake_policy(contract=KNOWN), there)
