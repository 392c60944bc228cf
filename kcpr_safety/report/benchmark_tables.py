"""Which facts about agents, over seeds and tasks, stand in the benchmark page's tables?"""

import json
import math
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from kcpr_safety.report.collection import Collection
from kcpr_safety.report.numbers import short
from kcpr_safety.report.published import Published, published, sources
from kcpr_safety.report.standings import (
    MEASURES,
    OFTEN,
    Across,
    Comparison,
    PartStanding,
    Standing,
    ablated,
    breaks_often,
)
from kcpr_safety.report.tables import Cell, mark, percent, sortable_table, spread, table
from kcpr_safety.report.trials import Trial
from kcpr_safety.stats import CVAR_LEVEL, Interval

NO_INTERVAL = "no interval"
TOO_NARROW = 0.93
_ORDER = {"within": 0.0, "unsure": 1.0, "over": 2.0}


def ranking_table(comparison: Comparison) -> str:
    """The agents of one task, best first."""
    columns = [
        "agent",
        "verdict",
        "punishment per episode",
        "episodes over budget",
        "of the worst seed",
        f"CVaR {CVAR_LEVEL:g}",
        "return per episode",
        "punishment in training",
        "first within budget after",
        "predicted / realised",
    ]
    rows = []
    for rank, s in enumerate(comparison.standings, start=1):
        cells = [
            Cell(f"{mark(s.verdict)}<small>{_seeds(s)}</small>", rank),
            _interval(s.punished, 0.0),
            _share(s.share),
            _worst_policy(s),
            _interval(s.cvar, 0.0),
            _interval(s.returned),
            Cell("–") if s.regret is None else _interval(s.regret, 0.0),
            _first(s.trials),
            _calibration(s),
        ]
        rows.append((escape(s.label), cells))
        rows += [_part(s, part, rank, len(columns)) for part in s.streams]
    caption = (
        f"{comparison.protocol.task}: agents over training seeds, feasible first. Small print: "
        "95 % intervals; of returns, punishments and training Student's t over seeds, of shares "
        "and CVaR a bootstrap over seeds, of the worst seed exact."
    )
    return sortable_table(caption, columns, rows)


def _part(s: Standing, part: PartStanding, rank: int, columns: int) -> tuple[str, list[Cell]]:
    """A stream's row below its agent's."""
    small = spread(part.punished, 0.0) if math.isfinite(part.punished.high) else NO_INTERVAL
    cells = [
        Cell(mark(part.verdict), rank),
        Cell(
            f"{short(part.punished.value)} of {short(part.budget)}<small>{small}</small>",
            part.punished.value,
        ),
        Cell(percent(part.over_budget_share), part.over_budget_share),
    ]
    cells += [Cell("–")] * (columns - 1 - len(cells))
    return f"{escape(s.label)}: {escape(part.name)}", cells


def matrix_table(collection: Collection) -> str:
    """Every task beside every agent: the verdict in one look."""
    labels = sorted({s.label for c in collection.comparisons for s in c.standings})
    rows = []
    for c in collection.comparisons:
        by_label = {s.label: s for s in c.standings}
        cells = [_verdict_cell(by_label.get(label), c.protocol.budget) for label in labels]
        name = f"{escape(c.protocol.task)}<small>{c.protocol.steps:,} steps</small>"
        rows.append((name, cells))
    return sortable_table(
        "Verdict of each agent on each task: is its mean punishment shown to be within the budget?",
        ["task", *labels],
        rows,
    )


def across_table(found: Across) -> str:
    rows = [
        (
            escape(label),
            [_interval(found.scores[label]), _interval(found.budgets[label], 0.0)],
        )
        for label in found.scores
    ]
    caption = (
        f"Interquartile means over {len(found.tasks)} tasks and all seeds, with stratified "
        "bootstrap intervals. Score: return over the best published return within the budget; 0 "
        "for a policy over budget."
    )
    return sortable_table(caption, ["agent", "feasible score", "punishment / budget"], rows)


