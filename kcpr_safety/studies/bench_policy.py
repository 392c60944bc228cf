"""How long does a bundle's controller take for one answer, in every form that it can run in?

Once per control period, each form in a slot of its own with sleep between, as a robot asks; first
the forms that Python drives, then those of the C++ program, each group beside an empty timed loop
and a bare network of the reward module's size (`policy_forms`).

    cold        the very first call of that form in its process
    p50 ... max  one call per period, after a warm-up; percentiles are observed times
    hot         median of calls back to back: no sleep, caches full
    rehearsed   the same call is made, untimed, half a millisecond before its time

What cannot run here is left out, with one sentence that says why. One thread, and before other
programs (SCHED_FIFO) where the system permits it, as a robot's loop runs.
"""

import gc
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from kcpr_safety.assured import assured
from kcpr_safety.deploy.archive import quiet
from kcpr_safety.deploy.bundle import export_bundle
from kcpr_safety.deploy.c_header import c_header, sealed_policy
from kcpr_safety.deploy.keys import trusted_keys
from kcpr_safety.deploy.manifest import open_sealed
from kcpr_safety.deploy.native import robot_program
from kcpr_safety.errors import FileFault, KcprError, SettingsError
from kcpr_safety.evidence import LATENCY_FILE
from kcpr_safety.files import atomic_write
from kcpr_safety.studies.policy_forms import BARE_FILE, Call, c_floor, python_forms
from kcpr_safety.training.evaluation import torch_threads

DEFAULT_TICKS = 1000
_WARM_UP = 100
_SIDES = ("python", "cpp")

Figures = dict[str, float]


@dataclass(frozen=True)
class PolicyBench:
    """What `bench_policy` measured."""

    task: str
    period_s: float
    ticks: int
    latency: Mapping[str, Figures]
    """Name -> p50_us, p99_us, p999_us, max_us, cold_us, hot_us."""
    absent: Mapping[str, str]
    """Name of a form that could not run -> why, in one sentence."""

    @property
    def act_over_bare(self) -> Figures:
        """Median time of `act`, in bare forwards that are called alike."""
        return {
            f"{side}, {words}": self.latency[f"act_torchscript_{side}"][key]
            / self.latency[f"bare_torchscript_{side}"][key]
            for side in _SIDES
            if f"bare_torchscript_{side}" in self.latency
            for key, words in (("p50_us", "once per period"), ("hot_us", "back to back"))
        }

    @property
    def p999_over_empty_us(self) -> Figures:
        """99.9th percentile of `act` above that of the empty loop beside it [us]."""
        told = {
            side: (f"act_torchscript_{side}", f"empty_{side}")
            for side in _SIDES
            if f"empty_{side}" in self.latency
        }
        if "act_rehearsed_cpp" in self.latency:
            told["cpp, rehearsed"] = ("act_rehearsed_cpp", "empty_cpp")
        return {
            name: self.latency[form]["p999_us"] - self.latency[empty]["p999_us"]
            for name, (form, empty) in told.items()
        }

    def record(self) -> dict[str, Any]:
        """Name -> figures, and what they were measured with: a run's `latency.json`."""
        return {
            **{name: dict(row) for name, row in self.latency.items()},
            "absent": dict(self.absent),
            "act_over_bare": self.act_over_bare,
            "p999_over_empty_us": self.p999_over_empty_us,
            "task": self.task,
            "period_s": self.period_s,
            "ticks": self.ticks,
            "threads": 1,
            "real_time_priority": real_time_priority(),
            "processor": processor(),
            "torch": torch.__version__,
        }


