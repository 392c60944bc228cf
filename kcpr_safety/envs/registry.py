"""Which tasks exist here, and how is a world made of one?"""

from dataclasses import dataclass

from kcpr_safety.cards import TaskCard, at_hand, card_names, find_card, load_card
from kcpr_safety.envs import gridworld, navigation, velocity
from kcpr_safety.envs.crew import default_threads
from kcpr_safety.envs.declared_world import DeclaredWorld
from kcpr_safety.envs.maze import MazeWorld
from kcpr_safety.envs.official import OfficialWorld, find_spec, registered_ids
from kcpr_safety.envs.quadruped import QuadrupedWorld
from kcpr_safety.envs.robot import RobotWorld
from kcpr_safety.envs.world import World
from kcpr_safety.seeds import EpisodeSeeds


@dataclass(frozen=True)
class TaskRow:
    """One line of the list of tasks."""

    task: str
    family: str
    has_card: bool
    path: str
    """"fast", "official" or "grid"."""
    obs_size: int | None = None
    """Numbers observed; None where the environment would have to be built to know."""
    action_size: int | None = None


def resolve(task: str) -> TaskCard:
    """The card of a task or a `.toml` file; for any other registered environment, the defaults."""
    if task in gridworld.TASKS:
        return gridworld.card_of(task)
    card = find_card(task)
    find_spec(task)
    if card is not None:
        return card
    return TaskCard(
        task=task,
        title=task,
        description="No card: every number is the default.",
        punishment="one unit of the environment's cost",
    )


def make_world(
    card: TaskCard,
    num_envs: int,
    *,
    episode_seeds: EpisodeSeeds,
    threads: int | None = None,
) -> World:
    """`num_envs` environments of a task, by the fast path where that is known to be exact.

    Without `threads`, one for each core that this process may use.
    """
    if card.task in gridworld.TASKS:
        return gridworld.GridWorld(gridworld.TASKS[card.task], num_envs, episode_seeds, card)
    if threads is None:
        threads = default_threads(num_envs)
    if card.maze is not None:
        return MazeWorld(card, card.maze, num_envs, episode_seeds, threads)
    if card.quadruped is not None:
        return QuadrupedWorld(card, card.quadruped, num_envs, episode_seeds, threads)
    if card.robot is not None:
        return RobotWorld(card, card.robot, num_envs, episode_seeds, threads)
    if card.punish:
        # They are built by the task's name, which means this card, wherever it lies.
        with at_hand(card):
            return DeclaredWorld(card, num_envs, episode_seeds)
    body = velocity.body_of(card.task)
    if body is not None:
        return velocity.VelocityWorld(card, body, num_envs, episode_seeds, threads)
    if navigation.is_known(card.task):
        return navigation.NavigationWorld(card, num_envs, episode_seeds, threads)
    return OfficialWorld(card, num_envs, episode_seeds)


def registered_tasks() -> list[TaskRow]:
    """Every task of Safety-Gymnasium, with the path that it takes here, and all of our own."""
    cards = card_names()
    loaded = {task: load_card(task) for task in cards}
    mazes = [task for task, card in loaded.items() if card.maze is not None]
    walks = [task for task, card in loaded.items() if card.quadruped is not None]
    bodies = [task for task, card in loaded.items() if card.punish]
    grids = [
        TaskRow(task, gridworld.FAMILY, False, gridworld.FAMILY, grid.states, 2)
        for task, grid in gridworld.TASKS.items()
    ]
    return [
        *(TaskRow(task, "maze", True, MazeWorld.path) for task in mazes),
        *(TaskRow(task, "declared", True, DeclaredWorld.path) for task in bodies),
        *(TaskRow(task, "quadruped", True, QuadrupedWorld.path) for task in walks),
        *(TaskRow(task, family(task), task in cards, path(task)) for task in registered_ids()),
        *grids,
    ]


def family(task: str) -> str:
    """Navigation, velocity or vision."""
    if "Vision" in task:
        return "vision"
    return "velocity" if "Velocity" in task else "navigation"


def path(task: str) -> str:
    """By which path a world of this task steps."""
    return "fast" if velocity.body_of(task) or navigation.is_known(task) else "official"
