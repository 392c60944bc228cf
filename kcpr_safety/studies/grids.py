"""What do coupled policies do in a grid-world, to the eye: in the terminal and as a figure?

Both modules' values, both policies, the coupled policy that is deployed, and the KL between the two
policies, for each state; all exact (`agents.tabular`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from kcpr_safety.agents.tabular import MDP, Coupling, deployed_actions, policy_values, solve
from kcpr_safety.envs.grids import ARROWS, GRIDS, MOVES, Grid, grid_of, read_drawing
from kcpr_safety.errors import FileFault
from kcpr_safety.files import faults_of, read_limited
from kcpr_safety.ops.coupling import kl_divergence

FIGURES = (".png", ".svg", ".pdf")
MAPS = (
    ("reward_value", "V_R: value of reward"),
    ("punishment_value", "V_P: value of minus punishment"),
    ("kl", "KL(pi_R || pi_P)"),
)
POLICIES = (
    ("reward_policy", "pi_R"),
    ("punishment_policy", "pi_P"),
    ("deployed", "deployed: h_R Q_R + b h_P Q_P"),
)
_MAX_BYTES = 2**16


def load_grid(name: str) -> Grid:
    """A grid-world by its name, or the one drawn in a text file."""
    if not name.endswith(".txt"):
        return grid_of(name)
    try:
        lines = read_limited(Path(name), _MAX_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FileFault(f"{name} is no text: {error.reason}") from error
    return read_drawing(lines, name, GRIDS["corridor"])


def mdp_of(grid: Grid) -> MDP:
    """The grid-world as the exact solver takes it."""
    transition, reward, punishment = (torch.tensor(part) for part in grid.tensors)
    return MDP(transition, reward, punishment, grid.gamma)


def solve_and_draw(
    name: str, numbers: tuple[float, float, float], out: Path | None
) -> dict[str, Any]:
    """Everything that is drawn, by state; `numbers` are (h_R, h_P, b)."""
    if out is not None and out.suffix not in FIGURES:
        raise FileFault(f"'{out}' is no figure; let its name end in {', '.join(FIGURES)}")
    grid = load_grid(name)
    record = solved(grid, numbers)
    if out is not None:
        figure(grid, record, out)
        record["figure"] = str(out)
    return record


def solved(grid: Grid, numbers: tuple[float, float, float]) -> dict[str, Any]:
    """Values, policies and KL of a grid-world, by state; JSON values."""
    mdp = mdp_of(grid)
    solution = solve(mdp, Coupling(*numbers), tolerance=1e-8).oracle()
    (reward, punishment), values = solution.policies, solution.values
    deployed = deployed_actions(solution.q, solution.coupling)
    chosen = torch.nn.functional.one_hot(deployed, mdp.reward.shape[1]).double()
    earned = policy_values(mdp, chosen)
    return {
        "grid": grid.name,
        "drawing": list(grid.drawing),
        "numbers": [n if np.isfinite(n) else str(n) for n in numbers],
        "residual": solution.residual,
        "sweeps": solution.sweeps,
        "reward_value": values[0].tolist(),
        "punishment_value": values[1].tolist(),
        "reward_policy": reward.exp().tolist(),
        "punishment_policy": punishment.exp().tolist(),
        "deployed": chosen.tolist(),
        "kl": kl_divergence(reward, punishment).nan_to_num(posinf=1e9).tolist(),
        "discounted_return": float(earned[0][grid.starts].mean()),
        "discounted_punishment": float(earned[1][grid.starts].mean()),
    }


def show(record: dict[str, Any], console: Console) -> None:
    """All six maps in the terminal."""
    grid = Grid(record["grid"], "", tuple(record["drawing"]))
    panels = [Panel(_heat(grid, record[key]), title=title, expand=False) for key, title in MAPS]
    panels += [
        Panel(_arrows(grid, record[key]), title=title, expand=False) for key, title in POLICIES
    ]
    console.print(Columns(panels))
    h_reward, h_punishment, softening = record["numbers"]
    console.print(
        f"h {h_reward} and {h_punishment}, b {softening}: the deployed policy earns "
        f"{record['discounted_return']:.3f} and is punished "
        f"{record['discounted_punishment']:.3f}, both discounted "
        f"(residual {record['residual']:.1e} after {record['sweeps']:,} sweeps)"
    )


def _heat(grid: Grid, values: list[float]) -> Text:
    """Numbers on a grey scale."""
    low, high = min(values), max(values)
    text = Text()
    for row, line in enumerate(grid.drawing):
        for column, symbol in enumerate(line):
            state = grid.index.get((row, column))
            if state is None:
                text.append("▒▒▒▒▒▒" if symbol == "#" else "  pit ", style="dim")
                continue
            share = (values[state] - low) / ((high - low) or 1.0)
            shade = int(40 + 180 * share)
            ink = "black" if share > 0.5 else "white"
            text.append(f"{values[state]:6.2f}", style=f"{ink} on rgb({shade},{shade},{shade})")
        text.append("\n")
    return text


def _arrows(grid: Grid, policy: list[list[float]]) -> Text:
    """The likeliest move of each state."""
    text = Text()
    for row, line in enumerate(grid.drawing):
        for column, symbol in enumerate(line):
            state = grid.index.get((row, column))
            if state is None:
                text.append("▒▒" if symbol == "#" else "p ", style="dim")
            elif symbol == "G":
                text.append("G ", style="bold green")
            else:
                arrow = ARROWS[int(np.argmax(policy[state]))]
                text.append(f"{arrow} ", style="red" if symbol == "x" else "")
        text.append("\n")
    return text


def figure(grid: Grid, record: dict[str, Any], out: Path) -> None:
    """The same six maps as a file."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(12, 5.2), layout="constrained")
    axes = made.subplots(2, 3)
    for ax, (key, title) in zip(axes[0], MAPS, strict=True):
        image = ax.imshow(on_map(grid, record[key]), cmap="viridis")
        made.colorbar(image, ax=ax, shrink=0.7)
        decorate(ax, grid, title)
    for ax, (key, title) in zip(axes[1], POLICIES, strict=True):
        ax.imshow(np.full((len(grid.drawing), len(grid.drawing[0])), np.nan))
        decorate(ax, grid, title)
        draw_policy(ax, grid, np.array(record[key]))
    h_reward, h_punishment, softening = record["numbers"]
    made.suptitle(f"{grid.name}: h {h_reward} and {h_punishment}, b {softening}")
    with faults_of(f"cannot write {out}"):
        made.savefig(out, dpi=120)


