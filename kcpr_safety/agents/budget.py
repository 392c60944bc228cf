"""How hard must the punishment module pull so that an episode spends its budget and no more?

One number m multiplies the punishment module: tau_P = tau_P0 / m, k_P = k_P0 / m, hence
lambda = m b k_R / (tau_P0 + k_P0); nothing that is charged to the reward's values moves. With

    error = clip( mean punishment of the last 20 episodes / budget - aim, -1, 1 )

m = exp( integral + gain * error ), the integral moves by rate * error per environment step, and
both stay within [m_low, m_high], where the integral stops (anti-windup). The rate is slow on
purpose: a policy needs tens of thousands of steps to follow its multiplier, and an integral that
outruns it oscillates. Punishment is the undiscounted sum per episode, which is what a budget is.
"""

import math
from collections import deque
from collections.abc import Sequence

from kcpr_safety.agents.settings import Settings

WINDOW = 20
"""Episodes that the controller looks back on."""


class BudgetController:
    """Slow integral plus mild proportional control of m on measured episode punishment."""

    def __init__(self, settings: Settings, budget: float) -> None:
        self.settings, self.budget = settings, budget
        self.integral = math.log(settings.m_start)
        self.recent: deque[float] = deque(maxlen=WINDOW)

    @property
    def error(self) -> float:
        """Relative overspending of recent episodes against the aim, clipped to [-1, 1]."""
        if not self.recent:
            return 0.0
        # A budget of zero is legal: any punishment is then a full error.
        spent = sum(self.recent) / len(self.recent) / max(self.budget, 1e-6)
        return max(-1.0, min(1.0, spent - self.settings.aim))

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
