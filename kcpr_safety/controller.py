"""What runs on the robot: raw physical observation in, actuator command out?

    x        = clamp((obs - mean) * scale, -10, 10)
    nominal  = squash(m_R)                      m_R, s_R: the reward module's pre-tanh mean and std
    fallback = squash(m_R + s_R * offset)       offset: the punishment module's, in those units,
                                                as far as exploration leaned towards it
    squash   = clamp(low + (tanh(m) + 1) / 2 * (high - low), low, high)

and where the contract has a table of commands,

    nominal  = row argmax_a [ w_0 Q_R(x, a) + w_1 Q_P(x, a) ]      w = (h_R, b h_P)
    fallback = row argmax_a Q_P(x, a)                              Q_P: value of minus punishment

of which the second is the punishment module without its companion. Of equal values the first row
counts. A row with a NaN or infinity is answered with the declared safe action, zero command clamped
to the bounds, whether or not a table of commands holds it. The module is stateless, deterministic,
float32 and the same work on every call; it is the policy that evaluation runs and, scripted and
frozen, the one in a bundle. Annotations are plain torch types because TorchScript reads them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kcpr_safety.contract import Contract

METHODS = ("forward", "nominal", "fallback", "check")
"""What takes observations alone."""

NON_FINITE = 1
"""Bit of `check`: the observation holds a NaN or an infinity."""

MAX_NORMALISED = 10.0
"""A normalised observation is clamped to this on both sides."""

LOG_STD_RANGE = (-5.0, 1.0)
"""Bounds of the reward policy's log standard deviation; the offset is in its units."""


