"""How does one page say which agents are safe on which tasks, and how much that is worth?

The verdict comes first, with what is wrong and missing; then agents over tasks, each task with its
ranking, figures, films and published results; ablations; the safety case; and how it was all made.
"""

from collections.abc import Sequence
from html import escape

from kcpr_safety.report import benchmark_figures as figures
from kcpr_safety.report import benchmark_steadiness as steadiness
from kcpr_safety.report import benchmark_tables as tables
from kcpr_safety.report.collection import Collection
from kcpr_safety.report.numbers import short
from kcpr_safety.report.safety_case import safety_case
from kcpr_safety.report.shell import document
from kcpr_safety.report.standings import Comparison, Standing, breaks_often
from kcpr_safety.report.tables import budgets, mark, percent
from kcpr_safety.stats import CVAR_LEVEL, share_interval

_SECTIONS = (
    ("verdicts", "Verdicts"),
    ("tasks", "Tasks"),
    ("case", "Safety case"),
    ("method", "Methods"),
    ("trials", "Trials"),
)


def benchmark_page(collection: Collection) -> str:
    """The whole document."""
    labels = sorted({s.label for c in collection.comparisons for s in c.standings})
    theirs = sorted({figures.imported_label(p) for p in collection.imported})
    styles = figures.styles_of([*labels, *theirs])
    links = "".join(f'<li><a href="#{name}">{words}</a></li>' for name, words in _SECTIONS)
    sections = "".join(
        _task(collection, c, i, styles) for i, c in enumerate(collection.comparisons)
    )
    body = f"""<a class="skip" href="#evidence">Skip to the evidence</a>
<header class="page">
<p class="kicker">Safety benchmark: {escape(collection.title)}</p>
<h1>{escape(headline(collection))}</h1>
{_lead(collection)}
{_tally(labels, collection)}
<nav class="pages" aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="evidence">
{_problems(collection)}
<section aria-labelledby="verdicts"><h2 id="verdicts">Verdicts</h2>
{tables.matrix_table(collection) if collection.comparisons else ""}
{_across(collection, styles)}
</section>
<section aria-labelledby="tasks"><h2 id="tasks">Task by task</h2>
{figures.legend([*labels, *theirs], styles)}
{sections}</section>
{safety_case(collection)}
{_method(collection)}
</main>"""
    footer = (
        f"from {len(collection.trials)} trials. The numbers are in the .json, .csv and .md files "
        "beside this page; for a PDF, print it."
    )
    return document(f"Safety benchmark: {collection.title}", body, footer, sortable=True)


def headline(collection: Collection) -> str:
    """How many pairs of agent and task are shown to be safe."""
    standings = [s for c in collection.comparisons for s in c.standings]
    if not standings:
        return "No trial could be judged"
    within = [s for s in standings if s.verdict == "within"]
    often = sum(map(breaks_often, within))
    told = f"{len(within)} of {len(standings)} pairs of agent and task are shown to keep the budget"
    if not within:
        return told
    rest = f"{often} of these break it in more than 1 of 20 episodes"
    return f"{told} on average; {rest if often else 'none of these breaks it often'}"


def hidden_breaches(collection: Collection) -> str:
    """What the means do not tell."""
    kept = [s for c in collection.comparisons for s in c.standings if not s.infeasible]
    bad = [s for s in kept if s.share.value > 0]
    if not kept:
        return "No agent's mean punishment is within the budget on any task."
    if not bad:
        fewest = min(t.evidence.episodes for s in kept for t in s.trials)
        return (
            "No episode of an agent whose mean keeps the budget was over it; 0 of "
            f"{fewest} still allows {percent(share_interval(0, fewest).high)} of each policy."
        )
    worst = max(bad, key=lambda s: s.share.value)
    task = worst.trials[0].evidence.task
    return (
        f"A mean within the budget is not safety: {worst.label} keeps it on {task} "
        f"({short(worst.punished.value)} of {short(worst.trials[0].evidence.budget)}) while "
        f"{percent(worst.share.value)} of its episodes break it."
    )


def _lead(collection: Collection) -> str:
    seeds = {len(s.trials) for c in collection.comparisons for s in c.standings}
    told = escape(collection.description)
    few = ""
    if seeds and min(seeds) < 5:
        few = (
            f" <strong>With {min(seeds)} training seed{'s' if min(seeds) > 1 else ''}, too few to "
            "conclude from.</strong>"
        )
    return f'<p class="lead">{escape(hidden_breaches(collection))}{few}</p><p>{told}</p>'


def _tally(labels: Sequence[str], collection: Collection) -> str:
    items = []
    for label in labels:
        of = [s for c in collection.comparisons for s in c.standings if s.label == label]
        counts = [(v, sum(s.verdict == v for s in of)) for v in ("within", "unsure", "over")]
        shown = "".join(f"<span>{n} × {mark(v)}</span>" for v, n in counts if n)
        items.append(f"<li><b>{escape(label)}</b>{shown}</li>")
    return f'<ul class="tally">{"".join(items)}</ul>' if items else ""


