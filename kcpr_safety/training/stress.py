"""What happens to return and punishment when sensors, actuators or the body are not as trained?

Each fault is put between the world and the controller, in the same evaluation episodes, once with
the nominal policy alone (`forward`) and once with the runtime assurance (`step`):

    sensors     NaN in one entry, frames dropped (zeros) or repeated, delay of 1-3 steps, two
                entries exchanged, an entry's sign flipped, noise in shares of the trained deviation
    actuators   commands limited to a share of the way from rest to their bounds, first-order lag
    body        all masses and inertias, or all friction, times a factor; left out where the task
                has no MuJoCo model that is known

Where chance is involved, every episode has its own generator, seeded by its number: both ways of
acting meet the same faults. Episodes run side by side and are asked together, so the last bits are
not those of an evaluation. Nothing is tuned here.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from kcpr_safety.assurance import Assurance
from kcpr_safety.assured import AssuredController, assured
from kcpr_safety.envs import World
from kcpr_safety.errors import SettingsError
from kcpr_safety.policy_file import PolicyFile, policy_to_bytes
from kcpr_safety.seeds import FIRST_EVALUATION_SEED, evaluation_seeds
from kcpr_safety.stats import over_budget
from kcpr_safety.training.calibration import assured_act
from kcpr_safety.training.evaluation import (
    Act,
    OnStep,
    act_together,
    collect,
    torch_threads,
    world_of,
)

EPISODES = 10

Rows = Float[np.ndarray, "envs obs"]
Commands = Float[np.ndarray, "envs action"]


class Channel:
    """Between a world and a controller: nothing is changed. Good for one round of episodes."""

    def __init__(self, policy: PolicyFile, episodes: int) -> None:
        self.policy = policy
        self.generators = [np.random.default_rng([7, i]) for i in range(episodes)]
        contract = policy.contract
        self.low = np.array([entry.low for entry in contract.action])
        self.high = np.array([entry.high for entry in contract.action])
        self.rest = np.array(contract.rest)

    def prepare(self, world: World) -> None:
        """Change the simulation as the episodes begin; `NoBody` where it cannot be."""

    def sense(self, obs: Rows) -> Rows:
        """What the controller is told."""
        return obs

    def actuate(self, action: Commands) -> Commands:
        """What the actuators do."""
        return action


class BrokenEntry(Channel):
    """One entry, another one in each episode, becomes NaN in one step of ten."""

    def sense(self, obs: Rows) -> Rows:
        obs = obs.copy()
        for i, generator in enumerate(self.generators):
            if generator.random() < 0.1:
                obs[i, i % obs.shape[1]] = np.nan
        return obs


class Frames(Channel):
    """Frames are lost with a chance: zeros come instead, or the last one again."""

    def __init__(self, policy: PolicyFile, episodes: int, chance: float, repeat: bool) -> None:
        super().__init__(policy, episodes)
        self.chance, self.repeat = chance, repeat
        self.last: Rows | None = None

    def sense(self, obs: Rows) -> Rows:
        lost = np.array([generator.random() < self.chance for generator in self.generators])
        if self.last is None:
            self.last, lost = obs, np.zeros_like(lost)
        instead = self.last if self.repeat else np.zeros_like(obs)
        self.last = np.where(lost[:, None], instead, obs)
        return self.last


class Delay(Channel):
    """Observations arrive some steps late."""

    def __init__(self, policy: PolicyFile, episodes: int, steps: int) -> None:
        super().__init__(policy, episodes)
        self.steps, self.past = steps, []  # type: ignore[var-annotated]

    def sense(self, obs: Rows) -> Rows:
        self.past.append(obs)
        if len(self.past) > self.steps + 1:
            self.past.pop(0)
        late: Rows = self.past[0]
        return late


class Wiring(Channel):
    """Two entries, others in each episode, are exchanged, or one has the wrong sign."""

    def __init__(self, policy: PolicyFile, episodes: int, flip: bool) -> None:
        super().__init__(policy, episodes)
        self.flip = flip
        size = policy.contract.obs_size
        self.pairs = [g.choice(size, 2, replace=size < 2) for g in self.generators]

    def sense(self, obs: Rows) -> Rows:
        obs = obs.copy()
        for row, (one, other) in zip(obs, self.pairs, strict=True):
            if self.flip:
                row[one] = -row[one]
            else:
                row[one], row[other] = row[other], row[one]
        return obs


class Noise(Channel):
    """Gaussian noise, in shares of the deviation that the normaliser knows."""

    def __init__(self, policy: PolicyFile, episodes: int, share: float) -> None:
        super().__init__(policy, episodes)
        self.deviation = share / policy.tensors["obs_scale"].double().numpy()

    def sense(self, obs: Rows) -> Rows:
        size = obs.shape[1]
        noise = np.stack([g.normal(size=size) for g in self.generators])
        told: Rows = obs + self.deviation * noise
        return told


class Weak(Channel):
    """Actuators reach a share of the way from rest to their bounds only."""

    def __init__(self, policy: PolicyFile, episodes: int, share: float) -> None:
        super().__init__(policy, episodes)
        self.share = share

    def actuate(self, action: Commands) -> Commands:
        low, high = (self.rest + self.share * (end - self.rest) for end in (self.low, self.high))
        limited: Commands = np.clip(action, low, high)
        return limited


class Lag(Channel):
    """First-order lag from rest on: a share of the gap to the command is left after each step."""

    def __init__(self, policy: PolicyFile, episodes: int, left: float) -> None:
        super().__init__(policy, episodes)
        self.left = left
        self.done = np.tile(self.rest, (episodes, 1))

    def actuate(self, action: Commands) -> Commands:
        self.done = self.left * self.done + (1.0 - self.left) * action
        return self.done


class NoBody(SettingsError):
    """A fault of the body, where nothing is known that could be changed."""


class Body(Channel):
    """Masses and inertias, or friction, times a factor."""

    def __init__(self, policy: PolicyFile, episodes: int, mass: float, friction: float) -> None:
        super().__init__(policy, episodes)
        self.mass, self.friction = mass, friction

    def prepare(self, world: World) -> None:
        simulations = world.simulations()
        if simulations is None:
            raise NoBody(f"{self.policy.task} has no MuJoCo model here: its body stays as it is")
        # Some are shared between environments; each is changed once.
        for model in {id(model): model for model in simulations.models}.values():
            model.body_mass[:] *= self.mass
            model.body_inertia[:] *= self.mass
            model.geom_friction[:, 0] *= self.friction
            if self.mass != 1.0:
                # Bodies on slides alone move by a mass that was worked out beforehand.
                mujoco.mj_setConst(model, mujoco.MjData(model))


Make = Callable[[PolicyFile, int], Channel]

FAULTS: Mapping[str, Make] = {
    "none": Channel,
    "NaN in an entry, 10 % of steps": BrokenEntry,
    "frames dropped, 10 %": partial(Frames, chance=0.1, repeat=False),
    "frames repeated, 30 %": partial(Frames, chance=0.3, repeat=True),
    "delay, 1 step": partial(Delay, steps=1),
    "delay, 2 steps": partial(Delay, steps=2),
    "delay, 3 steps": partial(Delay, steps=3),
    "two entries exchanged": partial(Wiring, flip=False),
    "an entry's sign flipped": partial(Wiring, flip=True),
    "noise, 10 % of the deviation": partial(Noise, share=0.1),
    "noise, 30 % of the deviation": partial(Noise, share=0.3),
    "actuators at 60 %": partial(Weak, share=0.6),
    "actuators lag, half a step's gap left": partial(Lag, left=0.5),
    "mass + 30 %": partial(Body, mass=1.3, friction=1.0),
    "mass - 30 %": partial(Body, mass=0.7, friction=1.0),
    "friction - 40 %": partial(Body, mass=1.0, friction=0.6),
}


@dataclass(frozen=True)
class _Way:
    """One way of acting, made anew for each round."""

    name: str
    make: Callable[[], Act]


def stress(
    policy: PolicyFile,
    assurance: Assurance,
    episodes: int = EPISODES,
    eval_seed: int = FIRST_EVALUATION_SEED,
    faults: Sequence[str] = tuple(FAULTS),
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Every fault with and without runtime assurance; JSON values.

    `left_out` names those that the task cannot have, if there are any; `NoBody` if no other is
    asked for.
    """
    if episodes < 1:
        raise SettingsError(f"{episodes} episodes show nothing; ask for at least 1")
    controller = assured(policy, assurance)
    ways = [
        _Way("nominal", lambda: act_together),
        _Way("assured", partial(_assured, controller, episodes)),
    ]
    rows, left_out = [], []
    with torch_threads():
        for i, name in enumerate(faults):
            row: dict[str, Any] = {"fault": name}
            try:
                for j, way in enumerate(ways):
                    told = _progress(on_step, 2 * i + j, 2 * len(faults))
                    channel = FAULTS[name](policy, episodes)
                    row[way.name] = _round(policy, controller, channel, way.make(), eval_seed, told)
                rows.append(row)
            except NoBody:
                left_out.append(name)
                if len(left_out) == len(faults):
                    raise
    return {
        "schema_version": "1",
        "task": policy.task,
        "policy_sha256": hashlib.sha256(policy_to_bytes(policy, "policy")).hexdigest(),
        "assurance": assurance.to_record(),
        "eval_seed": eval_seed,
        "episodes": episodes,
        "budget": policy.contract.budget,
        "faults": rows,
        **({"left_out": left_out} if left_out else {}),
        "verdict": verdict(rows, acts=assurance.fallback),
    }


