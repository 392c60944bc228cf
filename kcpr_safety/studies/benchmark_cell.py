"""How does one cell of a benchmark come to be one row, exactly once, in a process of its own?

    python -m kcpr_safety.studies.benchmark_cell < {"out": ..., "cell": {...}}

Under a lock of the cell: nothing where the row is there; otherwise train to the end (from the
run's checkpoint, if there is one), evaluate, and write the row in one piece. The process lives as
long as whoever started it holds its standard input open: when that ends, however it ends, training
saves and stops within a second or so, and the lock is free for the next who comes.
"""

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kcpr_safety.errors import EXIT_CODE, KcprError
from kcpr_safety.files import atomic_write, faults_of
from kcpr_safety.report.collection import CELLS
from kcpr_safety.studies.suites import Cell

RUNS, LOCKS, LOGS = "runs", "locks", "logs"


def row_path(out: Path, name: str) -> Path:
    return out / CELLS / f"{name}.json"


def run_cell(cell: Cell, out: Path) -> None:
    """Make sure that the cell's row is there."""
    from kcpr_safety import api
    from kcpr_safety.report.runs import read_run
    from kcpr_safety.report.trials import row_of
    from kcpr_safety.studies.trained import train_to_end

    path, run = row_path(out, cell.name), out / RUNS / cell.name
    with _alone(out / LOCKS / cell.name):
        if path.exists():
            return
        train_to_end(
            run,
            cell.task,
            agent=cell.agent,
            steps=cell.steps,
            seed=cell.seed,
            overrides=cell.overrides,
            # One core a cell: bits depend on the number of threads, and cells share the machine.
            threads=1,
        )
        api.evaluate(run, episodes=cell.episodes)
        row = row_of(read_run(run), cell.label, cell.overrides)
        atomic_write(path, json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Within: no other process works on this cell; waits until that is so."""
    with faults_of(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        os.close(descriptor)


def _stop_with_parent(descriptor: int) -> None:
    """Ask this process to end when nobody holds the other side any more."""
    while os.read(descriptor, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    order = json.loads(sys.stdin.buffer.readline())
    watcher = threading.Thread(target=_stop_with_parent, args=(sys.stdin.fileno(),), daemon=True)
    watcher.start()
    try:
        run_cell(Cell(**order["cell"]), Path(order["out"]))
    except KcprError as fault:
        print(fault, file=sys.stderr)
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
