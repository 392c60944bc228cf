"""Does an environment keep the promises that training, export and the report rely on?

`check_environment` builds it, resets it twice with each of two seeds, steps it to its time limit
or a few hundred steps, once beside a second one, and says in plain sentences all that it found and
how to mend it (`promises`). The same check runs in this package's tests over every task card, and
is a command for anybody's own environment: an id registered with gymnasium (`module:Id-v0` imports
`module` first) whose step returns (obs, reward, cost, terminated, truncated, info), or five values
with info["cost"]; or a robot's card.

An environment that takes long is stepped for `PATIENCE_S` in all, and once at least.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from kcpr_safety.envs import promises
from kcpr_safety.envs.official import action_for, make_plain, outcome_of
from kcpr_safety.envs.plainly import translated
from kcpr_safety.envs.promises import Fault
from kcpr_safety.errors import (
    AbsentTaskError,
    CardError,
    FileFault,
    KcprError,
    MissingPackageError,
    UnknownNameError,
)

STEPS = 200
SEEDS = (10_001, 10_002)
PATIENCE_S = 20.0
SLOW_S = 0.1
"""A step that takes longer makes a training of the default length last a night [s]."""
_DEFAULT_STEPS = 300_000
_LONGER = 5
"""One more episode goes to its time limit, if that is not above so many times the others' steps."""
_BESIDE = 50
"""Steps that two environments take in turn."""

_MENDS: tuple[tuple[type[KcprError], str], ...] = (
    (UnknownNameError, "take a name that is offered; kcpr-safety tasks lists the tasks"),
    (MissingPackageError, "run that command for this Python, then check again"),
    (AbsentTaskError, "check again where Python finds what is named"),
    (CardError, "correct the card there; kcpr-safety tasks --terms lists the terms of [[punish]]"),
    (FileFault, "put the file there, whole and readable, then check again"),
    (KcprError, "mend what is named; to see the whole traceback, build it by itself in Python"),
)
"""What to do about an error of each kind; its own sentence says what it is about."""

