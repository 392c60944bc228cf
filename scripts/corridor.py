"""The README's picture: which of the corridor's two routes the coupled reward policy takes.

    python scripts/corridor.py    writes docs/corridor.svg (5 s)

Exact: each point is a solution of `agents.tabular`, and the probability that an episode ends by the
short, painful route is a linear solve on the Markov chain of pi_R.
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from kcpr_safety.agents.tabular import Coupling, Solution, solve
from kcpr_safety.envs.grids import Grid, grid_of
from kcpr_safety.studies.grids import decorate, draw_policy, mdp_of

OUT = Path(__file__).resolve().parent.parent / "docs" / "corridor.svg"
SOFTENINGS = np.linspace(0.0, 0.95, 39)
TEMPERATURES = (5.0, 10.0, 20.0, 50.0)
SHOWN = ((20.0, 0.3), (20.0, 0.6))
"""(h, b) whose policies are drawn."""


def solution_at(grid: Grid, h: float, softening: float) -> Solution:
    return solve(mdp_of(grid), Coupling(h, h, softening), step=0.5, tolerance=1e-8).oracle()


def short_route(grid: Grid, policy: torch.Tensor) -> float:
    """Probability that the goal is entered from its left, the end of the hazards."""
    transition = torch.tensor(grid.tensors[0])
    moves = torch.einsum("sa,sat->st", policy, transition)
    goal = grid.goal
    assert goal is not None
    row, column = grid.cells[goal]
    before = grid.index[row, column - 1]
    others = [state for state in range(grid.states) if state != goal]
    inside = moves[others][:, others]
    entered = torch.zeros(len(others), dtype=moves.dtype)
    entered[others.index(before)] = moves[before, goal]
    chance = torch.linalg.solve(torch.eye(len(others), dtype=moves.dtype) - inside, entered)
    return float(chance[others.index(grid.starts[0])])


def main() -> None:
    matplotlib.rcParams |= {"svg.hashsalt": "corridor", "svg.fonttype": "none", "font.size": 9}
    grid = grid_of("corridor")
    made = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = made.subfigures(1, 2, width_ratios=(1.25, 1.0))
    for ax, (h, softening) in zip(left.subplots(2, 1), SHOWN, strict=True):
        policy = solution_at(grid, h, softening).policies[0].exp()
        ax.set_xlim(-0.5, len(grid.drawing[0]) - 0.5)
        ax.set_ylim(len(grid.drawing) - 0.5, -0.5)
        ax.set_aspect("equal")
        share = short_route(grid, policy)
        decorate(ax, grid, f"b = {softening}, h = {h:g}: short route in {share:.0%} of episodes")
        draw_policy(ax, grid, policy.numpy())
    ax = right.subplots()
    for h in TEMPERATURES:
        shares = [
            short_route(grid, solution_at(grid, h, float(b)).policies[0].exp()) for b in SOFTENINGS
        ]
        ax.plot(SOFTENINGS, shares, label=f"h = {h:g}")
    ax.set_xlabel("softening b")
    ax.set_title("episodes that take the short, painful route", fontsize=9)
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    made.savefig(OUT, metadata={"Date": None})
    print(f"wrote {OUT.relative_to(OUT.parent.parent)}")


if __name__ == "__main__":
    main()
