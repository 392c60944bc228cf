"""Which command measures speed, and how are its figures shown?"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from kcpr_safety.cli import show
from kcpr_safety.cli.options import OPTIONAL, Count, Trust
from kcpr_safety.errors import KcprError


@dataclass(frozen=True)
class Bench:
    """Measure the speed of simulator, learner, training loop, or of a bundle's policy."""

    examples: ClassVar[str] = """
  kcpr-safety bench sim SafetyPointGoal1-v0
  kcpr-safety bench learner              kcpr and sac-lag beside the machine's limit (4 minutes)
  kcpr-safety bench loop --seconds 30
  kcpr-safety bench policy my-policy     latency of every form that runs here (minutes)
  kcpr-safety bench policy runs/demo     the same, and evidence for its bundle: latency.json
"""
    what: Annotated[Positional[str], arg(metavar="{sim,learner,loop,policy}")]
    """What to measure."""
    task: Annotated[
        Positional[str | None], arg(metavar="TASK|RUN|BUNDLE", help_behavior_hint=OPTIONAL)
    ] = None
    """The task to measure with; policy: a run, a bundle or the name of a shipped policy."""
    agent: Annotated[
        str | None, arg(metavar="{kcpr,sac,sac-lag,sac-pid,td3-lag}", help_behavior_hint=OPTIONAL)
    ] = None
    """The agent to measure with; not given: kcpr (loop), kcpr and sac-lag (learner)."""
    envs: Count = None
    """Environments side by side; not given: the default."""
    seconds: float = 10.0
    """How long to measure each part [s]."""
    device: str = "cpu"
    """Where learning happens."""
    ticks: Count = None
    """policy: control periods to measure in; not given: 1000."""
    trust: Trust = ()
    """policy: further public keys that a bundle may be signed with."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        if self.what == "policy":
            return self._policy(), 0
        from kcpr_safety.studies import bench

        given = self.task, self.agent, self.envs, self.seconds, self.device
        return bench.run(self.what, *given), 0

    def _policy(self) -> dict[str, Any]:
        """What `--json` prints is name -> figures, and nothing else."""
        from kcpr_safety import api
        from kcpr_safety.studies.bench_policy import DEFAULT_TICKS, bench_policy, bench_run

        if self.task is None:
            raise KcprError("name a run or a bundle to measure (help: kcpr-safety bench --help)")
        place, ticks = api.locate(self.task), DEFAULT_TICKS if self.ticks is None else self.ticks
        if (place / "manifest.json").exists():
            done = bench_policy(place, ticks, map(Path, self.trust))
        else:
            done = bench_run(place, ticks)
        for name, reason in done.absent.items():
            print(f"bench: without {name}: {reason}", file=sys.stderr)
        return dict(done.latency) if self.json else done.record()

    def show(self, record: dict[str, Any]) -> None:
        if self.what == "learner":
            show_learner(record)
            return
        if self.what == "policy":
            show_policy(record)
            return
        rows: list[tuple[str, object]] = []
        for key, value in record.items():
            nested = value.items() if isinstance(value, dict) else [("", value)]
            rows += [(f"{key} {inner}".strip(), figure) for inner, figure in nested]
        show.table(f"bench {self.what}", ("", ""), rows)


def show_policy(record: dict[str, Any]) -> None:
    """Microseconds of each form, then what they are beside the empty loop and a bare network."""
    figures = ("p50_us", "p99_us", "p999_us", "max_us", "cold_us", "hot_us")
    show.table(
        f"bench policy: {record['task']}, {record['ticks']} periods of {record['period_s']:g} s",
        ("[us]", *(key.removesuffix("_us") for key in figures)),
        [
            (name, *(row[key] for key in figures))
            for name, row in record.items()
            if isinstance(row, dict) and "p50_us" in row
        ],
    )
    lines: list[tuple[str, object]] = [
        *((f"act / bare network, {how}", ratio) for how, ratio in record["act_over_bare"].items()),
        *(
            (f"p99.9 of act above the empty loop's, {side} [us]", excess)
            for side, excess in record["p999_over_empty_us"].items()
        ),
    ]
    show.console().print()
    show.table("", ("", ""), lines)


def show_learner(record: dict[str, Any]) -> None:
    """Speed beside its limits, the count of operations, and where the loop's time goes."""
    agents = list(record["updates_per_s"])
    columns = ("", *agents, *(["Stable-Baselines3 SAC"] if record["sb3"] else []))
    show.table(f"bench learner: {record['task']}", columns, _speed(record, agents))
    for agent in agents:
        show.console().print()
        _show_count(agent, record)
    show.console().print()
    parts = list(next(iter(record["loop"][agents[0]].values()))["shares"])
    show.table(
        "where the loop's time goes",
        ("", "steps/s", *parts, "simulator busy"),
        [
            (
                f"{agent}, {task}",
                loop["steps_per_s"],
                *(f"{loop['shares'][part]:.0%}" for part in parts),
                f"{loop['simulator_busy_share']:.0%}",
            )
            for agent in agents
            for task, loop in record["loop"][agent].items()
        ],
    )
    print_ = show.console().print
    print_(f"\n{record['sb3_note']}")
    load, cores, gemm = record["load_average"], record["threads"], record["gemm_by_threads"]
    print_(
        f"load average {load:.1f} on {record['cores']} cores; "
        "any other load is part of these figures"
    )
    if any(limits[str(cores)]["all"] < limits["1"]["all"] for limits in gemm.values()):
        print_(
            f"{cores} threads were slower than one, so this machine is busy, and the limit is that "
            "of one; OMP_WAIT_POLICY=passive spares threads that wait for each other from spinning"
        )


