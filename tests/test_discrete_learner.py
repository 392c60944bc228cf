"""Is the discrete learner klDMP, its baselines the same with other numbers, and all exact?"""

import math
from dataclasses import replace

import pytest
import torch
from mdps import random_mdp

from kcpr_safety.agents.discrete import DiscreteLearner
from kcpr_safety.agents.discrete_settings import (
    DISCRETE_AGENTS,
    DiscreteSettings,
    discrete_settings,
)
from kcpr_safety.agents.discrete_snapshots import restore, snapshot
from kcpr_safety.agents.tabular import Coupling, deployed_actions, solve
from kcpr_safety.agents.task import Task
from kcpr_safety.errors import SettingsError, UnknownNameError
from kcpr_safety.networks import Stack, split
from kcpr_safety.ops.coupling import coupled_values, soft_policy, soft_value, soften
from kcpr_safety.replay import Divided, Replay
from kcpr_safety.transition import Batch

TASK = Task(obs_size=5, action_size=4, budget=2.0, time_limit=100)
SMALL = DiscreteSettings(width=16, batch=24)


def draw_batch(seed: int = 0, size: int = 24, continues: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(size, 5, generator=generator),
        action=torch.randint(4, (size, 1), generator=generator).float(),
        reward=torch.randn(size, generator=generator),
        punishment=(torch.rand(size, generator=generator) < 0.3).float(),
        continues=torch.full((size,), continues),
        next_obs=torch.randn(size, 5, generator=generator),
    )


def tensors(batch: Batch) -> list[torch.Tensor]:
    """All of a batch that is there."""
    return [part for part in batch if part is not None]


def make(settings: DiscreteSettings = SMALL, replicas: int = 1) -> DiscreteLearner:
    learner = DiscreteLearner(settings, TASK, num_envs=24 // replicas, seed=3, replicas=replicas)
    learner.observe(draw_batch(9), torch.zeros(24, dtype=torch.bool))
    return learner


def slots(learner: DiscreteLearner) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(weight, bias) of the last gradient, layer by layer."""
    return split(learner.gradient, learner.q.members, learner.q.sizes)


def plain_loss(learner: DiscreteLearner, batch: Batch) -> torch.Tensor:
    """Huber loss of both modules by automatic differentiation's own parts, for shared replay."""
    weights = [
        part.detach().clone().requires_grad_() for layer in learner.q.layers() for part in layer
    ]
    h = learner.settings.numbers

    def forward(member: int, x: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
        for i in range(0, len(parameters), 2):
            x = x @ parameters[i][member] + parameters[i + 1][member]
            x = x.relu() if i + 2 < len(parameters) else x
        return x

    frozen = [part for layer in learner.target.layers() for part in layer]
    x, next_x = learner.normaliser(batch.obs), learner.normaliser(batch.next_obs)
    with torch.no_grad():
        values = coupled_values(forward(0, next_x, frozen), forward(1, next_x, frozen), *h)
    punishment = batch.punishment * learner.punishment_scale
    reward = (
        batch.reward * learner.normaliser.reward_scale - learner.settings.scalarised * punishment
    )
    loss = torch.zeros(())
    for member, stream in enumerate((reward, -punishment)):
        target = stream + learner.settings.gamma * batch.continues * values[member]
        q = forward(member, x, weights).gather(1, batch.action.long())[:, 0]
        loss = loss + torch.nn.functional.huber_loss(q, target)
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])


@pytest.mark.parametrize("agent", ["dqn", "sql", "dmp", "kldmp"])
def test_the_gradient_is_that_of_the_huber_loss_on_the_regularised_backup(agent: str) -> None:
    learner = make(discrete_settings(agent, {"width": 16, "batch": 24, "learning_rate": 1e-2}))
    for step in range(20):  # away from the initial agreement of networks and targets
        learner.update(draw_batch(step))
    expected = plain_loss(learner, draw_batch(100))
    learner.update(draw_batch(100))
    torch.testing.assert_close(learner.gradient, expected, atol=1e-6, rtol=1e-4)


