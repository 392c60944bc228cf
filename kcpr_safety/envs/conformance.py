"""Does an environment keep the promises that training, export and the report rely on?

`check_environment` builds it, resets it twice with each of two seeds, steps it past its time limit
or a few hundred steps, and says in plain sentences what it found. The same check runs in this
package's tests over every task card, and is a command for anybody's own environment: an id
registered with gymnasium (`module:Id-v0` imports `module` first) whose step returns
(obs, reward, cost, terminated, truncated, info), or five values with info["cost"].
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from kcpr_safety.envs.official import make_plain, six, translated
from kcpr_safety.errors import KcprError

STEPS = 200
SEEDS = (10_001, 10_002)


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and whether training can live with it."""

    severity: str
    """"error": training would fail or lie; "warning": works, but look at it; "ok": all is well."""
    sentence: str


class _Report:
    """Collects findings; a promise broken at many steps is said once."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def expect(self, kept: bool, broken: str, severity: str = "error") -> bool:
        if not kept and all(broken != finding.sentence for finding in self.findings):
            self.findings.append(Finding(severity, broken))
        return kept


def check_environment(env_id: str, steps: int = STEPS) -> list[Finding]:
    """Findings about one environment, worst first; a single "ok" where every promise is kept."""
    report = _Report()
    try:
        env, limit = make_plain(env_id)
    except KcprError as error:
        return [Finding("error", str(error))]
    except Exception as error:
        return [Finding("error", f"it cannot be built: {type(error).__name__}: {error}")]
    try:
        if _check_spaces(report, env):
            first = [_episode(report, env, seed, min(steps, limit)) for seed in SEEDS]
            again = [_episode(report, env, seed, min(steps, limit)) for seed in SEEDS]
            _check_seeds(report, first, again)
    except KcprError as error:
        report.expect(False, str(error))
    except Exception as error:
        fault = translated(env_id, error)
        raised = f"it raised {type(error).__name__} while stepping: {error}"
        report.expect(False, raised if fault is error else str(fault))
    finally:
        env.close()
    findings = sorted(report.findings, key=lambda finding: finding.severity)
    if not findings:
        count = len(SEEDS) * 2
        findings = [
            Finding("ok", f"every promise kept over {count} episodes of up to {steps} steps")
        ]
    return findings


def _check_spaces(report: _Report, env: Any) -> bool:
    action = env.action_space
    if not report.expect(
        isinstance(action, gymnasium.spaces.Box),
        f"actions must be a Box of numbers, not {type(action).__name__}",
    ):
        return False
    report.expect(
        bool(np.isfinite(action.low).all() and np.isfinite(action.high).all()),
        "every action needs finite bounds: the policy squashes its output into them",
    )
    report.expect(
        bool((action.low < action.high).all()), "an action's low bound is not below its high"
    )
    flat = gymnasium.spaces.flatten_space(env.observation_space)
    report.expect(
        isinstance(flat, gymnasium.spaces.Box),
        f"observations of type {type(env.observation_space).__name__} do not flatten to numbers",
    )
    if isinstance(env.observation_space, gymnasium.spaces.Box):
        report.expect(
            np.issubdtype(env.observation_space.dtype, np.floating),
            f"observations have type {env.observation_space.dtype}, not a floating one",
            "warning",
        )
    return isinstance(flat, gymnasium.spaces.Box)


def _episode(report: _Report, env: Any, seed: int, steps: int) -> list[np.ndarray]:
    """One episode under random actions; its observations, rewards and costs for comparison."""
    reset = env.reset(seed=seed)
    if not report.expect(
        isinstance(reset, tuple) and len(reset) == 2, "reset must return (observation, info)"
    ):
        return []
    obs = reset[0]
    seen = [_flat(env, obs)]
    rng = np.random.default_rng(seed)
    low, high = env.action_space.low.astype(float), env.action_space.high.astype(float)
    _check_obs(report, env, obs, "reset")
    for step in range(steps):
        # A few steps on the bounds themselves: saturated actions are what early training sends.
        action = high if step == 1 else low if step == 2 else rng.uniform(low, high)
        obs, reward, cost, terminated, truncated, info = six(
            "the environment", env.step(action.reshape(env.action_space.shape))
        )
        _check_obs(report, env, obs, "step")
        _check_scalars(report, reward, cost)
        report.expect(isinstance(info, dict), "info must be a dictionary")
        for name, end in (("terminated", terminated), ("truncated", truncated)):
            report.expect(isinstance(end, bool | np.bool_), f"'{name}' must be true or false")
        seen.append(np.append(_flat(env, obs), [float(reward), float(cost)]))
        if terminated or truncated:
            break
    return seen


def _check_obs(report: _Report, env: Any, obs: Any, when: str) -> None:
    space = env.observation_space
    flat = _flat(env, obs)
    size = gymnasium.spaces.flatdim(space)
    report.expect(flat.shape == (size,), f"{when} gave {flat.size} numbers; its space has {size}")
    report.expect(bool(np.isfinite(flat).all()), f"an observation of {when} is not finite")
    if isinstance(space, gymnasium.spaces.Box) and flat.shape == (size,):
        inside = (flat >= space.low.ravel() - 1e-6) & (flat <= space.high.ravel() + 1e-6)
        report.expect(bool(inside.all()), f"an observation of {when} lies outside its space")


def _check_scalars(report: _Report, reward: Any, cost: Any) -> None:
    for name, value in (("reward", reward), ("cost", cost)):
        number = np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number)
        if report.expect(number, f"the {name} must be one number, not {type(value).__name__}"):
            report.expect(bool(np.isfinite(value)), f"a {name} is not finite")
    report.expect(
        bool(np.all(np.asarray(cost) >= 0)), "a cost is negative: punishment only adds up"
    )


def _check_seeds(
    report: _Report, first: list[list[np.ndarray]], again: list[list[np.ndarray]]
) -> None:
    for one, other in zip(first, again, strict=True):
        same = len(one) == len(other) and all(
            np.array_equal(a, b) for a, b in zip(one, other, strict=True)
        )
        report.expect(
            same, "the same seed and actions gave different episodes: runs cannot be reproduced"
        )
    report.expect(
        not (first[0] and first[1] and np.array_equal(first[0][0], first[1][0])),
        "two seeds gave the same first observation: is the seed used?",
        "warning",
    )


def _flat(env: Any, obs: Any) -> np.ndarray:
    if isinstance(env.observation_space, gymnasium.spaces.Box):
        return np.asarray(obs, dtype=np.float64).ravel()
    return np.asarray(gymnasium.spaces.flatten(env.observation_space, obs), dtype=np.float64)
