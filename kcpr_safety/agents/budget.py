"""How hard must the punishment module pull so that an episode spends its budget and no more?

One number m multiplies the punishment module: tau_P = tau_P0 / m, k_P = k_P0 / m, hence
lambda = m b k_R / (tau_P0 + k_P0); nothing that is charged to the reward's values moves. With

    error = clip( log( mean punishment of the last 10 episodes / (aim * budget) ), -1, 2 )

m = exp( integral + gain * error ), the integral moves by rate * error per environment step, and
both stay within [m_low, m_high], where the integral stops (anti-windup). The rate is slow on
purpose: a policy needs tens of thousands of steps to follow its multiplier, and an integral that
outruns it oscillates, or ends the task before it was learned. The logarithm makes it quick where
an episode spends the budget many times over (a runner above its speed limit) and patient where it
is two or three times (a robot among obstacles). Punishment is the undiscounted sum per episode,
which is what a budget is.
"""

import math
from collections import deque
from collections.abc import Sequence

from kcpr_safety.agents.settings import Settings

WINDOW = 10
"""Episodes that the controller looks back on."""

ERROR_RANGE = (-1.0, 2.0)
"""In e-folds of punishment: a third of the aim, and seven times it."""


class BudgetController:
    """Slow integral plus mild proportional control of m on measured episode punishment."""

    def __init__(self, settings: Settings, budget: float) -> None:
        self.settings, self.budget = settings, budget
        self.integral = math.log(settings.m_start)
        self.recent: deque[float] = deque(maxlen=WINDOW)

    @property
    def error(self) -> float:
        """Overspending of recent episodes against the aim, in e-folds, clipped."""
        if not self.recent:
            return 0.0
        low, high = ERROR_RANGE
        # A budget of zero is legal: any punishment is then the largest error.
        aim = max(self.settings.aim * self.budget, 1e-6)
        return min(math.log(max(self.spent / aim, math.exp(low))), high)

    @property
    def spent(self) -> float:
        """Mean punishment of recent episodes; NaN before any."""
        return sum(self.recent) / len(self.recent) if self.recent else math.nan

    @property
    def m(self) -> float:
        """The weight in force."""
        if not self.settings.controlled:
            return self.settings.m_start
        return math.exp(self._bounded(self.integral + self.settings.m_gain * self.error))

    def finished(self, punishments: Sequence[float]) -> None:
        """Take note of episodes that ended, by their undiscounted punishment."""
        self.recent.extend(punishments)

    def advance(self, steps: int) -> None:
        """Let the integral follow the error for `steps` environment steps."""
        self.integral = self._bounded(self.integral + self.settings.m_rate * steps * self.error)

    def _bounded(self, log_m: float) -> float:
        return min(max(log_m, math.log(self.settings.m_low)), math.log(self.settings.m_high))
