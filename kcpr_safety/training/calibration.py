"""How far may a policy's predicted punishment be trusted, and when shall its fallback act?

    nominal episodes    r_t, the pessimistic risk of `assured`, held against G_t, the discounted
                        punishment that followed; the hard ranges; the largest steps of the actions
    fallback episodes   the same episodes, in which the punishment module takes over for good after
                        a while: from states that the nominal policy visits
    soft starts         the same episodes with `step` and no fallback, once per soft start
    assured episodes    the same episodes with `step`, once per candidate threshold

All on validation seeds that training's own validation never uses. The fallback earns its place if,
once it acts, it suffers at most half of the punishment that the nominal policy suffers from there.
The threshold is the candidate under which punishment was least among those that cost at most 5 % of
the return; none of them, none.

A soft start is safe for a body at rest, and a stumble for one that has to balance from the first
step on: it is halved until it costs at most 5 % of the return.

All episodes of a round run side by side and are asked together: no number claims its last bit.

The conformal quantile q is that of the episodes' largest underestimate max_t (G_t - r_t): in a new
nominal episode, G_t <= r_t + q throughout with probability at least 1 - alpha (split conformal; the
episode is the unit, steps are no independent draws). It is valid for the nominal closed loop only.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from kcpr_safety.assurance import Assurance
from kcpr_safety.assured import AssuredController, assured, unassured
from kcpr_safety.errors import SettingsError
from kcpr_safety.evidence import CALIBRATION_FILE
from kcpr_safety.files import atomic_write
from kcpr_safety.policy_file import RANGE, PolicyFile, locate_policy, read_policy
from kcpr_safety.seeds import CALIBRATION_SEEDS, FIRST_CALIBRATION_SEED, consecutive_seeds
from kcpr_safety.stats import tenths
from kcpr_safety.training.evaluation import (
    Act,
    OnStep,
    Trace,
    act_together,
    collect,
    discounted,
    known_steps,
    torch_threads,
    world_of,
)
from kcpr_safety.training.kept_task import task_of

EPISODES = 20
ALPHA = 0.1
LEVELS = (0.05, 0.5, 0.95)
CANDIDATES = (0.9, 0.97, 0.99, 0.999)
"""Quantiles of the nominal risk that are tried as thresholds."""

RELEASE_GAP = 0.1
"""The fallback is let go at a quantile so much lower than the one that calls it."""
DWELL_S = 0.2
BLEND_S = 0.1
SOFT_START_S = 0.2
EARNED_SHARE = 0.5
RETURN_SHARE = 0.05

Values = Float[np.ndarray, "steps"]


@dataclass(frozen=True)
class _Run:
    """Episodes of one way of acting."""

    traces: list[Trace]

    @property
    def returns(self) -> list[float]:
        return [math.fsum(trace.rewards) for trace in self.traces]

    @property
    def punishments(self) -> list[float]:
        return [math.fsum(trace.punishments) for trace in self.traces]


class _Runner:
    """Runs the same episodes again and again, each way of acting beside the others."""

    def __init__(self, policy: PolicyFile, episodes: int, on_step: OnStep | None) -> None:
        if not 1 <= episodes <= CALIBRATION_SEEDS:
            raise SettingsError(f"{episodes} episodes; ask for 1 to {CALIBRATION_SEEDS}")
        self.policy, self.episodes, self._on_step = policy, episodes, on_step
        self._rounds = 0

    def run(self, controller: AssuredController, act: Act | None = None) -> _Run:
        seeds = consecutive_seeds(FIRST_CALIBRATION_SEED, self.episodes)
        world = world_of(self.policy, self.episodes, seeds)
        before, rounds = self._rounds, 3 + len(CANDIDATES)
        # A soft start that is halved takes more rounds than are announced.
        self._rounds = min(before + 1, rounds - 1)

        def told(done: int, total: int) -> None:
            if self._on_step:
                self._on_step(before * total + done, rounds * total)

        try:
            return _Run(collect(controller, world, self.episodes, told, act or act_together))
        finally:
            world.close()


def calibrate_run(
    run: Path, episodes: int = EPISODES, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Calibrate a run's kept policy; the record is kept in the run as `calibration.json`."""
    path = locate_policy(run)
    policy = read_policy(path)
    with torch_threads(), task_of(run):
        assurance, report = calibrate(policy, episodes, on_step)
    record = {
        "schema_version": "1",
        "task": policy.task,
        "policy_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "assurance": assurance.to_record(),
        "calibration": report,
    }
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
    atomic_write(Path(run) / CALIBRATION_FILE, text.encode())
    return record


