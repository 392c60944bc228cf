"""How do two KL-coupled tanh-Gaussian policies learn from both streams (KCPR)?

Two actors (member 0: reward module, 1: punishment module) and six critics (twins of Q_R, Q_P and
of the evaluation critic Q_C) are one stack each. One update draws the targets of `ops.bellman`,
takes an Adam step on all critics, one on both actors (`ops.losses`), one on the entropy
temperature, and moves the target critics. SAC and SAC-Lag are the same code with one actor, k = 0.

The companion is expressed in the reward policy's own coordinates,

    mean_P = mean_R + std_R * offset(s),    std_P = std_R * ratio(s),

with mean_R and std_R held constant for it. A companion with coordinates of its own must first be
learned to where the reward policy already is; until then the KL to that lagging, sharp prior is a
trust region that stalls the reward policy. Here the two agree from the start, the companion moves
along with every step of the reward policy, and what it learns is only where to step aside.

Source: KCPR in arXiv:2606.28152; this continuous form is the project's own.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kcpr_safety.agents.budget import WINDOW, BudgetController
from kcpr_safety.agents.normaliser import Moments, ReturnScale
from kcpr_safety.agents.settings import Settings
from kcpr_safety.controller import LOG_STD_RANGE, MAX_NORMALISED
from kcpr_safety.errors import TrainingFault
from kcpr_safety.networks import Stack
from kcpr_safety.ops import bellman, gaussian, losses
from kcpr_safety.transition import Batch

REWARD, PUNISHMENT, EVALUATION = slice(0, 2), slice(2, 4), slice(4, 6)
"""Members of the critic stack: twins per value."""

_OBS_DEVIATION_FLOOR = 1e-2
"""An entry that hardly varies is not blown up by more than the inverse of this."""


class Policies(NamedTuple):
    """Pre-tanh Gaussians of the modules; member 1 is there only in a coupled agent."""

    mean: Float[Tensor, "modules batch action"]
    log_std: Float[Tensor, "modules batch action"]


class Task(NamedTuple):
    """What a learner has to know about its task."""

    obs_size: int
    action_size: int
    budget: float
    """Allowed punishment per episode."""
    time_limit: int
    """Steps per full episode."""


class Learner:
    """One agent's networks, optimisers, normalisers and budget controller."""

    def __init__(self, settings: Settings, task: Task, num_envs: int, seed: int) -> None:
        self.settings, self.task = settings, task
        self.generator = torch.Generator().manual_seed(seed)
        hidden = [settings.width] * settings.depth
        actor_sizes = [task.obs_size, *hidden, 2 * task.action_size]
        critic_sizes = [task.obs_size + task.action_size, *hidden, 1]
        self.actor = Stack.create(
            2 if settings.coupled else 1, actor_sizes, self.generator, last_scale=0.1
        )
        self.critic = Stack.create(6, critic_sizes, self.generator, layer_norm=settings.layer_norm)
        self.target = self.critic.twin()
        self.actor_optimiser, self.critic_optimiser = (
            torch.optim.Adam([stack.flat], lr=settings.learning_rate, fused=True)
            for stack in (self.actor, self.critic)
        )
        self.log_tau = math.log(0.1)
        self.controller = BudgetController(settings, task.budget)
        self.obs_moments = Moments(task.obs_size)
        self.return_scale = ReturnScale(num_envs, settings.gamma)
        self.updates = 0
        self._refresh_normaliser()

    # ------------------------------------------------------------------------------ experience

    def observe(self, batch: Batch, ended: Bool[Tensor, "envs"]) -> None:
        """Take note of one step of all environments: normalisers and controller move."""
        self.obs_moments.add(batch.obs)
        self.return_scale.add(batch.reward, ended)
        self._refresh_normaliser()

    def finished(self, punishments: list[float]) -> None:
        """Take note of episodes that ended."""
        self.controller.finished(punishments)

    @torch.no_grad()
    def act(self, obs: Float[Tensor, "envs obs"]) -> Float[Tensor, "envs action"]:
        """Exploring actions in [-1, 1], drawn from the reward module."""
        policies = self._policies(self.actor, self._normalise(obs))
        noise = torch.randn(policies.mean.shape[1:], generator=self.generator)
        return torch.tanh(gaussian.sample(policies.mean[0], policies.log_std[0], noise))

    @torch.no_grad()
    def evaluate(
        self, obs: Float[Tensor, "batch obs"], action: Float[Tensor, "batch action"]
    ) -> Float[Tensor, "batch"]:
        """Q_C: predicted discounted punishment of the deployed policy, mean of the twins."""
        inputs = torch.cat([self._normalise(obs), action], dim=-1)
        q = self.critic.frozen(inputs.expand(self.critic.members, *inputs.shape))[..., 0]
        return q[EVALUATION].mean(0) / self.punishment_scale

    # -------------------------------------------------------------------------------- learning

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One update of everything from B transitions; returns metrics, not yet read out."""
        settings = self.settings
        size = (batch.obs.shape[0], self.task.action_size)
        noise = torch.randn(2, self.actor.members, *size, generator=self.generator)
        obs, next_obs = self._normalise(batch.obs), self._normalise(batch.next_obs)
        target = self._targets(batch, next_obs, noise[0])

        inputs = torch.cat([obs, batch.action], dim=-1)
        q = self.critic(inputs.expand(self.critic.members, *inputs.shape))[..., 0]
        critic_loss = bellman.critic_loss(q, target)
        self.critic.flat.grad = None
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self.critic_optimiser.step()

        actor_loss, metrics = self._actor_loss(obs, noise[1])
        self.actor.flat.grad = None
        actor_loss.backward()  # type: ignore[no-untyped-call]
        self.actor_optimiser.step()

        self._tune_temperature(metrics["entropy"])
        self.target.flat.lerp_(self.critic.flat.detach(), settings.target_rate)
        self.updates += 1
        per_episode = self.task.time_limit * (1.0 - settings.gamma) / self.punishment_scale
        return metrics | {
            "critic_loss": critic_loss.detach(),
            "reward_q": q[REWARD].detach().mean(),
            "punishment_q": q[PUNISHMENT].detach().mean(),
            "predicted_punishment": q[EVALUATION].detach().mean() * per_episode,
        }

    def _targets(
        self, batch: Batch, next_obs: Tensor, noise: Tensor
    ) -> Float[Tensor, "members batch"]:
        settings = self.settings
        with torch.no_grad():
            policies = self._policies(self.actor, next_obs)
            drawn = gaussian.sample(*policies, noise)
            tau, k = self._temperatures(), self._couplings()
            regularisation = tau * gaussian.tanh_log_prob(drawn, policies.log_std, noise)
            if settings.coupled:
                agreement = gaussian.agreement_kl(self.task.action_size, settings.softening)
                regularisation += k * (self._coupling_kl(policies) - agreement)
            # The deployed action is the noiseless one; an uncoupled agent has one policy for all.
            pre_tanh = torch.stack([drawn[0], drawn[-1], policies.mean[0]])
            actions = torch.tanh(pre_tanh).repeat_interleave(2, dim=0)
            next_q = self.target(
                torch.cat([next_obs.expand(actions.shape[0], *next_obs.shape), actions], dim=-1)
            )[..., 0]
            discount = settings.gamma * batch.continues
            reward = batch.reward * self.return_scale.scale
            punishment = batch.punishment * self.punishment_scale
            own = regularisation[1] if settings.coupled else torch.zeros_like(reward)
            target = torch.empty_like(next_q)
            target[REWARD] = bellman.reward_target(
                reward, discount, next_q[REWARD], regularisation[0]
            )
            target[PUNISHMENT] = bellman.punishment_target(
                punishment, discount, next_q[PUNISHMENT], own
            )
            target[EVALUATION] = bellman.evaluation_target(punishment, discount, next_q[EVALUATION])
            return target

    def _actor_loss(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        policies = self._policies(self.actor, obs)
        drawn = gaussian.sample(*policies, noise)
        log_prob = gaussian.tanh_log_prob(drawn, policies.log_std, noise)
        pre_tanh = torch.stack([drawn[0], drawn[0], drawn[-1], drawn[-1]])
        inputs = torch.cat([obs.expand(4, *obs.shape), torch.tanh(pre_tanh)], dim=-1)
        q = self.critic.frozen(inputs, members=4)[..., 0]
        tau, k = self._temperatures(), self._couplings()
        kl = self._coupling_kl(policies) if settings.coupled else torch.zeros_like(log_prob)
        loss = losses.reward_actor_loss(log_prob[0], q[REWARD], kl[0], float(tau[0]), float(k[0]))
        if settings.coupled:
            loss = loss + losses.punishment_actor_loss(
                log_prob[1], q[PUNISHMENT], kl[1], float(tau[1]), float(k[1])
            )
        if settings.lagrangian > 0.0:
            loss = loss + settings.lagrangian * self.controller.m * q[PUNISHMENT].amax(0).mean()
        return loss, {
            "entropy": -log_prob[0].detach().mean(),
            "coupling_kl": kl.detach().mean(),
            "deviation": policies.log_std[0].detach().exp().mean(),
        }

    def _tune_temperature(self, entropy: Tensor) -> None:
        """Move tau_R towards an entropy of minus the action's size (Haarnoja et al. 2018)."""
        self.log_tau -= self.settings.learning_rate * (float(entropy) + self.task.action_size)
        floor = math.log(max(self.settings.entropy_floor, 1e-8))
        self.log_tau = min(max(self.log_tau, floor), 1.0)

    # ------------------------------------------------------------------------------------ parts

    def _policies(self, actor: Stack, obs: Float[Tensor, "batch obs"]) -> Policies:
        """Both modules' Gaussians; the companion in the reward policy's coordinates."""
        rows = obs.expand(actor.members, *obs.shape)
        out = actor(rows) if torch.is_grad_enabled() else actor.frozen(rows)
        mean, raw = out.chunk(2, dim=-1)
        log_std = gaussian.squash_log_std(raw[:1], *LOG_STD_RANGE)
        if not self.settings.coupled:
            return Policies(mean, log_std)
        anchor, spread = mean[:1].detach(), log_std.detach()
        companion = anchor + spread.exp() * mean[1:]
        ratio = gaussian.squash_log_std(raw[1:], *gaussian.LOG_RATIO_RANGE)
        return Policies(torch.cat([mean[:1], companion]), torch.cat([log_std, spread + ratio]))

    def _coupling_kl(self, policies: Policies) -> Float[Tensor, "modules batch"]:
        """KL of each policy to the other, softened, which is a constant prior for it."""
        prior = Policies(*(part.detach().flip(0) for part in policies))
        return gaussian.softened_kl(*policies, *prior, self.settings.softening)

    def _temperatures(self) -> Float[Tensor, "modules 1"]:
        tau = [math.exp(self.log_tau)]
        if self.settings.coupled:
            tau.append(self.settings.companion_entropy / self.controller.m)
        return torch.tensor(tau)[:, None]

    def _couplings(self) -> Float[Tensor, "modules 1"]:
        k = [self.settings.coupling]
        if self.settings.coupled:
            k.append(self.settings.companion_coupling / self.controller.m)
        return torch.tensor(k)[:, None]

    @property
    def weight(self) -> float:
        """lambda: the weight of punishment in force."""
        settings, m = self.settings, self.controller.m
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
        return self.task.time_limit * (1.0 - self.settings.gamma) / max(self.task.budget, 1.0)

    def _normalise(self, obs: Float[Tensor, "batch obs"]) -> Float[Tensor, "batch obs"]:
        return ((obs - self.obs_mean) * self.obs_scale).clamp_(-MAX_NORMALISED, MAX_NORMALISED)

    def _refresh_normaliser(self) -> None:
        seen = float(self.obs_moments.count) > 0
        deviation = self.obs_moments.deviation.clamp_min(_OBS_DEVIATION_FLOOR)
        self.obs_mean = self.obs_moments.mean.float()
        self.obs_scale = (1.0 / deviation).float() if seen else torch.ones(self.task.obs_size)

    # ------------------------------------------------------------------------------------ files

    def policy_tensors(self) -> dict[str, Tensor]:
        """Copies of everything that a policy file holds (`policy_file`)."""
        tensors = {
            "obs_mean": self.obs_mean.clone(),
            "obs_scale": self.obs_scale.clone(),
        }
        for name, stack in (("actor", self.actor), ("critic", self.critic)):
            for i, (weight, bias) in enumerate(stack.layers()):
                if name == "actor" and not self.settings.coupled:
                    # Offset zero: the fallback of an agent without a companion is itself.
                    weight, bias = (torch.cat([p, torch.zeros_like(p)]) for p in (weight, bias))
                tensors[f"{name}.{i}.weight"] = weight.clone()
                tensors[f"{name}.{i}.bias"] = bias.clone()
        return tensors

    def warm_start(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin from a policy file's actors and critics; its normaliser is the starting guess."""
        for name, stack in (("actor", self.actor), ("critic", self.critic)):
            for i, parameters in enumerate(stack.layers()):
                for kind, own in zip(("weight", "bias"), parameters, strict=True):
                    given = tensors.get(f"{name}.{i}.{kind}")
                    if given is None or given[: stack.members].shape != own.shape:
                        shape = None if given is None else tuple(given.shape)
                        raise TrainingFault(
                            f"cannot start from that policy: its {name}.{i}.{kind} is {shape}, "
                            f"these settings need {tuple(own.shape)}"
                        )
                    own.copy_(given[: stack.members])
        self.target.flat.copy_(self.critic.flat.detach())
        # As if it had been seen in this many rows: new data soon outweighs it.
        count = float(self.settings.random_steps)
        self.obs_moments.count.fill_(count)
        self.obs_moments.mean.copy_(tensors["obs_mean"])
        self.obs_moments.squares.copy_(count * tensors["obs_scale"].double().pow(-2))
        self._refresh_normaliser()

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, by reference (copy before changing)."""
        recent = list(self.controller.recent)
        tensors = {
            "actor": self.actor.flat.detach(),
            "critic": self.critic.flat.detach(),
            "target": self.target.flat,
            "generator": self.generator.get_state(),
            "obs_count": self.obs_moments.count,
            "obs_mean": self.obs_moments.mean,
            "obs_squares": self.obs_moments.squares,
            "return_count": self.return_scale.moments.count,
            "return_mean": self.return_scale.moments.mean,
            "return_squares": self.return_scale.moments.squares,
            "scalars": torch.tensor(
                [self.log_tau, self.controller.integral, float(self.updates)], dtype=torch.float64
            ),
            "recent": torch.tensor(recent, dtype=torch.float64),
        }
        for name, optimiser in self._optimisers():
            for part, value in optimiser.state[optimiser.param_groups[0]["params"][0]].items():
                tensors[f"{name}_{part}"] = value
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `state`; the shapes are checked, nothing is half loaded before that."""
        own = {key: value for key, value in self.state().items() if key not in _GROWING}
        for key, value in own.items():
            if key not in tensors or tensors[key].shape != value.shape:
                raise TrainingFault(f"the checkpoint's '{key}' does not fit these settings")
        with torch.no_grad():
            for key in ("actor", "critic", "target"):
                own[key].copy_(tensors[key])
        for prefix, moments in (("obs", self.obs_moments), ("return", self.return_scale.moments)):
            moments.count = tensors[f"{prefix}_count"].clone()
            moments.mean = tensors[f"{prefix}_mean"].clone()
            moments.squares = tensors[f"{prefix}_squares"].clone()
        self.generator.set_state(tensors["generator"])
        self.log_tau, self.controller.integral, updates = tensors["scalars"].tolist()
        self.updates = int(updates)
        self.controller.recent.clear()
        self.controller.recent.extend(tensors["recent"].tolist()[-WINDOW:])
        for name, optimiser in self._optimisers():
            parameter = optimiser.param_groups[0]["params"][0]
            prefix = f"{name}_"
            parts = {
                k.removeprefix(prefix): v.clone()
                for k, v in tensors.items()
                if k.startswith(prefix)
            }
            if parts:
                optimiser.state[parameter] = parts
        self._refresh_normaliser()

    def _optimisers(self) -> tuple[tuple[str, torch.optim.Adam], ...]:
        return (("adam_actor", self.actor_optimiser), ("adam_critic", self.critic_optimiser))


_GROWING = ("recent",)
