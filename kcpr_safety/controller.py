"""What runs on the robot: raw physical observation in, actuator command out?

    x        = clamp((obs - mean) * scale, -10, 10) + near * exp(15 (min(obs, 1) - 1))
    nominal  = squash(m_R)                      m_R, s_R: the reward module's pre-tanh mean and std
    fallback = squash(m_R + s_R * offset)       offset: the punishment module's, in those units,
                                                as far as exploration leaned towards it
    squash   = clamp(low + (tanh(m) + 1) / 2 * (high - low), low, high)

`near` is 0 for everything that is no closeness. A lidar's closeness tells metres evenly, so the
decimetre that decides whether a hazard is entered is a tenth of its deviation, and lost in it: what
is at hand is shown larger. Where the contract has a table of commands,

    nominal  = row argmax_a [ w_0 Q_R(x, a) + w_1 Q_P(x, a) ]      w = (h_R, b h_P)
    fallback = row argmax_a Q_P(x, a)                              Q_P: value of minus punishment

of which the second is the punishment module without its companion. Of equal values the first row
counts. A row with a NaN or infinity is answered with the declared safe action, zero command clamped
to the bounds, whether or not a table of commands holds it. The module is stateless, deterministic,
float32 and the same work on every call; it is the policy that evaluation runs and, scripted and
frozen, the one in a bundle. Annotations are plain torch types because TorchScript reads them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from kcpr_safety.contract import Contract

METHODS = ("forward", "nominal", "fallback", "check")
"""What takes observations alone."""

NON_FINITE = 1
"""Bit of `check`: the observation holds a NaN or an infinity."""

MAX_NORMALISED = 10.0
"""A normalised observation is clamped to this on both sides."""

NEAR_GAIN = 15.0
"""How quickly nearness is gone: of a lidar that reaches 3 m, to an e-th part within 0.2 m."""

LOG_STD_RANGE = (-5.0, 1.0)
"""Bounds of the reward policy's log standard deviation; the offset is in its units."""


class Layer(nn.Module):
    """x W + b of every member, with the two as constants."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", _own(weight))
        self.register_buffer("bias", _own(bias))

    def forward(self, x: Tensor) -> Tensor:
        # Not baddbmm, which rounds differently and, at width 256, takes three times as long.
        return torch.bmm(x, self.weight).add_(self.bias)


class Stack(nn.Module):
    """Networks of one shape side by side: [batch, in] to [members, batch, out].

    Asked one observation at a time, a call costs more than what it computes: so one call for all.
    """

    members: int
    norm_eps: float

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], norm_eps: float = 0.0) -> None:
        """Each of `layers` is (weight [members, in, out], bias [members, 1, out]); `norm_eps` above
        0 puts a layer norm, without weights, after each but the last."""
        super().__init__()
        self.members = int(layers[0][0].shape[0])
        self.norm_eps = norm_eps
        self.hidden = nn.ModuleList([Layer(*layer) for layer in layers[:-1]])
        self.last = Layer(*layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        y = x.expand(self.members, -1, -1)
        for layer in self.hidden:
            y = layer(y)
            if self.norm_eps > 0.0:
                y = layer_norm(y, [y.size(2)], None, None, self.norm_eps)
            y = torch.relu_(y)
        out: Tensor = self.last(y)
        return out


class Controller(nn.Module):
    """What every kind has: two modules and their normaliser; methods take float32 [batch, obs]."""

    mean: Tensor
    scale: Tensor
    safe: Tensor
    least: Tensor
    most: Tensor
    near: Tensor
    looks_near: bool
    near_gain: float
    obs_size: int
    non_finite: int

    def __init__(
        self,
        pair: Stack,
        normaliser: tuple[Tensor, Tensor, Tensor],
        bounds: tuple[Tensor, Tensor],
        rest: Tensor,
    ) -> None:
        """`pair` are the networks of the reward and of the punishment module, `normaliser` is
        (mean, scale, near); `rest` is within the bounds, and the answer to what is not finite."""
        super().__init__()
        low, high = bounds
        if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
            raise ValueError("every action needs finite bounds with low < high")
        self.pair = pair
        # TorchScript sees attributes, not the names of this file.
        self.obs_size = int(normaliser[0].shape[0])
        self.non_finite = NON_FINITE
        self.looks_near, self.near_gain = bool(normaliser[2].any()), NEAR_GAIN
        for name, value in (
            ("mean", normaliser[0]),
            ("scale", normaliser[1]),
            ("near", normaliser[2]),
            ("safe", rest),
            # As tensors: a number would be made into one in every call.
            ("least", torch.full_like(normaliser[0], -MAX_NORMALISED)),
            ("most", torch.full_like(normaliser[0], MAX_NORMALISED)),
        ):
            self.register_buffer(name, _own(value))

    def forward(self, obs: Tensor) -> Tensor:
        """The deterministic action that is deployed: the reward module's."""
        return self.nominal(obs)

    @torch.jit.export
    def nominal(self, obs: Tensor) -> Tensor:
        """The reward module's action."""
        return self._sure(self.first(self.normalise(obs)), obs)

    @torch.jit.export
    def fallback(self, obs: Tensor) -> Tensor:
        """The punishment module's action: learned avoidance, not a certified stop."""
        return self._sure(self.both(self.normalise(obs))[1], obs)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(nominal, fallback) of normalised observations; the safe action if weights overflow."""
        raise NotImplementedError

    def first(self, x: Tensor) -> Tensor:
        """The nominal of `both` alone, to the same bits."""
        return self.both(x)[0]

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
        if self.looks_near:
            nearness = torch.exp((torch.clamp(finite, max=1.0) - 1.0) * self.near_gain) * self.near
            x = finite.sub_(self.mean).mul_(self.scale).clamp_(self.least, self.most)
            return x.add_(nearness)
        return finite.sub_(self.mean).mul_(self.scale).clamp_(self.least, self.most)

    def finite_rows(self, obs: Tensor) -> Tensor:
        """[batch, 1]: whether every entry is finite; `isfinite` in fewer calls."""
        nothing = obs - obs
        return (nothing == nothing).all(dim=1, keepdim=True)

    def _sure(self, action: Tensor, obs: Tensor) -> Tensor:
        return torch.where(self.finite_rows(obs), action, self.safe)

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
    log_middle: Tensor
    log_reach: Tensor
    action_size: int
    rests_at_zero: bool

    def __init__(
        self,
        pair: Stack,
        normaliser: tuple[Tensor, Tensor, Tensor],
        bounds: tuple[Tensor, Tensor],
        rest: Tensor,
    ) -> None:
        super().__init__(pair, normaliser, bounds, rest)
        low, high = bounds
        self.rests_at_zero = bool((self.safe == torch.zeros_like(low).clamp(low, high)).all())
        self.action_size = int(low.shape[0])
        least, most = LOG_STD_RANGE
        # Of (nominal, fallback): the nominal goes no way aside, exp(-inf) of the offset.
        centre = torch.tensor([-torch.inf, 0.5 * (least + most)])
        reach = torch.tensor([0.0, 0.5 * (most - least)])
        for name, value in (
            ("low", low),
            ("high", high),
            ("half_span", (high - low) / 2.0),
            ("one", torch.ones_like(low)),
            ("log_middle", centre.view(2, 1, 1).expand(2, 1, self.action_size)),
            ("log_reach", reach.view(2, 1, 1).expand(2, 1, self.action_size)),
        ):
            self.register_buffer(name, _own(value))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(nominal, fallback) of normalised observations; the safe action if weights overflow."""
        # [2, batch, action]: (mean, offset) and (raw log deviation, log ratio: not deployed).
        places, raws = torch.chunk(self.pair(x), 2, dim=2)
        share = torch.addcmul(self.log_middle, torch.tanh(raws[0]), self.log_reach).exp_()
        nominal, fallback = torch.unbind(self._command(torch.addcmul(places[0], share, places)))
        return nominal, fallback

    def first(self, x: Tensor) -> Tensor:
        """The nominal of `both` alone, to the same bits."""
        return self._command(self.pair(x)[0].narrow(1, 0, self.action_size))

    def _command(self, mean: Tensor) -> Tensor:
        command = torch.addcmul(self.low, torch.tanh(mean).add_(self.one), self.half_span)
        # NaN, of weights that overflow, becomes the safe action.
        if self.rests_at_zero:  # in one call less
            command = command.nan_to_num_(0.0)
        else:
            command = torch.where(command == command, command, self.safe)
        return command.clamp_(self.low, self.high)


