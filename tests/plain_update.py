"""What is one update of the learner, without any of its speed? The oracle of the fast one.

Everything by automatic differentiation, in float64, one network and one equation at a time: the
losses and targets of `kcpr_safety.ops` on policies in their own coordinates. Shares with the
learner only its parameters, its numbers and the noise that it is about to draw.
"""

import torch
from torch.nn.functional import layer_norm

from kcpr_safety.agents import Learner
from kcpr_safety.controller import LOG_STD_RANGE
from kcpr_safety.networks import split
from kcpr_safety.ops import bellman, gaussian, losses
from kcpr_safety.transition import Batch

Gaussian = tuple[torch.Tensor, torch.Tensor]
"""(mean, log standard deviation) before the squash."""


def network(layers: list, member: int, x: torch.Tensor, *, norm: bool) -> torch.Tensor:
    """One member of a stack."""
    for index, (weight, bias) in enumerate(layers):
        x = x @ weight[member] + bias[member, 0]
        if index < len(layers) - 1:
            x = torch.relu(layer_norm(x, x.shape[-1:]) if norm else x)
    return x


def policies(
    layers: list, obs: torch.Tensor, *, coupled: bool, fixed: float = 0.0, scale: float = 1.0
) -> tuple[Gaussian, Gaussian]:
    """(reward policy, companion); each is constant where it anchors the other."""
    mean, raw = network(layers, 0, obs, norm=False).chunk(2, dim=-1)
    log_std = gaussian.squash_log_std(raw, *LOG_STD_RANGE)
    own = mean, torch.full_like(mean, fixed).log() if fixed else log_std
    if not coupled:
        return own, own
    output, raw = network(layers, 1, obs, norm=False).chunk(2, dim=-1)
    offset = output + (scale - 1.0) * output.detach()  # its step is that along the offset
    anchor, spread = (part.detach() for part in own)
    ratio = gaussian.squash_log_std(raw, *gaussian.LOG_RATIO_RANGE)
    return own, (anchor + spread.exp() * offset, spread + ratio)


def plain_weighing(learner: Learner, batch: Batch) -> tuple[float, torch.Tensor]:
    """(weight of punishment in force, what the punishment module learns from)."""
    m, total = learner.controller.m, batch.punishment.double()
    if batch.streams is None:
        return m, total
    pull, whole = m * total, m
    for k, (_, budget) in enumerate(learner.task.streams):
        own = learner.stream_controllers[k].m
        pull = pull + own * batch.streams[:, k].double() / budget * learner.task.budget
        whole += own
    return whole, pull / whole


