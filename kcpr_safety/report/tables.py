"""Which facts stand in rows and columns, and how is an uncertain number written?

Cells are HTML; every table has a caption and header cells with a scope, and on a narrow screen each
row becomes a block whose cells carry their column's name.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from kcpr_safety.report.judge import Entry, Group, PartJudgement
from kcpr_safety.report.numbers import short, span, steps_label
from kcpr_safety.report.runs import Budgets
from kcpr_safety.report.trials import differing
from kcpr_safety.stats import CONFIDENCE, CVAR_LEVEL, Interval

VERDICT_WORDS = {
    "within": "within budget",
    "unsure": "not shown to be within",
    "over": "over budget",
    "unknown": "not evaluated",
}
PERCENT = f"{CONFIDENCE:.0%}".replace("%", " %")


def mark(verdict: str) -> str:
    """The verdict in words, with a sign, so that it does not hang on colour."""
    return f'<span class="mark {verdict}">{VERDICT_WORDS[verdict]}</span>'


def percent(share: float) -> str:
    """A share as 12.5 %."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def spread(interval: Interval, low_at: float = -math.inf) -> str:
    """ "8.1 to 20.3"; what cannot be is cut off at `low_at`."""
    if not math.isfinite(interval.high):
        return "one episode: no interval"
    return span(max(interval.low, low_at), interval.high)


def table(
    caption: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], css: str
) -> str:
    """A table of HTML cells; the first column holds the rows' headers."""
    head = "".join(f'<th scope="col" role="columnheader">{escape(name)}</th>' for name in columns)
    body = []
    for header, cells in rows:
        labelled = zip(columns[1:], cells, strict=True)
        body.append(
            f'<tr role="row"><th scope="row" role="rowheader">{header}</th>'
            + "".join(
                f'<td role="cell" data-label="{escape(name)}"><div>{cell}</div></td>'
                for name, cell in labelled
            )
            + "</tr>"
        )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="{css}" role="table"><caption>{escape(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(body)}</tbody></table></div>'
    )


@dataclass(frozen=True)
class Cell:
    """A cell of HTML with the number that it is sorted by, if it has one."""

    html: str
    value: float | None = None


def sortable_table(
    caption: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]]
) -> str:
    """A table that buttons in its header sort; the first column holds the rows' headers."""
    head = "".join(
        f'<th scope="col" role="columnheader"><button type="button">{escape(name)}</button></th>'
        for name in columns
    )
    body = []
    for header, cells in rows:
        shown = []
        for name, cell in zip(columns[1:], cells, strict=True):
            value = cell.value
            keyed = "" if value is None or math.isnan(value) else f' data-value="{value:.10g}"'
            shown.append(
                f'<td role="cell" data-label="{escape(name)}"{keyed}><div>{cell.html}</div></td>'
            )
        body.append(
            f'<tr role="row"><th scope="row" role="rowheader">{header}</th>{"".join(shown)}</tr>'
        )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="wide sortable" role="table"><caption>{escape(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(body)}</tbody></table>'
        '<p class="unseen" role="status"></p></div>'
    )


def budgets(budget: float, streams: Budgets) -> str:
    """What is allowed in an episode: in all, and in each stream."""
    told = ", ".join(f"{escape(name)} {short(own)}" for name, own in streams)
    return f"{short(budget)} per episode" + (
        f" ({told}; the verdict is the worst of all)" if told else ""
    )


