"""How does one page answer whether klDMP is safer and steadier than its baselines?

The comparisons come first, with what they do not show; then, for each world, learning curves and
every agent's figures; then the ablations. One file, made of the report's own pieces.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from kcpr_safety.report import figures as draw
from kcpr_safety.report.figures import Series, Style
from kcpr_safety.report.numbers import short, span
from kcpr_safety.report.rprl_rows import OURS, Row, by_world, is_maze
from kcpr_safety.report.shell import document
from kcpr_safety.report.tables import table

_CURVES = (
    (1, "return", "Return of the deployed policy", False),
    (2, "punishment", "Punishment of the deployed policy, per episode", True),
    (4, "punishment", "Punishment in training, summed", True),
)
_COLUMNS = (
    "agent",
    "return",
    "punishment",
    "success",
    "punishment in training",
    "spread of return",
    "worst seed: return",
    "worst seed: punishment",
)


def rprl_page(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    """The whole document."""
    title = "Reward-punishment agents compared"
    grouped = by_world(rows)
    sections = "".join(_world(world, grouped[world], summary) for world in grouped)
    body = f"""<header class="page">
<p class="kicker">{title}</p>
<h1>{escape(headline(summary["comparisons"]))}</h1>
<p class="lead">klDMP beside DQN, SQL, DMP and softDMP: the same learner with other numbers, the
same networks, steps and exploration, and each agent's own number chosen by one rule from three
candidates on seeds that are not used here.{_quick(summary)}</p>
</header>
<main>
<section><h2>klDMP minus each baseline</h2>
{_comparisons(summary["comparisons"])}
<p class="soft">Differences of means over training seeds (spread: of standard deviations), with
percentile bootstrap intervals at {100 * summary["confidence"]:.0f} %. Not corrected for their
number: about one in twenty would leave zero out by chance.</p></section>
{sections}
{_method()}
</main>"""
    footer = (
        f"from {len(rows):,} trained agents; the numbers are in rows.jsonl and summary.json beside "
        "this page."
    )
    return document(title, body, footer)


def headline(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Safer, steadier, and at what return: counts of what is shown, both ways."""
    if not comparisons:
        return "No comparison yet"

    def count(key: str, verdict: str) -> int:
        return sum(row[key]["verdict"] == verdict for row in comparisons)

    return (
        f"Of {len(comparisons)} comparisons klDMP was punished less in "
        f"{count('punishment_mean', 'lower')} and more in {count('punishment_mean', 'higher')}, "
        f"earned more in {count('return_mean', 'higher')} and less in "
        f"{count('return_mean', 'lower')}, spread less in {count('return_spread', 'lower')} and "
        f"more in {count('return_spread', 'higher')}"
    )


def _quick(summary: Mapping[str, Any]) -> str:
    if not summary.get("quick"):
        return ""
    return " <strong>This is the quick version: too few seeds and steps to conclude from.</strong>"


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    keys = ("return_mean", "punishment_mean", "punishment_training", "success", "return_spread")
    columns = ["world, baseline", "return", "punishment", "in training", "success", "spread"]
    rows = [
        (
            escape(f"{row['world']}, {row['baseline']}"),
            [
                f"{short(row[key]['value'])}<small>{span(row[key]['low'], row[key]['high'])}"
                f"<br>{row[key]['verdict']}</small>"
                for key in keys
            ],
        )
        for row in comparisons
    ]
    return table("klDMP minus a baseline", columns, rows, "wide")


def _world(world: str, of: Mapping[str, Sequence[Row]], summary: Mapping[str, Any]) -> str:
    main = [name for name in of if "," not in name]
    ablated = [name for name in of if "," in name]
    styles = {name: Style(i % 6, i // 6) for i, name in enumerate(main)}
    legend = "".join(
        f"<li>{draw.swatch(style)}{escape(name)}</li>" for name, style in styles.items()
    )
    charts = "".join(_curve(world, of, styles, *what) for what in _CURVES)
    figures = summary["worlds"][world]
    parts = [
        f"<section><h2>{escape(world)}</h2>",
        f'<p class="soft">{summary["seeds"][world]} training seeds, '
        f"{int(next(iter(of.values()))[0]['curve'][-1][0]):,} environment steps each. ",
        "Judged on 100 evaluation episodes a seed.</p>"
        if is_maze(world)
        else "Judged exactly, through the world's own tensors, up to the time limit.</p>",
        f'<ul class="legend">{legend}</ul><div class="figures">{charts}</div>',
        _table(f"{world}: every agent", main, figures),
    ]
    if is_maze(world):
        parts.append(
            table(
                f"{world}: share of episodes with a collision",
                ("agent", "collision"),
                [(escape(name), [_cell(figures[name]["collision"])]) for name in main],
                "",
            )
        )
    if ablated:
        names = [OURS, *ablated]
        parts.append(_table(f"{world}: klDMP with one thing changed", names, figures))
    return "".join([*parts, "</section>"])


def _table(caption: str, names: Sequence[str], figures: Mapping[str, Any]) -> str:
    rows = []
    for name in names:
        found = figures[name]
        keys = ("return_mean", "punishment_mean", "success", "punishment_training")
        means = [_cell(found[key]) for key in keys]
        rest = [short(found[key]) for key in ("return_spread", "return_worst", "punishment_worst")]
        rows.append((escape(name), [*means, *rest]))
    return table(caption, _COLUMNS, rows, "wide")


def _curve(
    world: str,
    of: Mapping[str, Sequence[Row]],
    styles: Mapping[str, Style],
    column: int,
    unit: str,
    title: str,
    zero: bool,
) -> str:
    series = []
    for name, style in styles.items():
        curves = [row["curve"] for row in of[name]]
        count = min(len(curve) for curve in curves)
        steps = [float(point[0]) for point in curves[0][:count]]
        means = [
            float(np.mean([_number(curve[i][column]) for curve in curves])) for i in range(count)
        ]
        series.append(Series(name, steps, means, style))
    alt = f"{title} on {world}, mean over seeds: " + ", ".join(
        f"{s.label} ends at {short(s.y[-1])}" for s in series
    )
    chart = draw.line_chart(series, unit, alt, zero=zero)
    return (
        f"<figure><h4>{escape(title)}</h4>{chart}<figcaption>Mean over seeds.</figcaption></figure>"
    )


def _cell(found: Mapping[str, float]) -> str:
    """A mean with its interval below."""
    return f"{short(found['value'])}<small>{span(found['low'], found['high'])}</small>"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _method() -> str:
    return """<section><h2>How to read this page</h2>
<dl class="words">
<dt>Return, punishment</dt><dd>Sums over one episode of the deployed, noiseless policy; means over
training seeds with bootstrap intervals over seeds.</dd>
<dt>Punishment in training</dt><dd>All that was suffered while learning, exploration included.</dd>
<dt>Spread, worst seed</dt><dd>Standard deviation of the return over training seeds; the lowest
return and the highest punishment of any seed.</dd>
<dt>Equal h, equal eta</dt><dd>klDMP with another softening b: at the same inverse temperature h, or
at the same sharpness eta = h / (1 - b²) of its policies.</dd>
<dt>Routed, split</dt><dd>Two buffers filled by the ratio of the two policies; one of all the
punished transitions, with half of every draw from each.</dd>
</dl></section>"""