def bench_policy(
    bundle: Path, ticks: int = DEFAULT_TICKS, trust: Iterable[Path] = ()
) -> PolicyBench:
    """Measure every form of a bundle's `act` that runs here, `ticks` control periods each group."""
    if ticks < 1:
        raise SettingsError(f"{ticks} periods are none to measure; give at least 1")
    bundle = Path(bundle)
    sealed = open_sealed(bundle, trusted_keys(trust))
    policy, assurance = sealed_policy(bundle, sealed.contents)
    period_s = policy.contract.period_s
    with TemporaryDirectory() as folder, torch_threads(), torch.inference_mode(), quiet():
        scratch = Path(folder)
        eager = assured(policy, assurance)
        calls, absent = python_forms(sealed.contents, policy, eager, scratch)
        latency = measure(calls, ticks, period_s)
        public = scratch / f"{sealed.key.id}.pub"
        public.write_text(f"{sealed.key.data.hex()}\n")
        try:
            header = c_header(policy, assurance)
            latency |= _cpp_forms(bundle, public, header, ticks)
        except KcprError as error:
            absent["act_torchscript_cpp"] = str(error)
    return PolicyBench(policy.task, period_s, ticks, latency, absent)


def bench_run(run: Path, ticks: int = DEFAULT_TICKS) -> PolicyBench:
    """The same of the bundle that a run would be exported as; leaves `latency.json` in the run."""
    with TemporaryDirectory() as folder:
        bundle = Path(export_bundle(run, Path(folder) / "bundle")["path"])
        done = bench_policy(bundle, ticks)
    text = json.dumps(done.record(), sort_keys=True, indent=1, allow_nan=False)
    atomic_write(Path(run) / LATENCY_FILE, f"{text}\n".encode())
    return done


def real_time_priority() -> bool:
    """Whether a process may run before others here."""
    with _urgent() as permitted:
        return permitted


def processor() -> str:
    """What the machine's processor calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure(
    calls: Mapping[str, Call], ticks: int, period_s: float, hot_calls: int = 2000
) -> dict[str, Figures]:
    """Latency of each call [us], as the head of this file says."""
    cold = {name: _timed(call) for name, call in calls.items()}
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    slot = period_s / len(calls)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with _no_collection(), _urgent():
        due = time.perf_counter()
        for _ in _shown(ticks, "forms that Python drives"):
            for name, call in calls.items():
                due += slot
                _wait_until(due)
                times[name].append(_timed(call))
        hot = {name: [_timed(call) for _ in range(hot_calls)] for name, call in calls.items()}
    return {
        name: {
            "p50_us": percentile(own, 0.5),
            "p99_us": percentile(own, 0.99),
            "p999_us": percentile(own, 0.999),
            "max_us": max(own),
            "cold_us": cold[name],
            "hot_us": percentile(hot[name], 0.5),
        }
        for name, own in times.items()
    }


def percentile(times: list[float], share: float) -> float:
    """The smallest of `times` that at least `share` of them do not exceed."""
    return sorted(times)[max(math.ceil(share * len(times)), 1) - 1]


def _cpp_forms(bundle: Path, public: Path, header: str, ticks: int) -> dict[str, Figures]:
    """The same from the C++ program, beside bare network and generated C of `public`'s folder."""
    with Console(stderr=True).status("building the C++ program (once, about 40 s)"):
        program, floor = robot_program(), c_floor(header, public.parent)
    command = [str(program), "bench", str(bundle), "--trust", str(public), "--ticks", str(ticks)]
    command += ["--bare", str(public.parent / BARE_FILE), "--floor", str(floor)]
    with (
        _urgent(),
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stderr is not None
        # A dot for each per cent; whatever else comes is a complaint.
        said = b""
        for _ in _shown(100, "forms of the C++ program"):
            said += child.stderr.read(1)
        said += child.stderr.read()
        out = child.stdout.read()
    if child.returncode != 0:
        raise FileFault(said.strip(b".").decode().strip())
    figures: dict[str, Figures] = json.loads(out)
    return figures


def _wait_until(due: float) -> None:
    """Sleep, and spin through the last millisecond: a late awakening is not the call's."""
    time.sleep(max(0.0, due - 1e-3 - time.perf_counter()))
    while time.perf_counter() < due:
        pass


def _timed(call: Call) -> float:
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e3


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _urgent() -> Iterator[bool]:
    """Within: real-time priority, which children inherit; whether the system permitted it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, OSError):
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _shown(count: int, words: str) -> Iterable[int]:
    """`range(count)` with a bar and the time that is left, on stderr."""
    console = Console(stderr=True)
    return track(range(count), words, console=console, disable=not console.is_terminal)
