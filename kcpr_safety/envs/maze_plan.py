"""Where are a maze's walls and its goal, where do episodes start, and how far is it to the goal?

A maze is drawn in characters, one cell of 1 m for three columns and two lines:

    +--+            |  --   walls, 10 cm thick, on the edges of cells
    |s |            +       where walls may meet
    +  +--+         s       a cell in which episodes start
    |s  G |         G       the cell in whose centre the goal is
    +--+--+

x points right, y up, the origin is the drawing's lower left corner. A drawing is refused unless
every start reaches the goal and nothing that a start reaches lies open to the outside.

The distance to the goal is the geodesic one, of a point that keeps `_MARGIN` away from the walls: a
shortest path over a grid of 5 cm with moves in 16 directions, which is at most 2.8 % too long, and
bilinear in between. It serves the reward alone and is never observed.
"""

import heapq
import itertools
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from kcpr_safety.errors import CardError

CELL = 1.0  # [m]
THICKNESS = 0.10  # of a wall [m]

_GRID = 0.05  # [m]
_MARGIN = 0.03  # [m]
_MOVES = [
    (i, j, math.hypot(i, j) * _GRID)
    for i, j in itertools.product(range(-2, 3), repeat=2)
    if math.gcd(i, j) == 1
]

Cell = tuple[int, int]
"""Line of cells from the top, column from the left."""


@dataclass(frozen=True)
class Plan:
    """A maze in metres."""

    walls: Float[np.ndarray, "walls 4"]
    """x_low, y_low, x_high, y_high of each [m]; they overlap where they meet."""
    goal: Float[np.ndarray, " 2"]
    starts: Float[np.ndarray, "starts 2"]
    """Centres of the cells in which episodes start."""
    size: tuple[float, float]
    """Width and height of the drawing [m]."""
    field: Float[np.ndarray, "columns rows"]
    """Geodesic distance to the goal [m] at the nodes of the grid; infinite in walls."""

    def clearance(self, points: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, " points"]:
        """Distance from each point to the nearest wall [m]; 0 inside one."""
        low, high = self.walls[:, :2], self.walls[:, 2:]
        at = points[:, None]
        outside = np.maximum(np.maximum(low - at, at - high), 0.0)
        nearest: np.ndarray = np.sqrt((outside**2).sum(axis=2)).min(axis=1)
        return nearest

    def to_goal(self, points: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, " points"]:
        """Geodesic distance from each point to the goal [m]."""
        scaled = points / _GRID
        node = np.clip(scaled.astype(int), 0, np.array(self.field.shape) - 2)
        share = scaled - node
        (i, j), (u, v) = node.T, share.T
        field = self.field
        left = field[i, j] * (1 - v) + field[i, j + 1] * v
        right = field[i + 1, j] * (1 - v) + field[i + 1, j + 1] * v
        distance: np.ndarray = left * (1 - u) + right * u
        return distance


def plan_of(drawing: str, name: str) -> Plan:
    """The maze that is drawn; `name` is what a fault calls its card."""
    try:
        return _plan(drawing)
    except ValueError as error:
        raise CardError(f"{name}: {error}") from error


@lru_cache(maxsize=16)
def _plan(drawing: str) -> Plan:
    lines = textwrap.dedent(drawing).strip("\n").splitlines()
    width = max((len(line.rstrip()) for line in lines), default=0)
    rows, columns = len(lines) // 2, (width - 1) // 3
    if rows < 1 or columns < 1 or len(lines) % 2 == 0 or width % 3 != 1:
        raise ValueError(
            f"the maze's drawing has {len(lines)} lines of {width} characters; n cells high and m "
            "wide it needs 2 n + 1 lines of 3 m + 1"
        )
    text = [line.rstrip().ljust(width) for line in lines]
    _check_characters(text)
    goals, starts = _cells(text, "G"), _cells(text, "s")
    if len(goals) != 1 or not starts:
        raise ValueError(
            f"the maze's drawing has {len(goals)} goals (G) and {len(starts)} starts (s); it needs "
            "one goal and at least one start"
        )
    _check_reachable(text, goals[0], starts)

    def centre(cell: Cell) -> tuple[float, float]:
        return (cell[1] + 0.5) * CELL, (rows - cell[0] - 0.5) * CELL

    walls = np.array(list(_walls(text, rows)))
    plan = Plan(
        walls=walls,
        goal=np.array(centre(goals[0])),
        starts=np.array([centre(cell) for cell in starts]),
        size=(columns * CELL, rows * CELL),
        field=np.zeros((round(columns * CELL / _GRID) + 1, round(rows * CELL / _GRID) + 1)),
    )
    plan.field[:] = _geodesic(plan)
    return plan


