"""How do `tasks/`, `suites/`, `policies/` and the tested versions get into the wheel?

They are data at the root of a checkout and `kcpr_safety/_data/` inside a wheel. An editable
install uses the checkout itself, so only real wheels are given the copy.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DataHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            for data in ("tasks", "suites", "policies", "constraints.txt"):
                build_data["force_include"][data] = f"kcpr_safety/_data/{data}"
