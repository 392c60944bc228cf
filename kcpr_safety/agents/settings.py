"""Which numbers does an agent have, and in which of them do the named agents differ?

Values, temperatures and weights live in normalised units: reward is divided by the running
deviation of its discounted return; punishment is scaled so that spending the budget evenly over a
full episode has discounted value 1. So the same numbers serve returns of 20 and of 6,000.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from kcpr_safety.errors import SettingsError, UnknownNameError

INTEGRAL_REACH = 5.0
"""E-folds of m that the integral moves in a whole run, per e-fold of punishment over the aim; fewer
where the run is so short that `MOST_RATE` is less."""
MOST_RATE = 1e-5
"""However short the run: a quicker integral answers the first steps too much, when a policy changes
faster than its multiplier can tell."""


@dataclass(frozen=True)
class Settings:
    """Every number of the continuous learner; the defaults are those of `kcpr`, for all tasks."""

    coupling: float = 0.005
    """k_R: weight of the KL that ties the reward module to its companion; 0 uncouples."""
    companion_coupling: float = 0.005
    """k_P0: the punishment module's own weight, divided by the controller's m."""
    companion_entropy: float = 0.0
    """tau_P0: the punishment module's entropy temperature, divided by m."""
    softening: float = 0.97
    """b in (0, 1): the companion's policy is raised to this power before it serves as a prior."""
    closed_form: bool = False
    """Let the reward policy follow the closed form of both policies, Q_R - lambda Q_P at the
    temperature tau_R + (1 - b^2) k_R, instead of the KL to its companion."""
    avoidance: float = 4.0
    """How far exploring actions lean towards the companion: 0 not at all, 1 to its mean, 4 as far
    again three times. The fallback of a policy file leans as far, the policy itself never does; an
    uncoupled agent has nothing to lean to."""
    lagrangian: float = 0.0
    """nu: weight, times m, of the punishment critic directly in the reward actor (SAC-Lag)."""
    controlled: bool = True
    """Whether the budget controller moves m; otherwise it stays where it starts."""

    m_start: float = 0.1
    """Weight of punishment that learning starts with, where random actions keep the budget; less
    where they do not (`agents.budget`)."""
    m_low: float = 0.005
    """The controller's floor: low, for where nothing is suffered it alone holds the return down."""
    m_high: float = 3.0
    """The controller's cap: a weight that outgrows the reward's values forgets the task."""
    m_rate: float = INTEGRAL_REACH / 1_000_000
    """Integral rate: e-folds of m per environment step and e-fold of punishment over the aim. A run
    that is told none takes `INTEGRAL_REACH` / its steps (this, at 1,000,000), or `MOST_RATE`."""
    m_gain: float = 0.25
    """Proportional gain: e-folds of m per e-fold of punishment over the aim. At 1, as much weight
    as is suffered, gaits change as fast as the weight, and none is learned (HopperVelocity)."""
    m_damping: float = 0.0
    """Derivative gain: e-folds of m per e-fold by which punishment has risen within its memory; it
    never lowers m (Stooke et al. 2020)."""
    aim: float = 0.8
    """Share of the budget that the controller aims at, in the end (`agents.budget`)."""
    noiseless: float = 0.25
    """Share of environments that act without noise, as deployed; they alone move the controller."""

    entropy_start: float = 0.1
    """tau_R that learning starts with. A policy that a run began with (`--init`) keeps more of what
    it knows with a lower one."""
    entropy_floor: float = 3e-4
    """Lowest tau_R; the KL regularises too, and tuning alone would let tau_R collapse."""
    entropy_target: float = -3.0
    """Entropy that tau_R is tuned towards, per action dimension, after the squash [nats]. A policy
    that is deployed without its noise is to be learned with little: what noise suffers near a
    hazard, or earns less by, is else charged to where the mean should go."""
    barrier: float = 1e-3
    """Least weight of the logarithmic barrier at the bounds of an action a, -log(1 - a^2). The
    entropy after the squash holds it at tau_R; where tau_R is low, actions would run into their
    bounds, where the squash passes no gradient and nothing more is learned."""
    reach: float = 5.0
    """Draws of the reward policy that lie further out than this before the squash are drawn back,
    in proportion (tanh 5 = 0.9999); 0 lets them go. There only the coupling still pulls: towards a
    companion that moves along, ever further, until log pi alone costs more than all reward."""
    fixed_deviation: float = 0.0
    """Deviation of exploring actions, and of those that targets look at, before the squash, instead
    of a learned one with a bonus for its entropy (TD3); 0 learns it. Only without coupling."""
    width: int = 128
    """Units in each hidden layer."""
    depth: int = 2
    """Hidden layers."""
    layer_norm: bool = True
    """Normalise the critics' hidden layers."""
    nearness: float = 10.0
    """How much larger something at hand looks, in deviations (see `controller`): from within
    a hazard to a hand's breadth beside it, a lidar's closeness changes by a tenth of a deviation,
    and no critic learns that a step in between decides; 0 leaves observations as they are. A run
    that began with a policy (`--init`) sees as that did."""
    hold: int = 1
    """Steps of the task that an action is held for: a policy is then asked that much less often, on
    its robot, too. Of a step of 0.02 s critics see too little (docs/experiments.md)."""
    gamma: float = 0.99
    """Discount per step of the task; an action that is held for several has that of all of them."""
    pessimism: float = 1.0
    """How far below the mean of its two critics a reward is expected: 1 at the lower one, 0 at the
    mean. Where what is not known yet varies much, as a box that is pushed does, caution keeps
    robots from ever knowing it (docs/experiments.md)."""
    n_step: int = 1
    """Actions that targets look ahead before they trust the critics; what was done meanwhile counts
    as the policy's own, exploration included."""
    hindsight: float = 0.0
    """Share of what is drawn from the replay that is told as if a goal had been meant that its
    episode reached later (HER, "future"), with the reward of that; only where observations name
    goals. 0.8 is usual."""
    learning_rate: float = 1e-3
    """Adam's step, for critics, actors and temperature."""
    learning_rate_left: float = 0.1
    """Share of that step that is left at the end of training; it falls evenly."""
    target_rate: float = 0.005
    """Share of the actors that enters the deployed policy at each update; less with `averaged`."""
    averaged: float = 0.02
    """Share of all updates by which the average is longer than that at the end of training; it
    grows with the square of what is done. Actors swing: a robot that circled within the budget
    stands 10,000 steps later, or breaks it; the average of both does neither (PointCircle1). But
    gaits that still change much have no average, so it begins short; and the longer it is, the
    later the controller hears of a broken budget (HalfCheetahVelocity at 0.05)."""
    critic_target_rate: float = 0.02
    """Share of the critics that enters their targets at each update: values then follow within
    1 / (0.02 (1 - gamma)) = 5,000 updates, and layer normalisation keeps them steady enough."""
    batch: int = 256
    """Transitions per update."""
    updates_per_step: float = 0.25
    """Learner updates per environment step."""
    num_envs: int = 16
    """Environments side by side."""
    balanced: bool = False
    """Draw half of each batch from the punished transitions, whatever their share in the replay."""
    critics_first: int = 0
    """Updates of the critics alone, before the actors follow them: so that a policy that a run
    began with (`--init`, which this needs) is not led astray by critics that know nothing yet."""
    random_steps: int = 5_000
    """Steps of uniformly random actions before learning starts; of the policy's own in a run that
    began with one (`--init`)."""
    capacity: int = 1_000_000
    """Transitions that the replay remembers."""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.coupling > 0.0 and self.lagrangian > 0.0:
            raise SettingsError("an agent is either coupled or Lagrangian: set one weight to 0")
        if self.fixed_deviation > 0.0 and self.coupling > 0.0:
            raise SettingsError("fixed_deviation is for agents without coupling: set it to 0")
        if self.closed_form and not self.coupling:
            raise SettingsError("closed_form is about a coupled agent: set coupling above 0")
        if self.balanced and (self.n_step > 1 or self.hindsight > 0.0):
            raise SettingsError("balanced draws single steps: set n_step to 1 and hindsight to 0")
        if not self.m_low <= self.m_start <= self.m_high:
            raise SettingsError(
                f"m_start is {self.m_start}; it must lie between m_low and m_high "
                f"({self.m_low} and {self.m_high})"
            )

    @property
    def coupled(self) -> bool:
        """Whether there is a companion at all."""
        return self.coupling > 0.0

    @property
    def fallback_lean(self) -> float:
        """The companion's offsets in the fallback's: what exploration has tried, or just one."""
        return self.avoidance or 1.0