def calibrate(
    policy: PolicyFile, episodes: int = EPISODES, on_step: OnStep | None = None
) -> tuple[Assurance, dict[str, Any]]:
    """The assurance of a policy, and how it came about."""
    runner = _Runner(policy, episodes, on_step)
    plain = unassured(policy)
    nominal = runner.run(assured(policy, plain))
    predicted = [risk_along(assured(policy, plain), trace) for trace in nominal.traces]
    ranged = _with_soft_start(runner, _with_limits(policy, plain, nominal.traces), nominal)
    fallback = _judge_fallback(runner, assured(policy, ranged), nominal)
    risks = np.concatenate(predicted)
    tried: list[dict[str, Any]] = []
    chosen = ranged
    if fallback["earned"]:
        tried, chosen = _choose(runner, ranged, risks, nominal)
    futures = [discounted(trace.punishments, plain.gamma) for trace in nominal.traces]
    level = chosen.engage if chosen.fallback else float(np.quantile(risks, CANDIDATES[1]))
    contract = policy.contract
    pace = contract.budget / contract.time_limit / (1.0 - plain.gamma)
    report = {
        "seeds": [FIRST_CALIBRATION_SEED, FIRST_CALIBRATION_SEED + episodes - 1],
        "episodes": episodes,
        "steps": len(risks),
        "unit": f"punishment, discounted by {plain.gamma:g} per step",
        "return_mean": float(np.mean(nominal.returns)),
        "punishment_mean": float(np.mean(nominal.punishments)),
        "observation_quantiles": quantiles(nominal.traces),
        "reliability": reliability(nominal.traces, predicted, futures, plain.gamma),
        "conformal": conformal(nominal.traces, predicted, futures, plain.gamma),
        "alarms": alarms(predicted, futures, (level, pace), contract.period_s),
        "fallback": fallback,
        "thresholds_tried": tried,
    }
    return chosen, report


def quantiles(traces: Sequence[Trace]) -> list[list[float]]:
    """`LEVELS` quantiles of each observation entry over the nominal episodes."""
    obs = np.concatenate([np.array(trace.obs) for trace in traces])
    values: list[list[float]] = np.quantile(obs, LEVELS, axis=0).T.tolist()
    return values


def risk_along(controller: AssuredController, trace: Trace) -> Values:
    """The predicted punishment at each step of an episode."""
    obs = torch.as_tensor(np.array(trace.obs), dtype=torch.float32)
    actions = torch.as_tensor(np.array(trace.actions), dtype=torch.float32)
    with torch.inference_mode():
        risk: Values = controller.risk(obs, actions)[:, 0].double().numpy()
    return risk


def assured_act(step: Callable[..., Any], initial: torch.Tensor, rows: int) -> Act:
    """`step` as a way of acting in so many environments; good for one round of episodes."""
    state = initial.repeat(rows, 1)

    @torch.inference_mode()
    def act(_: Any, obs: Float[np.ndarray, "envs obs"]) -> Float[np.ndarray, "envs action"]:
        nonlocal state
        action, _risk, _mode, state = step(torch.as_tensor(obs, dtype=torch.float32), state)
        command: np.ndarray = action.numpy().astype(np.float64)
        return command

    return act


