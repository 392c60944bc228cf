"""How does a trained policy leave the laboratory: exported, proven equal, and loaded again?"""

from kcpr_safety.deploy.bundle import export_bundle
from kcpr_safety.deploy.load import Policy, load_policy

__all__ = ["Policy", "export_bundle", "load_policy"]
