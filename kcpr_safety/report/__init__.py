"""How safe are these runs, on one page that a person can check? (No torch, no simulator.)"""

from kcpr_safety.report.build import build_report

__all__ = ["build_report"]
