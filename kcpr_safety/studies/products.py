"""Which matrix products is one update made of, and how fast can this machine do just those?

The count follows from the shapes alone: every product of an MLP's layer with a batch is
`2 * members * rows * fan_in * fan_out` operations, be it forward, the gradient of the layer's
input or that of its weight. Everything else in an update (activations, targets, Adam) counts as
nothing. The limit is the same products in bare loops, each between buffers that are ready.
"""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from kcpr_safety.agents.continuous import CRITICS
from kcpr_safety.agents.settings import Settings

FORWARD, INPUT, WEIGHT = "forward", "input gradient", "weight gradient"
KINDS = (FORWARD, INPUT, WEIGHT)


@dataclass(frozen=True)
class Product:
    """One batched product: every member's layer with its rows."""

    part: str
    kind: str
    members: int
    rows: int
    fan_in: int
    fan_out: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition each; the same for all three kinds."""
        return 2 * self.members * self.rows * self.fan_in * self.fan_out

    def ready(self) -> Callable[[], object]:
        """The product as a call between buffers of its own."""
        inputs = torch.randn(self.members, self.rows, self.fan_in)
        weight = torch.randn(self.members, self.fan_in, self.fan_out)
        outputs = torch.randn(self.members, self.rows, self.fan_out)
        if self.kind == FORWARD:
            return lambda: torch.bmm(inputs, weight, out=outputs)
        if self.kind == INPUT:
            return lambda: torch.bmm(outputs, weight.transpose(1, 2), out=inputs)
        return lambda: torch.bmm(inputs.transpose(1, 2), outputs, out=weight)


def update_products(settings: Settings, obs_size: int, action_size: int) -> list[Product]:
    """What one update cannot do without."""
    hidden = [settings.width] * settings.depth
    actor = [obs_size, *hidden, 2 * action_size]
    critic = [obs_size + action_size, *hidden, 1]
    actors, batch = (2 if settings.coupled else 1), settings.batch
    # The rows of s and s' pass the actors together; only those of s are learned from.
    counted = _products("actors", FORWARD, actors, 2 * batch, actor)
    counted += _products("actors", WEIGHT, actors, batch, actor)
    counted += _products("actors", INPUT, actors, batch, actor)[1:]
    # dQ/da for the actors: both twins of both streams, down to the action's columns alone.
    counted += _products("actors through critics", FORWARD, 4, batch, critic)
    slopes = _products("actors through critics", INPUT, 4, batch, critic)
    counted += [replace(slopes[0], fan_in=action_size), *slopes[1:]]
    counted += _products("target critics", FORWARD, CRITICS, batch, critic)
    counted += _products("critics", FORWARD, CRITICS, batch, critic)
    counted += _products("critics", WEIGHT, CRITICS, batch, critic)
    counted += _products("critics", INPUT, CRITICS, batch, critic)[1:]
    return counted


def _products(part: str, kind: str, members: int, rows: int, sizes: Sequence[int]) -> list[Product]:
    """One product per layer, the input's first."""
    return [
        Product(part, kind, members, rows, *pair) for pair in zip(sizes, sizes[1:], strict=False)
    ]


class Limit:
    """The time-weighted rate of some products: all operations over the sum of all times."""

    def __init__(self, products: Sequence[Product]) -> None:
        self._counts = Counter(replace(product, part="") for product in products)
        self._calls = {product: product.ready() for product in self._counts}
        self._seconds: dict[tuple[int, Product], list[float]] = defaultdict(list)

    def window(self, seconds: float) -> None:
        """Run each product for its share of `seconds`, on as many threads as torch has now."""
        threads = torch.get_num_threads()
        for product, call in self._calls.items():
            call()
            started, calls, spent = time.perf_counter(), 0, 0.0
            while calls == 0 or spent < seconds / len(self._calls):
                call()
                calls, spent = calls + 1, time.perf_counter() - started
            self._seconds[threads, product].append(spent / calls)

    def gflops(self, threads: int, kind: str | None = None) -> float:
        """Of all products or of one kind; each takes the median of its windows."""
        chosen = [(p, n) for p, n in self._counts.items() if kind in (None, p.kind)]
        seconds = sum(n * statistics.median(self._seconds[threads, p]) for p, n in chosen)
        return sum(n * p.flops for p, n in chosen) / seconds / 1e9
