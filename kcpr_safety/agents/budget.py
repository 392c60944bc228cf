"""How hard must the punishment module pull so that an episode spends its budget and no more?

One number m multiplies the punishment module: tau_P = tau_P0 / m, k_P = k_P0 / m, hence
lambda = m b k_R / (tau_P0 + k_P0); nothing that is charged to the reward's values moves. With

    pace  = running mean of punishment per step * time limit
    error = clip( log( pace / (aim * budget) ), -1, 2 )
    m     = exp( integral + gain * error )

the integral moves by rate * error per environment step, and both stay within [m_low, m_high], where
the integral stops (anti-windup). At gain 1 the weight is proportional to what is suffered: it
answers within half an episode, before a policy has settled beyond its budget, and lets go as soon
as less is suffered, so that a policy that has been driven away from everything finds back. The
integral is slow on purpose: a policy needs tens of thousands of steps to follow its multiplier, and
an integral that outruns it oscillates, or ends the task before it was learned.

The pace is what a whole episode would suffer: where episodes end early (a fall), that is more than
was suffered, so that falling is no way to save.
"""

import math

from kcpr_safety.agents.settings import Settings

ERROR_RANGE = (-1.0, 2.0)
"""In e-folds of punishment: a third of the aim, and seven times it."""

MEMORY = 0.5
"""Time constant of the pace, in episodes."""


class BudgetController:
    """Proportional control of m on the pace of punishment, with a slow integral."""

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
        """Punishment that an episode would add up to at the present pace; begins at the aim."""

    @property
    def error(self) -> float:
        """Overspending against the aim, in e-folds, clipped."""
        low, high = ERROR_RANGE
        # A budget of zero is legal: any punishment is then the largest error.
        aim = max(self.settings.aim * self.budget, 1e-6)
        return min(math.log(max(self.pace / aim, math.exp(low))), high)

    @property
    def m(self) -> float:
        """The weight in force."""
        if not self.settings.controlled:
            return self.start
        return math.exp(self._bounded(self.integral + self.settings.m_gain * self.error))

    def suffered(self, punishment: float) -> None:
        """Take note of one step's punishment, a mean over environments."""
        share = min(1.0, 1.0 / (MEMORY * self.time_limit))
        self.pace += share * (punishment * self.time_limit - self.pace)

    def advance(self, steps: int) -> None:
        """Let the integral follow the error for `steps` environment steps."""
        self.integral = self._bounded(self.integral + self.settings.m_rate * steps * self.error)

    def _bounded(self, log_m: float) -> float:
        return min(max(log_m, math.log(self.settings.m_low)), math.log(self.settings.m_high))
