"""What does an environment of goals want, and what would it pay for another one?

Gymnasium-Robotics' convention: observations are a dictionary with `achieved_goal` and
`desired_goal`, and `compute_reward(achieved, desired, info)` takes whole batches.
"""

from typing import Any

import gymnasium
import numpy as np

from kcpr_safety.envs.plainly import said_plainly
from kcpr_safety.errors import EnvironmentFault
from kcpr_safety.goals import Goal


def goal_of(task: str, env: Any) -> Goal | None:
    """The goal in the flattened observations of an environment; None where it has none."""
    inner = getattr(env, "inner", env)
    space, compute = inner.observation_space, getattr(inner.unwrapped, "compute_reward", None)
    if not isinstance(space, gymnasium.spaces.Dict) or compute is None:
        return None
    places: dict[str, tuple[int, ...]] = {}
    start = 0
    for key, part in space.spaces.items():
        stop = start + gymnasium.spaces.flatdim(part)
        places[key], start = tuple(range(start, stop)), stop
    achieved, desired = (places.get(key, ()) for key in ("achieved_goal", "desired_goal"))
    if not achieved or len(achieved) != len(desired):
        return None

    def reward(reached: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        with said_plainly(task, "compute_reward, for goals in hindsight"):
            paid = np.asarray(compute(reached, wanted, {}), dtype=np.float64)
        if paid.shape != reached.shape[:1] or not np.isfinite(paid).all():
            raise EnvironmentFault(
                f"{task}: compute_reward gives {paid.shape} for goals {reached.shape}; hindsight "
                "needs one finite number for each row"
            )
        return paid

    return Goal(achieved, desired, reward)
