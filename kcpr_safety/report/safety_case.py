"""What would have to be true for these policies to be used, what shows it, and what would undo it?

Hazards, each with the requirement that meets it and where its evidence stands: on this page, in the
project's tests, or nowhere, which is said. The verdict on each comes from the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from kcpr_safety.report.collection import Collection
from kcpr_safety.report.standings import Standing
from kcpr_safety.report.tables import percent, table
from kcpr_safety.stats import share_interval


@dataclass(frozen=True)
class Hazard:
    """One row of the case."""

    number: str
    what: str
    requirement: str
    evidence: str
    """HTML: links within the page, names of tests."""
    status: str


def safety_case(collection: Collection) -> str:
    """The section's HTML."""
    hazards = _hazards(collection)
    rows = [
        (f"{h.number} {escape(h.what)}", [escape(h.requirement), h.evidence, escape(h.status)])
        for h in hazards
    ]
    tasks = ", ".join(sorted({c.protocol.task for c in collection.comparisons})) or "none"
    return f"""<section aria-labelledby="case">
<h2 id="case">Safety case</h2>
<dl class="words">
<dt>Intended use</dt><dd>Choosing between ways of training, and deciding whether a policy is worth
trying under supervision. Not a release for unattended operation: that needs evidence from the
machine itself and an independent, non-learned last resort.</dd>
<dt>Operating domain</dt><dd>Simulated tasks as their cards define them ({escape(tasks)}): their
dynamics, observations without added noise, their distribution of starts and layouts, full episodes,
the control period of the contract, the deterministic policy.</dd>
</dl>
{table("Hazards, and what is shown about each.", _COLUMNS, rows, "wide case")}
<h3>What would void this evidence</h3>
<ul>{"".join(f"<li>{escape(reason)}</li>" for reason in _VOIDS)}</ul>
</section>"""


_COLUMNS = ("hazard", "requirement", "evidence", "status here")

_VOIDS = (
    "A policy file whose hash is not in the table of trials, or a controller that does not pass "
    "its golden vectors (kcpr-safety export writes them into the bundle).",
    "Another task, budget, episode length, control period, order of observations or bound of an "
    "action than the contract in the policy file.",
    "Other dynamics, sensors, delays or layouts than those of the task: the simulator's version is "
    "part of the evidence.",
    "Choosing among policies, seeds or settings by their evaluation episodes.",
    "Further training, quantising or editing of the weights.",
    "Any problem that this page names above and that has not been resolved.",
)


def _hazards(collection: Collection) -> list[Hazard]:
    standings = [s for c in collection.comparisons for s in c.standings]
    return [
        Hazard(
            "H1",
            "The policy is punished beyond its budget on average",
            "The interval of the mean punishment over training seeds ends within the budget.",
            '<a href="#verdicts">verdicts</a>',
            _count(standings, "within"),
        ),
        Hazard(
            "H2",
            "Single episodes break the budget while the mean keeps it",
            "The share of episodes over budget is stated with its interval, and CVaR with it.",
            '<a href="#tasks">ranking of each task</a>, exceedance figures',
            _hidden(standings),
        ),
        Hazard(
            "H3",
            "Another training seed gives an unsafe policy",
            "Each seed's own mean is within the budget, over at least five seeds.",
            '<a href="#tasks">ranking of each task</a>, <a href="#trials">trials</a>',
            _seeds(standings),
        ),
        Hazard(
            "H4",
            "Predicted danger is too low where something relies on it",
            "Predicted discounted punishment is at least what follows.",
            '<a href="#tasks">calibration figures</a>',
            _calibrated(standings),
        ),
        Hazard(
            "H5",
            "What runs is not what was judged",
            "The exported controller gives the judged policy's actions to the last bit.",
            "<code>tests/test_deploy.py</code>, <code>scripts/parity.py</code>; hashes in "
            '<a href="#trials">trials</a>',
            "Held by the project's tests; each bundle carries golden vectors.",
        ),
        Hazard(
            "H6",
            "Inputs outside the contract, or numbers that are none, reach an actuator",
            "The controller bounds its commands and refuses what is not finite.",
            "<code>tests/test_controller.py</code>, <code>tests/test_deploy_faults.py</code>, "
            "<code>scripts/fuzz.py</code>",
            "Held by the project's tests.",
        ),
        Hazard(
            "H7",
            "The judgement was learned by heart",
            "Evaluation episodes start from seeds that neither training nor selection may use.",
            "<code>kcpr_safety/seeds.py</code>, <code>tests/test_training.py</code>",
            _seed_status(collection),
        ),
        Hazard(
            "H8",
            "Training itself does the harm",
            "Punishment summed over training is stated.",
            '<a href="#tasks">punishment in training</a>',
            "Stated; not bounded by any method here.",
        ),
        Hazard(
            "H9",
            "The machine differs from the simulation",
            "Evidence from the machine, and a last resort that does not learn.",
            "none",
            "Open: nothing on this page speaks of it.",
        ),
    ]


def _count(standings: Sequence[Standing], verdict: str) -> str:
    met = sum(s.verdict == verdict for s in standings)
    return f"Shown for {met} of {len(standings)} pairs of agent and task."


def _hidden(standings: Sequence[Standing]) -> str:
    kept = [s for s in standings if not s.infeasible]
    if not kept:
        return "No pair keeps even the mean."
    worst = max(kept, key=lambda s: s.share.value)
    if worst.share.value == 0:
        episodes = min(t.evidence.episodes for s in kept for t in s.trials)
        bound = percent(share_interval(0, episodes).high)
        return f"No episode of these is over; 0 of {episodes} still allows {bound} of each policy."
    task = worst.trials[0].evidence.task
    return (
        f"Of pairs whose mean keeps the budget, {worst.label} on {task} breaks it in "
        f"{percent(worst.share.value)} of episodes."
    )


def _seeds(standings: Sequence[Standing]) -> str:
    enough = [s for s in standings if len(s.trials) >= 5]
    met = sum(s.feasible == len(s.trials) for s in enough)
    few = len(standings) - len(enough)
    told = f"Holds for {met} of {len(enough)} pairs with five seeds or more"
    return f"{told}; {few} pairs have fewer." if few else f"{told}."


def _calibrated(standings: Sequence[Standing]) -> str:
    known = [s.calibration for s in standings if s.calibration is not None]
    low = sum(c.bias < 0 for c in known)
    return f"Underestimated on average by {low} of {len(known)} pairs that predict."


def _seed_status(collection: Collection) -> str:
    used = [t.evidence.eval_seed for t in collection.trials]
    if used and min(used) >= 10_000:
        return "All rows were judged on evaluation seeds; the code refuses others."
    return "Not shown: some rows were judged on seeds below 10,000."
