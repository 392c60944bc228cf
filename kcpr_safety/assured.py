"""What does the deployed controller add to a policy so that a robot need not trust it blindly?

    risk    r = max(0, larger of the twins Q_C(s, a)) / scale: predicted punishment, discounted
    act     (1 - w) nominal + w fallback, w = clamp((r - release) / (engage - release), 0, 1)
    step    engaged from r >= engage until r < release and the dwell is over; w moves towards it by
            1 / blend_steps a period; then soft start from the default action, then slew limits
    both    the safe action, and the mode bit `invalid`, for an observation with an entry that is
            not finite or beyond its hard range

A choice among commands does not blend, has one critic, and its risk is that of the nearest row. A
risk that is not finite counts as too large. Comparisons are written so that NaN falls on the safe
side. What is not one of these methods does not exist after freezing; state goes in and out. The
safe action is not held back by slew limits. `self_test` replays golden answers that are inside.

The risk of an invalid observation, which is computed from its clamped entries, means nothing.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kcpr_safety.assurance import CHECK_BITS, MODE_BITS, Assurance
from kcpr_safety.contract import Contract
from kcpr_safety.controller import (
    METHODS,
    ContinuousController,
    Controller,
    Stack,
    controller_from_tensors,
    layers_of,
)
from kcpr_safety.networks import LAYER_NORM_EPS
from kcpr_safety.policy_file import PolicyFile

SCHEMA_VERSION = 4
"""Of the controller's methods, contract and arithmetic: earlier ones round otherwise."""

ALL_METHODS = (*METHODS, "act", "step", "risk", "self_test", "contract", "schema_version")
"""What a deployed controller offers; freezing drops every method that is not named."""

EVALUATION = slice(4, 6)
"""Members of a continuous policy's critics: the twins of Q_C."""


class ContinuousRisk(nn.Module):
    """Predicted punishment of any command within the bounds: the larger of two critics' values."""

    def __init__(self, twins: Stack) -> None:
        """`twins` take (normalised observation, action) and give punishment."""
        super().__init__()
        self.twins = twins

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        values: Tensor = self.twins(torch.cat([x, action], dim=1))
        return torch.amax(values, dim=0).relu_()


class DiscreteRisk(nn.Module):
    """Predicted punishment of the command that is nearest to an action."""

    commands: Tensor

    def __init__(self, pair: Stack, commands: Tensor, scale: float) -> None:
        super().__init__()
        self.pair = pair
        self.register_buffer("commands", commands.clone())
        self.scale = scale

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        gap = (action.unsqueeze(1) - self.commands.unsqueeze(0)).square().sum(dim=2)
        values: Tensor = self.pair(x)[1]
        value = values.gather(1, torch.argmin(gap, dim=1, keepdim=True))
        return torch.clamp(-value / self.scale, min=0.0)


