"""How fast is the training loop as it is, and where does its time go?

A stop-watch with one hand: at any moment exactly one part is on, and the whole adds up to the wall.
Its switches are put around the calls of one run in progress, about fifteen per update; nothing
inside them is touched. What the switches cost is measured too and handed back (`watch_share`).
A part holds what it waits for, be it a core or Python's lock; the lock is most often awaited in
`sample`, which is the first thing that the learner does while the simulator starts its step. On
CUDA the parts of an update are what it takes to ask for them, and `optimiser` waits for them all.

    simulate    waiting for the simulator, which works beside the learner
    act         actions for the next step
    sample      drawing batches
    critics     targets, forward and backward of the critics
    actors      forward and backward of the actors, through the critics too
    optimiser   Adam and the temperature
    store       replay, normalisers and counters
    rest        all else: normalising batches, target average, metrics, rows of the log
"""

import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kcpr_safety import envs
from kcpr_safety.agents import Learner, agent_settings
from kcpr_safety.cards import TaskCard
from kcpr_safety.training import checkpoints
from kcpr_safety.training.checkpoints import Config
from kcpr_safety.training.loop import Training
from kcpr_safety.training.runs import learner_threads, training_world

PARTS = ("simulate", "act", "sample", "critics", "actors", "optimiser", "store", "rest")
_REST = "rest"

_SEED = 0
_WARM_UP = 50
"""Updates before the watch starts: the first ones allocate."""
_RANDOM_STEPS = 1_000
_CAPACITY = 100_000
_FOREVER = 10_000_000
"""More environment steps than any bench takes; time ends it, before the first validation."""


class Watch:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget everything and begin in the rest."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.switches = 0
        self._part, self._since = _REST, time.perf_counter()

    def to(self, part: str) -> None:
        """From now on, time belongs to `part`."""
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self.switches += 1
        self._part, self._since = part, now

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose time belongs to `part`, unless a part that contains it is on already."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._part != _REST:
                return call(*args, **kwargs)
            self.to(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.to(_REST)

        return timed

    def cost(self) -> float:
        """Seconds of one switch, by doing many."""
        trial, count = Watch(), 20_000
        nothing = trial.around("simulate", lambda: None)
        started = time.perf_counter()
        for _ in range(count):
            nothing()
        return (time.perf_counter() - started) / (2 * count)


class _TimeIsUp(Exception):
    """Ends a training that would never end."""


class _Timed(Training):
    """A run that watches itself for some seconds once it learns."""

    def __init__(
        self, folder: Path, config: Config, world: envs.World, card: TaskCard, seconds: float
    ) -> None:
        super().__init__(folder, config, world, card)
        self.watch, self.span, self.limit = Watch(), 0.0, seconds
        self.started: float | None = None
        self.before = (0, 0)
        self.simulating = 0.0
        """Seconds that the simulator's own thread worked."""
        learner, around = self.learner, self.watch.around
        assert isinstance(learner, Learner)  # the parts below are the continuous learner's
        setattr(self.replay, "draw", around("sample", self.replay.draw))  # noqa: B010
        for holder, name, part in (
            (learner, "act", "act"),
            (learner, "_targets", "critics"),
            (learner.critic, "forward", "critics"),
            (learner.critic, "parameter_gradient", "critics"),
            (learner, "_heads", "actors"),
            (learner, "_q_slopes", "actors"),
            (learner, "_actor_gradient", "actors"),
            (learner.actor, "forward", "actors"),
            (learner.actor, "parameter_gradient", "actors"),
            (learner, "_step", "optimiser"),
            (learner, "_tune_temperature", "optimiser"),
        ):
            setattr(holder, name, around(part, getattr(holder, name)))
        # On one core the loop itself does what the simulator's thread does elsewhere.
        beside = config.threads > 1
        self._step_world = world.step if beside else around("simulate", world.step)
        world.step = self._simulate  # type: ignore[method-assign, assignment]

    def _simulate(self, action: Any) -> Any:
        started = time.perf_counter()
        outcome = self._step_world(action)
        self.simulating += time.perf_counter() - started
        return outcome

    def _learn(self, *, measure: bool = True) -> dict[str, Any]:
        metrics = super()._learn(measure=measure)
        # Between the last update and `_store` the loop only waits for the simulator.
        self.watch.to("simulate")
        return metrics

    def _store(self, obs: Any, action: Any, stepped: tuple[Any, ...]) -> Any:
        self.watch.to("store")
        next_obs = super()._store(obs, action, stepped)
        self.watch.to(_REST)
        if self.started is not None:
            self.span = time.perf_counter() - self.started
            if self.span >= self.limit:
                raise _TimeIsUp
        elif self.learner.updates >= _WARM_UP:
            self.before, self.simulating = (self.steps, self.learner.updates), 0.0
            self.watch.start()
            self.started = time.perf_counter()
        return next_obs


def loop_figures(
    task: str, agent: str, overrides: Mapping[str, Any], seconds: float, device: str = "cpu"
) -> dict[str, Any]:
    """Steps and updates per second of the whole loop, and the shares of its parts."""
    card = envs.resolve(task)
    few = {"random_steps": _RANDOM_STEPS, "capacity": _CAPACITY}
    own = {name: override.value for name, override in card.overrides.items()}
    settings = agent_settings(agent, {**own, **overrides, **few})
    world = training_world(card, settings.num_envs, _SEED)
    config = Config(
        task=card.task,
        agent=agent,
        seed=_SEED,
        steps=_FOREVER,
        budget=card.budget,
        settings=settings,
        contract=world.contract,
        device=device,
        threads=learner_threads(None),
    )
    with tempfile.TemporaryDirectory(prefix="kcpr-bench-") as folder:
        run = Path(folder) / "run"
        checkpoints.write_config(run, config)
        training = _Timed(run, config, world, card, seconds)
        with contextlib.suppress(_TimeIsUp):
            training.run([])
    world.close()
    return _figures(training)


def _figures(training: _Timed) -> dict[str, Any]:
    watch, span = training.watch, training.span
    updates = training.learner.updates - training.before[1]
    return {
        "steps_per_s": (training.steps - training.before[0]) / span,
        "updates_per_s": updates / span,
        "shares": {part: watch.seconds[part] / span for part in PARTS},
        "simulator_busy_share": training.simulating / span,
        "watch_share": watch.switches * watch.cost() / span,
    }