def reliability(
    traces: Sequence[Trace], predicted: Sequence[Values], futures: Sequence[Values], gamma: float
) -> list[dict[str, float]]:
    """Mean predicted and realised punishment by tenths of the prediction (`stats.tenths`)."""
    pairs = [
        (risk[:n], future[:n])
        for trace, risk, future in zip(traces, predicted, futures, strict=True)
        if (n := known_steps(trace, gamma)) > 0
    ]
    if not pairs:
        return []
    risk, future = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return [tenth._asdict() for tenth in tenths(risk, future)]


def conformal(
    traces: Sequence[Trace], predicted: Sequence[Values], futures: Sequence[Values], gamma: float
) -> dict[str, Any]:
    """Split conformal quantile of the episodes' largest underestimate; None: too few episodes."""
    worst = sorted(
        float((future[:n] - risk[:n]).max())
        for trace, risk, future in zip(traces, predicted, futures, strict=True)
        if (n := known_steps(trace, gamma)) > 0
    )
    rank = math.ceil((len(worst) + 1) * (1.0 - ALPHA))
    return {
        "alpha": ALPHA,
        "episodes": len(worst),
        "quantile": worst[rank - 1] if 1 <= rank <= len(worst) else None,
        "valid_for": "the nominal closed loop in simulation only",
    }


def alarms(
    predicted: Sequence[Values],
    futures: Sequence[Values],
    levels: tuple[float, float],
    period_s: float,
) -> dict[str, Any]:
    """How an alarm does: where the prediction reaches the first of the levels. A step is bad where
    its realised punishment reaches the second (the pace at which an episode spends its budget).

    Lead time: from the beginning of an unbroken alarm to the first bad step under it.
    """
    level, pace = levels
    risk, future = np.concatenate(predicted), np.concatenate(futures)
    alarm, bad = risk >= level, future >= pace
    leads = []
    for one, other in zip(predicted, futures, strict=True):
        on, worse = one >= level, other >= pace
        onsets = np.flatnonzero(worse & ~np.concatenate([[False], worse[:-1]]))
        for t in onsets[on[onsets]]:
            quiet = np.flatnonzero(~on[: t + 1])
            leads.append(int(t - (quiet[-1] + 1 if len(quiet) else 0)))
    return {
        "level": float(level),
        "bad_from": float(pace),
        "bad_steps": int(bad.sum()),
        "missed_share": _share(int((bad & ~alarm).sum()), int(bad.sum())),
        "false_alarm_share": _share(int((alarm & ~bad).sum()), int(alarm.sum())),
        "alarm_share": _share(int(alarm.sum()), len(alarm)),
        "lead_time_s_median": float(np.median(leads)) * period_s if leads else None,
    }


def _with_limits(policy: PolicyFile, plain: Assurance, traces: Sequence[Trace]) -> Assurance:
    """Ranges and slew limits from training and from what the nominal policy did."""
    obs = np.concatenate([np.array(trace.obs) for trace in traces])
    low, high = obs.min(axis=0), obs.max(axis=0)
    seen_in = "calibration episodes (the run kept no range of training)"
    if RANGE[0] in policy.tensors:
        low = np.minimum(low, policy.tensors["obs_low"].double().numpy())
        high = np.maximum(high, policy.tensors["obs_high"].double().numpy())
        seen_in = "training and calibration episodes"
    moves = [
        np.abs(np.diff(np.array(t.actions), axis=0)).max(axis=0)
        for t in traces
        if len(t.actions) > 1
    ]
    spans = [entry.high - entry.low for entry in policy.contract.action]
    largest = np.max(moves, axis=0) if moves else np.array(spans)
    # A little room, so that rounding never binds; an actuator that never moved may use its span.
    slew = [1.01 * float(m) if m > 0 else s for m, s in zip(largest, spans, strict=True)]
    if policy.contract.commands:
        slew = [2.0 * span for span in spans]
    period = policy.contract.period_s
    soft = 1 if policy.contract.commands else max(1, round(SOFT_START_S / period))
    return replace(
        plain.with_range(low.tolist(), high.tolist(), seen_in),
        slew=tuple(slew),
        soft_start_steps=soft,
        dwell_steps=max(1, round(DWELL_S / period)),
        blend_steps=1 if policy.contract.commands else max(1, round(BLEND_S / period)),
    )


