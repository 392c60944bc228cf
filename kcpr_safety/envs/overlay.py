"""How is another module or object seen with a few of its members replaced?"""

from typing import Any


class Overlay:
    """What lies below, but for the members given."""

    def __init__(self, below: Any, **members: Any) -> None:
        self._below = below
        self.__dict__.update(members)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)
