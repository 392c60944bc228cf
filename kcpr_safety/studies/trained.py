"""How does a run come to its end whatever happened to it before?"""

from pathlib import Path
from typing import Any

from kcpr_safety import api
from kcpr_safety.training.checkpoints import CONFIG_FILE, read_counters


def train_to_end(folder: Path, task: str, **options: Any) -> None:
    """Train from nothing, from the run's checkpoint, or not at all where it had ended.

    `options` are those of `api.train`; a run that was begun keeps the ones that it began with.
    """
    if not (folder / CONFIG_FILE).is_file():
        api.train(task, out=folder, **options)
    elif not read_counters(folder).finished:
        api.resume(folder)