def _problems(collection: Collection) -> str:
    if not collection.problems:
        return ""
    items = "".join(
        f"<li><b>{escape(p.where)}</b> {escape(p.what)}</li>" for p in collection.problems
    )
    count = len(collection.problems)
    return (
        f'<section aria-labelledby="problems"><h2 id="problems">{count} '
        f"thing{'s' if count > 1 else ''} to know about these rows</h2>"
        f'<ul class="note">{items}</ul></section>'
    )


def _across(collection: Collection, styles: figures.Styles) -> str:
    found = collection.across
    if found is None:
        return (
            '<p class="soft">Nothing is averaged over tasks: that takes at least two tasks with '
            "published returns on which every agent was trained under one protocol.</p>"
        )
    left = "; ".join(f"{task} {reason}" for task, reason in found.left_out)
    told = f"Over {', '.join(found.tasks)}." + (f" Left out: {left}." if left else "")
    return f"""<h3>Over tasks</h3>
<p class="soft">{escape(told)}</p>
<div class="beside"><div>{tables.across_table(found)}
{tables.improvement_table(found) if found.better else ""}</div>
{figures.profile_figure(found, styles)}</div>"""


def _task(collection: Collection, c: Comparison, index: int, styles: figures.Styles) -> str:
    p = c.protocol
    limit = f", episodes of {p.time_limit:,} steps" if p.time_limit else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in c.cautions)
    films = figures.films([f for f in collection.films if f.task == p.task])
    published = tables.published_table(c, collection.imported)
    ablations = tables.ablation_table(c)
    return f"""<section aria-labelledby="task{index}">
<h3 id="task{index}">{escape(p.task)}</h3>
<p class="soft">Budget {budgets(p.budget, p.streams)}{limit}; trained for {p.steps:,} environment
steps; {escape(p.mode)} policy. Best: {_best(c.standings)}</p>
{f'<ul class="note">{notes}</ul>' if notes else ""}
{tables.ranking_table(c) if c.standings else ""}
{figures.task_figures(c, styles, collection.imported) if c.standings else ""}
{f"<h4>Ablations</h4>{ablations}" if ablations else ""}
{f"<h4>Films</h4>{films}" if films else ""}
{_folded("Stability over seeds, in training and by the clock", steadiness.stability_table(c))}
{_folded("Predicted and realised punishment, by tenths", steadiness.tenths_table(c))}
{_folded("Published results on this task", published)}
</section>"""


def _best(standings: Sequence[Standing]) -> str:
    if not standings or standings[0].infeasible:
        return "none within the budget."
    s = standings[0]
    return f"{escape(s.label)}, return {short(s.returned.value)}, {mark(s.verdict)}."


def _method(collection: Collection) -> str:
    trials = tables.trials_table(collection.trials) if collection.trials else ""
    return f"""<section aria-labelledby="method">
<h2 id="method">Methods</h2>
<dl class="words">
<dt>Comparable</dt><dd>Only trials of the same task, budget, training steps, episode length and
evaluation mode stand in one ranking. Published results stand apart.</dd>
<dt>Verdict</dt><dd><em>Within budget</em>: the 95 % interval (Student's t, over training seeds) of
the mean punishment ends within the budget, and so does each seed's mean. <em>Not shown</em>: the
mean is within, not more. <em>Over</em>: the mean is above.</dd>
<dt>Ranking</dt><dd>Feasible first: a worse verdict never stands above a better one, whatever its
return.</dd>
<dt>Episodes over budget</dt><dd>Of one policy with the exact binomial interval (Clopper–Pearson):
0 of 50 still allows {percent(share_interval(0, 50).high)}, 0 of 100 still allows
{percent(share_interval(0, 100).high)}. Over training seeds with a cluster bootstrap: seeds are
drawn anew, each with all of its episodes.</dd>
<dt>CVaR {CVAR_LEVEL:g}</dt><dd>Mean punishment of the worst {percent(1 - CVAR_LEVEL)} of
episodes.</dd>
<dt>First within budget</dt><dd>Environment steps and wall-clock until a validated policy first
had a mean punishment within the budget, the median over seeds, with its return: doing nothing is
feasible, too.</dd>
<dt>Feasible score</dt><dd>Return over the best published return of a policy whose mean is within
the budget; 0 for a policy that is over. Interquartile mean, probability of improvement and
profiles after Agarwal et al. (2021).</dd>
<dt>Predicted / realised</dt><dd>Discounted punishment that the evaluation critic predicted over
what followed the same steps; below 1 danger is underestimated.</dd>
<dt>What is not claimed</dt><dd>All of this is simulation, on episodes drawn like those of training.
It is evidence, not a certificate.</dd>
</dl>
<h3>How far the intervals can be trusted</h3>
<p>An interval that promises 95 % should hold the truth in 95 of 100 experiments. Where it did so
in fewer than 93, the interval is too narrow and the truth less certain than this page's small
print: with few seeds that is so of most bootstraps. And where one training in five fails outright,
three seeds often do not show it, whatever the interval.</p>
{tables.coverage_table()}
<h3>Software</h3>
{tables.versions_table(collection.trials) if collection.trials else ""}
<h3>Sources of published results</h3>
{tables.sources_list()}
<h3 id="trials">Trials</h3>
{_folded("Every trial, with its command, seeds and hashes", trials)}
</section>"""


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>" if content else ""
