"""Which agents, worlds, seeds and ablations does `reproduce rprl` compare, and with what numbers?

Every agent has the same networks, optimiser, replay size, exploration, temperature (if any) and
number of steps. The one number that an agent has of its own is the weight of punishment, and each
agent's was chosen the same way: the best mean of return - punishment of three candidates, on tuning
seeds that the comparison does not use (scripts/tune_rprl.py; docs/rprl.md).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from kcpr_safety.agents.discrete_settings import DiscreteSettings, discrete_settings
from kcpr_safety.agents.families import family_of
from kcpr_safety.envs.grids import GRIDS, grid_of
from kcpr_safety.studies.rprl_cells import Cell

COMMON: Mapping[str, Any] = {
    "normalise": False,
    "width": 32,
    "batch": 128,
    "num_envs": 8,
    "random_steps": 400,
    "updates_per_step": 0.25,
    "learning_rate": 3e-3,
    "target_rate": 0.05,
    "exploration": 0.05,
}
"""The same for every agent on every grid-world."""

TAU = {"reward_temperature": 0.05, "punishment_temperature": 0.05}
"""Of every soft agent; chosen before anything was compared."""

TUNABLE: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "dqn": tuple({"scalarised": weight} for weight in (0.3, 0.6, 1.0)),
    "sql": tuple({**TAU, "scalarised": weight} for weight in (0.3, 0.6, 1.0)),
    "dmp": tuple({"mixing": 1.0 / (1.0 + weight)} for weight in (0.3, 0.6, 1.0)),
    "softdmp": tuple({**TAU, "mixing": 1.0 / (1.0 + weight)} for weight in (0.3, 0.6, 1.0)),
    "kldmp": tuple({**TAU, "softening": weight} for weight in (0.3, 0.6, 0.9)),
}
"""Three weights of punishment for each agent, in its own terms: r - lambda c, Q_R + lambda Q_P
by the mixture, or lambda = b. The replay designs of klDMP take what klDMP got."""

_CHOSEN = {"dqn": 1, "sql": 1, "dmp": 1, "softdmp": 0, "kldmp": 2}
"""What `scripts/tune_rprl.py` found: the index of the best candidate."""

TUNED: Mapping[str, Mapping[str, Any]] = {
    name: TUNABLE[name][index] for name, index in _CHOSEN.items()
}

MAIN = ("dqn", "sql", "dmp", "softdmp", "kldmp", "kldmp-routed", "kldmp-split")
SOFTENINGS = (0.3, 0.6, 0.9, 0.97)
ABLATED_WORLDS = ("corridor", "windy-cliff")

SEEDS = tuple(range(20, 30))
STEPS = 8_000
QUICK_SEEDS = (20, 21, 22)
MAZE, MAZE_CONTINUOUS = "MazeLDiscrete-v0", "MazeL-v0"
MAZE_AGENTS = ("dqn", "sql", "dmp", "softdmp", "kldmp")
MAZE_SEEDS = tuple(range(5))
MAZE_STEPS = 60_000
QUICK_STEPS = 4_000


def settings_of(agent: str, world: str, steps: int, own: Mapping[str, Any]) -> DiscreteSettings:
    """The common numbers, the world's discount, and the agent's own."""
    numbers = {**COMMON, "gamma": grid_of(world).gamma, "exploration_steps": steps // 2, **own}
    return discrete_settings(agent, numbers)


def main_cells(worlds: tuple[str, ...], seeds: tuple[int, ...], steps: int) -> list[Cell]:
    """Every agent on every world."""
    return [
        Cell(
            world,
            agent,
            settings_of(agent, world, steps, TUNED[agent.split("-")[0]]),
            seeds,
            steps,
        )
        for world in worlds
        for agent in MAIN
    ]


def ablations(base: DiscreteSettings) -> dict[str, DiscreteSettings]:
    """klDMP with one thing changed: name -> settings."""
    found = {"coupling off (b 0)": replace(base, softening=0.0)}
    for softening in SOFTENINGS:
        # eta = h / (1 - b^2), hence tau = (1 / eta) / (1 - b^2).
        ratio = (1.0 - base.softening**2) / (1.0 - softening**2)
        found[f"b {softening}, equal h"] = replace(base, softening=softening)
        found[f"b {softening}, equal eta"] = replace(
            base,
            softening=softening,
            reward_temperature=base.reward_temperature * ratio,
            punishment_temperature=base.punishment_temperature * ratio,
        )
    ratio = 1.0 - base.softening**2
    found["coupling off (b 0), equal eta"] = replace(
        base,
        softening=0.0,
        reward_temperature=base.reward_temperature * ratio,
        punishment_temperature=base.punishment_temperature * ratio,
    )
    found["companion from its own Q"] = replace(base, companion="own")
    return {name: settings for name, settings in found.items() if settings != base}


def ablation_cells(worlds: tuple[str, ...], seeds: tuple[int, ...], steps: int) -> list[Cell]:
    """Every ablation on each of these worlds."""
    return [
        Cell(world, f"kldmp, {name}", settings, seeds, steps)
        for world in worlds
        for name, settings in ablations(settings_of("kldmp", world, steps, TUNED["kldmp"])).items()
    ]


@dataclass(frozen=True)
class MazeCell:
    """One agent's run on a maze: the agents as `train` has them, without numbers of their own."""

    world: str
    variant: str
    """Agent."""
    seed: int
    steps: int

    weight = 30

    @property
    def key(self) -> dict[str, Any]:
        settings = asdict(family_of(self.variant).settings(self.variant, {}, self.steps))
        return {**asdict(self), "settings": settings}


def maze_cells() -> list[MazeCell]:
    """Every agent on one maze; kcpr on the same maze with continuous actions."""
    discrete = [
        MazeCell(MAZE, agent, seed, MAZE_STEPS) for seed in MAZE_SEEDS for agent in MAZE_AGENTS
    ]
    return [
        *discrete,
        *(MazeCell(MAZE_CONTINUOUS, "kcpr", seed, MAZE_STEPS) for seed in MAZE_SEEDS),
    ]


def plan(quick: bool) -> list[Cell]:
    """All cells of the grid-worlds."""
    if quick:
        return main_cells(ABLATED_WORLDS, QUICK_SEEDS, QUICK_STEPS)
    return [
        *main_cells(tuple(GRIDS), SEEDS, STEPS),
        *ablation_cells(ABLATED_WORLDS, SEEDS, STEPS),
    ]
