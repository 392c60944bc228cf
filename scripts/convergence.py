"""Where does the joint value iteration of KCSO converge? Every figure of docs/convergence.md.

python scripts/convergence.py example    the 2-state MDP under damping (2 s)
python scripts/convergence.py targets    the same with hard and averaged target copies (2 s)
python scripts/convergence.py shares     shares of random MDPs that do not converge (6 minutes)
python scripts/convergence.py bound      largest Lipschitz quotient found beside its bound (20 s)
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from mdps import random_mdp, two_states

from kcpr_safety.agents.tabular import Coupling, Pair, backup, solve

COUPLING = Coupling(5.0, 5.0, 0.6)
MDPS = 100
SWEEPS = 1_500
"""Undamped; damped by s, 1 / s as many, which is as much movement."""


def example() -> None:
    """Residual of the 2-state MDP by step, and how fast it falls."""
    print("step  converged  cycle  sweeps  residual")
    for step in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1):
        found = solve(two_states(), COUPLING, step=step, tolerance=1e-12)
        print(
            f"{step:4.1f}  {found.converged!s:9}  {found.cycle or '-'!s:5}  {found.sweeps:6,}  "
            f"{found.residual:.3g}"
        )


def targets() -> None:
    """Online values that learn towards a copy: hard copies against averaged ones.

    One gradient step of rate a on an exact expectation is Q <- Q + a (T Q' - Q).
    """
    mdp, rate = two_states(), 0.1
    start = Pair(torch.zeros_like(mdp.reward), torch.zeros_like(mdp.reward))
    print("copy                     residual of Q after 20,000 steps of rate 0.1")
    settings: list[tuple[str, int, float]] = [
        *((f"hard, every {every} steps", every, 0.0) for every in (1, 5, 10, 30, 100)),
        *((f"averaged, share {share:g}", 0, share) for share in (0.005, 0.02, 0.1, 0.5)),
    ]
    for name, every, share in settings:
        q = copy = start
        for step in range(20_000):
            q = q.towards(backup(mdp, copy, COUPLING), rate)
            if every and step % every == every - 1:
                copy = q
            elif share:
                copy = copy.towards(q, share)
        print(f"{name:<24} {q.gap(backup(mdp, q, COUPLING)):.3g}")


def shares() -> None:
    """Random MDPs of 6 states and 3 actions, h 5 and 5."""
    print(f"{MDPS} MDPs each, at most {SWEEPS:,} / step sweeps, tolerance 1e-6, h 5 and 5")
    print("transitions    gamma  b     step  not converged  of these seen to cycle")
    rows = [
        ("dense", 0.95, 0.6, 1.0),
        ("dense", 0.95, 0.9, 1.0),
        *(("deterministic", 0.95, b, 1.0) for b in (0.02, 0.3, 0.6, 0.8, 0.9)),
        *(("deterministic", 0.95, b, 0.2) for b in (0.6, 0.8, 0.9)),
        ("deterministic", 0.7, 0.17, 1.0),
    ]
    for kind, gamma, softening, step in rows:
        failed = cycled = 0
        for seed in track(range(MDPS), kind, transient=True):
            mdp = random_mdp(seed, gamma=gamma, deterministic=kind == "deterministic")
            coupling, most = Coupling(5.0, 5.0, softening), int(SWEEPS / step)
            found = solve(mdp, coupling, step=step, tolerance=1e-6, most_sweeps=most)
            failed += not found.converged
            cycled += found.cycle is not None
        print(
            f"{kind:<13}  {gamma:<5}  {softening:<4}  {step:<4}  {failed:>4} of {MDPS}     "
            f"{cycled}",
            flush=True,
        )


def bound() -> None:
    """Quotients |TQ - TQ'| / |Q - Q'| in the variables h Q, from random pairs, h 5 and 5."""
    print("gamma  b     largest of 20,000  bound g (1 + b) / (1 - b)")
    for gamma, softening in ((0.95, 0.02), (0.95, 0.3), (0.95, 0.6), (0.7, 0.17)):
        largest = 0.0
        coupling = Coupling(5.0, 5.0, softening)
        generator = torch.Generator().manual_seed(0)
        for seed in range(200):
            mdp = random_mdp(seed, gamma=gamma, deterministic=True)
            for _ in range(100):
                scale = 10 ** (2 * torch.rand((), generator=generator, dtype=torch.float64) - 1)
                drawn = scale * torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
                # Differences of plus and minus the same size reach the bound soonest.
                signs = torch.randint(2, drawn.shape, generator=generator) * 2 - 1
                q, other = Pair(*drawn), Pair(*(drawn + 0.01 * signs))
                moved = backup(mdp, q, coupling).gap(backup(mdp, other, coupling))
                largest = max(largest, moved / q.gap(other))
        limit = gamma * (1 + softening) / (1 - softening)
        print(f"{gamma:<5}  {softening:<4}  {largest:<17.3f}  {limit:.3f}")


PARTS: dict[str, Callable[[], None]] = {
    part.__name__: part for part in (example, targets, shares, bound)
}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.exit(f"usage: python scripts/convergence.py {{{','.join(PARTS)}}}")
    PARTS[sys.argv[1]]()
