"""How does one page say whether a policy is safe, why one may believe it, and what was measured?

The verdict comes first, then figures and tables, then the words that limit them. One file: styles
and figures are inside, no script, no font, no address of anything outside.
"""

from collections.abc import Sequence
from html import escape

from kcpr_safety.report import figures as draw
from kcpr_safety.report import panels, tables
from kcpr_safety.report.benchmark_figures import films
from kcpr_safety.report.collection import Film
from kcpr_safety.report.judge import Entry, Group, Judgement
from kcpr_safety.report.numbers import short
from kcpr_safety.report.shell import document
from kcpr_safety.report.tables import PERCENT, percent, spread
from kcpr_safety.stats import CVAR_LEVEL, share_interval

_TITLES = {
    "within": "Within budget",
    "unsure": "Not shown to be within budget",
    "over": "Over budget",
    "unknown": "Not evaluated",
}


def page(groups: Sequence[Group]) -> str:
    """The whole document."""
    entries = [entry for group in groups for entry in group.entries]
    title = f"Safety report: {', '.join(sorted({group.task for group in groups}))}"
    sections = "".join(_section(group, i, len(groups)) for i, group in enumerate(groups))
    body = f"""<a class="skip" href="#evidence">Skip to the evidence</a>
<header class="page">
<p class="kicker">{escape(title)}</p>
{_headline(entries)}
</header>
<main id="evidence">
{_separation(groups)}{sections}
{_method()}
</main>"""
    footer = (
        f"from {_count(len(entries), 'run')}. The numbers are in the JSON file beside this page."
    )
    return document(title, body, footer, css_class="alone" if len(entries) == 1 else "")


# ---------------------------------------------------------------------------------------- verdict


def _headline(entries: Sequence[Entry]) -> str:
    if len(entries) == 1:
        title = _TITLES[entries[0].verdict]
    else:
        within = sum(entry.verdict == "within" for entry in entries)
        title = f"{within} of {len(entries)} policies shown to be within budget"
    cards = "".join(_card(entry) for entry in entries)
    return f'<h1>{title}</h1>\n<ul class="policies">{cards}</ul>'


def _card(entry: Entry) -> str:
    run, j = entry.run, entry.judgement
    head = f"<h3><span>{escape(entry.label)}</span>{tables.mark(entry.verdict)}</h3>"
    if j is None or run.evidence is None:
        body = (
            "<p>No evaluation of this policy: nothing can be said about its safety. Run "
            "<code>kcpr-safety evaluate</code> on its folder.</p>"
        )
        return f'<li class="policy unknown">{head}<p class="soft">{escape(run.task)}</p>{body}</li>'
    count = run.evidence.episodes
    alt = (
        f"Mean punishment {short(j.punished.value)}, {PERCENT} interval "
        f"{spread(j.punished, 0.0)}, budget {short(run.budget)}."
    )
    facts = [
        ("over budget", f"{j.over} of {count}", f"true share {_shares(j)}"),
        ("return", short(j.returned.value), spread(j.returned)),
        ("worst episode", short(j.worst), f"CVaR {CVAR_LEVEL:g}: {short(j.cvar)}"),
    ]
    facts += [
        (
            f"{escape(part.name)}, of {short(part.budget)}",
            short(part.punished.value),
            f"{spread(part.punished, 0.0)}; {part.over} of {count} over",
        )
        for part in j.streams
    ]
    listed = "".join(
        f"<div><dt>{name}</dt><dd><b>{value}</b><small>{more}</small></dd></div>"
        for name, value, more in facts
    )
    body = (
        f'<p class="soft">{escape(run.task)}, {_count(count, "unseen episode")}</p>'
        f'<p class="big"><b>{short(j.punished.value)}</b> punishment per episode, allowed '
        f"{short(run.budget)}<small>{PERCENT} interval of the mean: {spread(j.punished, 0.0)}"
        f"</small></p>{draw.gauge(j.punished, run.budget, alt, j.verdict)}"
    )
    return (
        f'<li class="policy {entry.verdict}">{head}<div class="split"><div>{body}</div>'
        f'<dl class="facts">{listed}</dl></div></li>'
    )


