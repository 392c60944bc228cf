"""Which worlds can an agent be trained in?

card = envs.resolve("SafetyPointGoal1-v0")
world = envs.make_world(card, 16, episode_seeds=training_seeds(0))
obs, _ = world.reset()
obs, reward, terminated, truncated, infos = world.step(action)
"""

import kcpr_safety.envs.engine  # noqa: F401 (first: says what is missing where MuJoCo cannot load)
from kcpr_safety.envs.conformance import Finding, check_environment
from kcpr_safety.envs.official import make_official
from kcpr_safety.envs.registry import TaskRow, make_world, registered_tasks, resolve
from kcpr_safety.envs.world import UnstablePhysicsWarning, World

__all__ = [
    "Finding",
    "TaskRow",
    "UnstablePhysicsWarning",
    "World",
    "check_environment",
    "make_official",
    "make_world",
    "registered_tasks",
    "resolve",
]
