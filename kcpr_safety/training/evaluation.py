"""How good and how safe is one fixed policy on episodes that it has never met?

Full episodes, noiseless actions, one explicit seed per episode. The controller is asked one
row at a time, as on a robot: what it answers then depends neither on how many environments run side
by side nor on how this machine blocks its matrix products, and an exported controller that gives
the same actions gives the same episodes to the last bit.

Along the way the evaluation critic's prediction is held against what really followed: the mean of
Q_C(s_t, a_t) over steps whose discounted future is known to within e^-5, and the mean of that
discounted future, both in units of punishment; and the same by tenths of the prediction.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kcpr_safety import envs
from kcpr_safety.agents.continuous import Learner
from kcpr_safety.agents.settings import settings_from
from kcpr_safety.agents.snapshots import warm_start, with_evaluation
from kcpr_safety.agents.task import Task
from kcpr_safety.cards import TaskCard
from kcpr_safety.contract import Contract, differences
from kcpr_safety.controller import Controller, controller_from_tensors
from kcpr_safety.envs import World
from kcpr_safety.errors import AbsentTaskError, FileFault, SettingsError, UnknownNameError
from kcpr_safety.policy_file import PolicyFile, locate_policy, read_policy
from kcpr_safety.seeds import EpisodeSeeds, evaluation_seeds
from kcpr_safety.stats import Line, Tenth, fitted_line, over_budget, tenths
from kcpr_safety.training.checkpoints import CONFIG_FILE, read_config
from kcpr_safety.training.kept_task import task_of

SIDE_BY_SIDE = 10
"""Episodes that are simulated at once; the results do not depend on it."""

_TAIL = 5.0
"""A step's discounted future counts as known this many effective horizons before an episode is cut
off (what is missing weighs 0.7 %); half as many where no step would be left (8 %)."""

Act = Callable[[Any, np.ndarray], np.ndarray]
"""(controller, observations of all environments) -> commands"""

OnStep = Callable[[int, int], None]
"""(episode steps done, episode steps in all)"""


@dataclass(frozen=True)
class Episodes:
    """What happened, episode by episode."""

    returns: tuple[float, ...]
    punishments: tuple[float, ...]
    lengths: tuple[int, ...]
    terminated: tuple[bool, ...]
    """Which of them ended before their time."""
    collisions: tuple[int, ...] | None
    """Steps in contact with what must not be touched; None where the world does not tell."""
    streams: tuple[tuple[float, ...], ...]
    """Parts of each episode's punishment, in the contract's order; empty rows where it has none."""
    predicted: float
    """Mean Q_C, in units of discounted punishment; NaN where no step qualified."""
    realised: float
    """Mean discounted punishment that followed the same steps."""
    reliability: tuple[Tenth, ...]
    """Both by tenths of the prediction; none where no step qualified."""
    line: Line
    """What sets the prediction right on these very steps."""

    @property
    def return_mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def punishment_mean(self) -> float:
        return float(np.mean(self.punishments))


@dataclass
class Trace:
    """One episode while it is being collected."""

    obs: list[np.ndarray]
    actions: list[np.ndarray]
    rewards: list[float]
    punishments: list[float]
    collisions: int | None = None
    streams: list[np.ndarray] = field(default_factory=list)
    terminated: bool = False
    done: bool = False


class Critic:
    """The evaluation critic of a policy, in units of discounted punishment."""

    def __init__(self, policy: PolicyFile) -> None:
        settings = settings_from(policy.settings)
        contract = policy.contract
        task = Task(
            contract.obs_size,
            contract.action_size,
            contract.budget,
            contract.time_limit,
            hold=contract.hold,
        )
        learner = Learner(settings, task, num_envs=1, seed=0)
        warm_start(learner, policy.tensors)
        self.gamma = learner.gamma
        self.scale = learner.punishment_scale
        """What one unit of punishment is to the critics."""
        self._learner = learner
        self._low = np.array([entry.low for entry in contract.action])
        self._high = np.array([entry.high for entry in contract.action])

    @torch.no_grad()
    def __call__(
        self, obs: Float[np.ndarray, "steps obs"], action: Float[np.ndarray, "steps action"]
    ) -> Float[np.ndarray, "steps"]:
        """Mean of the twins at each step."""
        centred = 2.0 * (action - self._low) / (self._high - self._low) - 1.0
        q = self._learner.evaluate(
            torch.as_tensor(obs, dtype=torch.float32), torch.as_tensor(centred, dtype=torch.float32)
        )
        values: np.ndarray = q.numpy()
        return values


def set_right(policy: PolicyFile, line: Line) -> PolicyFile:
    """The policy with an evaluation critic that says line(Q_C); a discrete one as it is."""
    critic = critic_of(policy)
    if critic is None:
        return policy
    tensors = with_evaluation(policy.tensors, line, critic.scale)
    return replace(policy, tensors=tensors)


def critic_of(policy: PolicyFile) -> Critic | None:
    """The policy's evaluation critic; a discrete policy has none."""
    return None if policy.contract.commands else Critic(policy)


