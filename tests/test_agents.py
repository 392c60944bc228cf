"""Does the continuous learner do what KCPR says, and nothing under another's name?"""

import math
from dataclasses import replace

import pytest
import torch
from fakes import fake_contract
from plain_update import plain_gradient

from kcpr_safety.agents import AGENTS, Learner, Settings, agent_settings
from kcpr_safety.agents.budget import EASE, BudgetController
from kcpr_safety.agents.continuous import EVALUATION, PUNISHMENT, REWARD, Heads
from kcpr_safety.agents.normaliser import Moments, ReturnScale
from kcpr_safety.agents.optimiser import adam_step
from kcpr_safety.agents.snapshots import policy_tensors, restore, snapshot, warm_start
from kcpr_safety.agents.task import Task
from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.errors import SettingsError, TrainingFault, UnknownNameError
from kcpr_safety.ops import bellman, gaussian
from kcpr_safety.transition import Batch

TASK = Task(obs_size=3, action_size=2, budget=25.0, time_limit=1000)
SMALL = Settings(width=16, batch=32, coupling=0.5, companion_coupling=0.5, softening=0.8)


def draw_batch(seed: int = 0, size: int = 32, continues: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Batch(
        obs=normal(size, 3),
        action=torch.tanh(normal(size, 2)),
        reward=normal(size),
        punishment=(normal(size) > 0.5).float(),
        continues=torch.full((size,), continues),
        next_obs=normal(size, 3),
    )


def make(settings: Settings = SMALL, seed: int = 0, task: Task = TASK) -> Learner:
    learner = Learner(settings, task, num_envs=4, seed=seed)
    learner.observe(draw_batch(99, size=4), torch.zeros(4, dtype=torch.bool))
    learner.controller.integral = math.log(settings.m_start)  # as if that had kept the budget
    return learner


def member(learner: Learner, module: int) -> torch.Tensor:
    """All parameters of one module's actor."""
    return torch.cat([part[module].flatten() for layer in learner.actor.layers() for part in layer])


def heads(learner: Learner, obs: torch.Tensor) -> Heads:
    return learner._heads(learner.actor(learner._rows(learner.normaliser(obs), learner.actor)))


def targets(learner: Learner, batch: Batch, noise_seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(noise_seed)
    noise = torch.randn(learner.actor.members, batch.obs.shape[0], 2, generator=generator)
    there = heads(learner, batch.next_obs)
    drawn = there.mean + there.std * noise
    log_prob = gaussian.tanh_log_prob(drawn, there.log_std, noise)
    return learner._targets(
        batch, learner.normaliser(batch.next_obs), torch.tanh(drawn), log_prob, there
    )


def agree(learner: Learner) -> None:
    """Make the companion equal the reward policy: offset 0, ratio 1."""
    for weight, bias in learner.actor.layers():
        weight[1].zero_()
        bias[1].zero_()


def test_the_companion_shapes_what_the_reward_policy_learns() -> None:
    """Freezing pi_P at its initial weights changes pi_R's updates: SAC-Lag would not notice."""
    free, frozen = make(), make()
    start = member(frozen, 1)
    for step in range(5):
        free.update(draw_batch(step))
        frozen.update(draw_batch(step))
        with torch.no_grad():
            place = 0
            for layer in frozen.actor.layers():
                for part in layer:
                    part[1].copy_(start[place : place + part[1].numel()].view_as(part[1]))
                    place += part[1].numel()
    assert not torch.equal(member(free, 1), start)
    assert not torch.equal(member(free, 0), member(frozen, 0))


def test_each_backup_contains_its_kl() -> None:
    """Where the policies differ, k changes both soft values; where they agree, neither."""
    batch = draw_batch(1)
    weak, strong = make(), make(replace(SMALL, coupling=2.0, companion_coupling=2.0))
    strong.parameters.copy_(weak.parameters)
    strong.target.flat.copy_(weak.target.flat)
    for learner in (weak, strong):
        learner.actor.layers()[-1][1][1].fill_(1.0)
    low, high = targets(weak, batch), targets(strong, batch)
    assert (low[REWARD] - high[REWARD]).abs().min() > 1e-3
    assert (low[PUNISHMENT] - high[PUNISHMENT]).abs().max() > 1e-3
    torch.testing.assert_close(low[EVALUATION], high[EVALUATION])
    for learner in (weak, strong):
        agree(learner)
    torch.testing.assert_close(targets(weak, batch), targets(strong, batch))


def test_the_punishment_value_is_that_of_its_own_policy() -> None:
    """Q_P's next action comes from pi_P: moving pi_P alone moves Q_P's target, not Q_C's."""
    batch, learner = draw_batch(1), make(replace(SMALL, companion_coupling=1e-6))
    agree(learner)
    before = targets(learner, batch)
    learner.actor.layers()[-1][1][1].fill_(2.0)
    after = targets(learner, batch)
    assert (before[PUNISHMENT] - after[PUNISHMENT]).abs().max() > 1e-3
    assert torch.equal(before[EVALUATION], after[EVALUATION])


def test_the_evaluation_is_of_the_policy_that_files_hold() -> None:
    learner, batch = make(), draw_batch(1)
    before = targets(learner, batch)
    learner.deployed.flat.mul_(2.0)
    after = targets(learner, batch)
    assert (before[EVALUATION] - after[EVALUATION]).abs().max() > 1e-3
    assert torch.equal(before[: EVALUATION.start], after[: EVALUATION.start])


def test_errors_of_the_evaluation_cancel_around_zero() -> None:
    """A clamp would keep the errors upwards alone; the punishment module's value has one."""
    wrong = torch.tensor([[-3.0, 3.0], [2.0, -2.0]])
    nothing, discount = torch.zeros(2), torch.full((2,), 0.9)
    assert bellman.evaluation_target(nothing, discount, wrong).mean() == 0.0
    assert bellman.punishment_target(nothing, discount, wrong, nothing).min() == 0.0


def test_a_terminated_step_has_no_future_and_a_truncated_one_has() -> None:
    learner = make()
    ended = targets(learner, draw_batch(1, continues=0.0))
    batch = draw_batch(1)
    scale = learner.normaliser.reward_scale
    torch.testing.assert_close(ended[REWARD], (batch.reward * scale).expand(2, -1))
    torch.testing.assert_close(
        ended[EVALUATION], (batch.punishment * learner.punishment_scale).expand(2, -1)
    )
    assert (targets(learner, batch)[REWARD] - ended[REWARD]).abs().min() > 0


def test_a_fall_saves_the_punishment_module_nothing() -> None:
    """It is worth what the deployed policy suffers: at the budget's pace 1, at twice that 2."""
    learner = make()
    batch = draw_batch(1, continues=0.0)
    own = batch.punishment * learner.punishment_scale
    for budgets in (0.0, 1.0, 2.0):
        learner.controller.pace = budgets * TASK.budget
        expected = own + learner.settings.gamma * budgets
        torch.testing.assert_close(
            targets(learner, batch)[PUNISHMENT], expected.expand(2, -1), atol=1e-6, rtol=1e-6
        )


def test_punishment_is_worse_when_larger() -> None:
    """One punished action: the coupled policy must learn to leave it, with reward flat."""
    learner = make(replace(SMALL, m_start=3.0, learning_rate=3e-3, width=32))
    obs = torch.zeros(256, 3)
    for step in range(400):
        generator = torch.Generator().manual_seed(step)
        action = 2 * torch.rand(256, 2, generator=generator) - 1
        punishment = (action[:, 0] > 0).float()
        zero = torch.zeros(256)
        learner.update(Batch(obs, action, zero, punishment, zero, obs))
    reward_mean, companion_mean = heads(learner, obs[:1]).mean[:, 0, 0].tolist()
    assert reward_mean < -0.1
    assert companion_mean < reward_mean


@pytest.mark.parametrize("agent", sorted(AGENTS))
def test_every_agent_updates_and_stays_finite(agent: str) -> None:
    learner = make(agent_settings(agent, {"width": 16, "batch": 32}))
    before = {name: tensor.clone() for name, tensor in snapshot(learner).items()}
    for step in range(3):
        metrics = learner.update(draw_batch(step))
    assert all(torch.isfinite(value) for value in metrics.values())
    for name in ("parameters", "target"):
        assert not torch.equal(before[name], snapshot(learner)[name])


def test_the_baselines_have_no_companion_and_weigh_punishment_as_their_names_say() -> None:
    sac, lag = agent_settings("sac", {}), agent_settings("sac-lag", {})
    assert not sac.coupled
    assert not lag.coupled
    assert make(replace(sac, width=16)).weight == 0.0
    weighing = make(replace(lag, width=16))
    assert weighing.weight == pytest.approx(weighing.controller.m)
    assert Learner(replace(lag, width=16), TASK, 4, seed=0).weight == pytest.approx(lag.m_start)
    assert make(replace(sac, width=16)).actor.members == 1


def test_lambda_is_what_the_coupling_implies() -> None:
    settings = replace(
        SMALL, coupling=0.6, companion_coupling=0.2, companion_entropy=0.1, softening=0.5
    )
    learner = make(replace(settings, controlled=False, m_start=2.0))
    # b k_R / (tau_P + k_P) = 0.5 * 0.6 / (0.1 / 2 + 0.2 / 2)
    assert learner.weight == pytest.approx(2.0)


FORMS = ("closed form", "barrier", "reach", "hold", "pessimism")


@pytest.mark.parametrize("agent", [*sorted(AGENTS), *(f"kcpr, {form}" for form in FORMS)])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_fast_update_is_the_plain_one(agent: str, layer_norm: bool) -> None:
    """Gradients by hand in float32 against automatic differentiation in float64."""
    name, _, form = agent.partition(", ")
    changed = {"width": 16, "layer_norm": layer_norm, "closed_form": form == "closed form"}
    changed |= {"barrier": 0.3} if form == "barrier" else {}
    changed |= {"reach": 0.2} if form == "reach" else {}
    changed |= {"pessimism": 0.3} if form == "pessimism" else {}
    held = TASK._replace(time_limit=250, hold=4)
    learner = make(agent_settings(name, changed), task=held if form == "hold" else TASK)
    for step in range(20):  # away from the initial agreement of the two policies
        learner.update(draw_batch(step))
    batch = draw_batch(100)._replace(continues=(torch.arange(32) % 4 > 0).float())
    expected = plain_gradient(learner, batch)
    learner.update(batch)
    torch.testing.assert_close(learner.gradient.double(), expected, atol=2e-6, rtol=2e-4)


def test_the_step_is_adams() -> None:
    learner = make()
    parameters = learner.parameters.clone().requires_grad_()
    reference = torch.optim.Adam([parameters], lr=learner.settings.learning_rate)
    for step in range(5):
        learner.update(draw_batch(step))
        parameters.grad = learner.gradient.clone()
        reference.step()
    torch.testing.assert_close(learner.parameters, parameters.detach(), atol=1e-6, rtol=1e-5)


def test_moments_never_sink_into_denormal_numbers() -> None:
    """A gradient that stops: both moments shrink, and end at zero instead of just above it."""
    smallest = torch.finfo(torch.float32).tiny
    parameters, gradient = torch.ones(3), torch.tensor([1.0, 1e-6, 1.0])
    moments = torch.zeros(3), torch.zeros(3)
    for update in range(1, 100_000):
        adam_step(parameters, gradient, moments, update, 1e-3)
        if update == 100:
            gradient[:2] = 0.0
        if update % 5_003 == 0:
            for moment in moments:
                assert ((moment == 0) | (moment.abs() >= smallest)).all()
    assert [moment[:2].tolist() for moment in moments] == [[0.0, 0.0]] * 2
    assert moments[1][2] == pytest.approx(1.0, rel=1e-3)


def test_the_targets_and_the_deployed_policy_follow_slowly() -> None:
    """The policy ever more slowly: by an average that a share of the updates make longer."""
    learner = make(replace(SMALL, target_rate=0.25, averaged=0.5, critic_target_rate=0.5))
    learner.progress = 0.4
    for update in range(1, 5):
        target, deployed = learner.target.flat.clone(), learner.deployed.flat.clone()
        learner.update(draw_batch(0))
        for follower, before, leader, share in (
            (learner.target, target, learner.critic, 0.5),
            (learner.deployed, deployed, learner.actor, 1 / (4 + 0.5 * 0.4 * update)),
        ):
            torch.testing.assert_close(follower.flat, torch.lerp(before, leader.flat, share))


def test_the_companion_follows_the_controller_at_once() -> None:
    """Twice as far aside at twice the m, in the learner and in the file that it writes."""
    learner = make()
    obs = draw_batch(0).obs
    offsets, files = [], []
    for integral in (0.0, math.log(2.0)):
        learner.controller.integral = math.log(0.05) + integral
        heads = learner._heads(learner.actor(obs.expand(2, *obs.shape)))
        assert heads.companion
        offsets.append(heads.companion.offset.clone())
        files.append(policy_tensors(learner)["actor.2.weight"][1])
    assert offsets[0].abs().max() > 0.0
    torch.testing.assert_close(offsets[1], 2.0 * offsets[0])
    size = learner.task.action_size
    torch.testing.assert_close(files[1][:, :size], 2.0 * files[0][:, :size])
    torch.testing.assert_close(files[1][:, size:], files[0][:, size:])


def test_the_learning_rate_falls_evenly() -> None:
    moved = []
    for progress in (0.0, 0.5, 1.0):
        learner = make(replace(SMALL, learning_rate_left=0.2))
        learner.progress = progress
        before = learner.parameters.clone()
        learner.update(draw_batch(0))
        moved.append((learner.parameters - before).norm())
    assert moved[1] / moved[0] == pytest.approx(0.6, rel=1e-3)
    assert moved[2] / moved[0] == pytest.approx(0.2, rel=1e-3)


def test_a_saved_learner_continues_as_if_it_had_not_been_saved() -> None:
    first = make()
    first.begin(50.0, (), 0.5)
    for step in range(3):
        first.update(draw_batch(step))
        first.controller.suffered(0.04, 0.002)
        first.controller.advance(100, 0.1)
    second = make(seed=7)
    restore(second, {name: value.clone() for name, value in snapshot(first).items()})
    for step in range(3, 6):
        first.update(draw_batch(step))
        second.update(draw_batch(step))
    for name, value in snapshot(first).items():
        assert torch.equal(value, snapshot(second)[name]), name


def test_files_know_the_range_of_what_was_observed() -> None:
    learner = make()
    rows = torch.stack([draw_batch(seed, size=4).obs for seed in (1, 2, 99)]).flatten(0, 1)
    for seed in (1, 2):
        learner.observe(draw_batch(seed, size=4), torch.zeros(4, dtype=torch.bool))
    tensors = policy_tensors(learner)
    for entry in range(rows.shape[1]):
        assert tensors["obs_low"][entry] == min(rows[:, entry].tolist())
        assert tensors["obs_high"][entry] == max(rows[:, entry].tolist())
    # Whoever starts from a policy has been where it has been.
    other = make(seed=3)
    warm_start(other, tensors)
    assert torch.equal(policy_tensors(other)["obs_low"], tensors["obs_low"])
    assert "obs_low" not in policy_tensors(Learner(SMALL, TASK, num_envs=4, seed=0))


CLOSE = TASK._replace(closeness=(True, False, True))


def test_the_networks_see_while_learning_what_the_controller_shows_them() -> None:
    learner = Learner(SMALL, CLOSE, num_envs=4, seed=0)
    learner.observe(draw_batch(99, size=4), torch.zeros(4, dtype=torch.bool))
    tensors = policy_tensors(learner)
    assert tensors["obs_near"].tolist() == [10.0, 0.0, 10.0]
    obs = torch.cat([draw_batch(1).obs, torch.rand(32, 3), torch.full((1, 3), 1e30)])
    shown = controller_from_tensors(tensors, fake_contract(obs=3)).normalise(obs)
    assert torch.equal(learner.normaliser(obs), shown)
    assert not torch.equal(make().normaliser(obs), shown)


def test_no_file_tells_of_nearness_where_there_is_none() -> None:
    assert "obs_near" not in policy_tensors(make())
    blind = replace(SMALL, nearness=0.0)
    assert "obs_near" not in policy_tensors(Learner(blind, CLOSE, num_envs=4, seed=0))


def test_who_begins_with_a_policy_or_goes_on_sees_as_before() -> None:
    first = Learner(SMALL, CLOSE, num_envs=4, seed=0)
    plain = make()
    again = make(seed=7)
    warm_start(again, policy_tensors(first))
    assert again.normaliser.near.tolist() == [10.0, 0.0, 10.0]
    warm_start(again, policy_tensors(plain))
    assert not bool(again.normaliser.near.any())
    restore(again, {name: value.clone() for name, value in snapshot(first).items()})
    obs = draw_batch(5).obs
    assert torch.equal(again.normaliser(obs), first.normaliser(obs))
    assert not torch.equal(plain.normaliser(obs), first.normaliser(obs))


def test_a_checkpoint_of_another_shape_is_refused() -> None:
    saved = snapshot(make(replace(SMALL, width=8)))
    with pytest.raises(TrainingFault, match="does not fit"):
        restore(make(), saved)


def test_a_warm_start_acts_like_the_policy_that_it_starts_from() -> None:
    first, second = make(), make(seed=3)
    first.update(draw_batch(0))
    assert not torch.equal(first.deployed.flat, first.actor.flat)
    warm_start(second, policy_tensors(first))
    obs = draw_batch(4).obs
    first.actor.flat.copy_(first.deployed.flat)  # which is the policy that files hold
    expected = heads(first, obs).mean
    torch.testing.assert_close(heads(second, obs).mean, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(second.deployed.flat, second.actor.flat)
    with pytest.raises(TrainingFault, match="cannot start"):
        warm_start(make(replace(SMALL, width=8)), policy_tensors(first))


def settled(controller: BudgetController, punishment: float, terminated: float = 0.0) -> None:
    """Suffer this per step for ten episodes of a young run: far beyond the controller's memory."""
    for _ in range(10 * controller.time_limit):
        controller.seen = 0
        controller.suffered(punishment, terminated)


def test_the_controller_raises_m_over_budget_and_stops_at_its_bounds() -> None:
    settings = Settings(m_start=0.1, m_low=0.05, m_high=0.8, m_rate=1e-3, m_gain=0.3)
    controller = BudgetController(settings, budget=25.0, time_limit=100)
    assert controller.m == pytest.approx(0.1)
    settled(controller, 0.2 * math.e)  # one e-fold over the aim, 0.8 * 25 in 100 steps
    assert controller.error == pytest.approx(1.0)
    assert controller.m == pytest.approx(0.1 * math.exp(0.3))
    controller.advance(1000, 1.0)
    assert controller.m == pytest.approx(0.1 * math.exp(1.3))
    controller.advance(10**6, 1.0)
    assert controller.m == pytest.approx(0.8)
    settled(controller, 0.0)
    assert controller.error == pytest.approx(-1.0)
    controller.advance(1000, 1.0)  # no wind-up: it leaves the bound at once
    assert controller.m == pytest.approx(0.8 * math.exp(-1.3))
    settled(controller, 1e6)
    assert controller.error == pytest.approx(2.0)


def test_the_integral_goes_as_far_in_a_short_run_as_in_a_long_one() -> None:
    weights = []
    for steps in (500_000, 1_000_000):
        settings = agent_settings("kcpr", {"m_high": 100.0}, steps)
        controller = BudgetController(settings, budget=25.0, time_limit=1000)
        settled(controller, 0.02 * math.sqrt(math.e))  # half an e-fold over the aim
        controller.advance(steps, 1.0)
        weights.append(math.log(controller.m / settings.m_start))
    # 5 * 0.5 from the integral, 0.25 * 0.5 from the gain
    assert weights == pytest.approx([2.625, 2.625])
    assert agent_settings("kcpr", {"m_rate": 1e-6}, 100_000).m_rate == 1e-6
    assert agent_settings("kcpr", {}, 1).m_rate == 1e-5


def test_damping_answers_to_a_rise_and_to_no_fall() -> None:
    plain = BudgetController(Settings(), budget=10.0, time_limit=100)
    damped = BudgetController(Settings(m_damping=1.0), budget=10.0, time_limit=100)
    above, below = [], []
    for punishment, ratios in ((0.16, above), (0.04, below)):
        for _ in range(30):
            for controller in (plain, damped):
                controller.suffered(punishment, 0.0)
            ratios.append(damped.m / plain.m)
    assert min(above) > 1.0
    assert below[-1] == 1.0
    assert damped.lagged > damped.error
    again = BudgetController(damped.settings, budget=10.0, time_limit=100)
    again.take(damped.state())
    assert again.m == damped.m and again.state() == damped.state()


def test_a_fixed_deviation_is_neither_learned_nor_paid_for() -> None:
    learner = make(agent_settings("td3-lag", {"width": 8}))
    for step in range(5):
        learner.update(draw_batch(step))
    assert learner.tau == 0.0
    assert torch.allclose(heads(learner, draw_batch(0).obs).std, torch.tensor(0.2))


def test_balanced_draws_are_half_punished() -> None:
    learner = make(agent_settings("kcpr", {"width": 4, "balanced": True}))
    replay = learner.memory(100)
    batch = draw_batch(0)._replace(punishment=torch.tensor([1.0] + [0.0] * 31))
    replay.add(batch)
    drawn = replay.draw(20, torch.Generator().manual_seed(0))
    assert int((drawn.punishment > 0).sum()) == 10
    task = TASK._replace(streams=(("speed", 3.0),))
    with pytest.raises(SettingsError, match="one budget"):
        Learner(learner.settings, task, num_envs=4, seed=0).memory(100)


def test_hindsight_without_goals_is_refused() -> None:
    with pytest.raises(SettingsError, match="hindsight is for tasks of goals"):
        make(replace(SMALL, hindsight=0.8)).memory(100)


def test_at_gain_one_the_weight_is_proportional_to_what_is_suffered() -> None:
    settings = Settings(m_gain=1.0)
    weights = []
    for punishment in (0.03, 0.06):
        controller = BudgetController(settings, budget=25.0, time_limit=1000)
        settled(controller, punishment)
        assert controller.pace == pytest.approx(1000 * punishment, rel=1e-6)
        assert controller.survival == 1.0
        weights.append(controller.m)
    assert weights[1] / weights[0] == pytest.approx(2.0, rel=1e-6)


def test_a_fall_changes_nothing_in_what_an_episode_suffers() -> None:
    """Nine falls in the time of an episode: the same weight for as much suffered in each."""
    for terminated in (0.0, 0.009):
        settings = Settings(m_rate=1e-5, m_gain=1.0)
        controller = BudgetController(settings, budget=25.0, time_limit=1000)
        survival = 1.0 / (1.0 + 1000 * terminated)
        settled(controller, 0.02 * math.e / survival, terminated)  # one e-fold over the aim
        assert controller.survival == pytest.approx(survival, rel=1e-3)
        assert controller.error == pytest.approx(1.0, abs=1e-3)
        assert controller.m == pytest.approx(settings.m_start * math.e, rel=1e-2)
        before = controller.integral
        controller.advance(1000, 1.0)
        assert controller.integral - before == pytest.approx(1e-2, rel=1e-2)


def test_the_pace_follows_within_half_an_episode_and_later_within_a_fifth_of_the_run() -> None:
    controller = BudgetController(Settings(), budget=25.0, time_limit=1000)
    for _ in range(500):
        controller.suffered(0.0, 0.0)
    assert controller.pace == pytest.approx(20.0 / math.e, rel=1e-2)
    controller.take([controller.integral, 20.0, 0.0, 0.0, 20_000.0, 1.0, 0.0, 0.0])
    for _ in range(20_000):
        controller.suffered(0.0, 0.0)
    # d pace / d t = -pace / (t / 5): the fifth power of how much longer the run has become.
    assert controller.pace == pytest.approx(20.0 / 2**5, rel=1e-2)


@pytest.mark.parametrize(
    ("pace", "terminations", "first", "less"),
    [(30.0, 0.0, 30.0, 1.5), (100.0, 4.0, 20.0, 1.0), (10.0, 0.0, 20.0, 1.0), (4e2, 0, 4e2, 2.0)],
)
def test_the_aim_comes_down_from_what_is_suffered_untaught_and_the_weight_begins_lower(
    pace: float, terminations: float, first: float, less: float
) -> None:
    """Whose episodes last a fifth of their time suffer a fifth of the pace."""
    settings = Settings(m_gain=0.0)
    controller = BudgetController(settings, budget=25.0, time_limit=1000)
    for _ in range(2):  # the second time changes nothing
        controller.begin(pace, terminations)
        assert controller.aim == pytest.approx(first)
        assert controller.m == pytest.approx(settings.m_start / less)
    aims = []
    for progress in (EASE / 2, EASE, 1.0):
        controller.advance(1, progress)
        aims.append(controller.aim)
    assert aims == pytest.approx([math.sqrt(20.0 * first), 20.0, 20.0])


def test_what_is_suffered_while_learning_is_not_untaught() -> None:
    learner = Learner(replace(SMALL, num_envs=4, noiseless=0.5), TASK, num_envs=4, seed=0)
    learner.begin(50.0, (), 0.0)
    batch = draw_batch(1, size=4)._replace(punishment=torch.tensor([7.0, 9.0, 90.0, 94.0]))
    learner.observe(batch, torch.zeros(4, dtype=torch.bool))
    assert learner.controller.untaught == (50.0, 0.0)


def test_any_punishment_breaks_a_budget_of_zero() -> None:
    controller = BudgetController(Settings(), budget=0.0, time_limit=10)
    controller.suffered(0.0, 0.0)
    assert controller.error == -1.0
    controller.suffered(1.0, 0.0)
    assert controller.error == 2.0


def test_only_noiseless_environments_move_the_controller_and_they_act_as_deployed() -> None:
    def pace(noiseless: float) -> float:
        learner = make(replace(SMALL, num_envs=4, noiseless=noiseless))
        learner.controller.time_limit = 2  # a memory of one step
        batch = draw_batch(1, size=4)._replace(punishment=torch.tensor([7.0, 9.0, 90.0, 94.0]))
        learner.observe(batch, torch.zeros(4, dtype=torch.bool))
        return learner.controller.pace

    assert pace(0.5) == 2 * 8.0
    assert pace(0.0) == 2 * 50.0
    learner = make(replace(SMALL, num_envs=4, noiseless=0.5))
    obs = draw_batch(1, size=4).obs
    first, second = learner.act(obs), learner.act(obs)
    assert torch.equal(first[:2], second[:2])
    torch.testing.assert_close(first[:2], torch.tanh(heads(learner, obs).mean[0, :2]))
    learner.deployed.flat.mul_(2.0)
    assert not torch.isclose(learner.act(obs)[:2], first[:2]).any()
    assert not torch.isclose(first[2:], second[2:]).any()


def test_exploration_leans_towards_the_companion_and_the_deployed_policy_does_not() -> None:
    def means(avoidance: float) -> tuple[torch.Tensor, Heads]:
        learner = make(replace(SMALL, num_envs=4, noiseless=0.5, avoidance=avoidance))
        learner.actor.layers()[-1][1][1].fill_(3.0)  # the companion is somewhere else
        learner.generator.manual_seed(3)
        obs = draw_batch(1, size=4).obs
        return torch.atanh(learner.act(obs)), heads(learner, obs)

    (still, policies), (half, _), (there, _) = means(0.0), means(0.5), means(1.0)
    reward, companion = policies.mean[:, 2:]
    assert (companion - reward).abs().min() > 0.05
    torch.testing.assert_close(there[2:] - still[2:], companion - reward, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half[2:], (still[2:] + there[2:]) / 2, atol=1e-5, rtol=1e-5)
    assert torch.equal(there[:2], still[:2])


def test_the_fallback_of_a_file_is_where_exploration_leaned_to() -> None:
    """With hardly any noise left, what explores is the fallback, and was it in training."""
    learner = make(replace(SMALL, avoidance=4.0, noiseless=0.0))
    weight, bias = learner.actor.layers()[-1]
    weight[:, :, 2:], bias[0, :, 2:] = 0.0, -20.0  # log std at its bound
    bias[1, :, :2] = 40.0
    learner.deployed.flat.copy_(learner.actor.flat)
    obs = draw_batch(1, size=4).obs
    contract = fake_contract(obs=3, actions=2)
    low, high = torch.tensor([(entry.low, entry.high) for entry in contract.action]).T
    controller = controller_from_tensors(policy_tensors(learner), contract)
    explored = low + (learner.act(obs) + 1.0) / 2.0 * (high - low)
    assert (controller.fallback(obs) - controller.nominal(obs)).abs().max() > 0.2
    torch.testing.assert_close(explored, controller.fallback(obs), atol=0.06, rtol=0.0)


def test_moments_equal_those_of_all_rows_at_once() -> None:
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).double() * 4 + 2
    moments = Moments(3)
    for part in rows.split(7):
        moments.add(part)
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.deviation, rows.std(0, correction=0))


def test_the_return_scale_forgets_at_the_end_of_an_episode() -> None:
    scale = ReturnScale(num_envs=1, gamma=0.5)
    for _ in range(3):
        scale.add(torch.ones(1), torch.zeros(1, dtype=torch.bool))
    assert scale.running.item() == pytest.approx(1.75)
    scale.add(torch.ones(1), torch.ones(1, dtype=torch.bool))
    assert scale.running.item() == 0.0
    # running returns seen: 1, 1.5, 1.75, 1.875, of deviation 0.33512...
    assert scale.scale == pytest.approx(1 / 0.3351189, rel=1e-5)


@pytest.mark.parametrize(
    ("agent", "overrides", "error"),
    [
        ("kpcr", {}, UnknownNameError),
        ("kcpr", {"widht": 3}, UnknownNameError),
        ("kcpr", {"width": 3.5}, SettingsError),
        ("kcpr", {"controlled": 1}, SettingsError),
        ("kcpr", {"softening": 1.0}, SettingsError),
        ("kcpr", {"gamma": float("nan")}, SettingsError),
        ("kcpr", {"m_start": 100.0}, SettingsError),
        ("kcpr", {"lagrangian": 1.0}, SettingsError),
        ("sac-lag", {"closed_form": True}, SettingsError),
        ("kcpr", {"fixed_deviation": 0.2}, SettingsError),
        ("kcpr", {"balanced": True, "n_step": 2}, SettingsError),
        ("kcpr", {"balanced": True, "hindsight": 0.5}, SettingsError),
    ],
)
def test_wrong_names_and_numbers_are_refused(
    agent: str, overrides: dict[str, float], error: type[Exception]
) -> None:
    with pytest.raises(error):
        agent_settings(agent, overrides)


def test_the_temperature_begins_where_it_is_told_and_never_below_its_floor() -> None:
    learner = make(replace(SMALL, entropy_start=0.02, entropy_floor=0.005))
    assert math.isclose(learner.tau, 0.02)
    learner = make(replace(SMALL, entropy_start=0.001, entropy_floor=0.005))
    learner.update(draw_batch(0))
    assert math.isclose(learner.tau, 0.005)


def test_critics_may_learn_first_while_the_policy_stays() -> None:
    learner = make(replace(SMALL, critics_first=3))
    before, critics, tau = learner.actor.flat.clone(), learner.critic.flat.clone(), learner.tau
    obs = draw_batch(9).obs
    seen = learner.normaliser(obs)
    for seed in range(3):
        learner.observe(draw_batch(seed, size=4), torch.zeros(4, dtype=torch.bool))
        learner.update(draw_batch(seed))
        assert torch.equal(learner.actor.flat, before)
        assert torch.equal(learner.normaliser(obs), seen)
        assert torch.equal(learner.deployed.flat, before)
        assert not torch.equal(learner.critic.flat, critics)
        assert learner.tau == tau
    learner.observe(draw_batch(3, size=4), torch.zeros(4, dtype=torch.bool))
    learner.update(draw_batch(3))
    assert not torch.equal(learner.actor.flat, before)
    assert not torch.equal(learner.normaliser(obs), seen)
    assert learner.tau != tau
