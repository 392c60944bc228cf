"""Where do the cells of a benchmark run: in processes here, or on a Ray cluster?

Both start the very same process for a cell (`benchmark_cell`), with the same number of threads, so
that the same seeds give the same rows. On a cluster the output folder must be one that all its
machines share (a cell resumes from files there), and the package must be installed on them.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from kcpr_safety.errors import EnvironmentFault, MissingPackageError
from kcpr_safety.files import faults_of
from kcpr_safety.studies.benchmark_cell import LOGS
from kcpr_safety.studies.suites import Cell

_PATIENCE_S = 60.0
"""For a training to save itself when it is asked to stop."""
_MODULE = "kcpr_safety.studies.benchmark_cell"


class Job(Protocol):
    """A cell that was started."""

    def ended(self) -> str | None:
        """None while it runs; then "" or what went wrong, in one sentence."""
        ...

    def stop(self) -> None:
        """Let it save and end; returns when it has ended."""
        ...


class Place(Protocol):
    """Something that cells run on."""

    slots: int
    """Cells at once."""

    def start(self, cell: Cell, out: Path) -> Job: ...

    def close(self) -> None: ...


class Process:
    """A cell in a process of its own."""

    def __init__(self, cell: Cell, out: Path) -> None:
        self._log = out / LOGS / f"{cell.name}.txt"
        with faults_of(f"cannot write {self._log}"):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with open(self._log, "wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", _MODULE],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    # A Ctrl-C is for the benchmark, which then closes the input.
                    start_new_session=True,
                )
        order = json.dumps({"out": str(out), "cell": asdict(cell)}) + "\n"
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it died at once; its log says why
            self._process.stdin.write(order.encode())
            self._process.stdin.flush()

    def ended(self) -> str | None:
        code = self._process.poll()
        return None if code is None else self._told(code)

    def wait(self) -> str:
        """Until it has ended; if interrupted, stops it first."""
        try:
            return self._told(self._process.wait())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _told(self, code: int) -> str:
        if code == 0:
            return ""
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        lines = [
            line for line in self._log.read_text(errors="replace").splitlines() if line.strip()
        ]
        return lines[-1].strip() if lines else f"ended with exit code {code}"


class Here:
    """Processes on this machine."""

    def __init__(self, jobs: int | None = None) -> None:
        self.slots = jobs or os.cpu_count() or 1

    def start(self, cell: Cell, out: Path) -> Job:
        return Process(cell, out)

    def close(self) -> None:
        pass


class RayJob:
    """A cell that a Ray cluster was asked for."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def ended(self) -> str | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return str(self._ray.get(self._reference))
        except Exception as error:
            # Ray's own failures (a lost machine, an import) differ by version; each is a reason.
            return f"Ray: {str(error).strip().splitlines()[-1]}"

    def stop(self) -> None:
        self._ray.cancel(self._reference)
        with suppress(Exception):
            self._ray.get(self._reference, timeout=_PATIENCE_S)


class Cluster:
    """The machines of a Ray cluster; needs the extra `ray`."""

    def __init__(self, address: str, jobs: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingPackageError("ray", "pip install 'kcpr-safety[ray]'") from error
        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EnvironmentFault(
                f"no Ray cluster at '{address}': {str(error).strip().splitlines()[0]} "
                "(begin one with: ray start --head)"
            ) from error
        self.slots = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._work = ray.remote(num_cpus=1, max_retries=3)(work)

    def start(self, cell: Cell, out: Path) -> Job:
        return RayJob(self._ray, self._work.remote(asdict(cell), str(out.resolve())))

    def close(self) -> None:
        self._ray.shutdown()


def work(cell: dict[str, Any], out: str) -> str:
    """A cluster's worker: "" or what went wrong."""
    return Process(Cell(**cell), Path(out)).wait()
