"""How do agents stand beside each other on one task, and over tasks, and how surely?

Trials are put together only where task, budget, training steps, episode length and evaluation mode
are equal; everything else that differs is named. Of an agent with several training seeds:

    within    the interval (Student's t, over seeds) of its mean punishment ends within the
              budget, and so does each seed's mean
    unsure    the mean is within the budget, but not shown to be
    over      the mean is above the budget

Each stream with a budget of its own is looked at alike, and the worst verdict is the agent's.

Ranking is feasible first. Over tasks a policy's score is its return over the best published return
of a policy within the budget, and 0 for a policy that is over it: return that was bought with
punishment counts for nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from kcpr_safety.report.judge import VERDICTS, worst_of
from kcpr_safety.report.trials import Protocol, Trial, differing
from kcpr_safety.stats import Interval, cvar, difference_interval, over_budget, share_interval
from kcpr_safety.stats.trainings import (
    Calibration,
    calibration,
    cluster_interval,
    improvement_interval,
    iqm,
    profile,
    seed_interval,
    stratified_interval,
)

FEW_SEEDS = 5
OFTEN = 0.05
"""Share of episodes over budget above which a mean within it is not the whole truth."""
TAUS = tuple(round(0.05 * i, 2) for i in range(25))


@dataclass(frozen=True)
class PartStanding:
    """One stream of the punishment beside its own budget, over training seeds."""

    name: str
    budget: float
    verdict: str
    punished: Interval
    over_budget_share: float
    """Of all seeds' episodes."""


@dataclass(frozen=True)
class Standing:
    """One agent on one task."""

    label: str
    trials: tuple[Trial, ...]
    """One for each training seed."""
    verdict: str
    returned: Interval
    punished: Interval
    share: Interval
    """Of episodes over budget; cluster bootstrap over seeds."""
    cvar: Interval
    """Of the punishment of all seeds' episodes; cluster bootstrap over seeds."""
    worst: float
    """Punishment of the worst episode."""
    feasible: int
    """Seeds whose mean punishment is within the budget, and each stream's within its own."""
    worst_policy: tuple[int, int, int, Interval]
    """Seed, episodes over budget, episodes, exact interval: of the seed with the largest share."""
    regret: Interval | None
    """Punishment summed over training."""
    calibration: Calibration | None
    streams: tuple[PartStanding, ...] = ()

    @property
    def infeasible(self) -> bool:
        return self.verdict == "over"


@dataclass(frozen=True)
class Comparison:
    """Agents that may stand side by side, best first, and what was changed of them."""

    protocol: Protocol
    standings: tuple[Standing, ...]
    ablations: tuple[Standing, ...]
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Across:
    """Agents over several tasks."""

    tasks: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    """Tasks that do not count, each with its reason."""
    scores: Mapping[str, Interval]
    """IQM of the feasible scores, best first."""
    budgets: Mapping[str, Interval]
    """IQM of punishment over budget."""
    better: Mapping[tuple[str, str], Interval]
    """Chance that a run of the first agent scores higher than one of the second."""
    profiles: Mapping[str, Sequence[Interval]]
    """Share of runs that score above each of `TAUS`."""


def compare_trials(trials: Sequence[Trial]) -> list[Comparison]:
    """Groups of equal protocol, those of one task beside each other."""
    groups: dict[Protocol, dict[str, list[Trial]]] = {}
    for trial in trials:
        groups.setdefault(trial.protocol, {}).setdefault(trial.label, []).append(trial)
    comparisons = []
    for protocol, of in groups.items():
        everyone = [standing(label, same) for label, same in of.items()]
        everyone.sort(key=_rank)
        comparisons.append(
            Comparison(
                protocol,
                tuple(s for s in everyone if not s.trials[0].overrides),
                tuple(s for s in everyone if s.trials[0].overrides),
                tuple(_cautions([t for same in of.values() for t in same], of)),
            )
        )
    return comparisons


