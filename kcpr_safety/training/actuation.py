"""How does a learner's action become a command to the actuators, and what is a random one?

Continuous: numbers in [-1, 1], stretched over each actuator's bounds. A choice: one number, the row
of the contract's table of commands. Which of the two is the contract's to say.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kcpr_safety.contract import Contract


class Actuation(Protocol):
    """Between learners and worlds."""

    choices: int
    """What a learner's `Task.action_size` is."""

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniformly random actions, [count, size]."""
        ...

    def command(self, action: Tensor) -> np.ndarray:
        """Actions in actuator units."""
        ...


class Stretch:
    """From [-1, 1] to the bounds."""

    def __init__(self, contract: Contract) -> None:
        self.choices = contract.action_size
        self._low = np.array([entry.low for entry in contract.action])
        self._span = np.array([entry.high for entry in contract.action]) - self._low

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        return 2.0 * torch.rand((count, self.choices), generator=generator) - 1.0

    def command(self, action: Tensor) -> np.ndarray:
        command: np.ndarray = self._low + (action.numpy().astype(np.float64) + 1) / 2 * self._span
        return command


class Choice:
    """From a row's number to the row."""

    def __init__(self, contract: Contract) -> None:
        self.choices = len(contract.commands)
        self._table = np.array(contract.commands)

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.choices, (count, 1), generator=generator).float()

    def command(self, action: Tensor) -> np.ndarray:
        command: np.ndarray = self._table[action[:, 0].long().numpy()]
        return command


def actuation_of(contract: Contract) -> Actuation:
    """The one that the contract asks for."""
    return Choice(contract) if contract.commands else Stretch(contract)