class Dense(nn.Module):
    """x W + b, with the two as constants."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", _own(weight))
        self.register_buffer("bias", _own(bias))

    def forward(self, x: Tensor) -> Tensor:
        # Not addmm: the TorchScript optimiser splits it into these two, which round differently.
        return torch.mm(x, self.weight) + self.bias


class Module(nn.Module):
    """One module's network: normalised observation to the last layer's outputs."""

    def __init__(self, layers: list[Dense]) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(layers[:-1])
        self.last = layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.relu(layer(x))
        out: Tensor = self.last(x)
        return out


class Controller(nn.Module):
    """What every kind has: two modules and their normaliser; methods take float32 [batch, obs]."""

    mean: Tensor
    scale: Tensor
    safe: Tensor
    least: Tensor
    most: Tensor
    obs_size: int
    non_finite: int

    def __init__(
        self,
        modules: tuple[Module, Module],
        normaliser: tuple[Tensor, Tensor],
        bounds: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        low, high = bounds
        if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
            raise ValueError("every action needs finite bounds with low < high")
        self.reward, self.punishment = modules
        # TorchScript sees attributes, not the names of this file.
        self.obs_size = int(normaliser[0].shape[0])
        self.non_finite = NON_FINITE
        for name, value in (
            ("mean", normaliser[0]),
            ("scale", normaliser[1]),
            ("safe", torch.zeros_like(low).clamp(low, high)),
            # As tensors: a number would be made into one in every call.
            ("least", torch.full_like(normaliser[0], -MAX_NORMALISED)),
            ("most", torch.full_like(normaliser[0], MAX_NORMALISED)),
        ):
            self.register_buffer(name, _own(value))

    def forward(self, obs: Tensor) -> Tensor:
        """The deterministic action that is deployed: the reward module's."""
        return self.nominal(obs)

    def nominal(self, obs: Tensor) -> Tensor:
        """The reward module's action."""
        raise NotImplementedError

    def fallback(self, obs: Tensor) -> Tensor:
        """The punishment module's action: learned avoidance, not a certified stop."""
        raise NotImplementedError

    def both(self, x: Tensor, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(nominal, fallback) of raw observations whose `normalise` is at hand."""
        raise NotImplementedError

    @torch.jit.export
    def check(self, obs: Tensor) -> Tensor:
        """int64 [batch]: 0, or the bits that say what is wrong with each row."""
        self.refuse(obs)
        invalid = torch.logical_not(torch.isfinite(obs).all(dim=1))
        return invalid.to(torch.int64) * self.non_finite

    def normalise(self, obs: Tensor) -> Tensor:
        """What the networks see of raw observations."""
        self.refuse(obs)
        # NaN passes a clamp, so it has to go before; its row is overruled by the safe action.
        finite = torch.nan_to_num(obs, 0.0, 0.0, 0.0)
        return torch.clamp((finite - self.mean) * self.scale, self.least, self.most)

    def finite_rows(self, obs: Tensor) -> Tensor:
        """[batch, 1]: whether every entry is finite; `isfinite` in fewer calls."""
        nothing = obs - obs
        return (nothing == nothing).all(dim=1, keepdim=True)

    def refuse(self, obs: Tensor) -> None:
        """Raise `ValueError` for a wrong dtype or width."""
        if obs.dtype != torch.float32:
            raise ValueError("the observation must be float32")
        if obs.dim() != 2 or obs.size(1) != self.obs_size:
            raise ValueError(f"the observation must be [batch, {self.obs_size}], not {obs.size()}")


class ContinuousController(Controller):
    """Any command within the bounds: both modules' networks are actors."""

    low: Tensor
    high: Tensor
    half_span: Tensor
    one: Tensor
    log_std_least: Tensor
    log_std_reach: Tensor
    action_size: int

    def __init__(
        self,
        modules: tuple[Module, Module],
        normaliser: tuple[Tensor, Tensor],
        bounds: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__(modules, normaliser, bounds)
        low, high = bounds
        self.action_size = int(low.shape[0])
        least, most = LOG_STD_RANGE
        for name, value in (
            ("low", low),
            ("high", high),
            ("half_span", (high - low) / 2.0),
            ("one", torch.ones_like(low)),
            ("log_std_least", torch.full_like(low, least)),
            ("log_std_reach", torch.full_like(low, 0.5 * (most - least))),
        ):
            self.register_buffer(name, _own(value))

    @torch.jit.export
    def nominal(self, obs: Tensor) -> Tensor:
        """The reward module's action."""
        x = self.normalise(obs)
        mean = self.reward(x).narrow(1, 0, self.action_size)
        return self._command(mean, self.finite_rows(obs))

    @torch.jit.export
    def fallback(self, obs: Tensor) -> Tensor:
        """The punishment module's action: learned avoidance, not a certified stop."""
        return self.both(self.normalise(obs), obs)[1]

    def both(self, x: Tensor, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(nominal, fallback) of raw observations whose `normalise` is at hand."""
        out = self.reward(x)
        raw = torch.tanh(out.narrow(1, self.action_size, self.action_size))
        log_std = self.log_std_least + self.log_std_reach * (raw + self.one)
        mean = out.narrow(1, 0, self.action_size)
        aside = mean + torch.exp(log_std) * self.punishment(x)
        commands = self._command(torch.stack([mean, aside]), self.finite_rows(obs))
        return commands[0], commands[1]

    def _command(self, mean: Tensor, valid: Tensor) -> Tensor:
        action = self.low + (torch.tanh(mean) + self.one) * self.half_span
        action = torch.clamp(action, self.low, self.high)
        # The second test holds for weights that overflow: NaN equals nothing.
        return torch.where(valid & (action == action), action, self.safe)


class DiscreteController(Controller):
    """A choice among the contract's commands: both modules' networks give values of each."""

    commands: Tensor
    logit_weights: Tensor

    def __init__(
        self,
        modules: tuple[Module, Module],
        normaliser: tuple[Tensor, Tensor],
        bounds: tuple[Tensor, Tensor],
        choice: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__(modules, normaliser, bounds)
        for name, value in zip(("commands", "logit_weights"), choice, strict=True):
            self.register_buffer(name, _own(value))

    @torch.jit.export
    def nominal(self, obs: Tensor) -> Tensor:
        """The command that the coupled reward module prefers."""
        return self.both(self.normalise(obs), obs)[0]

    @torch.jit.export
    def fallback(self, obs: Tensor) -> Tensor:
        """The command of least expected punishment: learned avoidance, not a certified stop."""
        return self._choose(self.punishment(self.normalise(obs)), obs)

    def both(self, x: Tensor, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(nominal, fallback) of raw observations whose `normalise` is at hand."""
        values = self.punishment(x)
        preference = self.logit_weights[0] * self.reward(x) + self.logit_weights[1] * values
        return self._choose(preference, obs), self._choose(values, obs)

    def _choose(self, preference: Tensor, obs: Tensor) -> Tensor:
        action = self.commands.index_select(0, torch.argmax(preference, dim=1))
        # The second test holds for weights that overflow, where an argmax means nothing.
        valid = torch.isfinite(obs).all(dim=1) & torch.isfinite(preference).all(dim=1)
        return torch.where(valid.unsqueeze(1), action, self.safe)


def controller_from_tensors(tensors: Mapping[str, Tensor], contract: Contract) -> Controller:
    """The controller of a policy file's tensors (see `policy_file`, which checks them)."""
    bounds = (
        torch.tensor([entry.low for entry in contract.action], dtype=torch.float32),
        torch.tensor([entry.high for entry in contract.action], dtype=torch.float32),
    )
    normaliser = (tensors["obs_mean"], tensors["obs_scale"])
    if contract.commands:
        values = (_module(tensors, "q", 0), _module(tensors, "q", 1))
        commands = torch.tensor(contract.commands, dtype=torch.float32).clamp(*bounds)
        choice = (commands, tensors["logit_weights"])
        return DiscreteController(values, normaliser, bounds, choice).eval()
    # Of the companion only the offset is deployed, not the ratio of the deviations.
    actors = (_module(tensors, "actor", 0), _module(tensors, "actor", 1, contract.action_size))
    return ContinuousController(actors, normaliser, bounds).eval()


def _module(
    tensors: Mapping[str, Tensor], stack: str, member: int, outputs: int | None = None
) -> Module:
    """One member of a stack of networks, with the first `outputs` of its last layer."""
    layers: list[tuple[Tensor, Tensor]] = []
    while (key := f"{stack}.{len(layers)}.weight") in tensors:
        bias = tensors[f"{stack}.{len(layers)}.bias"]
        layers.append((tensors[key][member], bias[member]))
    weight, bias = layers[-1]
    layers[-1] = (weight[:, :outputs], bias[:, :outputs])
    return Module([Dense(weight, bias) for weight, bias in layers])


def _own(value: Tensor) -> Tensor:
    """An aligned private copy, so that no kernel rounds by where a tensor happens to lie."""
    return value.detach().to(torch.float32).contiguous().clone()