def standing(label: str, trials: Sequence[Trial]) -> Standing:
    """All seeds of one agent on one task."""
    budget = trials[0].evidence.budget
    punishments = [trial.evidence.punishments for trial in trials]
    punished = seed_interval(punishments)
    streams = tuple(_part(trials, index) for index in range(len(trials[0].evidence.streams)))
    sufferings = [t.punishment_training for t in trials if t.punishment_training is not None]
    verdicts = [_verdict(punished, punishments, budget), *(part.verdict for part in streams)]

    def share(values: np.ndarray) -> float:
        return float((values > budget).mean())

    return Standing(
        label=label,
        trials=tuple(trials),
        verdict=worst_of(verdicts),
        returned=seed_interval([trial.evidence.returns for trial in trials]),
        punished=punished,
        share=_share(trials, cluster_interval(punishments, share, _generator())),
        cvar=cluster_interval(punishments, cvar, _generator()),
        worst=max(map(max, punishments)),
        feasible=sum(trial.evidence.means_within for trial in trials),
        worst_policy=_worst_policy(trials, budget),
        regret=seed_interval([[x] for x in sufferings]) if sufferings else None,
        calibration=_calibration(trials),
        streams=streams,
    )


def _verdict(punished: Interval, punishments: Sequence[Sequence[float]], budget: float) -> str:
    if punished.value > budget:
        return "over"
    safe = punished.high <= budget and all(np.mean(each) <= budget for each in punishments)
    return "within" if safe else "unsure"


def _part(trials: Sequence[Trial], index: int) -> PartStanding:
    parts = [trial.evidence.streams[index] for trial in trials]
    name, budget = parts[0].name, parts[0].budget
    punishments = [part.punishments for part in parts]
    punished, everyone = seed_interval(punishments), np.concatenate(punishments)
    return PartStanding(
        name=name,
        budget=budget,
        verdict=_verdict(punished, punishments, budget),
        punished=punished,
        over_budget_share=over_budget(everyone, budget) / len(everyone),
    )


def across(comparisons: Sequence[Comparison], references: Mapping[str, float]) -> Across | None:
    """Over all tasks on which every agent was trained; None where there are fewer than two."""
    labels = sorted({s.label for c in comparisons for s in c.standings})
    chosen: list[Comparison] = []
    left_out: list[tuple[str, str]] = []
    for task in sorted({c.protocol.task for c in comparisons}):
        of = [c for c in comparisons if c.protocol.task == task]
        missing = sorted(set(labels) - {s.label for c in of for s in c.standings})
        if len(of) > 1:
            left_out.append((task, f"was run under {len(of)} protocols"))
        elif missing:
            left_out.append((task, f"lacks {', '.join(missing)}"))
        elif task not in references:
            left_out.append((task, "has no published return to measure by"))
        else:
            chosen.append(of[0])
    if len(chosen) < 2 or not labels:
        return None
    scores = {label: [_scores(c, label, references) for c in chosen] for label in labels}
    spent = {label: [_spent(c, label) for c in chosen] for label in labels}
    middle = {label: stratified_interval(scores[label], iqm, _generator()) for label in labels}
    order = sorted(labels, key=lambda label: (-middle[label].value, label))
    return Across(
        tasks=tuple(c.protocol.task for c in chosen),
        left_out=tuple(left_out),
        scores={label: middle[label] for label in order},
        budgets={label: stratified_interval(spent[label], iqm, _generator()) for label in order},
        better={
            (a, b): improvement_interval(scores[a], scores[b], _generator())
            for a, b in combinations(order, 2)
        },
        profiles={label: profile(scores[label], TAUS, _generator()) for label in order},
    )


def breaks_often(s: Standing) -> bool:
    """Whether the mean keeps the budget while more than one in twenty episodes breaks it."""
    return not s.infeasible and s.share.value > OFTEN


MEASURES: Mapping[str, Callable[[Trial], float]] = {
    "return": lambda t: t.evidence.return_mean,
    "punishment": lambda t: t.evidence.punishment_mean,
    "episodes over budget [%]": lambda t: (
        100.0 * over_budget(t.evidence.punishments, t.evidence.budget) / t.evidence.episodes
    ),
    "punishment in training": lambda t: (
        math.nan if t.punishment_training is None else t.punishment_training
    ),
}
"""What an ablation is judged by, of each training."""


def differences(ours: Standing, theirs: Standing) -> dict[str, Interval]:
    """By how much a training of ours is above one of theirs, in each of `MEASURES`; Welch's
    interval over training seeds. NaN where some training does not tell."""
    found = {}
    for name, value in MEASURES.items():
        a, b = ([value(t) for t in s.trials] for s in (ours, theirs))
        told = not math.isnan(sum(a) + sum(b))
        found[name] = difference_interval(a, b) if told else Interval(math.nan, -math.inf, math.inf)
    return found


