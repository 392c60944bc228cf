"""What are the coupled soft-optimal policies and values of a finite MDP, exactly (KCSO)?

    Q_R = r + g P V_R(Q_R, Q_P),    Q_P = -c + g P V_P(Q_R, Q_P),    V of `ops.coupling`

in float64, for any inverse temperatures and any softening in [0, 1). This is the oracle that every
deep agent is tested against. The joint operator T need not be a contraction: in the variables
h_i Q_i its Lipschitz constant is at most g (1 + b) / (1 - b), and undamped iteration cycles on some
MDPs (docs/convergence.md). So `solve` damps, Q <- Q + step (TQ - Q), watches for cycles, returns
the residual |TQ - Q|, and a solution that has not converged refuses to be an `oracle`.

An absorbing end is a state that returns to itself without reward or punishment: its values are 0.

Source: KCSO in arXiv:2606.28152; this derivation is the project's own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kcpr_safety.errors import SettingsError, TrainingFault
from kcpr_safety.ops.coupling import (
    Logits,
    Value,
    check_softening,
    check_temperature,
    coupled_policies,
    coupled_values,
    soft_policy,
    soften,
)

STEP = 0.2
"""Default damping: solved every random MDP that the undamped iteration cycled on."""

_SUM_TOLERANCE = 1e-9
_CYCLE_TOLERANCE = 1e-11
"""States closer than this (relative to the largest value) count as visited before."""


@dataclass(frozen=True)
class MDP:
    """A finite MDP with both streams; refused unless it is one."""

    transition: Tensor
    """P(s' | s, a), [states, actions, states]: every [s, a] row sums to 1."""
    reward: Tensor
    """[states, actions]."""
    punishment: Tensor
    """[states, actions], >= 0; larger is worse."""
    gamma: float

    def __post_init__(self) -> None:
        for name in ("transition", "reward", "punishment"):
            tensor = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            if not bool(torch.isfinite(tensor).all()):
                raise SettingsError(f"the MDP's {name} holds a number that is not finite")
            object.__setattr__(self, name, tensor)
        states, actions = self.reward.shape[:2] if self.reward.dim() == 2 else (0, 0)
        shapes = [tuple(self.transition.shape), tuple(self.punishment.shape)]
        if states * actions == 0 or shapes != [(states, actions, states), (states, actions)]:
            raise SettingsError(
                "an MDP needs transition [S, A, S], reward [S, A] and punishment [S, A], not "
                f"{shapes[0]}, {tuple(self.reward.shape)} and {shapes[1]}"
            )
        sums = self.transition.sum(-1)
        wrong = ((sums - 1.0).abs() > _SUM_TOLERANCE) | (self.transition < 0).any(-1)
        if bool(wrong.any()):
            state, action = wrong.nonzero()[0].tolist()
            raise SettingsError(
                f"the transition tensor is not stochastic: state {state}, action {action} sums to "
                f"{float(sums[state, action]):.6g} (every row must be >= 0 and sum to 1)"
            )
        if bool((self.punishment < 0).any()):
            raise SettingsError("the MDP's punishment is negative somewhere; it must be >= 0")
        if not 0.0 <= self.gamma < 1.0:
            raise SettingsError(f"gamma is {self.gamma}; it must lie in [0, 1)")


@dataclass(frozen=True)
class Coupling:
    """The three numbers of KCSO."""

    reward_temperature: float
    """h_R, inverse: any real number, or +-inf."""
    punishment_temperature: float
    softening: float
    """b in [0, 1)."""

    def __post_init__(self) -> None:
        check_softening(self.softening)
        check_temperature(self.reward_temperature)
        check_temperature(self.punishment_temperature)

    @classmethod
    def at_eta(cls, eta: float, softening: float) -> "Coupling":
        """Equal temperatures with a given sharpness eta = h / (1 - b^2) of both policies."""
        check_softening(softening)
        return cls(eta * (1.0 - softening**2), eta * (1.0 - softening**2), softening)

    @property
    def numbers(self) -> tuple[float, float, float]:
        return self.reward_temperature, self.punishment_temperature, self.softening


class Pair(NamedTuple):
    """What both modules think of every action: Q_R, and Q_P of minus punishment."""

    reward: Float[Tensor, "states actions"]
    punishment: Float[Tensor, "states actions"]

    def gap(self, other: "Pair") -> float:
        """The largest difference in sup norm."""
        return max(float((a - b).abs().max()) for a, b in zip(self, other, strict=True))

    def towards(self, other: "Pair", step: float) -> "Pair":
        return Pair(*(a + step * (b - a) for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Solution:
    """Where the damped iteration ended."""

    q: Pair
    coupling: Coupling
    residual: float
    """|TQ - Q| in sup norm."""
    sweeps: int
    converged: bool
    cycle: int | None
    """Length of the cycle that the iteration was caught in, if it was."""

    @property
    def values(self) -> tuple[Value, Value]:
        """(V_R, V_P) of every state."""
        return coupled_values(*self.q, *self.coupling.numbers)

    @property
    def policies(self) -> tuple[Logits, Logits]:
        """(log pi_R, log pi_P) of every state."""
        return coupled_policies(*self.q, *self.coupling.numbers)

    def oracle(self) -> "Solution":
        """Itself, if it may be relied on."""
        if self.converged:
            return self
        how = f"caught in a cycle of {self.cycle}" if self.cycle else "not converged"
        raise TrainingFault(
            f"this solution is no oracle: {how} after {self.sweeps:,} sweeps with residual "
            f"{self.residual:.3g}; damp more (a smaller step) or soften more (a smaller b)"
        )


def backup(mdp: MDP, q: Pair, coupling: Coupling) -> Pair:
    """TQ: the joint KL-regularised Bellman operator."""
    reward_value, punishment_value = coupled_values(*q, *coupling.numbers)
    return Pair(
        mdp.reward + mdp.gamma * mdp.transition @ reward_value,
        -mdp.punishment + mdp.gamma * mdp.transition @ punishment_value,
    )


def sweeps(mdp: MDP, coupling: Coupling, step: float) -> Iterator[tuple[Pair, float]]:
    """(Q, its residual) of each sweep of Q <- Q + step (TQ - Q), from zero; step 1 is undamped."""
    if not 0.0 < step <= 1.0:
        raise SettingsError(f"step is {step}; it must lie in (0, 1]")
    q = Pair(torch.zeros_like(mdp.reward), torch.zeros_like(mdp.reward))
    while True:
        target = backup(mdp, q, coupling)
        yield q, q.gap(target)
        q = q.towards(target, step)


def solve(
    mdp: MDP,
    coupling: Coupling,
    *,
    step: float = STEP,
    tolerance: float = 1e-10,
    most_sweeps: int = 50_000,
) -> Solution:
    """Damped value iteration to a residual of at most `tolerance`, or until it is seen to cycle.

    Cycles are found by Brent's method: the present Q against one that was kept at the last power
    of two. A fixed point's error is at most residual / (1 - g) where T contracts.
    """
    kept: Pair | None = None
    kept_at = 0
    for count, (q, residual) in enumerate(sweeps(mdp, coupling, step)):
        cycle = None
        if residual > tolerance and kept is not None:
            near = _CYCLE_TOLERANCE * max(1.0, *(float(part.abs().max()) for part in q))
            # A slow sequence never comes back to where it was; only a cycle does.
            if count - kept_at > 1 and residual > 100 * near and q.gap(kept) <= near:
                cycle = count - kept_at
        if residual <= tolerance or cycle or count >= most_sweeps:
            return Solution(q, coupling, residual, count, residual <= tolerance, cycle)
        if kept is None or count >= 2 * kept_at:
            kept, kept_at = q, max(count, 1)
    raise AssertionError("sweeps never end by themselves")


def alternate(q: Pair, coupling: Coupling, *, most: int = 5_000) -> tuple[Logits, Logits]:
    """(log pi_R, log pi_P) by fixed-point iteration: each the other's softened prior, in turn.

    Converges as b^(2n) to the closed form, from uniform; needs finite inverse temperatures, for in
    the limit a policy without support somewhere could never come back there.
    """
    if math.isinf(coupling.reward_temperature) or math.isinf(coupling.punishment_temperature):
        raise SettingsError(
            "the fixed-point iteration needs finite inverse temperatures; the closed form "
            "(coupled_policies) takes the limits"
        )
    reward = punishment = torch.full_like(q.reward, -math.log(q.reward.shape[-1]))
    for _ in range(most):
        before = reward, punishment
        reward = soft_policy(
            q.reward, soften(punishment, coupling.softening), coupling.reward_temperature
        )
        punishment = soft_policy(
            q.punishment, soften(reward, coupling.softening), coupling.punishment_temperature
        )
        if Pair(reward, punishment).gap(Pair(*before)) < 1e-15:
            break
    return reward, punishment


def deployed_actions(q: Pair, coupling: Coupling) -> Tensor:
    """argmax_a h_R Q_R + b h_P Q_P of every state: the noiseless reward policy."""
    return coupled_policies(*q, *coupling.numbers)[0].argmax(-1)


def policy_values(
    mdp: MDP, policy: Float[Tensor, "states actions"]
) -> tuple[Float[Tensor, "states"], Float[Tensor, "states"]]:
    """(discounted reward, discounted punishment) that a policy's probabilities earn, exactly."""
    moves = torch.einsum("sa,sat->st", policy, mdp.transition)
    system = torch.eye(moves.shape[0], dtype=moves.dtype) - mdp.gamma * moves
    streams = torch.stack([mdp.reward, mdp.punishment], dim=-1)
    earned = torch.linalg.solve(system, torch.einsum("sa,sak->sk", policy, streams))
    return earned[:, 0], earned[:, 1]
