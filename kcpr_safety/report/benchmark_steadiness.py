"""How alike are the trainings of an agent, and how true is what its critic predicts?"""

import math
from html import escape

import numpy as np

from kcpr_safety.report.benchmark_tables import duration
from kcpr_safety.report.numbers import short
from kcpr_safety.report.standings import Comparison
from kcpr_safety.report.tables import Cell, sortable_table, table
from kcpr_safety.report.trials import Trial
from kcpr_safety.stats import TENTHS

EQUAL_TIME_SHARE = 0.1
"""Of a training's steps, before the moment at which agents are compared."""


def stability_table(comparison: Comparison) -> str:
    """How alike the trainings of an agent are, how far they fall, and what they cost in time."""
    walls = {
        s.label: [t.train_wall_s for t in s.trials if t.train_wall_s] for s in comparison.standings
    }
    times = [float(np.mean(wall)) for wall in walls.values() if wall]
    moment = min(times, default=0.0)
    rows = []
    for s in comparison.standings:
        returns = [t.evidence.return_mean for t in s.trials]
        worst = min(s.trials, key=lambda t: (t.evidence.means_within, t.evidence.return_mean))
        falls = [t.largest_fall for t in s.trials if t.largest_fall is not None]
        early = [at for t in s.trials if (at := _at_time(t, moment)) is not None]
        wall = walls[s.label]
        cells = [
            Cell(short(float(np.std(returns, ddof=1)))) if len(returns) > 1 else Cell("–"),
            Cell(
                f"{short(worst.evidence.return_mean)} / {short(worst.evidence.punishment_mean)}"
                f"<small>seed {worst.evidence.seed}</small>",
                worst.evidence.return_mean,
            ),
            Cell(short(max(falls)), max(falls)) if falls else Cell("–"),
            Cell(duration(float(np.mean(wall))), float(np.mean(wall))) if wall else Cell("–"),
            Cell(" / ".join(short(x) for x in np.mean(early, axis=0))) if early else Cell("–"),
        ]
        rows.append((escape(s.label), cells))
    caption = (
        f"{comparison.protocol.task}: stability. Worst seed: over budget first, then by return. "
        "Largest fall: of a validated return below that of the best validated policy within the "
        "budget so far, in the worst seed. At equal time: mean validation in the last tenth of a "
        f"training's steps before the quickest agent's mean time{_moment(moment)}; return / "
        "punishment. Times are those of the machines as busy as they were."
    )
    columns = ["agent", "deviation of return over seeds", "worst seed", "largest fall"]
    return sortable_table(caption, [*columns, "training time", "at equal time"], rows)


def _moment(seconds: float) -> str:
    return f", {duration(seconds)}" if seconds else ""


def _at_time(trial: Trial, moment: float) -> tuple[float, float] | None:
    """Mean return and punishment of the validations shortly before a moment of the training."""
    if not trial.train_wall_s or not moment:
        return None
    steps = trial.evidence.steps
    until = steps * min(1.0, moment / trial.train_wall_s)
    first = until - EQUAL_TIME_SHARE * steps
    points = [p[1:3] for p in trial.validation if first < p[0] <= until]
    points = [p for p in points if not math.isnan(sum(p))]
    if not points:
        return None
    returned, punished = np.mean(points, axis=0)
    return float(returned), float(punished)


def tenths_table(comparison: Comparison) -> str:
    """Predicted beside realised punishment by tenths of the prediction, the mean over seeds; empty
    where no evaluation tells."""
    told = {
        s.label: np.array([t.evidence.reliability for t in s.trials if _by_tenths(t)])
        for s in comparison.standings
    }
    told = {label: each for label, each in told.items() if len(each)}
    if not told:
        return ""
    rows = []
    for tenth in range(TENTHS):
        cells = []
        for each in told.values():
            _, predicted, realised = each[:, tenth].mean(0)
            cells.append(f"{short(predicted)} / {short(realised)}")
        rows.append((str(tenth + 1), cells))
    caption = (
        f"{comparison.protocol.task}: steps of the final evaluation by tenths of what the "
        "evaluation critic predicted, lowest first, mean over seeds: predicted / realised "
        "discounted punishment. A tenth whose second number is larger was more dangerous than was "
        "thought."
    )
    return table(caption, ["tenth", *told], rows, "wide")


def _by_tenths(trial: Trial) -> bool:
    return len(trial.evidence.reliability) == TENTHS