def rollout(
    controller: Controller,
    world: World,
    episodes: int,
    critic: Critic | None = None,
    on_step: OnStep | None = None,
    act: Act | None = None,
    first: int = 0,
) -> Episodes:
    """`episodes` full episodes in the order of the world's schedule, from its `first`th round."""
    traces = collect(controller, world, episodes, on_step, act, first)
    predicted, realised = _calibration(traces, critic) if critic else (np.empty(0), np.empty(0))
    known = len(predicted) > 0
    return Episodes(
        returns=tuple(math.fsum(trace.rewards) for trace in traces),
        punishments=tuple(math.fsum(trace.punishments) for trace in traces),
        lengths=tuple(len(trace.rewards) * world.contract.hold for trace in traces),
        terminated=tuple(trace.terminated for trace in traces),
        collisions=_whole(trace.collisions for trace in traces),
        streams=tuple(tuple(map(math.fsum, zip(*trace.streams, strict=True))) for trace in traces),
        predicted=float(predicted.mean()) if known else math.nan,
        realised=float(realised.mean()) if known else math.nan,
        reliability=tenths(predicted, realised),
        line=fitted_line(predicted, realised),
    )


def collect(
    controller: nn.Module,
    world: World,
    episodes: int,
    on_step: OnStep | None = None,
    act: Act | None = None,
    first: int = 0,
) -> list[Trace]:
    """The episodes of `rollout`, step by step."""
    act = act or act_by_row
    traces: list[Trace] = []
    total = episodes * world.contract.time_limit
    for start in range(0, episodes, world.num_envs):
        block = [Trace([], [], [], []) for _ in range(min(world.num_envs, episodes - start))]
        round_ = first + start // world.num_envs
        obs, _ = world.reset(options={"episodes": [round_] * world.num_envs})
        for step in range(world.contract.time_limit):
            actions = act(controller, obs)
            before = obs
            obs, reward, terminated, truncated, infos = world.step(actions)
            for i, trace in enumerate(block):
                if not trace.done:
                    trace.obs.append(before[i])
                    trace.actions.append(actions[i])
                    trace.rewards.append(float(reward[i]))
                    trace.punishments.append(float(infos["punishment"][i]))
                    if "collision" in infos:
                        trace.collisions = (trace.collisions or 0) + int(infos["collision"][i])
                    if "streams" in infos:
                        trace.streams.append(infos["streams"][i])
                    trace.terminated = bool(terminated[i])
                    trace.done = bool(terminated[i] or truncated[i])
            if on_step:
                on_step(start * world.contract.time_limit + (step + 1) * len(block), total)
            if all(trace.done for trace in block):
                break
        traces += block
    return traces


def _whole(counts: Iterable[int | None]) -> tuple[int, ...] | None:
    """The counts, if all of them are."""
    known = tuple(counts)
    told = tuple(count for count in known if count is not None)
    return told if len(told) == len(known) else None


@torch.no_grad()
def act_by_row(
    controller: nn.Module, obs: Float[np.ndarray, "envs obs"]
) -> Float[np.ndarray, "envs action"]:
    """The controller's answer to each row alone."""
    rows: Tensor = torch.as_tensor(obs, dtype=torch.float32)
    return np.concatenate([controller(row[None]).numpy() for row in rows]).astype(np.float64)


@torch.no_grad()
def act_together(
    controller: nn.Module, obs: Float[np.ndarray, "envs obs"]
) -> Float[np.ndarray, "envs action"]:
    """The same but for the last bits, which depend on how many rows there are: for training."""
    actions: np.ndarray = controller(torch.as_tensor(obs, dtype=torch.float32)).numpy()
    return actions.astype(np.float64)


def known_steps(trace: Trace, gamma: float) -> int:
    """Steps whose discounted future is known: all of an episode that truly ended."""
    length = len(trace.obs)
    if trace.terminated:
        return length
    tails = (math.ceil(part * _TAIL / (1.0 - gamma)) for part in (1.0, 0.5))
    return next((length - tail for tail in tails if tail < length), 0)