_RANGES: Mapping[str, tuple[float, float]] = {
    "coupling": (0.0, 100.0),
    "companion_coupling": (1e-9, 100.0),
    "companion_entropy": (0.0, 100.0),
    "softening": (1e-3, 0.9999),
    "avoidance": (0.0, 100.0),
    "lagrangian": (0.0, 1e6),
    "m_low": (1e-9, 1e9),
    "m_high": (1e-9, 1e9),
    "m_rate": (0.0, 1.0),
    "m_gain": (0.0, 10.0),
    "m_damping": (0.0, 10.0),
    "aim": (0.0, 1.0),
    "noiseless": (0.0, 1.0),
    "entropy_start": (1e-9, 10.0),
    "entropy_floor": (0.0, 10.0),
    "entropy_target": (-20.0, 1.0),
    "barrier": (0.0, 1.0),
    "reach": (0.0, 100.0),
    "fixed_deviation": (0.0, 1.0),
    "width": (1, 4096),
    "depth": (1, 7),
    "nearness": (0.0, 100.0),
    "hold": (1, 1000),
    "gamma": (0.0, 0.99999),
    "pessimism": (0.0, 1.0),
    "n_step": (1, 100),
    "hindsight": (0.0, 1.0),
    "learning_rate": (1e-8, 1.0),
    "learning_rate_left": (0.0, 1.0),
    "target_rate": (1e-6, 1.0),
    "averaged": (0.0, 1.0),
    "critic_target_rate": (1e-6, 1.0),
    "batch": (1, 65_536),
    "updates_per_step": (0.0, 64.0),
    "num_envs": (1, 4096),
    "critics_first": (0, 10**9),
    "random_steps": (1, 10**9),
    "capacity": (1, 10**9),
}

