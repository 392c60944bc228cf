"""How do two Q-networks learn, each the other's prior (klDMP)?

    companions, on both target networks     pi_P', pi_R' of `ops.coupling`'s closed form
    target R     y = r + g V_R(s')          h_R V_R = LSE(l_R') - LSE(b l_P')
    target P     y = -c + g V_P(s')         h_P V_P = LSE(l_P') - LSE(b l_R')
    loss         Huber(Q_i(s, a) - y_i)
    acting       log pi_i = logsoftmax(b log pi_j' + h_i Q_i);  w pi_R + (1 - w) pi_P explores
    deployed     argmax_a h_R Q_R + b h_P Q_P of the networks themselves

There is no policy network: policies are functions of the values. The fixed point of the targets is
that of `agents.tabular`, and the slow target networks play the part of its damping. DQN, SQL, DMP
and softDMP are the same code with other numbers (`agents.discrete_settings`).

`replicas` independent learners of one agent train side by side as members of one stack: rows of a
batch then belong to replica 0 first, then to replica 1, and so on, in equal parts.

Source: klDMP in arXiv:2606.28152, softDMP in arXiv:2405.11784, DMP (Wang, Elfwing, Uchibe, Neural
Networks 135, 2021); the equations are the project's own derivation.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kcpr_safety.agents.discrete_settings import DiscreteSettings
from kcpr_safety.agents.normaliser import Normaliser
from kcpr_safety.agents.optimiser import adam_step
from kcpr_safety.agents.task import Task
from kcpr_safety.networks import Stack, parameter_count
from kcpr_safety.ops.coupling import (
    Logits,
    Value,
    coupled_policies,
    coupled_values,
    soft_policy,
    soft_value,
    soften,
)
from kcpr_safety.ops.losses import huber_slope
from kcpr_safety.replay import Divided, Replay
from kcpr_safety.transition import Batch

MODULES = 2
"""Reward module, then punishment module, whose values are those of minus punishment."""


class DiscreteLearner:
    """One agent's two Q-networks (times replicas), optimiser and normalisers."""

    def __init__(
        self,
        settings: DiscreteSettings,
        task: Task,
        num_envs: int,
        seed: int,
        device: torch.device | str = "cpu",
        replicas: int = 1,
    ) -> None:
        """`task.action_size` counts the commands; each replica has `num_envs` environments."""
        self.settings, self.task, self.device = settings, task, torch.device(device)
        self.replicas = replicas
        self.generator = torch.Generator().manual_seed(seed)
        sizes = [task.obs_size, *[settings.width] * settings.depth, task.action_size]
        members = MODULES * replicas
        flat = torch.empty(parameter_count(members, sizes), device=self.device)
        self.q = Stack(members, sizes, flat=flat).initialise(self.generator)
        """Members: the reward modules of all replicas, then their punishment modules."""
        self.target = self.q.twin()
        self.gradient = torch.zeros_like(flat)
        self.adam = (torch.zeros_like(flat), torch.zeros_like(flat))
        self.normaliser = Normaliser(
            task.obs_size,
            num_envs * replicas,
            settings.gamma,
            device=self.device,
            active=settings.normalise,
        )
        self.updates = 0
        self.progress = 0.0
        self.steps = 0
        """Environment steps seen by each replica."""

    # ------------------------------------------------------------------------------ experience

    def observe(self, batch: Batch, ended: Bool[Tensor, "envs"]) -> None:
        """Take note of one step of all environments."""
        self.steps += batch.obs.shape[0] // self.replicas
        self.normaliser.add(batch.obs, batch.reward, ended)

    def advance(self, steps: int) -> None:
        """Steps that were taken while learning: no controller follows them."""

    @torch.no_grad()
    def act(self, obs: Float[Tensor, "envs obs"]) -> Float[Tensor, "envs 1"]:
        """Exploring choices (row numbers of the table of commands)."""
        reward, punishment = (log.exp() for log in self.policies(obs))
        mixing, share = self.settings.mixing, self.exploration
        chances = mixing * reward + (1.0 - mixing) * punishment
        chances = (1.0 - share) * chances + share / self.task.action_size
        drawn = torch.multinomial(chances.cpu(), 1, generator=self.generator)
        return drawn.to(torch.float32)

    @torch.no_grad()
    def act_greedily(self, obs: Float[Tensor, "envs obs"]) -> Float[Tensor, "envs 1"]:
        """The deployed choice: no noise, networks themselves."""
        reward, punishment = self._both(self.q, self._by_replica(self.normaliser(obs)))
        weights = self.settings.logit_weights
        preferred = (weights[0] * reward + weights[1] * punishment).argmax(-1)
        return preferred.reshape(-1, 1).to(torch.float32).cpu()

    def policies(self, obs: Float[Tensor, "rows obs"]) -> tuple[Logits, Logits]:
        """(log pi_R, log pi_P) of the networks, each with its companion's prior."""
        x = self._by_replica(self.normaliser(obs.to(self.device)))
        reward, punishment = self._both(self.q, x)
        reward_h, punishment_h, softening = self.settings.numbers
        reward_companion, punishment_companion = self._companions(*self._both(self.target, x))
        logs = (
            soft_policy(reward, soften(punishment_companion, softening), reward_h),
            soft_policy(punishment, soften(reward_companion, softening), punishment_h),
        )
        return logs[0].flatten(0, 1), logs[1].flatten(0, 1)

    def m_bounds(self) -> None:
        """No controller moves anything here."""

    def begin(self, pace: float, streams: Sequence[float], terminations: float) -> None:
        """Nor does anything begin elsewhere for what is suffered untaught."""

    def memory(self, capacity: int) -> Replay:
        """Where the transitions of one replica wait, in this agent's design."""
        sizes = capacity, self.task.obs_size, 1
        if self.settings.replay == "shared":
            return Replay(*sizes, self.device)
        balanced = self.settings.replay == "split"
        return Divided(*sizes, self.route, balanced=balanced, device=self.device)

    def route(self, batch: Batch) -> Bool[Tensor, "rows"]:
        """Which transitions belong into the second buffer.

        Routed: with probability pi_P / (pi_R + pi_P) of the action taken. It depends on s and a
        alone, so it biases no target. Split: the punished ones.
        """
        if self.settings.replay == "split":
            return batch.punishment > 0
        taken = batch.action.long()
        reward, punishment = (log.gather(1, taken)[:, 0] for log in self.policies(batch.obs))
        drawn = torch.rand(reward.shape, generator=self.generator)
        return drawn < torch.sigmoid(punishment - reward).nan_to_num(0.5).cpu()

    # -------------------------------------------------------------------------------- learning

    @torch.no_grad()
    def update(self, batch: Batch, *, measure: bool = True) -> dict[str, Tensor]:
        """One update of both modules from B transitions for each replica; metrics if asked for.

        Routed replay hands 2 B for each: the reward module's, then the punishment module's.
        """
        x, next_x = (self._by_replica(self.normaliser(obs)) for obs in (batch.obs, batch.next_obs))
        action = self._by_replica(batch.action.long())
        targets = self._targets(batch, next_x)
        if self.settings.replay == "routed":
            half = x.shape[1] // 2
            x = torch.cat([x[:, :half], x[:, half:]])
            action = torch.cat([action[:, :half], action[:, half:]])
            target = torch.cat([targets[0][:, :half], targets[1][:, half:]])
        else:
            x, action = x.repeat(MODULES, 1, 1), action.repeat(MODULES, 1, 1)
            target = torch.cat(targets)
        q, trace = self.q.forward(x)
        taken = q.gather(2, action)[..., 0]
        error = taken - target
        slope = (huber_slope(error) / error.shape[1])[..., None]
        out_gradient = torch.zeros_like(q).scatter_(2, action, slope)
        self.q.parameter_gradient(trace, out_gradient, into=self.gradient)
        self._step()
        self.target.flat.lerp_(self.q.flat, self.settings.target_rate)
        if not measure:
            return {}
        replicas = self.replicas
        return {
            "critic_loss": 0.5 * error.square().mean(),
            "reward_q": taken[:replicas].mean(),
            "punishment_q": -taken[replicas:].mean(),
        }

    def _targets(self, batch: Batch, next_x: Tensor) -> tuple[Value, Value]:
        """(y_R, y_P), each [replicas, rows]."""
        reward_value, punishment_value = self._values(*self._both(self.target, next_x))
        shape = next_x.shape[:2]
        discount = self.settings.gamma * batch.continues.view(shape)
        punishment = batch.punishment.view(shape) * self.punishment_scale
        reward = batch.reward.view(shape) * self.normaliser.reward_scale
        reward = reward - self.settings.scalarised * punishment
        return reward + discount * reward_value, discount * punishment_value - punishment

    def _values(self, reward_q: Tensor, punishment_q: Tensor) -> tuple[Value, Value]:
        """(V_R, V_P) under each other's prior."""
        reward_h, punishment_h, softening = numbers = self.settings.numbers
        if self.settings.companion == "both":
            return coupled_values(reward_q, punishment_q, *numbers)
        reward_companion, punishment_companion = self._companions(reward_q, punishment_q)
        return (
            soft_value(reward_q, soften(punishment_companion, softening), reward_h),
            soft_value(punishment_q, soften(reward_companion, softening), punishment_h),
        )

    def _companions(self, reward_q: Tensor, punishment_q: Tensor) -> tuple[Logits, Logits]:
        """(log pi_R', log pi_P') as the other module sees them."""
        reward_h, punishment_h, softening = self.settings.numbers
        if self.settings.companion == "own":
            softening = 0.0
        return coupled_policies(reward_q, punishment_q, reward_h, punishment_h, softening)

    def _step(self) -> None:
        """One Adam step on all networks together."""
        self.updates += 1
        adam_step(
            self.q.flat,
            self.gradient,
            self.adam,
            self.updates,
            self.settings.learning_rate,
        )

    # ------------------------------------------------------------------------------------ parts

    @property
    def exploration(self) -> float:
        """Share of uniformly random actions by now."""
        done = min(self.steps / self.settings.exploration_steps, 1.0)
        return 1.0 + (self.settings.exploration - 1.0) * done

    @property
    def punishment_scale(self) -> float:
        """Makes the value of spending the budget evenly over an episode equal to 1."""
        if not self.settings.normalise:
            return 1.0
        return self.task.time_limit * (1.0 - self.settings.gamma) / max(self.task.budget, 1.0)

    def status(self) -> dict[str, float]:
        """Numbers that a row of metrics shows beside those of an update."""
        weights = self.settings.logit_weights
        return {
            "lambda": self.settings.scalarised + weights[1] / max(weights[0], 1e-12),
            "entropy_temperature": self.settings.reward_temperature,
            "exploration": self.exploration,
            "reward_scale": self.normaliser.reward_scale,
            "updates": self.updates,
        }

    def _both(self, stack: Stack, x: Float[Tensor, "replicas rows obs"]) -> tuple[Tensor, Tensor]:
        """(Q_R, Q_P) [replicas, rows, commands]."""
        out = stack(x.repeat(MODULES, 1, 1))
        return out[: self.replicas], out[self.replicas :]

    def _by_replica(self, rows: Tensor) -> Tensor:
        return rows.view(self.replicas, -1, *rows.shape[1:])

    def parameters_of(self, stack: Stack) -> Mapping[str, Tensor]:
        """Weights and biases by the names of a policy file."""
        return {
            f"q.{i}.{kind}": tensor
            for i, layer in enumerate(stack.layers())
            for kind, tensor in zip(("weight", "bias"), layer, strict=True)
        }