def on_map(grid: Grid, values: list[float]) -> np.ndarray:
    """Values of states where they are drawn; NaN elsewhere."""
    shown = np.full((len(grid.drawing), len(grid.drawing[0])), np.nan)
    for (row, column), value in zip(grid.cells, values, strict=True):
        shown[row, column] = value
    return shown


def decorate(ax: Any, grid: Grid, title: str) -> None:
    """Walls, hazards, start and goal."""
    colours = {"#": "#30363d", "x": "#e5989b", "p": "#8d1f2d", "S": "#cfe3ff", "G": "#b7e4c7"}
    ax.set_title(title, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])
    for row, line in enumerate(grid.drawing):
        for column, symbol in enumerate(line):
            if symbol in colours:
                ax.add_patch(_square(column, row, colours[symbol], solid=symbol in "#p"))
            if symbol in "SG":
                ax.text(column - 0.42, row - 0.12, symbol, fontsize=7, weight="bold")


def _square(column: int, row: int, colour: str, *, solid: bool) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (column - 0.5, row - 0.5),
        1,
        1,
        facecolor=colour if solid else "none",
        edgecolor=colour,
        hatch=None if solid else "///",
        linewidth=0,
    )


def draw_policy(ax: Any, grid: Grid, policy: np.ndarray, colour: str = "#1f4e9c") -> None:
    """An arrow in each state: the mean of its moves; short where the policy hesitates."""
    for state, (row, column) in enumerate(grid.cells):
        down, right = policy[state] @ np.array(MOVES)
        if state == grid.goal or np.hypot(down, right) < 0.03:
            continue
        ax.annotate(
            "",
            (column + 0.42 * right, row + 0.42 * down),
            (column - 0.42 * right, row - 0.42 * down),
            arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0},
        )
