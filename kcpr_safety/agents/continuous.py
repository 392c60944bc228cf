"""How do two KL-coupled tanh-Gaussian policies learn from both streams (KCPR)?

Two actors (member 0: reward module, 1: punishment module) and six critics (twins of Q_R, Q_P and
of the evaluation critic Q_C) are one stack each, over one flat parameter buffer. One update
computes the targets of `ops.bellman`, the gradients of all critics and of both actors
(`ops.gradients`, through the critics as they were), takes one Adam step on everything, and moves
the entropy temperature, the target critics, and the deployed policy, which is a slow average of
the actors: it is what files hold and what a share of the environments acts with, so that the budget
is held by the policy that will be judged and not by the exploring one. SAC and SAC-Lag are the same
code with one actor and k = 0.

Speed lives here and in `networks`: no graph is recorded (in inference mode small operations skip
even the question), every product is batched over members, and the rows of s and s' pass the actors
together. `tests/plain_update.py` is the same update in plain automatic differentiation; the tests
hold the two together.

The companion is expressed in the reward policy's own coordinates,

    mean_P = mean_R + std_R * offset(s),    std_P = std_R * ratio(s),    offset = (m / 0.1) o(s)

with mean_R and std_R held constant for it. A companion with coordinates of its own must first be
learned to where the reward policy already is; until then the KL to that lagging, sharp prior is a
trust region that stalls the reward policy. Here the two agree from the start, the companion moves
along with every step of the reward policy, and what it learns is only where to step aside.

How far is mostly up to m: to first order the best offset is -m std_R Q_P' / (k_P0 b). The network's
output o is therefore in units of m: the companion answers at once when the controller moves, and
what it has wrong shrinks with m too. Else, as m falls, k_P = k_P0 / m charges that error ever more
dearly, until Q_P consists of little else (docs/experiments.md). The step along o is that along the
offset, for both terms of that gradient are of the same size at any m.

Source: KCPR in arXiv:2606.28152; this continuous form is the project's own.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kcpr_safety.agents.budget import BudgetController
from kcpr_safety.agents.normaliser import Normaliser
from kcpr_safety.agents.optimiser import adam_step
from kcpr_safety.agents.settings import Settings
from kcpr_safety.agents.task import Task
from kcpr_safety.controller import LOG_STD_RANGE
from kcpr_safety.errors import SettingsError
from kcpr_safety.networks import Stack, parameter_count
from kcpr_safety.ops import bellman, gaussian, gradients, losses
from kcpr_safety.ops.gradients import Companion
from kcpr_safety.replay import Divided, Hindsight, NStep, Replay
from kcpr_safety.transition import Batch

CRITICS = 6
REWARD, PUNISHMENT, EVALUATION = slice(0, 2), slice(2, 4), slice(4, 6)
"""Members of the critic stack: twins per value."""
OFFSET_M = 0.1
"""The m at which the companion's output is its offset."""


class Heads(NamedTuple):
    """What the actors' last layer says about a batch: pre-tanh Gaussians of each module."""

    mean: Float[Tensor, "modules batch action"]
    log_std: Float[Tensor, "modules batch action"]
    std: Float[Tensor, "modules batch action"]
    slope: Float[Tensor, "modules batch action"]
    """Derivative of the bounded log deviation (or log ratio) by the raw output."""
    companion: Companion | None
    """None in an agent without coupling, whose only module is the reward module."""