def plain_gradient(learner: Learner, batch: Batch) -> torch.Tensor:
    """Gradient of all parameters that the learner's next update of this batch should step along."""
    settings, task = learner.settings, learner.task
    count, (m, weighed) = batch.obs.shape[0], plain_weighing(learner, batch)
    stream = torch.Generator()
    stream.set_state(learner.generator.get_state())
    members = learner.actor.members
    noise = torch.randn(members, 2 * count, task.action_size, generator=stream).double()
    here, there = noise[:, :count], noise[:, count:]

    flat = learner.parameters.double().requires_grad_()
    cut = learner.actor.flat.numel()
    actor = split(flat[:cut], members, learner.actor.sizes)
    critic = split(flat[cut:], 6, learner.critic.sizes)
    target = split(learner.target.flat.double(), 6, learner.critic.sizes)
    obs, next_obs = (learner.normaliser(x).double() for x in (batch.obs, batch.next_obs))
    b = settings.softening
    agreement = gaussian.agreement_kl(task.action_size, b)
    k_reward, k_companion = settings.coupling, settings.companion_coupling / m
    tau, tau_companion = learner.tau, settings.companion_entropy / m

    def q(layers: list, member: int, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([x, action], dim=-1)
        return network(layers, member, inputs, norm=settings.layer_norm)[:, 0]

    def twins(layers: list, first: int, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return torch.stack([q(layers, member, x, action) for member in (first, first + 1)])

    def draw(policy: Gaussian, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u = gaussian.sample(*policy, eps)
        return torch.tanh(u), gaussian.tanh_log_prob(u, policy[1], eps)

    def kl(policy: Gaussian, prior: Gaussian) -> torch.Tensor:
        return gaussian.softened_kl(*policy, *(part.detach() for part in prior), b)

    with torch.no_grad():
        shape = {"coupled": settings.coupled, "fixed": settings.fixed_deviation, "scale": m / 0.1}
        reward_policy, companion = policies(actor, next_obs, **shape)
        action, log_prob = draw(reward_policy, there[0])
        companion_action, companion_log_prob = draw(companion, there[-1])
        charge, companion_charge = tau * log_prob, torch.zeros_like(log_prob)
        if settings.coupled:
            charge = charge + k_reward * (kl(reward_policy, companion) - agreement)
            companion_charge = tau_companion * companion_log_prob + k_companion * (
                kl(companion, reward_policy) - agreement
            )
        gamma = settings.gamma**task.hold
        discount = gamma * batch.continues.double()
        reward = batch.reward.double() * learner.normaliser.reward_scale
        punishment = batch.punishment.double() * learner.punishment_scale
        average = split(learner.deployed.flat.double(), members, learner.actor.sizes)
        deployed = torch.tanh(policies(average, next_obs, coupled=False)[0][0])
        y_reward = bellman.reward_target(
            reward, discount, twins(target, 0, next_obs, action), charge, settings.pessimism
        )
        per_step = learner.controller.pace / task.time_limit * learner.punishment_scale
        ever_after = per_step / (1.0 - gamma)
        ended = torch.where(batch.continues == 0.0, gamma * ever_after, 0.0)
        y_punishment = bellman.punishment_target(
            weighed * learner.punishment_scale + ended,
            discount,
            twins(target, 2, next_obs, companion_action),
            companion_charge,
        )
        y_evaluation = bellman.evaluation_target(
            punishment, discount, twins(target, 4, next_obs, deployed)
        )
    y = torch.cat([y_reward.expand(2, -1), y_punishment.expand(2, -1), y_evaluation])
    data = batch.action.double()
    critic_loss = bellman.critic_loss(
        torch.stack([q(critic, member, obs, data) for member in range(6)]), y
    )

    reward_policy, companion = policies(actor, obs, **shape)
    action, log_prob = draw(reward_policy, here[0])
    companion_action, companion_log_prob = draw(companion, here[-1])
    constant = split(flat.detach()[cut:], 6, learner.critic.sizes)
    zero = torch.zeros_like(log_prob)
    between = kl(reward_policy, companion) if settings.coupled else zero
    if settings.closed_form:
        weight = b * k_reward / (tau_companion + k_companion)
        avoided = weight * twins(constant, 2, obs, action).mean(0)
        temperature = tau + (1.0 - b**2) * k_reward
        expected = bellman.low(twins(constant, 0, obs, action), settings.pessimism)
        actor_loss = (temperature * log_prob - expected).mean()
        actor_loss = actor_loss + avoided.mean()
    else:
        both = twins(constant, 0, obs, action)
        actor_loss = losses.reward_actor_loss(
            log_prob, both, between, tau, k_reward, settings.pessimism
        )
    if settings.coupled:
        actor_loss = actor_loss + losses.punishment_actor_loss(
            companion_log_prob,
            twins(constant, 2, obs, companion_action),
            kl(companion, reward_policy),
            tau_companion,
            k_companion,
        )
    temperature = tau + (1.0 - b**2) * k_reward if settings.closed_form else tau
    if settings.reach:
        drawn = gaussian.sample(*reward_policy, here[0])
        actor_loss = actor_loss + losses.beyond_reach(drawn, settings.reach)
    above = max(settings.barrier - temperature, 0.0)
    actor_loss = actor_loss - above * torch.log1p(-(action**2)).sum(-1).mean()
    if settings.lagrangian:
        pull = settings.lagrangian * m
        actor_loss = actor_loss + pull * twins(constant, 2, obs, action).mean()
    return torch.autograd.grad(critic_loss + actor_loss, flat)[0]