def improvement_table(found: Across) -> str:
    rows = []
    for (a, b), chance in found.better.items():
        shown = "yes" if chance.low > 0.5 else "reversed" if chance.high < 0.5 else "no"
        rows.append((escape(f"{a} over {b}"), [_interval(chance), Cell(shown)]))
    caption = (
        "Chance that a run of the first agent has a higher feasible score than one of the second, "
        "averaged over tasks. Shown: the interval leaves one half out."
    )
    return sortable_table(caption, ["pair", "probability of improvement", "shown"], rows)


def published_table(comparison: Comparison, imported: Sequence[Published]) -> str:
    """What others report on the task; empty where nobody does."""
    found = [*[p for p in imported if p.task == comparison.protocol.task]]
    found += published(comparison.protocol.task)
    if not found:
        return ""
    own, rows = comparison.protocol.steps, []
    for p in found:
        ratio = p.steps / own
        told = "equal" if p.steps == own else f"{short(ratio)} times ours"
        within = "mean within" if p.feasible else "over"
        budget = "unknown" if math.isinf(p.budget) else short(p.budget)
        protocol = f"{p.protocol}; not equal: {p.unequal}" if p.unequal else p.protocol
        rows.append(
            (
                escape(p.agent),
                [
                    _spread_cell(p.return_mean, p.return_spread),
                    _spread_cell(p.punishment_mean, p.punishment_spread),
                    Cell(within, float(not p.feasible)),
                    Cell(f"{p.steps:,}<small>{told}</small>", p.steps),
                    Cell(budget, p.budget if math.isfinite(p.budget) else None),
                    Cell(f"{p.seeds or '–'}", p.seeds),
                    Cell(f"{escape(protocol)}<small>{escape(p.source)}</small>"),
                ],
            )
        )
    caption = (
        f"{comparison.protocol.task}: published and imported results, not ranked with ours: other "
        "steps, other protocols, means and deviations only. Nobody reports how many episodes break "
        "the budget."
    )
    columns = [
        "agent",
        "return",
        "punishment",
        "budget kept",
        "steps",
        "budget",
        "seeds",
        "protocol",
    ]
    return sortable_table(caption, columns, rows)


def ablation_table(comparison: Comparison) -> str:
    """What changes when one thing of an agent is changed; empty where nothing was."""
    rows = []
    for s, found in ablated(comparison):
        changed = ", ".join(f"{k} = {v}" for k, v in s.trials[0].overrides.items())
        cells = [
            Cell(f"<code>{escape(changed)}</code>"),
            Cell(f"{mark(s.verdict)}<small>{_seeds(s)}</small>", _ORDER[s.verdict]),
            *([Cell("–")] * len(MEASURES) if found is None else map(_interval, found.values())),
        ]
        rows.append((escape(s.label), cells))
    if not rows:
        return ""
    caption = (
        f"{comparison.protocol.task}: agents with one thing changed, less the whole agent, and "
        "95 % intervals of the difference (Welch's t over training seeds). Where the interval "
        "holds 0, no difference is shown."
    )
    return sortable_table(caption, ["ablation", "changed", "verdict", *MEASURES], rows)


def coverage_table() -> str:
    """How often intervals of so few seeds hold the truth, measured on made-up agents."""
    record = coverage()
    rows = []
    for name, held in record["held"].items():
        cells = [
            f"{100 * x:.1f} %" + (" <strong>too narrow</strong>" if x < TOO_NARROW else "")
            for x in held.values()
        ]
        rows.append((escape(name), cells))
    seeds = [f"{n} seeds" for n in next(iter(record["held"].values()))]
    caption = (
        f"Of {record['worlds']:,} made-up experiments, the share whose 95 % interval holds the "
        "truth (scripts/coverage.py). Fragile: one training seed in five fails outright."
    )
    return table(caption, ["interval", *seeds], rows, "wide")


@cache
def coverage() -> dict[str, Any]:
    text = resources.files("kcpr_safety.report").joinpath("coverage.json").read_text("utf-8")
    record: dict[str, Any] = json.loads(text)
    return record