class Learner:
    """One agent's networks, optimiser, normalisers and budget controller."""

    def __init__(
        self,
        settings: Settings,
        task: Task,
        num_envs: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """`device` holds the networks; what comes from a world and goes to it is on the CPU."""
        self.settings, self.task, self.device = settings, task, torch.device(device)
        self.gamma = settings.gamma**task.hold
        """Discount per action."""
        # Always on the CPU: the same seed draws the same numbers on every device.
        self.generator = torch.Generator().manual_seed(seed)
        hidden = [settings.width] * settings.depth
        actor_sizes = [task.obs_size, *hidden, 2 * task.action_size]
        critic_sizes = [task.obs_size + task.action_size, *hidden, 1]
        actors = 2 if settings.coupled else 1
        cut = parameter_count(actors, actor_sizes)
        self.parameters = torch.empty(
            cut + parameter_count(CRITICS, critic_sizes), device=self.device
        )
        """Actors first, then critics: what the optimiser sees."""
        self.gradient = torch.zeros_like(self.parameters)
        self.adam = (torch.zeros_like(self.parameters), torch.zeros_like(self.parameters))
        """First and second moments of the gradient."""
        self.actor = Stack(actors, actor_sizes, flat=self.parameters[:cut])
        self.critic = Stack(
            CRITICS, critic_sizes, layer_norm=settings.layer_norm, flat=self.parameters[cut:]
        )
        self.actor.initialise(self.generator, last_scale=0.1)
        self.critic.initialise(self.generator)
        self.average = self.parameters.clone()
        """The slow average of all parameters: the deployed policy and the target critics."""
        self.target = self.critic.twin(self.average[cut:])
        self.deployed = self.actor.twin(self.average[:cut])
        """The slow average of the actors: what noiseless environments and policy files hold."""
        self.progress = 0.0
        """Share of training that is done, for the learning rate; the loop moves it."""
        ranges = torch.tensor([LOG_STD_RANGE, gaussian.LOG_RATIO_RANGE], device=self.device)[
            :actors
        ]
        self._middle, self._half = ranges.mean(1)[:, None, None], ranges.diff(dim=1)[..., None] / 2
        if settings.fixed_deviation:
            self._half = torch.zeros_like(self._half)
            self._middle = torch.full_like(self._middle, math.log(settings.fixed_deviation))
        self.log_tau = math.log(settings.entropy_start)
        self.controller, *self.stream_controllers = (
            BudgetController(settings, budget, task.time_limit, 1.0 / (1 + len(task.streams)))
            for budget in (task.budget, *(budget for _, budget in task.streams))
        )
        self.normaliser = Normaliser(
            task.obs_size,
            num_envs,
            self.gamma,
            device=self.device,
            near=settings.nearness * torch.tensor(task.closeness) if task.closeness else None,
        )
        self.updates = 0
        self._inputs: dict[tuple[int, int], Tensor] = {}

    # ------------------------------------------------------------------------------ experience

    def observe(self, batch: Batch, ended: Bool[Tensor, "envs"]) -> None:
        """Take note of one step of all environments: normalisers and controller move.

        The budget is the deployed policy's, so only what that suffered moves the controller.
        """
        self.normaliser.add(batch.obs, batch.reward, ended, holds=self.critics_alone)
        watched = self.noiseless_envs or self.settings.num_envs
        terminated = 1.0 - float(batch.continues[:watched].mean())
        self.controller.suffered(float(batch.punishment[:watched].mean()), terminated)
        if batch.streams is not None:
            means = batch.streams[:watched].mean(0).tolist()
            for controller, suffered in zip(self.stream_controllers, means, strict=True):
                controller.suffered(suffered, terminated)

    def begin(self, pace: float, streams: Sequence[float], terminations: float) -> None:
        """Take note, first of all, of what robots suffer that have learned nothing.

        In the time of a full episode: punishment, its parts by stream, and early ends.
        """
        self.controller.begin(pace, terminations)
        for controller, part in zip(self.stream_controllers, streams, strict=True):
            controller.begin(part, terminations)

    @property
    def critics_alone(self) -> bool:
        """Whether the policy still stays as it is, normaliser included."""
        return self.updates < self.settings.critics_first

    @property
    def noiseless_envs(self) -> int:
        """The first so many environments act as the deployed policy does."""
        return round(self.settings.noiseless * self.settings.num_envs)

    def advance(self, steps: int) -> None:
        """Let the budget controllers follow these environment steps."""
        for controller in (self.controller, *self.stream_controllers):
            controller.advance(steps, self.progress)

    def memory(self, capacity: int) -> Replay:
        """Where transitions wait to be learned from."""
        settings, task = self.settings, self.task
        sizes = task.obs_size, task.action_size, len(task.streams)
        spacing: dict[str, Any] = {
            "steps": settings.n_step,
            "envs": settings.num_envs,
            "gamma": self.gamma,
        }
        if settings.balanced:
            if task.streams:
                raise SettingsError("balanced is for one budget: this task has more")
            return Divided(
                capacity,
                *sizes[:2],
                lambda batch: batch.punishment > 0.0,
                balanced=True,
                device=self.device,
            )
        if settings.hindsight == 0.0:
            return NStep(capacity, sizes, self.device, **spacing)
        if task.goal is None:
            raise SettingsError(
                "hindsight is for tasks of goals, whose observations are a dictionary with "
                "achieved_goal and desired_goal; set it to 0"
            )
        return Hindsight(task.goal, settings.hindsight, capacity, sizes, self.device, **spacing)

    def m_bounds(self) -> tuple[float, float] | None:
        """Between what the budget controller keeps m; None where it is not moved."""
        settings = self.settings
        return (settings.m_low, settings.m_high) if settings.controlled else None

    def status(self) -> dict[str, float]:
        """Numbers that a row of metrics shows beside those of an update."""
        streams: dict[str, float] = {}
        for (name, _), controller in zip(self.task.streams, self.stream_controllers, strict=True):
            streams[f"deployed_{name}"] = controller.pace
            streams[f"coupling_m_{name}"] = controller.m
        return streams | {
            "deployed_punishment": self.controller.pace,
            "deployed_terminations": self.controller.terminations,
            "coupling_m": self.controller.m,
            "lambda": self.weight,
            "entropy_temperature": self.tau,
            "reward_scale": self.normaliser.reward_scale,
            "updates": self.updates,
        }

    @torch.inference_mode()
    def act(self, obs: Float[Tensor, "envs obs"]) -> Float[Tensor, "envs action"]:
        """Actions in [-1, 1] of the reward module: exploring ones after the noiseless rows.

        The exploring ones are drawn around mu_R + avoidance (mu_P - mu_R), towards the companion
        and past it: their noise alone would suffer many times what the policy itself suffers.
        """
        x = self.normaliser(obs.to(self.device))
        heads = self._heads(self.actor(self._rows(x, self.actor)))
        noise = self._noise(*heads.mean.shape[1:])
        mean = heads.mean[0]
        if heads.companion:
            mean = torch.lerp(mean, heads.mean[1], self.settings.avoidance)
        drawn = gaussian.sample(mean, heads.log_std[0], noise)
        if self.noiseless_envs:
            first = self._rows(x[: self.noiseless_envs], self.deployed)
            drawn[: self.noiseless_envs] = self.deployed(first)[0, :, : self.task.action_size]
        return torch.tanh(drawn).cpu()

    @torch.inference_mode()
    def evaluate(
        self, obs: Float[Tensor, "batch obs"], action: Float[Tensor, "batch action"]
    ) -> Float[Tensor, "batch"]:
        """Q_C: predicted discounted punishment of the deployed policy, mean of the twins."""
        x = self.normaliser(obs.to(self.device))
        inputs = torch.cat([x, action.to(self.device)], dim=-1)
        q = self.critic(self._rows(inputs, self.critic))[..., 0]
        return q[EVALUATION].mean(0).cpu() / self.punishment_scale

    # -------------------------------------------------------------------------------- learning

    @torch.inference_mode()
    def update(self, batch: Batch, *, measure: bool = True) -> dict[str, Tensor]:
        """One update of everything from B transitions on the learner's device.

        Returns metrics, not yet read out; none unless `measure`, for they cost a few percent.
        """
        count = batch.obs.shape[0]
        both = self.normaliser(torch.cat([batch.obs, batch.next_obs]))
        obs, next_obs = both[:count], both[count:]
        noise = self._noise(self.actor.members, 2 * count, self.task.action_size)
        out, trace = self.actor.forward(self._rows(both, self.actor))
        heads = self._heads(out)
        drawn = torch.addcmul(heads.mean, heads.std, noise)
        log_prob = gaussian.tanh_log_prob(drawn, heads.log_std, noise)
        action = torch.tanh(drawn)

        target = self._targets(
            batch, next_obs, action[:, count:], log_prob[:, count:], _rows(heads, count)
        )
        inputs = torch.cat([obs, batch.action], dim=-1)
        q, critic_trace = self.critic.forward(self._rows(inputs, self.critic))
        error = q[..., 0] - target
        cut = self.actor.flat.numel()
        self.critic.parameter_gradient(
            critic_trace, (error / count)[..., None], into=self.gradient[cut:]
        )
        entropy = -log_prob[0, :count].mean()
        if self.critics_alone:
            self.gradient[:cut].zero_()
        else:
            slopes = self._q_slopes(obs, action[:, :count])
            if self.settings.closed_form:
                own_slope = self._own_punishment_slope(obs, action[:, :count])
                slopes = torch.sub(slopes[0], own_slope, alpha=self.weight), slopes[1]
            out_gradient = self._actor_gradient(
                slopes, action[:, :count], noise[:, :count], _rows(heads, 0, count)
            )
            self.actor.parameter_gradient(
                trace.rows(count), out_gradient / count, into=self.gradient[:cut]
            )
            self._tune_temperature(entropy)
        self._step()
        length = 1.0 / self.settings.target_rate
        length += self.settings.averaged * self.progress * self.updates
        self.average[:cut].lerp_(self.parameters[:cut], 1.0 / length)
        self.average[cut:].lerp_(self.parameters[cut:], self.settings.critic_target_rate)
        if not measure:
            return {}
        per_episode = self.task.time_limit * (1.0 - self.gamma) / self.punishment_scale
        return {
            "critic_loss": 0.5 * error.square().mean(1).sum(),
            "reward_q": q[REWARD].mean(),
            "punishment_q": q[PUNISHMENT].mean(),
            "predicted_punishment": q[EVALUATION].mean() * per_episode,
            "entropy": entropy,
            "deviation": heads.std[0].mean(),
            "companion_offset": heads.companion.offset.square().mean().sqrt()
            if heads.companion
            else torch.zeros(()),
        }

    def _targets(
        self, batch: Batch, next_obs: Tensor, action: Tensor, log_prob: Tensor, heads: Heads
    ) -> Float[Tensor, "critics batch"]:
        """What all six critics learn towards; everything here is about s'."""
        settings = self.settings
        # Q_C is about the policy that files hold: the actor that it averages suffers twice as much.
        average = self.deployed.forward(next_obs[None], 1, use="backward")[0]
        deployed = average[0, :, : self.task.action_size]
        # An uncoupled agent has one policy for all.
        actions = torch.stack([action[0], action[-1], torch.tanh(deployed)])
        next_q = self.target(self._twice(next_obs, actions))[..., 0]
        discount = self.gamma * batch.continues
        reward = batch.reward * self.normaliser.reward_scale
        punishment = batch.punishment * self.punishment_scale
        charge = self.tau * log_prob[0]
        if heads.companion:
            excess, companion_excess = gradients.excess_kls(heads.companion, settings.softening)
            charge.add_(excess, alpha=settings.coupling)
            tau, k = self._companion_weights()
            companion_charge = (tau * log_prob[1]).add_(companion_excess, alpha=k)
        else:
            companion_charge = torch.zeros_like(charge)
        target = torch.empty_like(next_q)
        target[REWARD] = bellman.reward_target(
            reward, discount, next_q[REWARD], charge, self.settings.pessimism
        )
        weighed = self.weighed(batch) * self.punishment_scale
        weighed += self.gamma * self.pace_value * (batch.continues == 0.0)
        target[PUNISHMENT] = bellman.punishment_target(
            weighed, discount, next_q[PUNISHMENT], companion_charge
        )
        target[EVALUATION] = bellman.evaluation_target(punishment, discount, next_q[EVALUATION])
        return target

    def _q_slopes(
        self, obs: Tensor, action: Tensor
    ) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch action"]]:
        """(dQ_R/da at pi_R's action as `pessimism` weighs the twins, mean dQ_P/da at pi_P's)."""
        q, trace = self.critic.forward(self._twice(obs, action.expand(2, *obs.shape[:1], -1)), 4)
        weights = torch.full_like(q, 0.5)
        pessimism = self.settings.pessimism
        torch.lt(q[0], q[1], out=weights[0])
        torch.le(q[1], q[0], out=weights[1])
        weights[:2].mul_(pessimism).add_(0.5 * (1.0 - pessimism))
        slopes = self.critic.input_gradient(trace, weights, slice(self.task.obs_size, None))
        reward, punishment = slopes.view(2, 2, *slopes.shape[1:]).sum(1)
        return reward, punishment

    def _own_punishment_slope(self, obs: Tensor, action: Tensor) -> Float[Tensor, "batch action"]:
        """Mean dQ_P/da of both twins at pi_R's action."""
        both = action[:1].expand(2, *action.shape[1:])
        q, trace = self.critic.forward(self._twice(obs, both), 4)
        weights = torch.full_like(q, 0.5)
        weights[REWARD] = 0.0
        slopes = self.critic.input_gradient(trace, weights, slice(self.task.obs_size, None))
        return slopes[PUNISHMENT].sum(0)

    def _actor_gradient(
        self, slopes: tuple[Tensor, Tensor], action: Tensor, noise: Tensor, heads: Heads
    ) -> Float[Tensor, "modules batch out"]:
        """Gradient of each row's actor losses by the actors' raw outputs."""
        settings = self.settings
        reward_slope, punishment_slope = slopes
        pull = settings.lagrangian * self.m
        slope = torch.sub(punishment_slope * pull, reward_slope) if pull else -reward_slope
        closed = (1.0 - settings.softening**2) * settings.coupling if settings.closed_form else 0.0
        temperature = self.tau + closed
        g = gradients.through_tanh(action[0], slope, max(temperature, settings.barrier))
        if settings.reach:
            drawn = torch.addcmul(heads.mean[0], heads.std[0], noise[0])
            g = gradients.drawn_back(g, drawn, settings.reach)
        own = gradients.reward_gradient(g, heads.std[0], noise[0], temperature)
        if not heads.companion:
            return torch.cat([own[0], own[1] * heads.slope[0]], dim=-1)[None]
        by_mean, by_spread = own
        if not settings.closed_form:
            by_mean, by_spread = gradients.coupled_gradient(
                own, heads.companion, heads.std[0], settings.coupling, settings.softening
            )
        tau, k = self._companion_weights()
        g = gradients.through_tanh(action[1], punishment_slope, tau)
        by_offset, by_ratio = gradients.companion_gradient(
            g, heads.companion, (heads.std[0], heads.std[1]), noise[1], (tau, k, settings.softening)
        )
        means = torch.stack([by_mean, by_offset])
        spreads = torch.stack([by_spread, by_ratio])
        return torch.cat([means, spreads * heads.slope], dim=-1)

    def _step(self) -> None:
        """One Adam step on actors and critics together."""
        self.updates += 1
        left = 1.0 - (1.0 - self.settings.learning_rate_left) * self.progress
        adam_step(
            self.parameters,
            self.gradient,
            self.adam,
            self.updates,
            self.settings.learning_rate * left,
        )

    def _tune_temperature(self, entropy: Tensor) -> None:
        """Move tau_R towards the entropy that is wanted (Haarnoja et al. 2018)."""
        wanted = self.settings.entropy_target * self.task.action_size
        self.log_tau -= self.settings.learning_rate * (float(entropy) - wanted)
        floor = math.log(max(self.settings.entropy_floor, 1e-8))
        self.log_tau = min(max(self.log_tau, floor), 1.0)

    # ------------------------------------------------------------------------------------ parts

    def _heads(self, out: Float[Tensor, "modules batch out"]) -> Heads:
        """Both modules' Gaussians; the companion in the reward policy's coordinates."""
        mean, raw = out.chunk(2, dim=-1)
        bend = torch.tanh(raw)
        spread = torch.addcmul(self._middle, self._half, bend)  # log std_R, log ratio
        factor = spread.exp()  # std_R, ratio
        slope = torch.addcmul(self._half, self._half * bend, bend, value=-1.0)
        if not self.settings.coupled:
            return Heads(mean, spread, factor, slope, None)
        offset, std = mean[1] * self.offset_scale, factor[0]
        means = torch.stack([mean[0], torch.addcmul(mean[0], std, offset)])
        log_stds = torch.stack([spread[0], spread[0] + spread[1]])
        stds = torch.stack([std, std * factor[1]])
        companion = Companion(offset, spread[1], factor[1].square())
        return Heads(means, log_stds, stds, slope, companion)

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def _twice(
        self, obs: Float[Tensor, "batch obs"], actions: Float[Tensor, "values batch action"]
    ) -> Float[Tensor, "members batch input"]:
        """Critics' inputs where each action goes to a pair of twins; valid until the next call."""
        values, count, size = len(actions), obs.shape[0], obs.shape[1]
        if (values, count) not in self._inputs:
            shape = (values, 2, count, size + actions.shape[-1])
            self._inputs[values, count] = torch.empty(shape, device=self.device)
        inputs = self._inputs[values, count]
        inputs[..., :size].copy_(obs)
        inputs[..., size:].copy_(actions[:, None])
        return inputs.view(2 * values, count, -1)

    @staticmethod
    def _rows(x: Tensor, stack: Stack) -> Tensor:
        """The same rows for every member, without a copy."""
        return x.expand(stack.members, *x.shape)

    @property
    def tau(self) -> float:
        """tau_R, the reward module's entropy temperature."""
        return 0.0 if self.settings.fixed_deviation else math.exp(self.log_tau)

    @property
    def m(self) -> float:
        """The weight of punishment in force: the sum of all budgets' own, m_start at first."""
        return self.controller.m + sum(controller.m for controller in self.stream_controllers)

    @property
    def offset_scale(self) -> float:
        """What the companion's output is multiplied by to be its offset."""
        return self.m / OFFSET_M

    def weighed(self, batch: Batch) -> Float[Tensor, "batch"]:
        """The punishment that the punishment module learns from.

        Without streams it is the punishment c itself. With them, each stream's controller pulls at
        its own part, in units of its own budget:

            (m c + sum_k m_k (B / B_k) c_k) / (m + sum_k m_k)

        so that what is overspent weighs more, and at equal shares of all budgets as much as c.
        B / B_k is at most 100 (`Task.ratios`).
        """
        if batch.streams is None:
            return batch.punishment
        own = [
            controller.m * ratio
            for ratio, controller in zip(self.task.ratios, self.stream_controllers, strict=True)
        ]
        weights = torch.tensor(own, device=self.device)
        total = batch.punishment * self.controller.m + batch.streams @ weights
        return total / self.m

    def _companion_weights(self) -> tuple[float, float]:
        """(tau_P, k_P) at the controllers' present m."""
        settings, m = self.settings, self.m
        return settings.companion_entropy / m, settings.companion_coupling / m

    @property
    def weight(self) -> float:
        """lambda: the weight of punishment in force."""
        settings, m = self.settings, self.m
        if not settings.coupled:
            return settings.lagrangian * m
        return losses.coupling_weight(
            settings.softening,
            settings.coupling,
            settings.companion_coupling / m,
            settings.companion_entropy / m,
        )

    @property
    def punishment_scale(self) -> float:
        """Makes the value of spending the budget evenly over an episode equal to 1."""
        return self.task.time_limit * (1.0 - self.gamma) / max(self.task.budget, 1.0)

    @property
    def pace_value(self) -> float:
        """Value of suffering for ever as the deployed policy does: what a termination is worth to
        the punishment module, so that it does not avoid by falling. Discounted by one step wherever
        in a target of several steps the termination lies."""
        return self.controller.pace / max(self.task.budget, 1.0)


def _rows(heads: Heads, start: int, stop: int | None = None) -> Heads:
    """The heads of some rows alone."""
    rows = slice(start, stop)
    companion = heads.companion
    mean, log_std, std, slope = (part[:, rows] for part in heads[:4])
    cut = None if companion is None else Companion(*(part[rows] for part in companion))
    return Heads(mean, log_std, std, slope, cut)