def verdict(rows: Sequence[Mapping[str, Any]], *, acts: bool) -> dict[str, Any]:
    """Does the assurance lower what it should, without costing a tenth of the nominal return?

    The share over budget or the worst episode must be lower and the other not higher; and where no
    fallback `acts`, what differs is chance. Point estimates all the same.
    """
    normal = next((row for row in rows if row["fault"] == "none"), rows[0])
    before, after = normal["nominal"]["return_mean"], normal["assured"]["return_mean"]
    loss = (before - after) / abs(before) if before else 0.0
    shares = {
        way: float(np.mean([row[way]["over_budget_share"] for row in rows]))
        for way in ("nominal", "assured")
    }
    worst = {way: max(row[way]["punishment_max"] for row in rows) for way in ("nominal", "assured")}
    pairs = [(figures["assured"], figures["nominal"]) for figures in (shares, worst)]
    lowers = all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
    return {
        "return_loss_share": loss,
        "over_budget_share": shares,
        "punishment_max": worst,
        "helps": bool(acts and lowers and loss <= 0.1),
    }


def _round(
    policy: PolicyFile,
    controller: AssuredController,
    channel: Channel,
    act: Act,
    eval_seed: int,
    told: OnStep,
) -> dict[str, float]:
    """One round of episodes behind a channel."""
    episodes = len(channel.generators)
    world = world_of(policy, episodes, evaluation_seeds(eval_seed, episodes))
    prepared = False

    def through(_: Any, obs: Rows) -> Commands:
        nonlocal prepared
        if not prepared:
            channel.prepare(world)
            prepared = True
        action = channel.actuate(act(controller, channel.sense(obs)))
        command: Commands = np.clip(action, channel.low, channel.high)
        return command

    try:
        traces = collect(controller, world, episodes, told, through)
    finally:
        world.close()
    returns = [float(np.sum(trace.rewards)) for trace in traces]
    punishments = [float(np.sum(trace.punishments)) for trace in traces]
    return {
        "return_mean": float(np.mean(returns)),
        "punishment_mean": float(np.mean(punishments)),
        "punishment_max": max(punishments),
        "over_budget_share": over_budget(punishments, policy.contract.budget) / episodes,
        "ended_early_share": sum(trace.terminated for trace in traces) / episodes,
    }


def _assured(controller: AssuredController, rows: int) -> Act:
    return assured_act(controller.step, controller.get_buffer("initial"), rows)


def _progress(on_step: OnStep | None, done: int, rounds: int) -> OnStep:
    def told(step: int, total: int) -> None:
        if on_step:
            on_step(done * total + step, rounds * total)

    return told
