"""Which matrix products is one update made of, and how fast can this machine do just those?

The count follows from the shapes alone: every product of an MLP's layer with a batch is
`2 * members * rows * fan_in * fan_out` operations, be it forward, the gradient of the layer's
input or that of its weight. Everything else in an update (activations, targets, Adam) counts as
nothing. The limit is the same products in bare loops, each between buffers that are ready and in
the faster of two ways: batched over members, or one member after the other.
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

_AT_ONCE = 4
"""Calls between two looks at the clock."""


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

    def ways(self, device: str = "cpu") -> tuple[Callable[[], object], ...]:
        """The product between buffers of its own: batched, and member by member."""
        inputs = torch.randn(self.members, self.rows, self.fan_in, device=device)
        weight = torch.randn(self.members, self.fan_in, self.fan_out, device=device)
        outputs = torch.randn(self.members, self.rows, self.fan_out, device=device)
        a, b, into = {
            FORWARD: (inputs, weight, outputs),
            INPUT: (outputs, weight.transpose(1, 2), inputs),
            WEIGHT: (inputs.transpose(1, 2), outputs, weight),
        }[self.kind]
        one: Callable[..., object] = torch.mm
        singles = [a, b, into]
        if self.fan_out == 1:
            # One column: matrix times vector, or (where it is the inner size) an outer product.
            if self.kind == INPUT:
                return (lambda: torch.bmm(a, b, out=into)), (lambda: torch.mul(a, b, out=into))
            one, singles = torch.mv, [a, b[..., 0], into[..., 0]]
        members = list(zip(*(single.unbind() for single in singles), strict=True))

        def one_by_one() -> None:
            for left, right, result in members:
                one(left, right, out=result)

        return (lambda: torch.bmm(a, b, out=into)), one_by_one


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
    # What the deployed policy would do at s', for Q_C.
    counted += _products("deployed actor", FORWARD, 1, batch, actor)
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

    def __init__(self, products: Sequence[Product], device: str = "cpu") -> None:
        self._counts = Counter(replace(product, part="") for product in products)
        self._ways = {product: product.ways(device) for product in self._counts}
        self._seconds: dict[tuple[int, Product, int], list[float]] = defaultdict(list)

    def window(self, seconds: float) -> None:
        """Run each product for its share of `seconds`, on as many threads as torch has now."""
        threads = torch.get_num_threads()
        for product, ways in self._ways.items():
            share = seconds / len(self._ways) / len(ways)
            for way, call in enumerate(ways):
                self._seconds[threads, product, way].append(_seconds_per_call(call, share))

    def _best(self, threads: int, product: Product) -> float:
        """Seconds of one call: the faster way's median window."""
        ways = range(len(self._ways[product]))
        return min(statistics.median(self._seconds[threads, product, way]) for way in ways)

    def gflops(self, threads: int, kind: str | None = None) -> float:
        """Of all products or of one kind."""
        chosen = [(p, n) for p, n in self._counts.items() if kind in (None, p.kind)]
        seconds = sum(n * self._best(threads, p) for p, n in chosen)
        return sum(n * p.flops for p, n in chosen) / seconds / 1e9


def _seconds_per_call(call: Callable[[], object], seconds: float) -> float:
    call()
    wait_for_device()
    started, calls, spent = time.perf_counter(), 0, 0.0
    while calls == 0 or spent < seconds:
        for _ in range(_AT_ONCE):
            call()
        wait_for_device()
        calls, spent = calls + _AT_ONCE, time.perf_counter() - started
    return spent / calls


def wait_for_device() -> None:
    """A GPU is asked now and works later; nothing to wait for where there is none."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
