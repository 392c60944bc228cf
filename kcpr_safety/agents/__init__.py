"""Which learners are there? They act and update on batches; they never see a world or a file."""

from kcpr_safety.agents.continuous import Learner
from kcpr_safety.agents.settings import AGENTS, Settings, agent_settings

__all__ = ["AGENTS", "Learner", "Settings", "agent_settings"]
