"""What is a grid-world with rewards and punishments, as a drawing and as exact tensors?

    #  wall        .  floor        S  start (one of several is drawn)      G  goal: ends the episode
    x  hazard: punished at every step that ends there
    p  pit: punished, and the next step begins at a start

Four moves, of which a blocked one stays. With slip s a move goes aside with probability s, to
either hand alike. Every step pays `step_reward`, and reaching the goal `goal_reward` on top. The
tensors P, r, c are those of the very outcomes that the environments draw from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kcpr_safety.errors import SettingsError, UnknownNameError

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""(rows, columns) of each action: up, right, down, left."""
MOVE_NAMES = ("up", "right", "down", "left")
ARROWS = "↑→↓←"
_SYMBOLS = "#.SGxp"


@dataclass(frozen=True)
class Outcomes:
    """What each (state, action) may lead to, [S, A, K]; the K probabilities sum to 1."""

    probability: np.ndarray
    following: np.ndarray
    reward: np.ndarray
    punishment: np.ndarray


@dataclass(frozen=True)
class Grid:
    """A drawing with its numbers; refused where no start can reach the goal."""

    name: str
    title: str
    drawing: tuple[str, ...]
    slip: float = 0.0
    step_reward: float = -0.02
    goal_reward: float = 1.0
    hazard_punishment: float = 0.2
    time_limit: int = 100
    gamma: float = 0.95

    def __post_init__(self) -> None:
        if not self.drawing or len({len(row) for row in self.drawing}) != 1:
            raise SettingsError(f"grid {self.name}: every row of the drawing must be as long")
        strange = sorted(set("".join(self.drawing)) - set(_SYMBOLS))
        if strange:
            raise SettingsError(
                f"grid {self.name}: '{strange[0]}' means nothing; a drawing is made of {_SYMBOLS}"
            )
        if not 0.0 <= self.slip < 1.0:
            raise SettingsError(f"grid {self.name}: slip is {self.slip}; it must lie in [0, 1)")
        if not self.starts or self.goal is None:
            raise SettingsError(f"grid {self.name}: a drawing needs a start S and one goal G")
        for start in self.starts:
            if self.goal not in self._reachable(start):
                row, column = self.cells[start]
                raise SettingsError(
                    f"grid {self.name}: the goal cannot be reached from the start in row {row}, "
                    f"column {column}"
                )

    # ---------------------------------------------------------------------------------- the map

    @cached_property
    def cells(self) -> list[tuple[int, int]]:
        """(row, column) of each state; walls and pits are none."""
        return [
            (r, c)
            for r, row in enumerate(self.drawing)
            for c, symbol in enumerate(row)
            if symbol not in "#p"
        ]

    @cached_property
    def index(self) -> dict[tuple[int, int], int]:
        """State of each cell."""
        return {cell: state for state, cell in enumerate(self.cells)}

    @property
    def states(self) -> int:
        return len(self.cells)

    def symbol(self, row: int, column: int) -> str:
        """What is drawn there; beyond the drawing there are walls."""
        inside = 0 <= row < len(self.drawing) and 0 <= column < len(self.drawing[0])
        return self.drawing[row][column] if inside else "#"

    @cached_property
    def starts(self) -> list[int]:
        return [state for state, cell in enumerate(self.cells) if self.symbol(*cell) == "S"]

    @cached_property
    def goal(self) -> int | None:
        found = [state for state, cell in enumerate(self.cells) if self.symbol(*cell) == "G"]
        return found[0] if len(found) == 1 else None

    # ---------------------------------------------------------------------------------- numbers

    @cached_property
    def outcomes(self) -> Outcomes:
        """All that can happen: the move itself, to its left, to its right, and from pits a start.

        A pit leads to each start alike, which multiplies the columns by their number.
        """
        ways = [(1.0 - self.slip, 0), (self.slip / 2, -1), (self.slip / 2, 1)]
        ways = ways if self.slip else ways[:1]
        shape = (self.states, len(MOVES), len(ways) * len(self.starts))
        found = [np.zeros(shape), np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)]
        for state, cell in enumerate(self.cells):
            for action in range(len(MOVES)):
                column = 0
                for chance, turn in ways:
                    for start in self.starts:
                        row = self._outcome(state, cell, (action + turn) % len(MOVES), start)
                        for array, value in zip(
                            found, (chance / len(self.starts), *row), strict=True
                        ):
                            array[state, action, column] = value
                        column += 1
        return Outcomes(*found)

    def _outcome(
        self, state: int, cell: tuple[int, int], move: int, start: int
    ) -> tuple[int, float, float]:
        """(next state, reward, punishment) of one move."""
        if state == self.goal:
            return state, 0.0, 0.0
        there = (cell[0] + MOVES[move][0], cell[1] + MOVES[move][1])
        symbol = self.symbol(*there)
        if symbol == "#":
            there, symbol = cell, self.symbol(*cell)
        reward = self.step_reward + (self.goal_reward if symbol == "G" else 0.0)
        punishment = self.hazard_punishment if symbol in "xp" else 0.0
        return (start if symbol == "p" else self.index[there]), reward, punishment

    @cached_property
    def tensors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(P [S, A, S], r [S, A], c [S, A]): the goal returns to itself for nothing."""
        outcomes = self.outcomes
        transition = np.zeros((self.states, len(MOVES), self.states))
        state, action = np.indices(outcomes.following.shape)[:2]
        np.add.at(transition, (state, action, outcomes.following), outcomes.probability)
        return (
            transition,
            (outcomes.probability * outcomes.reward).sum(-1),
            (outcomes.probability * outcomes.punishment).sum(-1),
        )

    def _reachable(self, start: int) -> set[int]:
        found, ahead = {start}, [start]
        while ahead:
            row, column = self.cells[ahead.pop()]
            for down, right in MOVES:
                state = self.index.get((row + down, column + right))
                if state is not None and state not in found:
                    found.add(state)
                    ahead.append(state)
        return found


_CLIFF = ("#########", "#.......#", "#.......#", "#SpppppG#", "#########")

GRIDS = {
    grid.name: grid
    for grid in (
        Grid(
            "corridor",
            "Two routes: short and painful, long and safe",
            ("###########", "#S.xxxxx.G#", "#.#######.#", "#.........#", "###########"),
        ),
        Grid("cliff", "Along the edge of a cliff", _CLIFF, hazard_punishment=1.0),
        Grid(
            "rooms",
            "Four rooms, with hazards in the near door",
            (
                "###########",
                "#SS..#...G#",
                "#SS.xxx...#",
                "#....#....#",
                "#....#.x..#",
                "##.#####.##",
                "#....#....#",
                "#.x.......#",
                "#....#....#",
                "###########",
            ),
        ),
        Grid(
            "windy-cliff",
            "Along the edge of a cliff, where one step in ten goes aside",
            _CLIFF,
            slip=0.1,
            hazard_punishment=1.0,
        ),
    )
}


def grid_of(name: str) -> Grid:
    """The grid-world of that name."""
    if name not in GRIDS:
        raise UnknownNameError("grid-world", name, GRIDS)
    return GRIDS[name]


def read_drawing(lines: Sequence[str], name: str, like: Grid) -> Grid:
    """A grid from the lines of a drawing, with the numbers of another one."""
    rows = tuple(line.rstrip() for line in lines if line.strip())
    numbers = {
        key: getattr(like, key)
        for key in ("slip", "step_reward", "goal_reward", "hazard_punishment", "gamma")
    }
    return Grid(name, f"The drawing in {name}", rows, **numbers)
