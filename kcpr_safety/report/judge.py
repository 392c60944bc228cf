"""What may be said about a policy's safety from its episodes, and which runs may be compared?

    within    the interval of the mean punishment ends at or below the budget
    unsure    the mean is within the budget, its interval is not
    over      the mean is above the budget
    unknown   not evaluated

Where streams have budgets of their own, the verdict is the worst of theirs and that of the sum.
Ranking is feasible first: a policy with a worse verdict never stands above one with a better,
whatever its return. Only runs of the same task, budget, training steps and episode length are
ranked together; any other difference in how they were judged is named.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kcpr_safety.evidence import Evidence, Part
from kcpr_safety.report.runs import Budgets, Run
from kcpr_safety.stats import Interval, cvar, mean_interval, over_budget, share_interval

VERDICTS = ("within", "unsure", "over", "unknown")


@dataclass(frozen=True)
class PartJudgement:
    """One stream of the punishment beside its own budget."""

    name: str
    budget: float
    verdict: str
    punished: Interval
    over: int
    """Episodes over its budget."""
    share: Interval
    worst: float
    cvar: float


@dataclass(frozen=True)
class Judgement:
    """The evaluation of one policy, with what it cannot rule out."""

    verdict: str
    returned: Interval
    punished: Interval
    over: int
    """Episodes over budget."""
    share: Interval
    """Share of episodes over budget, exact binomial interval."""
    worst: float
    cvar: float
    streams: tuple[PartJudgement, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One run with its judgement and the label that tells it from its neighbours."""

    run: Run
    judgement: Judgement | None
    label: str

    @property
    def verdict(self) -> str:
        return self.judgement.verdict if self.judgement else "unknown"


@dataclass(frozen=True)
class Group:
    """Runs that may stand side by side, best first."""

    task: str
    budget: float
    steps: int
    time_limit: int | None
    entries: tuple[Entry, ...]
    cautions: tuple[str, ...]
    """What still differs between them."""


def judge(evidence: Evidence) -> Judgement:
    """What the episodes show, and how surely."""
    punished = mean_interval(evidence.punishments)
    over = over_budget(evidence.punishments, evidence.budget)
    streams = tuple(_part(part) for part in evidence.streams)
    verdicts = [verdict_of(punished, evidence.budget), *(part.verdict for part in streams)]
    return Judgement(
        verdict=worst_of(verdicts),
        returned=mean_interval(evidence.returns),
        punished=punished,
        over=over,
        share=share_interval(over, evidence.episodes),
        worst=max(evidence.punishments),
        cvar=cvar(evidence.punishments),
        streams=streams,
    )


def verdict_of(punished: Interval, budget: float) -> str:
    """What a mean punishment with its interval shows."""
    if punished.value > budget:
        return "over"
    return "within" if punished.high <= budget else "unsure"


def worst_of(verdicts: Sequence[str]) -> str:
    return max(verdicts, key=VERDICTS.index)


def _part(part: Part) -> PartJudgement:
    punished = mean_interval(part.punishments)
    over = over_budget(part.punishments, part.budget)
    return PartJudgement(
        name=part.name,
        budget=part.budget,
        verdict=verdict_of(punished, part.budget),
        punished=punished,
        over=over,
        share=share_interval(over, len(part.punishments)),
        worst=max(part.punishments),
        cvar=cvar(part.punishments),
    )


def compare(runs: Sequence[Run]) -> list[Group]:
    """Put together what may be compared; groups of one task are neighbours."""
    members: dict[tuple[str, float, int, int, Budgets], list[Run]] = {}
    for run in runs:
        key = (run.task, run.budget, run.steps, run.time_limit or 0, run.streams)
        members.setdefault(key, []).append(run)
    groups = []
    for key in sorted(members):
        task, budget, steps, limit, _ = key
        entries = [
            Entry(run, judge(run.evidence) if run.evidence else None, label)
            for run, label in zip(members[key], _labels(members[key]), strict=True)
        ]
        entries.sort(key=_rank)
        cautions = tuple(_cautions(entries))
        groups.append(Group(task, budget, steps, limit or None, tuple(entries), cautions))
    return groups


def _rank(entry: Entry) -> tuple[int, float, str]:
    returned = entry.judgement.returned.value if entry.judgement else 0.0
    return (VERDICTS.index(entry.verdict), -returned, entry.label)


def _labels(runs: Sequence[Run]) -> list[str]:
    """Agent and seed, and the folder where that is not enough."""
    short = [f"{run.agent} · seed {run.seed}" for run in runs]
    return [
        label if short.count(label) == 1 else f"{label} · {run.name}"
        for label, run in zip(short, runs, strict=True)
    ]


def _cautions(entries: Sequence[Entry]) -> list[str]:
    found = []
    judged = [entry.run.evidence for entry in entries if entry.run.evidence]
    if len({(evidence.eval_seed, evidence.episodes) for evidence in judged}) > 1:
        found.append("The policies were evaluated on different episodes; see the table.")
    packages = sorted({package for entry in entries for package in entry.run.versions})
    differ = [p for p in packages if len({entry.run.versions.get(p) for entry in entries}) > 1]
    if differ:
        found.append(f"The runs used different versions of {', '.join(differ)}.")
    twins = {(entry.run.agent, entry.run.seed) for entry in entries}
    if len(twins) < len(entries):
        found.append("Some runs share agent and seed; they are not independent trainings.")
    if any(len(set(e.run.evidence.punishments)) == 1 for e in entries if e.run.evidence):
        found.append(
            "Where all episodes were punished alike the interval of the mean has no width; "
            "the share over budget is the more careful statement."
        )
    return found