def ablated(comparison: Comparison) -> list[tuple[Standing, dict[str, Interval] | None]]:
    """Each agent with something changed, and its differences from the whole agent, if there is
    one that is alike in all else."""
    pairs = [(s, _whole(s, comparison.standings)) for s in comparison.ablations]
    return [(s, None if base is None else differences(s, base)) for s, base in pairs]


def _whole(ablation: Standing, among: Sequence[Standing]) -> Standing | None:
    """The agent of which the ablation changes what it says it changes, and nothing else."""
    changed = ablation.trials[0]
    found = [
        s
        for s in among
        if s.trials[0].evidence.agent == changed.evidence.agent
        and {*differing([s.trials[0].settings, changed.settings])} <= {*changed.overrides}
    ]
    return found[0] if len(found) == 1 else None


def _scores(comparison: Comparison, label: str, references: Mapping[str, float]) -> list[float]:
    best = references[comparison.protocol.task]
    return [
        trial.evidence.return_mean / best if trial.evidence.means_within else 0.0
        for trial in _trials(comparison, label)
    ]


def _spent(comparison: Comparison, label: str) -> list[float]:
    budget = comparison.protocol.budget or 1.0
    return [trial.evidence.punishment_mean / budget for trial in _trials(comparison, label)]


def _trials(comparison: Comparison, label: str) -> tuple[Trial, ...]:
    return next(s.trials for s in comparison.standings if s.label == label)


def _share(trials: Sequence[Trial], drawn: Interval) -> Interval:
    """The bootstrap's interval; where all seeds are alike it has no width, and as much stays
    possible as one seed's episodes leave open."""
    if drawn.low < drawn.high:
        return drawn
    evidence = trials[0].evidence
    return share_interval(over_budget(evidence.punishments, evidence.budget), evidence.episodes)


def _worst_policy(trials: Sequence[Trial], budget: float) -> tuple[int, int, int, Interval]:
    found = []
    for trial in trials:
        evidence = trial.evidence
        over = over_budget(evidence.punishments, budget)
        share = share_interval(over, evidence.episodes)
        found.append((evidence.seed, over, evidence.episodes, share))
    return max(found, key=lambda of: (of[3].value, of[3].high))


def _calibration(trials: Sequence[Trial]) -> Calibration | None:
    pairs = [
        (t.evidence.predicted_punishment, t.evidence.realised_punishment)
        for t in trials
        if t.evidence.predicted_punishment is not None
        and t.evidence.realised_punishment is not None
    ]
    return calibration(*zip(*pairs, strict=True)) if pairs else None


def _rank(standing: Standing) -> tuple[int, float, str]:
    return VERDICTS.index(standing.verdict), -standing.returned.value, standing.label


def _cautions(trials: Sequence[Trial], of: Mapping[str, Sequence[Trial]]) -> list[str]:
    found = []
    if len({(t.evidence.eval_seed, t.evidence.episodes) for t in trials}) > 1:
        found.append("The policies were not all judged on the same episodes.")
    if len({tuple(sorted(t.evidence.seed for t in same)) for same in of.values()}) > 1:
        counts = "; ".join(f"{label}: {len(same)}" for label, same in of.items())
        found.append(f"The agents were not trained from the same seeds ({counts}).")
    ranked = [t.settings for t in trials if not t.overrides]
    if differ := [n for n in differing(ranked) if all(n in settings for settings in ranked)]:
        found.append(f"The agents' settings differ in {', '.join(differ)}: all of these tell.")
    fewest = min(len(same) for same in of.values())
    if fewest == 1:
        found.append("Of one training seed nothing follows for another: there is no interval.")
    elif fewest < FEW_SEEDS:
        found.append(f"{fewest} training seeds are few: read the note on intervals.")
    packages = sorted({package for t in trials for package in t.versions})
    differ = [p for p in packages if len({t.versions.get(p) for t in trials}) > 1]
    if differ:
        found.append(f"The runs used different versions of {', '.join(differ)}.")
    shortened = sorted(
        {t.label for t in trials if t.time_limit and min(t.evidence.lengths) < t.time_limit}
    )
    if shortened:
        found.append(
            f"Some episodes of {', '.join(shortened)} ended before their time: there was less "
            "time to be punished in."
        )
    return found


def _generator() -> np.random.Generator:
    return np.random.default_rng(0)