class AssuredController(nn.Module):
    """A policy with its risk, its runtime assurance and its own proof."""

    low: Tensor
    high: Tensor
    safe: Tensor
    default: Tensor
    slew: Tensor
    hard_low: Tensor
    hard_high: Tensor
    seen_low: Tensor
    seen_high: Tensor
    zero: Tensor
    one: Tensor
    release: Tensor
    engage: Tensor
    width: Tensor
    dwell: Tensor
    blend_share: Tensor
    soft_start: Tensor
    ordinary: Tensor
    avoiding: Tensor
    blended: Tensor
    invalid: Tensor
    initial: Tensor
    golden_obs: Tensor
    golden_forward: Tensor
    golden_fallback: Tensor
    golden_check: Tensor
    golden_act_action: Tensor
    golden_act_risk: Tensor
    golden_act_mode: Tensor
    golden_step_action: Tensor
    golden_step_mode: Tensor

    def __init__(
        self, policy: Controller, risk: nn.Module, contract: Contract, assurance: Assurance
    ) -> None:
        super().__init__()
        self.policy, self.critic = policy, risk
        self.text = contract_text(contract, assurance)
        self.version = SCHEMA_VERSION
        self.blends = not contract.commands
        self.has_fallback = assurance.fallback
        self.out_of_range, self.unseen = (
            CHECK_BITS["out_of_hard_range"],
            CHECK_BITS["outside_training_range"],
        )
        bounds = [[getattr(e, side) for e in contract.action] for side in ("low", "high")]
        for name, values in (
            ("low", bounds[0]),
            ("high", bounds[1]),
            ("safe", assurance.safe_action),
            ("default", assurance.default_action),
            ("slew", assurance.slew),
            ("hard_low", assurance.hard_low),
            ("hard_high", assurance.hard_high),
            ("seen_low", assurance.seen_low),
            ("seen_high", assurance.seen_high),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        # As tensors: a number would be made into one in every call.
        ramp = assurance.engage - assurance.release if assurance.fallback else 1.0
        for name, value in (
            ("zero", 0.0),
            ("one", 1.0),
            ("release", assurance.release),
            ("engage", assurance.engage),
            ("width", max(ramp, 1e-6)),
            ("dwell", float(assurance.dwell_steps)),
            ("blend_share", 1.0 / assurance.blend_steps),
            ("soft_start", float(assurance.soft_start_steps)),
            ("ordinary", 0),
            *MODE_BITS.items(),
        ):
            self.register_buffer(name, torch.full((1, 1), value))
        largest = torch.finfo(torch.float32).max
        self.hard_low.clamp_(min=-largest)
        self.hard_high.clamp_(max=largest)
        self.register_buffer("initial", torch.tensor([assurance.initial_state]))
        self.set_golden({"obs": torch.zeros(0, contract.obs_size)})

    def set_golden(self, golden: Mapping[str, Tensor]) -> None:
        """Take in observations and answers for `self_test`."""
        for name in ("obs", *GOLDEN):
            tensor = golden.get(name, torch.zeros(0, 1))
            self.register_buffer(f"golden_{name}", tensor.clone().to(torch.float32))

    def forward(self, obs: Tensor) -> Tensor:
        """The deterministic action that was evaluated: the reward module's."""
        return self.policy.nominal(obs)

    @torch.jit.export
    def nominal(self, obs: Tensor) -> Tensor:
        """The reward module's action."""
        return self.policy.nominal(obs)

    @torch.jit.export
    def fallback(self, obs: Tensor) -> Tensor:
        """The punishment module's action: learned avoidance, not a certified stop."""
        return self.policy.fallback(obs)

    @torch.jit.export
    def risk(self, obs: Tensor, action: Tensor) -> Tensor:
        """[batch, 1]: pessimistic predicted punishment of giving `action` now, then the nominal."""
        x = self.policy.normalise(obs)
        if action.dtype != torch.float32 or action.size() != torch.Size(
            (obs.size(0), self.low.size(0))
        ):
            raise ValueError("the action must be float32 [batch, action]")
        if self.blends:
            action = torch.clamp(action, self.low, self.high)
        risk: Tensor = self.critic(x, action)
        return risk

    @torch.jit.export
    def check(self, obs: Tensor) -> Tensor:
        """int64 [batch]: 0, or the bits that say what is wrong with each row."""
        bits = self.policy.check(obs)
        # NaN compares false: outside of every range.
        hard = ((obs >= self.hard_low) & (obs <= self.hard_high)).all(dim=1)
        seen = ((obs >= self.seen_low) & (obs <= self.seen_high)).all(dim=1)
        bits = bits + torch.logical_not(hard).to(torch.int64) * self.out_of_range
        return bits + torch.logical_not(seen).to(torch.int64) * self.unseen

    @torch.jit.export
    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(action, risk [batch, 1], mode int64 [batch]) without memory."""
        nominal, fallback, risk, valid = self._look(obs)
        if not self.has_fallback:
            weight = self.zero
        elif self.blends:
            weight = torch.sub(risk, self.release).div_(self.width)
            weight = weight.clamp_(self.zero, self.one).nan_to_num_(1.0)
        else:
            weight = torch.logical_not(risk < self.engage).to(torch.float32)
        action = torch.where(valid, self._blend(nominal, fallback, weight), self.safe)
        return action, risk, self._mode(weight, valid)

    @torch.jit.export
    def step(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(action, risk [batch, 1], mode int64 [batch], state) with memory in `state`."""
        nominal, fallback, risk, valid = self._look(obs)
        if (
            state.dtype != torch.float32
            or state.dim() != 2
            or state.size(1) != self.initial.size(1)
        ):
            raise ValueError(f"the state must be float32 [batch, {self.initial.size(1)}]")
        # A state that was damaged begins again.
        state = torch.where(self.policy.finite_rows(state), state, self.initial)
        columns = torch.split(state, [1, 1, 1, 1, self.low.size(0)], dim=1)
        steps, weight, was, held, before = columns
        if self.has_fallback:
            stays = torch.logical_not((risk < self.release) & (held >= self.dwell))
            engaged = torch.logical_not(risk < self.engage) | ((was > 0.5) & stays)
            on = engaged.to(torch.float32)
        else:
            on = torch.zeros_like(risk)
        held = torch.minimum(held + self.one, self.dwell) * on
        weight = weight + (on + on - self.one) * self.blend_share
        weight = torch.clamp(weight, self.zero, self.one)
        action = self._blend(nominal, fallback, weight)
        steps = torch.minimum(steps + self.one, self.soft_start)
        grown = self.default + steps / self.soft_start * (action - self.default)
        action = torch.where(steps < self.soft_start, grown, action)
        action = torch.clamp(action, before - self.slew, before + self.slew)
        action = torch.clamp(action, self.low, self.high)
        # The second test holds for a state that overflows: NaN equals nothing.
        action = torch.where(valid & (action == action), action, self.safe)
        state = torch.cat([steps, weight, on, held, action], dim=1)
        return action, risk, self._mode(weight, valid), state

    @torch.jit.export
    def self_test(self) -> float:
        """Largest error of the golden answers: actions in spans, risks in 1 + risk."""
        worst = torch.zeros(())
        span = self.high - self.low
        state = self.initial
        for i in range(self.golden_obs.size(0)):
            obs = self.golden_obs[i : i + 1]
            action, risk, mode = self.act(obs)
            moved, _, moved_mode, state = self.step(obs, state)
            wanted = self.golden_act_risk[i : i + 1]
            errors = [
                (self.forward(obs) - self.golden_forward[i : i + 1]) / span,
                (self.fallback(obs) - self.golden_fallback[i : i + 1]) / span,
                (action - self.golden_act_action[i : i + 1]) / span,
                (moved - self.golden_step_action[i : i + 1]) / span,
                (risk - wanted) / (1.0 + wanted),
                (mode - self.golden_act_mode[i : i + 1]).to(torch.float32).unsqueeze(1),
                (moved_mode - self.golden_step_mode[i : i + 1]).to(torch.float32).unsqueeze(1),
                (self.check(obs) - self.golden_check[i : i + 1]).to(torch.float32).unsqueeze(1),
            ]
            error = torch.cat(errors, dim=1).abs()
            error = torch.where(torch.isfinite(error), error, torch.full_like(error, 1e9))
            worst = torch.maximum(worst, error.max())
        return float(worst.item())

    @torch.jit.export
    def contract(self) -> str:
        """JSON: the robot's contract, with the runtime assurance under `assurance`."""
        return self.text

    @torch.jit.export
    def schema_version(self) -> int:
        """Of these methods and of the contract."""
        return self.version

    def _look(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(nominal, fallback, risk of the nominal, whether the observation is valid [batch, 1])."""
        x = self.policy.normalise(obs)
        if self.has_fallback:
            nominal, fallback = self.policy.both(x)
        else:
            nominal = fallback = self.policy.first(x)
        risk: Tensor = self.critic(x, nominal)
        # NaN equals nothing, and every hard range ends before infinity.
        inside = torch.clamp(obs, self.hard_low, self.hard_high) == obs
        return nominal, fallback, risk, inside.all(dim=1, keepdim=True)

    def _blend(self, nominal: Tensor, fallback: Tensor, weight: Tensor) -> Tensor:
        if not self.has_fallback:
            return nominal
        if self.blends:
            return torch.lerp(nominal, fallback, weight)
        return torch.where(weight >= 0.5, fallback, nominal)

    def _mode(self, weight: Tensor, valid: Tensor) -> Tensor:
        mode = self.ordinary
        if self.has_fallback:
            part = torch.where(weight > self.zero, self.blended, self.ordinary)
            mode = torch.where(weight >= self.one, self.avoiding, part)
        return torch.where(valid, mode, self.invalid).squeeze(1)


GOLDEN = (
    *("forward", "fallback", "check", "act_action", "act_risk", "act_mode"),
    *("step_action", "step_mode"),
)
"""Answers that `self_test` replays."""


def contract_text(contract: Contract, assurance: Assurance) -> str:
    """What `contract()` says: one JSON object, keys sorted, floats at round-trip precision."""
    record = json.loads(contract.to_json()) | {"assurance": assurance.to_record()}
    return json.dumps(record, sort_keys=True, allow_nan=False)


def assured(policy: PolicyFile, assurance: Assurance) -> AssuredController:
    """The whole controller of a policy file."""
    contract, tensors = policy.contract, policy.tensors
    plain = controller_from_tensors(tensors, contract)
    if isinstance(plain, ContinuousController):
        risk: nn.Module = ContinuousRisk(_twins(policy, plain, assurance.risk_scale))
    else:
        risk = DiscreteRisk(plain.pair, plain.get_buffer("commands"), assurance.risk_scale)
    return AssuredController(plain, risk, contract, assurance).eval()


def unassured(policy: PolicyFile) -> Assurance:
    """No ranges, thresholds or limits yet: what a calibration run starts from."""
    contract, settings = policy.contract, policy.settings
    gamma = float(settings.get("gamma", 0.99)) ** contract.hold
    scale = contract.time_limit * (1.0 - gamma) / max(contract.budget, 1.0)
    return Assurance.none(
        (contract.obs_size, contract.action_size),
        [(entry.low, entry.high) for entry in contract.action],
        rest=contract.rest,
        gamma=gamma,
        risk_scale=1.0 if settings.get("normalise") is False else scale,
    )


def _twins(policy: PolicyFile, plain: ContinuousController, scale: float) -> Stack:
    """The critics, with what is done to their inputs and outputs moved into their weights."""
    layers = [(w[EVALUATION], b[EVALUATION]) for w, b in layers_of(policy.tensors, "critic")]
    weight, bias = (tensor.to(torch.float64) for tensor in layers[0])
    # They were trained on actions in [-1, 1].
    by_action = weight[:, -plain.action_size :] / plain.half_span.unsqueeze(1)
    middle = (plain.low + plain.half_span).to(torch.float64)
    bias = bias - middle.unsqueeze(0) @ by_action
    weight = torch.cat([weight[:, : -plain.action_size], by_action], dim=1)
    layers[0] = (weight, bias)
    layers[-1] = (layers[-1][0] / scale, layers[-1][1] / scale)
    norm = bool(policy.settings.get("layer_norm", False))
    return Stack(layers, LAYER_NORM_EPS if norm else 0.0)