def evaluation_table(group: Group) -> str:
    """Final evaluation of every run of a group, best first."""
    columns = [
        "policy",
        "verdict",
        "punishment per episode",
        "episodes over budget",
        "worst episode",
        f"CVaR {CVAR_LEVEL:g}",
        "return per episode",
        "predicted / realised",
        "episodes",
        "kept after",
    ]
    rows = []
    for entry in group.entries:
        evidence, j = entry.run.evidence, entry.judgement
        if evidence is None or j is None:
            rows.append((escape(entry.label), [mark("unknown")] + ["–"] * (len(columns) - 2)))
            continue
        last = evidence.eval_seed + evidence.episodes - 1
        predicted, realised = evidence.predicted_punishment, evidence.realised_punishment
        cells = [
            mark(j.verdict),
            f"{short(j.punished.value)}<small>{spread(j.punished, 0.0)}</small>",
            f"{j.over} of {evidence.episodes}"
            f"<small>true share {percent(j.share.low).removesuffix(' %')} to "
            f"{percent(j.share.high)}</small>",
            short(j.worst),
            short(j.cvar),
            f"{short(j.returned.value)}<small>{spread(j.returned)}</small>",
            " / ".join("–" if x is None else short(x) for x in (predicted, realised)),
            f"{evidence.episodes}<small>seeds {evidence.eval_seed} to {last}</small>",
            f"{evidence.kept_steps or evidence.steps:,}<small>steps</small>",
        ]
        rows.append((escape(entry.label), cells))
        rows += [_part(entry, part, evidence.episodes, len(columns)) for part in j.streams]
    caption = (
        f"Deterministic policy on unseen episodes; small print: {PERCENT} interval. A policy with "
        "a worse verdict never stands above one with a better."
    )
    return table(caption, columns, rows, "wide")


def _part(entry: Entry, part: PartJudgement, episodes: int, columns: int) -> tuple[str, list[str]]:
    """A stream's row below its policy's."""
    cells = [
        mark(part.verdict),
        f"{short(part.punished.value)} of {short(part.budget)}"
        f"<small>{spread(part.punished, 0.0)}</small>",
        f"{part.over} of {episodes}"
        f"<small>true share {percent(part.share.low).removesuffix(' %')} to "
        f"{percent(part.share.high)}</small>",
        short(part.worst),
        short(part.cvar),
    ]
    return f"{escape(entry.label)}: {escape(part.name)}", cells + ["–"] * (columns - 6)


def runs_table(group: Group) -> str:
    """Where every run comes from."""
    columns = [
        "policy",
        "folder",
        "training steps",
        "training time",
        "punishment in training",
        "machine",
        "policy file",
    ]
    rows = []
    for entry in group.entries:
        run = entry.run
        digest = run.evidence.policy_sha256 if run.evidence else None
        cells = [
            escape(run.name),
            f"{run.steps:,}",
            _minutes(_last(run.train, "wall_s")),
            _or_dash(_last(run.train, "punishment_total")),
            escape(run.machine) or "–",
            f"<code>{escape(str(digest)[:12])}</code>" if digest else "–",
        ]
        rows.append((escape(entry.label), cells))
    return table("The runs on this page.", columns, rows, "wide")


def versions_table(group: Group) -> str:
    """Which software every run used."""
    packages = sorted({name for entry in group.entries for name in entry.run.versions})
    if not packages:
        return "<p>The runs do not say which versions they used.</p>"
    rows = [
        (escape(entry.label), [escape(entry.run.versions.get(p, "–")) for p in packages])
        for entry in group.entries
    ]
    return table("Software versions of training.", ["policy", *packages], rows, "wide")


def settings_table(group: Group) -> str:
    """Settings in which the runs differ; a lone run's settings in full."""
    names = sorted({name for entry in group.entries for name in entry.run.settings})
    alone = len(group.entries) == 1
    differ = names if alone else differing([entry.run.settings for entry in group.entries])
    if not differ:
        return "<p>All runs have the same settings.</p>" if names else ""
    rows = [(escape(n), [escape(_value(entry, n)) for entry in group.entries]) for n in differ]
    caption = "Settings of the run." if alone else "Settings in which the runs differ."
    return table(caption, ["setting", *(e.label for e in group.entries)], rows, "narrow")


def values_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> str:
    """The numbers behind a figure."""
    shown = [(steps_label(row[0]), [short(value) for value in row[1:]]) for row in rows]
    return table(caption, columns, shown, "narrow")


def _value(entry: Entry, name: str) -> str:
    settings = entry.run.settings
    return str(settings[name]) if name in settings else "–"


def _last(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return float(values[-1]) if values else None


def _or_dash(value: float | None) -> str:
    return "–" if value is None else short(value)


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