class DiscreteController(Controller):
    """A choice among the contract's commands: both modules' networks give values of each."""

    commands: Tensor
    logit_weights: Tensor

    def __init__(
        self,
        pair: Stack,
        normaliser: tuple[Tensor, Tensor, Tensor],
        bounds: tuple[Tensor, Tensor],
        rest: Tensor,
        choice: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__(pair, normaliser, bounds, rest)
        for name, value in zip(("commands", "logit_weights"), choice, strict=True):
            self.register_buffer(name, _own(value))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(nominal, fallback) of normalised observations: rows of the table, or the safe action."""
        reward, values = torch.unbind(self.pair(x))
        preference = self.logit_weights[0] * reward + self.logit_weights[1] * values
        return self._choose(preference), self._choose(values)

    def _choose(self, preference: Tensor) -> Tensor:
        action = self.commands.index_select(0, torch.argmax(preference, dim=1))
        # With weights that overflow an argmax means nothing.
        return torch.where(self.finite_rows(preference), action, self.safe)


def controller_from_tensors(tensors: Mapping[str, Tensor], contract: Contract) -> Controller:
    """The controller of a policy file's tensors (see `policy_file`, which checks them)."""
    bounds = (
        torch.tensor([entry.low for entry in contract.action], dtype=torch.float32),
        torch.tensor([entry.high for entry in contract.action], dtype=torch.float32),
    )
    mean = tensors["obs_mean"]
    near = tensors.get("obs_near", torch.zeros_like(mean))
    normaliser = mean, tensors["obs_scale"], near
    rest = torch.tensor(contract.rest, dtype=torch.float32).clamp(*bounds)
    if contract.commands:
        commands = torch.tensor(contract.commands, dtype=torch.float32).clamp(*bounds)
        choice = (commands, tensors["logit_weights"])
        pair = Stack(layers_of(tensors, "q"))
        return DiscreteController(pair, normaliser, bounds, rest, choice).eval()
    return ContinuousController(Stack(layers_of(tensors, "actor")), normaliser, bounds, rest).eval()


def layers_of(tensors: Mapping[str, Tensor], stack: str) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of every layer of a stack of networks, first to last."""
    layers: list[tuple[Tensor, Tensor]] = []
    while (key := f"{stack}.{len(layers)}.weight") in tensors:
        layers.append((tensors[key], tensors[f"{stack}.{len(layers)}.bias"]))
    return layers


def _own(value: Tensor) -> Tensor:
    """An aligned private copy, so that no kernel rounds by where a tensor happens to lie."""
    return value.detach().to(torch.float32).contiguous().clone()
