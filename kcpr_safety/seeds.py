"""Which seed does an episode start from, and what may be learned or tuned on it?

Every episode of every world is reset with an explicit seed from one of four ranges that never
meet, so that no policy is trained or selected on an episode that it is later judged by:

    training    0 ..  7,999     drawn by (run seed, environment, episode)
    validation  8,000 .. 9,499  chooses the policy that is kept
    calibration 9,500 .. 9,999  sets ranges and thresholds of the policy that was kept
    evaluation  10,000 ..       judges; nothing is ever tuned on it

A schedule is a pure function `(environment index, episode index) -> seed`: a world only has to
count its episodes, and a resumed run meets the same episodes as one that was never stopped.
"""

from collections.abc import Callable

import numpy as np

from kcpr_safety.errors import SettingsError

EpisodeSeeds = Callable[[int, int], int]

TRAINING_SEEDS = 8_000
FIRST_VALIDATION_SEED = 8_000
FIRST_CALIBRATION_SEED = 9_500
FIRST_EVALUATION_SEED = 10_000
VALIDATION_SEEDS = FIRST_CALIBRATION_SEED - FIRST_VALIDATION_SEED
CALIBRATION_SEEDS = FIRST_EVALUATION_SEED - FIRST_CALIBRATION_SEED


def training_seeds(run_seed: int) -> EpisodeSeeds:
    """Schedule of a training run: reproducible, spread over all training seeds."""
    if not 0 <= run_seed < FIRST_VALIDATION_SEED:
        raise SettingsError(
            f"seed {run_seed} is not a training seed; choose one in 0..{TRAINING_SEEDS - 1} "
            f"(validation and evaluation seeds begin at {FIRST_VALIDATION_SEED})"
        )

    def seed(environment: int, episode: int) -> int:
        stream = np.random.SeedSequence([run_seed, environment, episode])
        return int(stream.generate_state(1)[0]) % TRAINING_SEEDS

    return seed


def consecutive_seeds(first: int, num_envs: int) -> EpisodeSeeds:
    """Schedule first, first + 1, ... dealt over `num_envs` environments, as evaluations use it."""
    return lambda environment, episode: first + environment + episode * num_envs


def evaluation_seeds(first: int, num_envs: int) -> EpisodeSeeds:
    """`consecutive_seeds` that refuses seeds which training or validation may have seen."""
    if first < FIRST_EVALUATION_SEED:
        raise SettingsError(
            f"evaluation seed {first} may have been trained on; use {FIRST_EVALUATION_SEED} or more"
        )
    return consecutive_seeds(first, num_envs)
