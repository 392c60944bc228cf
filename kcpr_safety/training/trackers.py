"""Which services may watch a training, beside the run's own file?

Each is a sink (`sinks`): rows go to it as numbers by step, named `kind/key`. Weights & Biases and
MLflow are extras (`wandb`, `mlflow`); both write where they are configured to by their own
environment variables (WANDB_MODE=offline and MLFLOW_TRACKING_URI, for instance), and nothing of
theirs is read back. A resumed run goes on under the same name.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kcpr_safety.errors import MissingPackageError, UnknownNameError
from kcpr_safety.training.sinks import Row, Sink, TensorBoard

PROJECT = "kcpr-safety"


def numbers_of(row: Row) -> dict[str, float]:
    """The row's numbers, `kind/key` each; what is no number is left to the run's own file."""
    return {
        f"{row['kind']}/{key}": float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and key != "steps"
    }


def identity(run: Path) -> str:
    """The same for a run and what resumes it."""
    return hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]


class WeightsAndBiases:
    """Rows for Weights & Biases; needs the extra `wandb`."""

    def open(self, run: Path, task: str, total_steps: int, budget: float) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingPackageError("wandb", "pip install 'kcpr-safety[wandb]'") from error
        self._run = wandb.init(
            project=PROJECT,
            name=run.name,
            id=identity(run),
            resume="allow",
            dir=str(run),
            config={"task": task, "steps": total_steps, "budget": budget},
        )

    def write(self, row: Row) -> None:
        self._run.log(numbers_of(row), step=int(row["steps"]))

    def close(self) -> None:
        if hasattr(self, "_run"):
            self._run.finish()


class MLflow:
    """Rows for MLflow; needs the extra `mlflow`."""

    def open(self, run: Path, task: str, total_steps: int, budget: float) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingPackageError("mlflow", "pip install 'kcpr-safety[mlflow]'") from error
        self._mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=run.name, tags={"identity": identity(run)})
        mlflow.log_params({"task": task, "steps": total_steps, "budget": budget})

    def write(self, row: Row) -> None:
        self._mlflow.log_metrics(numbers_of(row), step=int(row["steps"]))

    def close(self) -> None:
        if hasattr(self, "_mlflow"):
            self._mlflow.end_run()


TRACKERS: Mapping[str, Callable[[], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def trackers(names: Sequence[str]) -> list[Sink]:
    """A sink for each name; an unknown one is told with the known ones."""
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, TRACKERS)
    return [TRACKERS[name]() for name in dict.fromkeys(names)]