def _calibration(traces: list[Trace], critic: Critic) -> tuple[np.ndarray, np.ndarray]:
    """Q_C and the discounted punishment that followed, at every step whose future is known."""
    predicted: list[np.ndarray] = [np.empty(0)]
    realised: list[np.ndarray] = [np.empty(0)]
    for trace in traces:
        known = known_steps(trace, critic.gamma)
        if known > 0:
            obs, actions = np.array(trace.obs[:known]), np.array(trace.actions[:known])
            predicted.append(critic(obs, actions))
            realised.append(discounted(trace.punishments, critic.gamma)[:known])
    return np.concatenate(predicted), np.concatenate(realised)


def discounted(punishments: Sequence[float], gamma: float) -> Float[np.ndarray, "steps"]:
    """At each step, the discounted punishment from it to the episode's end."""
    future = np.zeros(len(punishments) + 1)
    for t in range(len(punishments) - 1, -1, -1):
        future[t] = punishments[t] + gamma * future[t + 1]
    return future[:-1]


def evaluate_policy(
    place: Path, episodes: int, eval_seed: int, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Judge the policy of a run folder, bundle or policy file; see the module's first lines."""
    if episodes < 1:
        raise SettingsError(f"{episodes} episodes judge nothing; ask for at least 1")
    started = time.perf_counter()
    path = locate_policy(place)
    policy = read_policy(path)
    beside = min(episodes, SIDE_BY_SIDE)
    with task_of(place):
        ends_well = bool(card_of(policy).success)
        world = world_of(policy, beside, evaluation_seeds(eval_seed, beside))
    controller = controller_from_tensors(policy.tensors, policy.contract)
    with torch_threads():
        done = rollout(controller, world, episodes, critic_of(policy), on_step)
    budget = policy.contract.budget
    # Only where the card says that an early end is what was wanted.
    told: dict[str, Any] = {}
    if ends_well:
        share = sum(done.terminated) / episodes
        told |= {"success_share": share, "successes": list(done.terminated)}
    if done.collisions is not None:
        share = sum(count > 0 for count in done.collisions) / episodes
        told |= {"collision_share": share, "collisions": list(done.collisions)}
    if policy.contract.streams:
        told |= {"streams": _by_stream(policy.contract, done.streams)}
    return {
        "task": policy.task,
        "agent": policy.agent,
        "seed": policy.seed,
        "eval_seed": eval_seed,
        "steps": _steps_trained(place, policy),
        "kept_steps": policy.steps,
        "wall_s": time.perf_counter() - started,
        "return_mean": done.return_mean,
        "punishment_mean": done.punishment_mean,
        "episodes": episodes,
        "over_budget_share": over_budget(done.punishments, budget) / episodes,
        "budget": budget,
        "path": str(place),
        "predicted_punishment": _finite(done.predicted),
        "realised_punishment": _finite(done.realised),
        "reliability": [tenth._asdict() for tenth in done.reliability],
        "policy_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "returns": list(done.returns),
        "punishments": list(done.punishments),
        "lengths": list(done.lengths),
        **told,
    }


def _by_stream(contract: Contract, episodes: tuple[tuple[float, ...], ...]) -> list[dict[str, Any]]:
    """What each part of the punishment came to, beside its own budget."""
    return [
        {
            "name": stream.name,
            "budget": stream.budget,
            "punishment_mean": float(np.mean(sums)),
            "over_budget_share": over_budget(sums, stream.budget) / len(sums),
            "punishments": list(sums),
        }
        for stream, sums in zip(contract.streams, zip(*episodes, strict=True), strict=True)
    ]


def _steps_trained(place: Path, policy: PolicyFile) -> int:
    """Steps that training took in all, of which the kept weights may have needed fewer."""
    config = place / CONFIG_FILE
    return read_config(place).steps if config.is_file() else policy.steps


def card_of(policy: PolicyFile) -> TaskCard:
    """The card of the policy's task; one sentence where that is not here."""
    try:
        return envs.resolve(policy.task)
    except UnknownNameError as error:
        raise AbsentTaskError(
            f"there is no {policy.task} here; if it was trained from a card of your own, name the "
            "run instead of the bundle: the run keeps its card"
        ) from error


def world_of(policy: PolicyFile, num_envs: int, seeds: EpisodeSeeds) -> World:
    """The policy's own task, which must still be the one that its contract was made for."""
    card = replace(card_of(policy), budget=policy.contract.budget)
    world = envs.make_world(card, num_envs, episode_seeds=seeds).hold(policy.contract.hold)
    odd = "; ".join(differences(policy.contract, world.contract))
    if odd:
        world.close()
        raise FileFault(odd)
    return world


class torch_threads:
    """Within: torch on so many threads; on one, which is fastest for rows, unless said."""

    def __init__(self, count: int = 1) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
