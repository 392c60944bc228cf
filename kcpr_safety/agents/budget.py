"""How hard must the punishment module pull so that an episode spends its budget and no more?

One number m multiplies the punishment module: tau_P = tau_P0 / m, k_P = k_P0 / m, hence
lambda = m b k_R / (tau_P0 + k_P0); nothing that is charged to the reward's values moves. With

    pace     = running mean of punishment per step * time limit
    survival = 1 / (1 + running mean of terminations per step * time limit)
    error    = clip( log( pace * survival / (ease * aim) ), -1, 2 )
    m        = exp( integral + gain * error + damping * max(0, error - lagged error) )

the integral moves by rate * error per environment step, and both m and exp(integral) stay within
[m_low, m_high], where the integral stops (anti-windup). pace * survival is what an episode suffers,
as evaluation counts it, also where falls end it early. Nobody saves by falling all the same: what
a fall is worth to the punishment module is the pace (`ops.bellman`).

The weight is there from the start, about as high as it will be in the end (streams are normalised,
so one beginning suits all tasks), and moves slowly, by a few e-folds in a whole run. A robot that
learns its gait under it learns one that suffers little, and gets faster as the weight comes down. A
lower weight that answers at once and in proportion is a task that changes faster than it can be
learned: a hopper runs, falls and stands in turns, and suffers several times as much on its way
(docs/experiments.md). For the same reason the running means remember a fifth of the run: the pace
of four robots in half an episode is mostly chance.

Who suffers more than the aim untaught, r times as much, has both streams to learn at once, and a
weight that is there before a robot knows its way teaches it to stay away from everything, or to
stand still (PointGoal1). So the weight begins at m_start / r there (half of m_start at least), and
the aim comes down, evenly in e-folds over the first part of a run, from what untaught robots
suffer: ease falls from r to 1. Where punishment comes with skill, as speed does, r is 1. Whether it
does must not be left to chance: half of PointGoal1's random robots meet no hazard in an episode
(`training.untaught`).
"""

import math
from collections.abc import Sequence

from kcpr_safety.agents.settings import Settings

ERROR_RANGE = (-1.0, 2.0)
"""In e-folds of punishment: a third of the aim, and seven times it."""

MEMORY = 0.5
"""Shortest time constant of the pace, in episodes."""
MEMORY_SHARE = 0.2
"""Of the run so far, where that is longer: the older a policy is, the slower it changes."""
EASE = 0.15
"""Share of the run in which the aim comes down from what is suffered untaught: the integral needs
the rest of it to bring the weight there (PointGoal1)."""
LEAST_START = 0.5
"""Of m_start, at least, is begun with: any random action breaks a budget near zero, and what r
says of how early a weight is too early, it has said by 2. A swimmer that began at a tenth, where r
is 12, would not be within its budget at the end of a run (docs/experiments.md)."""


class BudgetController:
    """Slow integral control of m on the pace of punishment, a little of it in proportion."""

    def __init__(
        self, settings: Settings, budget: float, time_limit: int, share: float = 1.0
    ) -> None:
        """`budget`: punishment per episode of `time_limit` steps, undiscounted.

        m begins at this `share` of m_start: several budgets divide it among them.
        """
        self.settings, self.budget, self.time_limit = settings, budget, time_limit
        self.start = settings.m_start * share
        self.integral = math.log(self.start)
        self.pace = settings.aim * budget
        """Punishment that a full episode would add up to at the present pace; begins at the aim."""
        self.terminations = 0.0
        """Episodes that would end early in the time of one, at the present rate."""
        self.seen = 0
        """Steps taken note of, of each environment."""
        self.untaught = (0.0, 0.0)
        """Pace and terminations of robots that have learned nothing."""
        self.lagged = 0.0
        """Running mean of the error, with the pace's memory."""
        self.progress = 0.0
        """Share of the run that is done, as of the last `advance`."""

    @property
    def survival(self) -> float:
        """About the share of its time limit that an episode lasts."""
        return 1.0 / (1.0 + self.terminations)

    @property
    def ease(self) -> float:
        """How many times its last the aim is by now."""
        return math.pow(self._overspent, max(1.0 - self.progress / EASE, 0.0))

    @property
    def aim(self) -> float:
        """Punishment per episode that is aimed at by now."""
        return self._last_aim * self.ease

    @property
    def _last_aim(self) -> float:
        # A budget of zero is legal: any punishment is then the largest error.
        return max(self.settings.aim * self.budget, 1e-6)

    @property
    def _overspent(self) -> float:
        """r: how many times its last aim an untaught episode suffers; at least 1."""
        pace, terminations = self.untaught
        return max(pace / (1.0 + terminations) / self._last_aim, 1.0)

    @property
    def _begun(self) -> float:
        """The share of m_start that is begun with."""
        return max(1.0 / self._overspent, LEAST_START)

    @property
    def error(self) -> float:
        """Overspending against the aim, in e-folds, clipped."""
        low, high = ERROR_RANGE
        return min(math.log(max(self.pace * self.survival / self.aim, math.exp(low))), high)

    @property
    def m(self) -> float:
        """The weight in force."""
        if not self.settings.controlled:
            return self.start
        error = self.error
        log_m = self.integral + self.settings.m_gain * error
        log_m += self.settings.m_damping * max(0.0, error - self.lagged)
        return math.exp(self._bounded(log_m))

    def suffered(self, punishment: float, terminated: float) -> None:
        """Take note of one step: means over environments, `terminated` of flags 0 and 1."""
        self.seen += 1
        memory = max(MEMORY * self.time_limit, MEMORY_SHARE * self.seen)
        share = min(1.0, 1.0 / memory)
        self.pace += share * (punishment * self.time_limit - self.pace)
        self.terminations += share * (terminated * self.time_limit - self.terminations)
        self.lagged += share * (self.error - self.lagged)

    def begin(self, pace: float, terminations: float) -> None:
        """Take note of what is suffered untaught, before anything else happens.

        In the time of a full episode: `pace` of punishment, and episodes that end early.
        """
        self.untaught = (pace, terminations)
        self.integral = self._bounded(math.log(self.start) + math.log(self._begun))

    def state(self) -> list[float]:
        """What has accumulated; `take` is its inverse."""
        seen = float(self.seen)
        now = [self.integral, self.pace, self.terminations, self.lagged, seen, self.progress]
        return [*now, *self.untaught]

    def take(self, state: Sequence[float]) -> None:
        """Continue from a `state`."""
        self.integral, self.pace, self.terminations, self.lagged, *rest = state
        seen, self.progress, *untaught = rest
        self.seen, self.untaught = int(seen), (untaught[0], untaught[1])

    def advance(self, steps: int, progress: float) -> None:
        """Let the integral follow the error for `steps` environment steps.

        `progress`: share of the run that is done.
        """
        self.progress = progress
        moved = self.settings.m_rate * steps * self.error
        self.integral = self._bounded(self.integral + moved)

    def _bounded(self, log_m: float) -> float:
        return min(max(log_m, math.log(self.settings.m_low)), math.log(self.settings.m_high))