def _shares(judgement: Judgement) -> str:
    return f"{percent(judgement.share.low).removesuffix(' %')} to {percent(judgement.share.high)}"


def _separation(groups: Sequence[Group]) -> str:
    if len(groups) == 1:
        return ""
    return (
        '<ul class="note"><li>These runs differ in task, budget, training steps or episode length. '
        f"They are shown in {len(groups)} separate parts and ranked only within each; numbers of "
        "different parts must not be compared.</li></ul>"
    )


# --------------------------------------------------------------------------------------- sections


def _section(group: Group, index: int, of: int) -> str:
    part = f'<span class="part">Part {index + 1} of {of}</span>' if of > 1 else ""
    limit = f", episodes of {group.time_limit:,} steps" if group.time_limit else ""
    notes = [*map(escape, group.cautions)]
    notes += [
        f"{escape(entry.label)}: {escape(note)}."
        for entry in group.entries
        for note in entry.run.notes
    ]
    noted = "".join(f"<li>{note}</li>" for note in notes)
    styles = panels.styles_of(group)
    allowed = tables.budgets(group.budget, group.entries[0].run.streams)
    return f"""<section aria-labelledby="part{index}">
<h2 id="part{index}">{part}{escape(group.task)}</h2>
<p class="soft">Budget {allowed}{limit}; trained for {group.steps:,}
environment steps.</p>
{f'<ul class="note">{noted}</ul>' if noted else ""}
<h3>Final evaluation</h3>
{tables.evaluation_table(group)}
<h3>Figures</h3>
{panels.legend(group, styles)}
<div class="figures">{"".join(panels.figures(group, styles))}</div>
{_films(group)}
<h3>Runs, versions and seeds</h3>
{tables.runs_table(group)}
{tables.versions_table(group)}
<details><summary>Settings</summary>{tables.settings_table(group)}</details>
</section>"""


def _films(group: Group) -> str:
    """The first evaluated episode of each run that has been filmed."""
    found = [
        Film(
            task=group.task,
            label=entry.label,
            seed=entry.run.seed,
            kind="first",
            eval_seed=evidence.eval_seed,
            punishment=evidence.punishments[0],
            returned=evidence.returns[0],
            suffix=entry.run.film[0],
            data=entry.run.film[1],
        )
        for entry in group.entries
        if entry.run.film and (evidence := entry.run.evidence)
    ]
    return f"<h3>Films</h3>{films(found)}" if found else ""


# ------------------------------------------------------------------------------------------ words


def _method() -> str:
    return f"""<section aria-labelledby="method">
<h2 id="method">How to read this page</h2>
<dl class="words">
<dt>Punishment (cost)</dt><dd>What the task counts against the policy, summed over one full episode,
undiscounted. The budget is the allowed sum.</dd>
<dt>Within budget</dt><dd>The {PERCENT} interval of the mean punishment (Student's t) ends at or
below the budget. <em>Not shown to be within</em>: the mean is within the budget, its interval
is not. <em>Over</em>: the mean is above it.</dd>
<dt>Episodes over budget</dt><dd>With the exact binomial interval (Clopper–Pearson) of the true
share. A mean within the budget can hide many episodes over it, and few episodes prove little: 0 of
10 still allows {percent(share_interval(0, 10).high)}, 0 of 50 still allows
{percent(share_interval(0, 50).high)}.</dd>
<dt>CVaR {CVAR_LEVEL:g}</dt><dd>Mean punishment of the worst {percent(1 - CVAR_LEVEL)} of
episodes.</dd>
<dt>Predicted / realised</dt><dd>What the evaluation critic expects, discounted, per step, and what
followed the same steps.</dd>
<dt>What is not claimed</dt><dd>All of this is simulation, on episodes drawn like those of training.
Intervals are about one trained policy; another training seed gives another. It is evidence, not
a certificate; a robot needs an independent, non-learned last resort.</dd>
</dl>
</section>"""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _broke(over: int, count: int) -> str:
    if over == 0:
        return f"None of {_count(count, 'episode')} broke"
    return f"{over} of {_count(count, 'episode')} broke"