def trials_table(trials: Sequence[Trial]) -> str:
    """Where every number comes from."""
    rows = []
    for t in trials:
        e = t.evidence
        last = e.eval_seed + e.episodes - 1
        wall = t.train_wall_s
        cells = [
            Cell(str(e.seed), e.seed),
            Cell(f'<code class="command">{escape(t.command)}</code>'),
            Cell(f"{e.eval_seed} to {last}", e.eval_seed),
            Cell(f"{e.kept_steps or e.steps:,}", e.kept_steps or e.steps),
            Cell("–" if wall is None else duration(wall), wall),
            Cell(f"<code>{escape((e.policy_sha256 or '–')[:12])}</code>"),
            Cell(f"<code>{escape(t.config_sha256[:12] or '–')}</code>"),
        ]
        rows.append((escape(f"{e.task}, {t.label}"), cells))
    columns = ["trial", "seed", "command", "evaluation seeds", "kept after", "training time"]
    return sortable_table(
        "Every trial on this page.", [*columns, "policy file", "configuration"], rows
    )


def versions_table(trials: Sequence[Trial]) -> str:
    """Versions and machines, each with the number of trials made with them."""
    counted: dict[tuple[str, str], int] = {}
    for t in trials:
        told = ", ".join(f"{name} {version}" for name, version in sorted(t.versions.items()))
        key = (told or "not told", t.machine or "not told")
        counted[key] = counted.get(key, 0) + 1
    rows = [(escape(told), [escape(m), str(n)]) for (told, m), n in sorted(counted.items())]
    return table("Software and machines.", ["versions", "machine", "trials"], rows, "wide")


def sources_list() -> str:
    items = "".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in sources().items())
    return f"<ul>{items}</ul>"


def _seeds(s: Standing) -> str:
    return f"{s.feasible} of {len(s.trials)} seeds"


def _verdict_cell(s: Standing | None, budget: float) -> Cell:
    if s is None:
        return Cell("not trained")
    told = f"{short(s.punished.value)} of {short(budget)}"
    css = ' class="alert"' if breaks_often(s) else ""
    share = f"<small{css}>{percent(s.share.value)} of episodes over</small>"
    return Cell(f"{mark(s.verdict)}<small>{told}</small>{share}", _ORDER[s.verdict])


def _interval(interval: Interval, low_at: float = -math.inf) -> Cell:
    small = spread(interval, low_at) if math.isfinite(interval.high) else NO_INTERVAL
    return Cell(f"{short(interval.value)}<small>{small}</small>", interval.value)


def _share(interval: Interval) -> Cell:
    small = NO_INTERVAL
    if math.isfinite(interval.high):
        small = f"{percent(interval.low).removesuffix(' %')} to {percent(interval.high)}"
    often = interval.value > OFTEN
    shown = percent(interval.value)
    shown = f"<strong>{shown}</strong>" if often else shown
    return Cell(f"{shown}<small>{small}</small>", interval.value)


def _worst_policy(s: Standing) -> Cell:
    seed, over, episodes, share = s.worst_policy
    low = percent(share.low).removesuffix(" %")
    words = f"seed {seed}: {low} to {percent(share.high)}"
    return Cell(f"{over} of {episodes}<small>{words}</small>", share.value)


def _first(trials: Sequence[Trial]) -> Cell:
    """Median over the seeds that got there; those that never did are counted."""
    found = sorted(t.first_feasible for t in trials if t.first_feasible is not None)
    if not found:
        return Cell("never")
    steps, returned, wall = found[len(found) // 2]
    never = len(trials) - len(found)
    told = f"{duration(wall)}, return {short(returned)}" + (f"; {never} never" if never else "")
    return Cell(f"{steps:,.0f} steps<small>{told}</small>", steps)


def _calibration(s: Standing) -> Cell:
    c = s.calibration
    if c is None:
        return Cell("–")
    ratio = "–" if c.ratio is None else short(c.ratio)
    words = "too low" if c.bias < 0 else "too high"
    return Cell(f"{ratio}<small>{short(abs(c.bias))} {words}</small>", c.ratio)


def _spread_cell(value: float, deviation: float | None) -> Cell:
    small = "" if deviation is None else f"<small>± {short(deviation)}</small>"
    return Cell(f"{short(value)}{small}", value)


def duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "time not told"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