def _speed(record: dict[str, Any], agents: list[str]) -> list[tuple[object, ...]]:
    """Rows of the first table."""
    one, sb3, threads = record["one_thread"], record["sb3"], record["threads"]
    gemm = record["gemm_by_threads"]

    def row(
        name: str, figure: Callable[[str], object], other: Callable[[], object] = lambda: None
    ) -> tuple[object, ...]:
        return (name, *(figure(agent) for agent in agents), *([other()] if sb3 else []))

    def share(value: float) -> str:
        return f"{value:.1%}"

    rows = [
        row("batch", lambda a: record["batch"], lambda: record["batch"]),
        row("hidden layers", lambda a: record["depth"], lambda: record["depth"]),
        row("units in each", lambda a: record["width"], lambda: record["width"]),
        row("parameters", lambda a: record["parameters"][a], lambda: sb3["parameters"]),
        row("networks per update", lambda a: record["networks"][a], lambda: sb3["networks"]),
        row("MFLOP per update", lambda a: record["flops_per_update"][a] / 1e6),
        row("threads", lambda a: threads, lambda: threads),
        row("updates/s", lambda a: record["updates_per_s"][a], lambda: sb3["updates_per_s"]),
        row("GFLOP/s", lambda a: record["gflops"][a]),
        row("GFLOP/s of its products alone", lambda a: gemm[a][str(threads)]["all"]),
        row("share of that limit", lambda a: share(record["ratio_gemm"][a])),
    ]
    if sb3:
        rows.append(row("network-updates/s beside SAC's", lambda a: record["ratio_sb3"][a]))
    if threads > 1:
        rows += [
            row(
                "on one thread: updates/s",
                lambda a: one[a]["updates_per_s"],
                lambda: sb3["one_thread_updates_per_s"],
            ),
            row("... GFLOP/s", lambda a: one[a]["gflops"]),
            row("... GFLOP/s of its products alone", lambda a: gemm[a]["1"]["all"]),
        ]
        if sb3:
            rows.append(row("... network-updates/s beside SAC's", lambda a: one[a]["ratio_sb3"]))
    return rows


def _show_count(agent: str, record: dict[str, Any]) -> None:
    """MFLOP of one update: parts by kinds."""
    products = record["products"][agent]
    kinds = list(dict.fromkeys(product["kind"] for product in products))
    parts = list(dict.fromkeys(product["part"] for product in products))

    def total(part: str | None, kind: str | None) -> float:
        chosen = (p for p in products if part in (None, p["part"]) and kind in (None, p["kind"]))
        return sum(float(p["flops"]) for p in chosen) / 1e6

    rows: list[tuple[object, ...]] = [
        (name, *(total(part, kind) for kind in kinds), total(part, None))
        for name, part in [*((part, part) for part in parts), ("all", None)]
    ]
    limits = record["gemm_by_threads"][agent]
    for threads, rates in limits.items():
        figures = (rates[kind] for kind in kinds)
        rows.append((f"limit on {threads} [GFLOP/s]", *figures, rates["all"]))
    show.table(f"{agent}: MFLOP per update, counted", ("", *kinds, "all"), rows)