def test_there_is_no_policy_network() -> None:
    """Two Q-networks and their targets are all that learns; the policy follows from them."""
    learner = make()
    stacks = [value for value in vars(learner).values() if isinstance(value, Stack)]
    assert len(stacks) == 2
    assert learner.q.members == 2 and learner.q.sizes == (5, 16, 16, 4)
    before = learner.policies(draw_batch(1).obs)[0]
    learner.q.flat.zero_()
    learner.target.flat.zero_()
    after = learner.policies(draw_batch(1).obs)[0]
    torch.testing.assert_close(after, torch.full_like(after, -math.log(4)))
    assert (before - after).abs().max() > 1e-3


def test_policies_have_their_companions_from_the_target_networks() -> None:
    learner = make()
    obs = draw_batch(1).obs
    before = learner.policies(obs)
    learner.target.layers()[-1][1][1, 0, 2] += 5.0  # the punishment module's target likes action 2
    after = learner.policies(obs)
    assert (after[0][:, 2] > before[0][:, 2]).all()
    uncoupled = make(replace(SMALL, softening=0.0))
    alone = uncoupled.policies(obs)[0]
    uncoupled.target.flat.add_(1.0)
    torch.testing.assert_close(uncoupled.policies(obs)[0], alone)


def test_the_companion_of_its_own_values_is_another_algorithm() -> None:
    both, own = make(), make(replace(SMALL, companion="own"))
    own.target.flat.copy_(both.target.flat)
    q = torch.randn(2, 1, 6, 4, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(both._values(*q)[0], own._values(*q)[0])
    h = SMALL.numbers
    uniform = torch.full_like(q[1], -math.log(4))
    prior = soften(soft_policy(q[1], uniform, h[1]), h[2])
    torch.testing.assert_close(own._values(*q)[0], soft_value(q[0], prior, h[0]))


def test_the_deployed_choice_weighs_both_values_by_lambda() -> None:
    settings = replace(SMALL, reward_temperature=0.2, punishment_temperature=0.1, softening=0.5)
    learner = make(settings)
    assert settings.logit_weights == pytest.approx((5.0, 0.5 * 10.0))
    x = learner.normaliser(draw_batch(1).obs)[None]
    reward, punishment = (part[0] for part in learner._both(learner.q, x))
    expected = (5.0 * reward + 5.0 * punishment).argmax(-1)
    assert learner.act_greedily(draw_batch(1).obs)[:, 0].long().tolist() == expected.tolist()


def test_agents_differ_in_numbers_alone() -> None:
    assert discrete_settings("dqn", {}).numbers == (math.inf, math.inf, 0.0)
    assert discrete_settings("dqn", {}).logit_weights == (1.0, 0.0)
    assert discrete_settings("sql", {}).numbers[2] == 0.0
    assert discrete_settings("dmp", {}).logit_weights == (0.5, 0.5)
    assert discrete_settings("softdmp", {}).replay == "routed"
    assert {type(make(discrete_settings(agent, {"width": 16}))) for agent in DISCRETE_AGENTS} == {
        DiscreteLearner
    }


@pytest.mark.parametrize("agent", DISCRETE_AGENTS)
def test_every_agent_acts_updates_and_stays_finite(agent: str) -> None:
    learner = make(discrete_settings(agent, {"width": 16, "batch": 24}))
    replay = learner.memory(200)
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        replay.add(draw_batch(step))
        metrics = learner.update(replay.draw(24, generator))
    assert all(torch.isfinite(value) for value in metrics.values())
    chosen = learner.act(draw_batch(1).obs)
    assert chosen.shape == (24, 1) and set(chosen[:, 0].tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_exploration_falls_and_is_uniform_at_first() -> None:
    learner = DiscreteLearner(replace(SMALL, exploration_steps=100), TASK, num_envs=24, seed=0)
    assert learner.exploration == 1.0
    counts = torch.bincount(learner.act(torch.zeros(4_000, 5))[:, 0].long(), minlength=4)
    assert (counts / 4_000 - 0.25).abs().max() < 0.04
    for _ in range(10):
        learner.observe(draw_batch(0), torch.zeros(24, dtype=torch.bool))
    assert learner.exploration == pytest.approx(0.05)


# ------------------------------------------------------------------------------------- replicas


def test_replicas_learn_as_each_would_alone() -> None:
    """Two replicas in one stack: the same gradients as two learners with their parameters."""
    settings = replace(SMALL, normalise=False, batch=12)
    many = make(settings, replicas=2)
    batch = draw_batch(1)
    many.update(batch)
    gradients = [[part[[k, 2 + k]] for layer in slots(many) for part in layer] for k in (0, 1)]
    for k in (0, 1):
        fresh = make(settings, replicas=2)
        alone = make(settings)
        for stack, source in ((alone.q, fresh.q), (alone.target, fresh.target)):
            for own, theirs in zip(stack.layers(), source.layers(), strict=True):
                for a, b in zip(own, theirs, strict=True):
                    a.copy_(b[[k, 2 + k]])
        alone.update(Batch(*(part[12 * k : 12 * (k + 1)] for part in tensors(batch))))
        expected = [part for layer in slots(alone) for part in layer]
        torch.testing.assert_close(gradients[k], expected, atol=1e-6, rtol=1e-4)


# --------------------------------------------------------------------------------------- replay


def rows_of(replay: Replay, batch: Batch) -> set[float]:
    return {round(value, 5) for value in batch.reward.tolist()}


def test_a_balanced_draw_takes_half_from_the_punished_ones() -> None:
    learner = make(replace(SMALL, replay="split"))
    replay = learner.memory(1_000)
    for seed in range(10):
        replay.add(draw_batch(seed))
    drawn = replay.draw(400, torch.Generator().manual_seed(0))
    assert drawn.punishment.tolist() == [0.0] * 200 + [1.0] * 200


def test_a_divided_replay_holds_the_last_transitions_and_no_others() -> None:
    replay = Divided(30, 5, 1, lambda batch: batch.punishment > 0, balanced=True)
    batches = [draw_batch(seed, size=7) for seed in range(12)]
    for batch in batches:
        replay.add(batch)
    last = torch.cat([batch.reward for batch in batches])[-30:]
    drawn = replay.draw(3_000, torch.Generator().manual_seed(0))
    assert rows_of(replay, drawn) == {round(value, 5) for value in last.tolist()}
    again = Divided(30, 5, 1, lambda batch: batch.punishment > 0, balanced=True)
    again.rows.copy_(replay.rows)
    again.take_up(replay.added)
    again.add(draw_batch(50, size=7))
    replay.add(draw_batch(50, size=7))
    assert torch.equal(again.rows, replay.rows)
    for seed in range(20):
        one, other = (r.draw(9, torch.Generator().manual_seed(seed)) for r in (replay, again))
        assert torch.equal(one.reward, other.reward), "the order of a buffer is that of the ring"


@pytest.mark.parametrize("design", ["shared", "routed", "split"])
def test_a_learner_and_its_replay_come_back_exactly(design: str) -> None:
    """From its snapshot and the ring's rows, in the middle of overwriting them."""
    settings = replace(SMALL, replay=design)

    def live(learner: DiscreteLearner, replay: Replay, seeds: range, draw: torch.Generator) -> None:
        for seed in seeds:
            batch = draw_batch(seed)
            replay.add(batch._replace(action=learner.act(batch.obs)))
            learner.observe(batch, torch.rand(24, generator=draw) < 0.1)
            learner.advance(24)
            learner.update(replay.draw(24, draw))

    one, draw = make(settings), torch.Generator()
    memory = one.memory(100)
    live(one, memory, range(11), draw.manual_seed(1))
    kept = {key: value.clone() for key, value in snapshot(one).items()}
    other = make(settings)
    again = other.memory(100)
    restore(other, kept)
    again.rows.copy_(memory.rows)
    again.take_up(memory.added)
    resumed = torch.Generator()
    resumed.set_state(draw.get_state())
    live(one, memory, range(11, 20), draw)
    live(other, again, range(11, 20), resumed)
    for key, value in snapshot(one).items():
        assert torch.equal(value, snapshot(other)[key]), key
    assert torch.equal(memory.rows, again.rows)


def test_routing_follows_the_ratio_of_the_policies() -> None:
    learner = make(replace(SMALL, softening=0.0, replay="routed"))
    batch = draw_batch(2, size=4_000)
    reward, punishment = (log.exp() for log in learner.policies(batch.obs))
    taken = batch.action.long()
    chance = (punishment / (punishment + reward)).gather(1, taken)[:, 0]
    assert learner.route(batch).float().mean() == pytest.approx(float(chance.mean()), abs=0.03)


def test_routed_batches_teach_each_module_from_its_own_buffer() -> None:
    learner = make(replace(SMALL, replay="routed", normalise=False))
    first, second = draw_batch(1, 24), draw_batch(2, 24)
    pairs = zip(tensors(first), tensors(second), strict=True)
    learner.update(Batch(*(torch.cat(pair) for pair in pairs)))
    for member, batch in enumerate((first, second)):
        shared = make(replace(SMALL, normalise=False))
        shared.update(batch)
        for mine, theirs in zip(slots(learner), slots(shared), strict=True):
            for a, b in zip(mine, theirs, strict=True):
                torch.testing.assert_close(a[member], b[member], atol=1e-6, rtol=1e-4)


# --------------------------------------------------------------------------------------- oracle


@pytest.mark.parametrize("agent", ["sql", "kldmp", "dqn"])
def test_values_and_greedy_policy_agree_with_the_tabular_oracle(agent: str) -> None:
    """All transitions of a small MDP in turn: values within 0.02, greedy policies the same."""
    mdp = random_mdp(8, states=5, actions=4, gamma=0.8, deterministic=True)
    own = {"reward_temperature": 0.2, "punishment_temperature": 0.25}
    taus = {} if agent == "dqn" else own
    numbers = {"normalise": False, "gamma": 0.8, "width": 64, "learning_rate": 3e-3}
    settings = discrete_settings(agent, {**numbers, "target_rate": 0.1, **taus})
    learner = DiscreteLearner(settings, TASK, num_envs=20, seed=0)
    state, action = torch.arange(5).repeat_interleave(4), torch.arange(4).repeat(5)
    batch = Batch(
        obs=torch.eye(5)[state],
        action=action[:, None].float(),
        reward=mdp.reward[state, action].float(),
        punishment=mdp.punishment[state, action].float(),
        continues=torch.ones(20),
        next_obs=mdp.transition[state, action].float(),
    )
    for step in range(1_200):
        if step == 900:
            learner.settings = replace(settings, learning_rate=2e-4)
        learner.update(batch, measure=False)
    h = settings.numbers
    seen = replace(mdp, reward=mdp.reward - settings.scalarised * mdp.punishment)
    solution = solve(seen, Coupling(*h), step=0.5).oracle()
    reward, punishment = (part[0].double() for part in learner._both(learner.q, torch.eye(5)[None]))
    torch.testing.assert_close(reward, solution.q.reward, atol=0.02, rtol=0)
    torch.testing.assert_close(punishment, solution.q.punishment, atol=0.02, rtol=0)
    greedy = learner.act_greedily(torch.eye(5))[:, 0].long()
    assert torch.equal(greedy, deployed_actions(solution.q, solution.coupling))


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"softening": 1.0}, r"softening is 1\.0; it must lie in \[0, 1\)"),
        ({"softening": -0.1}, r"softening is -0\.1"),
        ({"reward_temperature": math.nan}, "reward_temperature is nan"),
        ({"width": 1.5}, r"width is 1\.5; it must be a int"),
        ({"normalise": 1}, "normalise is 1; it must be a bool"),
    ],
)
def test_numbers_outside_their_range_are_refused(changed: dict[str, float], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        discrete_settings("kldmp", changed)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean kldmp"):
        discrete_settings("kldmpp", {})
    with pytest.raises(UnknownNameError, match="did you mean routed"):
        discrete_settings("kldmp", {"replay": "route"})
    with pytest.raises(UnknownNameError, match="did you mean softening"):
        discrete_settings("kldmp", {"softning": 0.5})
