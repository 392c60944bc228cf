"""Which figures does a group of runs get, in which colours, with which words?

Every figure has a title, a drawing with a text alternative, a caption that says how to read it, and
where it is a curve, a dozen of its values as a table.
"""

import math
from collections.abc import Sequence
from html import escape

from kcpr_safety.report import figures as draw
from kcpr_safety.report import tables
from kcpr_safety.report.figures import Series, Style
from kcpr_safety.report.judge import Group
from kcpr_safety.report.numbers import short
from kcpr_safety.report.tables import PERCENT

_ROWS_SHOWN = 12


def styles_of(group: Group) -> list[Style]:
    """One colour per agent with a dash per seed; of a single agent, one colour per run."""
    agents = sorted({entry.run.agent for entry in group.entries})
    if len(agents) == 1:
        return [Style(i, i // draw.COLOURS) for i in range(len(group.entries))]
    met: dict[str, int] = {}
    styles = []
    for entry in group.entries:
        dash = met.get(entry.run.agent, 0)
        met[entry.run.agent] = dash + 1
        styles.append(Style(agents.index(entry.run.agent), dash))
    return styles


def legend(group: Group, styles: Sequence[Style]) -> str:
    items = "".join(
        f"<li>{draw.swatch(style)}{escape(entry.label)}</li>"
        for entry, style in zip(group.entries, styles, strict=True)
    )
    return f'<ul class="legend">{items}</ul>'


def figures(group: Group, styles: Sequence[Style]) -> list[str]:
    found = [
        _curves(
            group,
            styles,
            "Return while learning",
            "return_mean",
            "return per episode",
            "Lines: the last training episodes, exploring. Dots: deterministic validation "
            "episodes.",
        ),
        _curves(
            group,
            styles,
            "Punishment while learning",
            "punishment_mean",
            "punishment per episode",
            "Lines: the last training episodes, exploring. Dots: deterministic validation "
            "episodes, by which the kept policy is chosen. Tinted: over budget.",
            budget=group.budget,
        ),
        _curves(
            group,
            styles,
            "Weight of punishment, λ",
            "lambda",
            "λ",
            "How much one unit of predicted punishment weighs against reward; the budget "
            "controller moves it.",
            zero=True,
        ),
        _calibration(group, styles),
        _episodes(group, styles),
        _trade(group, styles),
    ]
    return [figure for figure in found if figure]


def _curves(
    group: Group,
    styles: Sequence[Style],
    title: str,
    key: str,
    unit: str,
    words: str,
    *,
    budget: float | None = None,
    zero: bool = False,
) -> str:
    lines, dots = [], []
    for entry, style in zip(group.entries, styles, strict=True):
        lines.append(Series(entry.label, *entry.run.curve("train", key), style))
        x, y = entry.run.curve("validation", key)
        dots.append(Series(entry.label, x, y, style, dots=True))
    if all(math.isnan(y) for s in lines + dots for y in s.y):
        return ""
    ends = "; ".join(f"{s.label} ends at {short(_last(s.y))}" for s in lines if s.x)
    limit = "" if budget is None else f" The budget is {short(budget)}."
    alt = f"{title}, {unit} over environment steps: {ends}.{limit}"
    chart = draw.line_chart(lines + dots, unit, alt, budget=budget, zero=zero)
    return figure(title, chart, words, values(title, lines))


def _calibration(group: Group, styles: Sequence[Style]) -> str:
    series, ratios = [], []
    for entry, style in zip(group.entries, styles, strict=True):
        _, predicted = entry.run.curve("validation", "predicted_punishment")
        _, measured = entry.run.curve("validation", "measured_discounted_punishment")
        evidence = entry.run.evidence
        expected, came = (
            (evidence.predicted_punishment, evidence.realised_punishment)
            if evidence
            else (None,) * 2
        )
        if expected is not None and came is not None:
            ratios.append(f"{entry.label} predicts {short(expected)} where {short(came)} followed")
        series.append(Series(entry.label, measured, predicted, style, dots=True))
    if not any(not math.isnan(x + y) for s in series for x, y in zip(s.x, s.y, strict=True)):
        return ""
    title = "Predicted against measured punishment"
    # Of many policies the table says it better.
    final = f"In the final evaluation {'; '.join(ratios)}." if 1 <= len(ratios) <= 2 else ""
    alt = f"{title}, discounted, one dot per validation. {final}"
    chart = draw.scatter(series, "measured", "predicted", alt)
    words = (
        "Discounted punishment from a step on, one dot per validation. On the diagonal the "
        f"evaluation critic is right; below it danger is underestimated. {escape(final)}"
    )
    return figure(title, chart, words)


def _episodes(group: Group, styles: Sequence[Style]) -> str:
    rows, words = [], []
    for entry, style in zip(group.entries, styles, strict=True):
        if entry.run.evidence and entry.judgement:
            punishments = entry.run.evidence.punishments
            rows.append((entry.label, punishments, entry.judgement.punished, style))
            words.append(
                f"{entry.label}: {short(min(punishments))} to {short(max(punishments))}, "
                f"{entry.judgement.over} of {len(punishments)} over budget"
            )
    if not rows:
        return ""
    title = "Every episode of the final evaluation"
    alt = f"Punishment of each evaluation episode. {'; '.join(words)}."
    chart = draw.episodes_chart(rows, group.budget, alt)
    caption = (
        f"One dot per episode; below, the mean and its {PERCENT} interval. Tinted: over budget."
    )
    return figure(title, chart, caption)


def _trade(group: Group, styles: Sequence[Style]) -> str:
    rows = []
    for entry, style in zip(group.entries, styles, strict=True):
        evidence, j = entry.run.evidence, entry.judgement
        if evidence and j:
            rows.append((evidence.punishments, evidence.returns, j.punished, j.returned, style))
    if not rows:
        return ""
    title = "Return against punishment"
    alt = f"{title} of each evaluation episode; the table of the final evaluation has the means."
    chart = draw.trade_chart(rows, group.budget, alt)
    caption = f"One dot per episode; crosses span the {PERCENT} intervals of both means."
    return figure(title, chart, caption)


def figure(title: str, chart: str, words: str, more: str = "") -> str:
    """A drawing with its words; `more` stands below them."""
    return f"<figure><h4>{escape(title)}</h4>{chart}<figcaption>{words}</figcaption>{more}</figure>"


def values(title: str, lines: Sequence[Series]) -> str:
    """A dozen of the plotted values, for those who cannot or will not read a drawing."""
    x = max((s.x for s in lines), key=len)
    if not x:
        return ""
    chosen = sorted({round(i * (len(x) - 1) / (_ROWS_SHOWN - 1)) for i in range(_ROWS_SHOWN)})
    by_step = [dict(zip(s.x, s.y, strict=True)) for s in lines]
    rows = [[x[i], *(known.get(x[i], math.nan) for known in by_step)] for i in chosen]
    shown = tables.values_table(title, ["steps", *(s.label for s in lines)], rows)
    return f"<details><summary>Values</summary>{shown}</details>"


def _last(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if not math.isnan(value)), math.nan)