AGENTS: Mapping[str, Mapping[str, Any]] = {
    "kcpr": {},
    "sac": {"coupling": 0.0, "avoidance": 0.0, "lagrangian": 0.0, "controlled": False},
    "sac-lag": {"coupling": 0.0, "avoidance": 0.0, "lagrangian": 1.0},
    "sac-pid": {"coupling": 0.0, "avoidance": 0.0, "lagrangian": 1.0, "m_damping": 1.0},
    "td3-lag": {"coupling": 0.0, "avoidance": 0.0, "lagrangian": 1.0, "fixed_deviation": 0.2},
}
"""What each named agent changes in the defaults; all are the same code.

The multiplier of `sac-lag` has the controller of kcpr, with its proportional part: more than usual
under that name. `td3-lag` smooths its targets with the noise that it explores with, not clipped,
and its actor takes a step with every one of the critics'.
"""


BEFORE: Mapping[str, Any] = {
    "averaged": 0.0,
    "hold": 1,
    "nearness": 0.0,
    "pessimism": 1.0,
    "reach": 0.0,
}
"""What learners did before there was such a setting: so files that do not name it mean this."""


def settings_from(record: Any) -> Settings:
    """The settings in a file's record; whatever does not fit raises `SettingsError`."""
    if not isinstance(record, Mapping):
        raise SettingsError("settings are names with numbers")
    return replace(Settings(), **{**BEFORE, **typed(Settings, record)})


def agent_settings(agent: str, overrides: Mapping[str, Any], steps: int = 1_000_000) -> Settings:
    """The settings of a named agent after a task card's or a caller's overrides.

    `steps`: length of the run [environment steps]; a short one needs a quicker integral.
    """
    if agent not in AGENTS:
        raise UnknownNameError("agent", agent, AGENTS)
    numbers = {"m_rate": min(INTEGRAL_REACH / steps, MOST_RATE)} | dict(AGENTS[agent])
    return replace(Settings(), **{**numbers, **typed(Settings, overrides)})


def typed(settings: type[Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Every value as the type of its field in `settings`; else `SettingsError` names it."""
    known: dict[str, Any] = {field.name: field.type for field in fields(settings)}
    for name, value in overrides.items():
        if name not in known:
            raise UnknownNameError("setting", name, known)
        kind = known[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        counts = number and math.isfinite(value) and (kind is float or value == int(value))
        if not (counts if kind in (int, float) else isinstance(value, kind)):
            raise SettingsError(f"{name} is {value!r}; it must be a {kind.__name__}")
    return {name: known[name](value) for name, value in overrides.items()}


def check_ranges(settings: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise `SettingsError` for the first number that is not within its range."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise SettingsError(f"{name} is {value}; it must lie in [{low:g}, {high:g}]")