def _check_characters(text: list[str]) -> None:
    for i, line in enumerate(text):
        for j, character in enumerate(line):
            on_line, on_column = i % 2 == 0, j % 3 == 0
            allowed = "+ " if on_line and on_column else "- " if on_line else "| "
            allowed = allowed if on_line or on_column else "sG "
            whole = not on_line or on_column or line[j] == line[j + (1 if j % 3 == 1 else -1)]
            if character not in allowed or not whole:
                raise ValueError(
                    f"the maze's drawing has {character!r} in line {i + 1}, column {j + 1}; walls "
                    "are '--' and '|' between '+', cells hold 's', 'G' or nothing"
                )


def _cells(text: list[str], mark: str) -> list[Cell]:
    return [
        (i // 2, j // 3)
        for i in range(1, len(text), 2)
        for j in range(0, len(text[0]) - 1, 3)
        if mark in text[i][j + 1 : j + 3]
    ]


def _check_reachable(text: list[str], goal: Cell, starts: list[Cell]) -> None:
    """Flood from the goal through every edge without a wall."""
    rows, columns = len(text) // 2, (len(text[0]) - 1) // 3
    reached, front = {goal}, [goal]
    while front:
        i, j = front.pop()
        for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            edge = text[2 * i + 1 + di][3 * j + 1] if di else text[2 * i + 1][3 * (j + (dj > 0))]
            if edge != " ":
                continue
            cell = (i + di, j + dj)
            if not (0 <= cell[0] < rows and 0 <= cell[1] < columns):
                raise ValueError(
                    f"the maze is open to the outside at the cell in line {2 * i + 2}, column "
                    f"{3 * j + 2} of its drawing"
                )
            if cell not in reached:
                reached.add(cell)
                front.append(cell)
    for i, j in starts:
        if (i, j) not in reached:
            raise ValueError(
                f"the goal cannot be reached from the start in line {2 * i + 2}, column "
                f"{3 * j + 2} of the maze's drawing"
            )


def _walls(text: list[str], rows: int) -> Iterable[tuple[float, float, float, float]]:
    """Runs of wall as boxes, half a thickness longer than their edges on either end."""
    half = THICKNESS / 2
    for i in range(0, len(text), 2):
        y = (rows - i // 2) * CELL
        for start, stop in _runs(text[i][1::3]):
            yield start * CELL - half, y - half, stop * CELL + half, y + half
    for j in range(0, len(text[0]), 3):
        x = j // 3 * CELL
        for start, stop in _runs("".join(line[j] for line in text[1::2])):
            yield x - half, (rows - stop) * CELL - half, x + half, (rows - start) * CELL + half


def _runs(edges: str) -> Iterable[tuple[int, int]]:
    """First and last-but-one place of each stretch that is not blank."""
    place = 0
    for is_wall, stretch in itertools.groupby(edges, key=lambda edge: edge != " "):
        length = len(list(stretch))
        if is_wall:
            yield place, place + length
        place += length


def _geodesic(plan: Plan) -> Float[np.ndarray, "columns rows"]:
    """Dijkstra's shortest paths from the goal over the grid."""
    columns, rows = plan.field.shape
    nodes = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"), axis=-1)
    free = plan.clearance(nodes.reshape(-1, 2) * _GRID).reshape(columns, rows) >= _MARGIN
    distance = np.full((columns, rows), np.inf)
    first = (round(plan.goal[0] / _GRID), round(plan.goal[1] / _GRID))
    distance[first] = 0.0
    front = [(0.0, first)]
    while front:
        so_far, (i, j) = heapq.heappop(front)
        if so_far > distance[i, j]:
            continue
        for di, dj, length in _MOVES:
            there = (i + di, j + dj)
            inside = 0 <= there[0] < columns and 0 <= there[1] < rows
            if inside and free[there] and so_far + length < distance[there]:
                distance[there] = so_far + length
                heapq.heappush(front, (so_far + length, there))
    return distance
