"""Which figures does the benchmark page draw of agents over seeds?

Learning curves are means over seeds at equal steps, with Student's t intervals as bands; a step
that not every seed reached is not drawn. Colours stand for agents, the same on the whole page.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

from kcpr_safety.report import figures as draw
from kcpr_safety.report.collection import Film
from kcpr_safety.report.figures import Series, Style
from kcpr_safety.report.numbers import short
from kcpr_safety.report.panels import figure, values
from kcpr_safety.report.published import Published
from kcpr_safety.report.standings import TAUS, Across, Comparison, Standing
from kcpr_safety.report.tables import PERCENT, percent
from kcpr_safety.report.trials import Protocol
from kcpr_safety.stats import Interval, mean_interval

_MOST_DOTS = 12
"""Validations of each seed that the calibration figure shows."""
_TYPES = {".mp4": "video/mp4", ".gif": "image/gif"}

Styles = Mapping[str, Style]


def styles_of(labels: Sequence[str]) -> dict[str, Style]:
    """A colour for each agent, and a dash where colours run out."""
    return {label: Style(i, i // draw.COLOURS) for i, label in enumerate(labels)}


def legend(labels: Sequence[str], styles: Styles) -> str:
    items = "".join(f"<li>{draw.swatch(styles[x])}{escape(x)}</li>" for x in labels)
    return f'<ul class="legend">{items}</ul>'


def task_figures(comparison: Comparison, styles: Styles, imported: Sequence[Published] = ()) -> str:
    """Everything that is drawn of one task."""
    found = [
        _curves(comparison, styles, 1, imported),
        _curves(comparison, styles, 2, imported),
        _suffered(comparison, styles),
        _exceedance(comparison, styles),
        _trade(comparison, styles),
        _calibration(comparison, styles),
    ]
    return f'<div class="figures">{"".join(found)}</div>'


def _curves(
    comparison: Comparison, styles: Styles, column: int, imported: Sequence[Published]
) -> str:
    what = ("return", "punishment")[column - 1]
    title, unit = f"{what.capitalize()} while learning", f"{what} per episode"
    series = [_curve(s, column, styles[s.label]) for s in comparison.standings]
    theirs = [_imported(p, column, comparison.protocol, styles) for p in imported]
    series = [s for s in (*series, *theirs) if s.x]
    if not series:
        return ""
    budget = comparison.protocol.budget if column == 2 else None
    ends = "; ".join(f"{s.label} ends at {short(s.y[-1])}" for s in series)
    limit = "" if budget is None else f" The budget is {short(budget)}."
    alt = f"{title} on {comparison.protocol.task}, mean over seeds: {ends}.{limit}"
    words = f"Deterministic validation episodes; mean over seeds, band: {PERCENT} interval."
    if any(s.x for s in theirs):
        words += " Imported lines as they were logged, of one seed each."
    chart = draw.line_chart(series, unit, alt, budget=budget)
    return figure(title, chart, words, values(f"{title} on {comparison.protocol.task}", series))


def _imported(p: Published, column: int, protocol: Protocol, styles: Styles) -> Series:
    """An imported training, as far as ours goes; nothing on another task."""
    points = [c for c in p.curve if p.task == protocol.task and c[0] <= protocol.steps]
    style = styles[imported_label(p)]
    return Series(imported_label(p), [c[0] for c in points], [c[column] for c in points], style)


def imported_label(p: Published) -> str:
    return f"{p.agent} (imported)"


def _suffered(comparison: Comparison, styles: Styles) -> str:
    series = [
        _curve(s, 3, styles[s.label], validation=False)
        for s in comparison.standings
        if s.trials[0].training
    ]
    series = [s for s in series if s.x]
    if not series:
        return ""
    title = "Punishment summed over training"
    ends = "; ".join(f"{s.label} ends at {short(s.y[-1])}" for s in series)
    alt = f"{title} on {comparison.protocol.task}, mean over seeds: {ends}."
    chart = draw.line_chart(series, "punishment so far", alt, zero=True)
    words = "Everything that was suffered while learning, exploration included: the regret."
    return figure(title, chart, words, values(f"{title} on {comparison.protocol.task}", series))


def _curve(standing: Standing, column: int, style: Style, *, validation: bool = True) -> Series:
    """Mean over seeds with its interval, at the steps that all seeds share."""
    curves = [
        {point[0]: point[column] for point in (t.validation if validation else t.training)}
        for t in standing.trials
    ]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    steps, means, lows, highs = [], [], [], []
    for step in shared:
        at = [curve[step] for curve in curves]
        if any(math.isnan(x) for x in at):
            continue
        interval = mean_interval(at)
        steps.append(step)
        means.append(interval.value)
        lows.append(max(interval.low, 0.0) if column >= 2 else interval.low)
        highs.append(interval.high)
    if len(curves) == 1:
        return Series(standing.label, steps, means, style)
    return Series(standing.label, steps, means, style, low=lows, high=highs)


def _exceedance(comparison: Comparison, styles: Styles) -> str:
    rows, told = [], []
    for s in comparison.standings:
        pooled = [x for t in s.trials for x in t.evidence.punishments]
        rows.append((pooled, styles[s.label]))
        told.append(f"{s.label}: {percent(s.share.value)} over budget, worst {short(s.worst)}")
    title = "How bad are the bad episodes?"
    alt = (
        f"Share of evaluation episodes punished more than each amount, on "
        f"{comparison.protocol.task}. {'; '.join(told)}."
    )
    words = (
        "Share of evaluation episodes, of all seeds, that are punished more than x. Where a line "
        "crosses the budget stands the share over budget."
    )
    chart = draw.exceedance_chart(rows, comparison.protocol.budget, alt)
    return figure(title, chart, words)


def _trade(comparison: Comparison, styles: Styles) -> str:
    rows = []
    for s in comparison.standings:
        punished = [t.evidence.punishment_mean for t in s.trials]
        returned = [t.evidence.return_mean for t in s.trials]
        rows.append((punished, returned, _known(s.punished), _known(s.returned), styles[s.label]))
    title = "Return against punishment"
    told = "; ".join(
        f"{s.label}: return {short(s.returned.value)} at punishment {short(s.punished.value)}"
        for s in comparison.standings
    )
    alt = f"{title} on {comparison.protocol.task}, means of each seed. {told}."
    words = f"One dot per training seed; crosses span the {PERCENT} intervals. Tinted: infeasible."
    chart = draw.trade_chart(rows, comparison.protocol.budget, alt, "per episode")
    return figure(title, chart, words)


def _calibration(comparison: Comparison, styles: Styles) -> str:
    series, told = [], []
    for s in comparison.standings:
        points = [
            p for t in s.trials for p in t.validation[:: len(t.validation) // _MOST_DOTS or 1]
        ]
        pairs = [(p[4], p[3]) for p in points if not math.isnan(p[3] + p[4])]
        if pairs:
            x, y = zip(*pairs, strict=True)
            series.append(Series(s.label, x, y, styles[s.label], dots=True))
        if s.calibration and s.calibration.ratio is not None:
            told.append(f"{s.label} predicts {short(s.calibration.ratio)} times what followed")
    if not series:
        return ""
    title = "Predicted against measured punishment"
    final = f"In the final evaluation {'; '.join(told)}." if told else ""
    alt = f"{title} on {comparison.protocol.task}, discounted, one dot per validation. {final}"
    words = (
        "Discounted punishment from a step on, one dot per validation. On the diagonal the "
        "evaluation critic is right; below it danger is underestimated."
    )
    return figure(title, draw.scatter(series, "measured", "predicted", alt), words)


def profile_figure(found: Across, styles: Styles) -> str:
    """Share of runs above each score."""
    series = [
        Series(
            label,
            TAUS,
            [point.value for point in points],
            styles[label],
            low=[_drawn(point.low) for point in points],
            high=[_drawn(point.high) for point in points],
        )
        for label, points in found.profiles.items()
    ]
    title = "Performance profile"
    told = "; ".join(
        f"{s.label}: {percent(s.y[0])} above 0, {percent(s.y[10])} above 0.5" for s in series
    )
    alt = f"Share of runs whose feasible score is above each value. {told}."
    chart = draw.line_chart(
        series, "share of runs above", alt, zero=True, x_name="feasible score", x_label=short
    )
    words = f"Higher is better; band: pointwise {PERCENT} bootstrap interval."
    return figure(title, chart, words)


def _known(interval: Interval) -> Interval:
    """Of one seed there is no interval: the mean alone."""
    if math.isfinite(interval.high):
        return interval
    return Interval(interval.value, interval.value, interval.value)


def _drawn(end: float) -> float:
    """An open end is not drawn."""
    return end if math.isfinite(end) else math.nan


def films(found: Sequence[Film]) -> str:
    """Short looping films, which their viewer starts and stops; empty where there are none."""
    items = []
    for film in found:
        kind = _TYPES.get(film.suffix)
        if kind is None:
            continue
        data = f"data:{kind};base64,{base64.b64encode(film.data).decode()}"
        told = (
            f"{film.label}, training seed {film.seed}: the {film.kind} of the evaluated episodes "
            f"(seed {film.eval_seed}), punishment {short(film.punishment)}, return "
            f"{short(film.returned)}"
        )
        alt = escape(f"Film of {film.task}. {told}.")
        if kind.startswith("video"):
            shown = (
                f'<video src="{data}" controls loop muted playsinline preload="metadata" '
                f'aria-label="{alt}"></video>'
            )
        else:
            # A picture that moves cannot be stopped: it moves only while it is open.
            shown = f'<details><summary>Show</summary><img src="{data}" alt="{alt}"></details>'
        items.append(f"<figure>{shown}<figcaption>{escape(told)}.</figcaption></figure>")
    return f'<div class="films">{"".join(items)}</div>' if items else ""