Rows = list[np.ndarray]


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and whether training can live with it."""

    severity: str
    """"error": training would fail or lie; "warning": works, but look at it; "ok": all is well."""
    sentence: str
    mend: str = ""
    """What to do about it."""


class _Report:
    """Collects findings; a promise broken at many steps is said once."""

    def __init__(self) -> None:
        self.findings: dict[str, Finding] = {}
        self.began = time.perf_counter()
        self.durations: list[float] = []
        """Of every step taken [s]."""
        self.episodes = 0
        self.ends: list[int] = []
        """Of every episode, the step at which it reported `terminated`; 0 where it did not."""
        self.left_out = False
        """Was anything, for lack of patience?"""

    def add(self, faults: Iterable[Fault], severity: str = "error") -> bool:
        """Whether there was any."""
        found = list(faults)
        for fault in found:
            finding = Finding(severity, fault.told, fault.mend)
            self.findings.setdefault(fault.sentence, finding)
        return bool(found)

    def say(self, broken: bool, sentence: str, mend: str, severity: str = "error") -> None:
        if broken:
            self.add([Fault(sentence, mend)], severity)

    def out_of_patience(self) -> bool:
        """Never before the first step, which tells how long steps take; once gone, for good."""
        self.left_out |= bool(self.durations) and time.perf_counter() - self.began > PATIENCE_S
        return self.left_out


class _Stopped(Exception):
    """This episode cannot go on; why is in the report."""


def check_environment(env_id: str, steps: int = STEPS) -> list[Finding]:
    """Findings about one environment, worst first; a single "ok" where every promise is kept."""
    report = _Report()
    made: list[Any] = []
    try:
        env, limit = make_plain(env_id)
        made.append(env)
        if not report.add(promises.spaces(env)):
            _check_types(report, env)
            length = min(steps, limit)
            first = [_episode(report, env, seed, length) for seed in SEEDS]
            again = [_episode(report, env, seed, length) for seed in SEEDS]
            _check_seeds(report, first, again)
            if not report.out_of_patience():
                _check_restart(report, [*first, *again])
            if not report.out_of_patience():
                made.append(make_plain(env_id)[0])
                _check_beside(report, made, first, again)
            if length < limit <= _LONGER * steps:
                report.ends.clear()
                _episode(report, env, SEEDS[0], limit)
            _check_ends(report, limit)
            _check_pace(report)
    except KcprError as error:
        report.add([_said(error)])
    except Exception as error:
        report.add([_translated(env_id, "it", error)])
    finally:
        for env in made:
            _close(report, env)
    findings = sorted(report.findings.values(), key=lambda finding: finding.severity)
    if not findings:
        taken = f"episodes: {report.episodes}, steps: {len(report.durations)}"
        rest = f"; after {PATIENCE_S:g} s the rest was left out" if report.left_out else ""
        findings = [Finding("ok", f"every promise kept ({taken}{rest})")]
    return findings


def _translated(env_id: str, what: str, error: BaseException) -> Fault:
    fault = translated(env_id, error)
    if fault is error or not isinstance(fault, KcprError):
        return promises.raised(what, error)
    return _said(fault)


def _said(error: KcprError) -> Fault:
    return Fault(str(error), next(mend for kind, mend in _MENDS if isinstance(error, kind)))


def _close(report: _Report, env: Any) -> None:
    try:
        env.close()
    except Exception as error:
        report.add([promises.raised("close", error)], "warning")


def _check_types(report: _Report, env: Any) -> None:
    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Box):
        report.say(
            not np.issubdtype(space.dtype, np.floating),
            f"observations have type {space.dtype}, not a floating one",
            "declare the space with dtype=np.float32 and return such numbers",
            "warning",
        )


# ---------------------------------------------------------------------------------- one episode


def _episode(report: _Report, env: Any, seed: int, steps: int) -> Rows:
    """One episode under random actions; its observations, rewards and costs for comparison."""
    before = env.observation_space, env.action_space
    rows: Rows = []
    if report.out_of_patience():
        return rows
    report.episodes += 1
    report.ends.append(0)
    try:
        obs = _begin(report, env, seed)
        rows.append(_flat(env, obs))
        rng = np.random.default_rng(seed)
        for step in range(steps):
            if report.out_of_patience():
                break
            row, kept, ended = _step(report, env, _action(env, rng, step))
            report.say(
                not np.array_equal(_flat(env, obs), rows[-1][: rows[0].size], equal_nan=True),
                "it hands out one observation array and writes into it again",
                "return a copy: a caller that keeps two observations finds them equal",
                "warning",
            )
            rows.append(row)
            obs = kept
            if ended:
                report.ends[-1] = step + 1 if ended == "terminated" else 0
                break
    except _Stopped:
        pass
    after = env.observation_space, env.action_space
    report.add(promises.same_spaces(before, after, "after an episode"))
    return rows


def _begin(report: _Report, env: Any, seed: int) -> Any:
    try:
        result = env.reset(seed=seed)
    except (Exception, SystemExit) as error:
        report.add([_translated("the environment", "reset", error)])
        raise _Stopped from error
    if report.add(promises.reset(result)):
        raise _Stopped
    _check_obs(report, env, result[0], "reset")
    return result[0]


def _step(report: _Report, env: Any, action: Any) -> tuple[np.ndarray, Any, str]:
    """(observation, reward and cost as one row; the observation as given; how it ended, or "")"""
    started = time.perf_counter()
    try:
        result = env.step(action)
    except (Exception, SystemExit) as error:
        report.add([_translated("the environment", "step", error)])
        raise _Stopped from error
    report.durations.append(time.perf_counter() - started)
    if report.add(promises.step(result)):
        raise _Stopped
    obs, reward, cost, terminated, truncated, _ = outcome_of(result)
    _check_obs(report, env, obs, "step")
    bad = [report.add(promises.number(*pair)) for pair in (("reward", reward), ("cost", cost))]
    bad += [
        report.add(promises.ending(*pair))
        for pair in (("terminated", terminated), ("truncated", truncated))
    ]
    if any(bad):
        raise _Stopped
    for name, value in (("reward", reward), ("cost", cost)):
        report.say(
            not np.isfinite(value),
            f"a {name} is not finite",
            "find the division, root or logarithm that makes it; end the episode before it does",
        )
    report.add(promises.cost(float(cost)))
    row = np.append(_flat(env, obs), [float(reward), float(cost)])
    return row, obs, "terminated" if terminated else "truncated" if truncated else ""


def _action(env: Any, rng: np.random.Generator, step: int) -> Any:
    """Random; a few steps on the bounds themselves: saturated is what early training sends."""
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return action_for(env, np.array([int(space.start) + rng.integers(int(space.n))]))
    low, high = space.low.astype(float).ravel(), space.high.astype(float).ravel()
    return action_for(env, high if step == 1 else low if step == 2 else rng.uniform(low, high))


def _check_obs(report: _Report, env: Any, obs: Any, when: str) -> None:
    space = env.observation_space
    if report.add(promises.form(space, obs, when)):
        raise _Stopped
    flat = _flat(env, obs)
    report.say(
        not np.isfinite(flat).all(),
        f"an observation of {when} is not finite",
        "find the division, root or logarithm that makes it; end the episode before it does",
    )
    report.add(promises.inside(space, flat, when))


def _flat(env: Any, obs: Any) -> np.ndarray:
    if isinstance(env.observation_space, gymnasium.spaces.Box):
        return np.array(obs, dtype=np.float64).ravel()
    return np.array(gymnasium.spaces.flatten(env.observation_space, obs), dtype=np.float64)


# ------------------------------------------------------------------------------- whole episodes


def _same(one: Rows, other: Rows) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=False))


def _repeats(report: _Report, first: list[Rows], again: list[Rows]) -> bool:
    """Whether episodes repeat themselves; where patience ran out, as far as they go."""
    lengths = report.out_of_patience() or [*map(len, first)] == [*map(len, again)]
    return bool(lengths) and all(_same(a, b) for a, b in zip(first, again, strict=True))


def _check_seeds(report: _Report, first: list[Rows], again: list[Rows]) -> None:
    report.say(
        not _repeats(report, first, again),
        "the same seed and actions gave different episodes: runs cannot be reproduced",
        "begin reset with super().reset(seed=seed), draw only from self.np_random, and set back "
        "all that an episode changes",
    )
    begun = first[0] and first[1] and np.array_equal(first[0][0], first[1][0])
    report.say(
        bool(begun),
        "two seeds gave the same first observation: is the seed used?",
        "vary the start with self.np_random, or a policy learns one start by heart",
        "warning",
    )


def _check_ends(report: _Report, limit: int) -> None:
    """An end at the time limit is none of the task's; after a true one, nothing more is expected.

    An episode of one step may well be over.
    """
    report.say(
        limit > 1 and set(report.ends) == {limit},
        f"every episode reports 'terminated' exactly at its time limit of {limit} steps",
        "use truncated: after 'terminated' a learner counts the future as nothing, and it learns "
        "wrong values where time alone ran out",
        "warning",
    )


def _check_restart(report: _Report, episodes: list[Rows]) -> None:
    """An end that outlives `reset`: one real episode, then ends at the first step only."""
    lengths = [len(rows) - 1 for rows in episodes]
    report.say(
        lengths[0] > 1 and all(length == 1 for length in lengths[1:]),
        "after the first episode, every episode ends at its first step",
        "let reset set back whatever makes step report an end",
    )


def _check_beside(report: _Report, made: list[Any], first: list[Rows], again: list[Rows]) -> None:
    """Two environments that step in turn must each do what it does alone."""
    broken = any(finding.severity == "error" for finding in report.findings.values())
    if broken or report.out_of_patience() or not _repeats(report, first, again):
        return
    one, other = ((env.observation_space, env.action_space) for env in made)
    if report.add(promises.same_spaces(one, other, "in a second environment")):
        return
    quiet = _Report()
    rngs = [np.random.default_rng(seed) for seed in SEEDS]
    try:
        rows = [
            [_flat(env, _begin(quiet, env, seed))] for env, seed in zip(made, SEEDS, strict=True)
        ]
        going = {0, 1}
        for step in range(_BESIDE):
            if report.out_of_patience():
                break
            for i in sorted(going):
                row, _, ended = _step(quiet, made[i], _action(made[i], rngs[i], step))
                rows[i].append(row)
                if ended or len(rows[i]) >= len(first[i]):
                    going.discard(i)
    except _Stopped:
        rows = []
    report.say(
        not rows or not all(_same(a, b) for a, b in zip(rows, first, strict=True)),
        "two environments side by side disturb each other: they share what they change",
        "keep an episode's state in self, set in reset; not in the class, a module or a default "
        "argument",
    )


def _check_pace(report: _Report) -> None:
    if not report.durations:
        return
    pace = float(np.mean(report.durations))
    days = pace * _DEFAULT_STEPS / 86_400
    report.say(
        pace > SLOW_S,
        f"a step takes {pace:.2g} s: a training of {_DEFAULT_STEPS:,} steps would take "
        f"{days:.1f} days",
        "simulate less in a step (longer physics steps, no pictures, no sleep), or train with "
        "fewer --steps",
        "warning",
    )