def _with_soft_start(runner: _Runner, ranged: Assurance, nominal: _Run) -> Assurance:
    """The longest soft start, of the wanted one and its halves, that the return can bear."""
    while ranged.soft_start_steps > 1:
        controller = assured(runner.policy, ranged)
        act = assured_act(controller.step, controller.get_buffer("initial"), runner.episodes)
        if float(np.mean(runner.run(controller, act).returns)) >= _least(nominal):
            break
        ranged = replace(ranged, soft_start_steps=ranged.soft_start_steps // 2)
    return ranged


def _least(nominal: _Run) -> float:
    """The return below which runtime assurance costs too much."""
    normal = float(np.mean(nominal.returns))
    return normal - RETURN_SHARE * abs(normal)


def _judge_fallback(
    runner: _Runner, controller: AssuredController, nominal: _Run
) -> dict[str, Any]:
    """Let the punishment module take over in the same episodes, at times spread over them."""
    lengths = [len(trace.rewards) for trace in nominal.traces]
    count = len(lengths)
    times = [round(length * (i + 1) / (count + 1)) for i, length in enumerate(lengths)]
    now = 0

    @torch.inference_mode()
    def act(_: Any, obs: Float[np.ndarray, "envs obs"]) -> Float[np.ndarray, "envs action"]:
        nonlocal now
        rows = torch.as_tensor(obs, dtype=torch.float32)
        later = torch.tensor([[now >= time] for time in times])
        now += 1
        action = torch.where(later, controller.fallback(rows), controller.nominal(rows))
        command: np.ndarray = action.numpy().astype(np.float64)
        return command

    alone = runner.run(controller, act)
    suffered, nominal_suffered = (
        math.fsum(math.fsum(t.punishments[s:]) for t, s in zip(run.traces, times, strict=True))
        for run in (alone, nominal)
    )
    ended, nominal_ended = (
        sum(trace.terminated for trace in run.traces) for run in (alone, nominal)
    )
    avoids = nominal_suffered > 0.0 and suffered <= EARNED_SHARE * nominal_suffered
    return {
        "episodes": count,
        "punishment": suffered,
        "nominal_punishment": nominal_suffered,
        "ended_early": ended,
        "nominal_ended_early": nominal_ended,
        # To fall over is no way to avoid.
        "earned": avoids and ended <= nominal_ended,
        "rule": f"at most {EARNED_SHARE:.0%} of the nominal punishment from the same states, and "
        "no more episodes that end early",
    }


def _choose(
    runner: _Runner, ranged: Assurance, risks: Values, nominal: _Run
) -> tuple[list[dict[str, Any]], Assurance]:
    """Try every candidate threshold in closed loop."""
    tried: list[dict[str, Any]] = []
    best, chosen = float(np.mean(nominal.punishments)), replace(ranged, fallback=False)
    for quantile in CANDIDATES:
        engage = float(np.quantile(risks, quantile))
        if engage <= 0.0:
            continue
        release = float(np.quantile(risks, quantile - RELEASE_GAP))
        candidate = replace(ranged, fallback=True, engage=engage, release=release)
        controller = assured(runner.policy, candidate)
        act = assured_act(controller.step, controller.get_buffer("initial"), runner.episodes)
        done = runner.run(controller, act)
        row = {
            "quantile": quantile,
            "engage": engage,
            "release": release,
            "return_mean": float(np.mean(done.returns)),
            "punishment_mean": float(np.mean(done.punishments)),
        }
        tried.append(row)
        if row["return_mean"] >= _least(nominal) and row["punishment_mean"] < best:
            best, chosen = row["punishment_mean"], candidate
    return tried, chosen


def _share(count: int, total: int) -> float | None:
    return count / total if total else None
