"""How does a run go from nothing to a kept policy?

One pass: act, let the world step, learn meanwhile, store, note what ended. The learner updates from
what was stored *before* that step: a fixed schedule, not a race, so the same seed gives the same
numbers however fast either side is, and whether the world steps on a thread of its own or not.

Every few thousand steps the deployed policy is validated, and the best is kept (`validation`).
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcpr_safety import envs
from kcpr_safety.agents.families import AnyLearner, family_of
from kcpr_safety.agents.task import Task
from kcpr_safety.cards import TaskCard
from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.errors import (
    EnvironmentFault,
    FileFault,
    KcprError,
    NonFiniteError,
    TrainingFault,
)
from kcpr_safety.files import atomic_write, read_limited
from kcpr_safety.policy_file import MAX_BYTES, RUN_FILE, PolicyFile, write_policy
from kcpr_safety.training import checkpoints
from kcpr_safety.training.actuation import actuation_of
from kcpr_safety.training.checkpoints import Config, Counters, State
from kcpr_safety.training.evaluation import set_right, torch_threads
from kcpr_safety.training.guards import Guard, dump, most_value
from kcpr_safety.training.heap import keep_freed_memory
from kcpr_safety.training.options import RunSummary
from kcpr_safety.training.replay_log import ReplayLog
from kcpr_safety.training.sinks import JsonLines, Sink
from kcpr_safety.training.stopping import Interrupted, stop_requests
from kcpr_safety.training.untaught import untaught
from kcpr_safety.training.validation import Validation, better, evaluation_line
from kcpr_safety.transition import Batch

CHECKPOINT_PERIOD_S = 60.0
_VALIDATIONS = 40
"""In a run whose length puts them between these two apart [environment steps]. A policy that falls
in between is good for some ten thousand steps at a time: further apart, the best are missed."""
_LEAST_APART, _MOST_APART = 5_000, 10_000
_LOG_EVERY = 2_000
_OTHER_NUMBERS = 2**40
"""Added to the seed where a run was taken back."""
_EPISODES_SHOWN = 20


class Training:
    """One run in progress."""

    def __init__(self, run: Path, config: Config, world: envs.World, card: TaskCard) -> None:
        settings, contract = config.settings, config.contract
        self.folder, self.config, self.world, self.card = run, config, world, card
        self.family, self.actuation = family_of(config.agent), actuation_of(contract)
        task = Task(
            contract.obs_size,
            self.actuation.choices,
            config.budget,
            contract.time_limit,
            tuple((stream.name, stream.budget) for stream in contract.streams),
            world.goal,
            contract.closeness,
            contract.hold,
        )
        self.pass_steps = settings.num_envs * contract.hold
        """Steps of the task that all environments take with one action each."""
        self.learner: AnyLearner = self.family.make(
            settings, task, settings.num_envs, config.seed, config.device
        )
        self.replay = self.learner.memory(
            min(settings.capacity, config.steps // contract.hold + settings.num_envs)
        )
        # Apart from the learner's stream, so that a change of one leaves the other alone.
        self.generator = torch.Generator().manual_seed(config.seed + 2**32)
        self.steps, self.owed, self.punishment_total = 0, 0.0, 0.0
        self.best: dict[str, Any] | None = None
        self.recent: deque[tuple[float, float]] = deque(maxlen=_EPISODES_SHOWN)
        self.marks = {"log": 0, "validate": settings.random_steps}
        """Steps at the last row of each kind."""
        self.validation = Validation(card, config.budget, contract.hold)
        self.guard = Guard(
            config.task,
            self.learner.m_bounds(),
            most_value(contract.time_limit, config.budget) * max([1.0, *task.ratios]),
        )
        self._metrics: Mapping[str, Any] = {}
        self._sums = np.zeros((2, settings.num_envs))
        self._wall_before, self._started = 0.0, time.perf_counter()
        self._held: State | None = None
        """What the next loop takes up, instead of beginning."""
        self._log_of_replay = ReplayLog(run)
        self._notes: list[str] = []
        """What is to be told in the first rows."""

    @property
    def wall_s(self) -> float:
        return self._wall_before + time.perf_counter() - self._started

    # -------------------------------------------------------------------------------- the loop

    def run(self, sinks: Sequence[Sink]) -> RunSummary:
        """Train to the end, or until interrupted (which saves and raises `Interrupted`)."""
        log = JsonLines(self._held.counters.metrics_bytes if self._held else 0)
        everyone: list[Sink] = [log, *sinks]
        opened: list[Sink] = []
        keep_freed_memory()
        self._started = time.perf_counter()
        try:
            for sink in everyone:
                opened.append(sink)
                sink.open(self.folder, self.config.task, self.config.steps, self.config.budget)
            with (
                torch_threads(self.config.threads),
                stop_requests() as stop,
                _simulator(self.config.threads) as simulator,
            ):
                while True:
                    try:
                        self._loop(simulator, everyone, log, stop)
                        break
                    except (TrainingFault, NonFiniteError) as fault:
                        self._roll_back(fault, log)
        except NonFiniteError:
            raise  # says of itself where the run stands
        except (FileFault, EnvironmentFault) as fault:
            told = f"{fault}; {self._left()}: mend that, then kcpr-safety resume {self.folder}"
            raise type(fault)(told) from fault
        except KcprError:
            raise
        except Exception as error:  # a defect keeps its traceback
            error.add_note(f"{self._left()}: kcpr-safety resume {self.folder}")
            raise
        finally:
            for sink in opened:
                sink.close()
        return RunSummary(
            self.config, self.folder, self.wall_s, self.best or {}, self.punishment_total
        )

    def _left(self) -> str:
        return (
            f"training stopped at {self.steps:,} steps, and the last checkpoint in {self.folder} "
            "is intact"
        )

    def _loop(
        self,
        simulator: Executor,
        sinks: Sequence[Sink],
        log: JsonLines,
        stop: threading.Event,
    ) -> None:
        settings, total, marks = self.config.settings, self.config.steps, self.marks
        validate_every = min(max(total // _VALIDATIONS, _LEAST_APART), _MOST_APART)
        if not self.steps and self.learner.m_bounds():
            row = self._untaught()
            for sink in sinks:
                sink.write(row)
        obs = _tensor(self._begin())
        for note in self._notes:
            for sink in sinks:
                sink.write({"kind": "fault", "steps": self.steps, "fault": note})
        self._notes.clear()
        saved = time.perf_counter()
        clock = (self.steps, self.wall_s)
        while self.steps < total:
            learning = self.steps >= settings.random_steps
            # Random actions would bend a warm start's normaliser, and so its policy, at once.
            acts = learning or self.config.begun_from is not None
            action = self.learner.act(obs) if acts else self._random_action()
            stepping = simulator.submit(self.world.step, self.actuation.command(action))
            if learning:
                log_due = self.steps + self.pass_steps - marks["log"] >= _LOG_EVERY
                self._metrics = self._learn(measure=log_due) or self._metrics
            obs = self._store(obs, action, stepping.result())
            if learning:
                self.learner.advance(self.pass_steps)
            if self.steps - marks["log"] >= _LOG_EVERY or self.steps >= total:
                marks["log"] = self.steps
                row = self._train_row(self._metrics, clock)
                clock = (self.steps, self.wall_s)
                for sink in sinks:
                    sink.write(row)
            due = self.steps - marks["validate"] >= validate_every or self.steps >= total
            if due and learning:
                marks["validate"] = self.steps
                row = self._validate()
                for sink in sinks:
                    sink.write(row)
            if stop.is_set() and self.steps < total:
                self._save(log.flushed(), finished=False)
                raise Interrupted(
                    f"stopped at {self.steps:,} of {total:,} steps; everything is saved, "
                    f"continue with: kcpr-safety resume {self.folder}"
                )
            if time.perf_counter() - saved > CHECKPOINT_PERIOD_S:
                self._save(log.flushed(), finished=False)
                saved = time.perf_counter()
        self._save(log.flushed(), finished=True)

    def _learn(self, *, measure: bool = True) -> dict[str, Tensor]:
        """The updates that this step owes, from transitions stored before it."""
        settings = self.config.settings
        self.owed += settings.updates_per_step * self.pass_steps
        self.learner.progress = min(self.steps / self.config.steps, 1.0)
        metrics: dict[str, Tensor] = {}
        while self.owed >= 1.0:
            self.owed -= 1.0
            batch = self.replay.draw(settings.batch, self.generator)
            metrics = self.learner.update(batch, measure=measure and self.owed < 1.0)
            gradient = getattr(self.learner, "gradient", None)
            self.guard.learned(metrics, gradient, batch, self.steps)
        return metrics

    def _store(self, obs: Tensor, action: Tensor, stepped: tuple[Any, ...]) -> Tensor:
        """Take one step's outcome into replay, normalisers and counters; the next observation."""
        next_obs, reward, terminated, truncated, infos = stepped
        punishment = infos["punishment"]
        batch = Batch(
            obs=obs,
            action=action,
            reward=_tensor(reward),
            punishment=_tensor(punishment),
            continues=1.0 - _tensor(terminated),
            next_obs=_tensor(infos["final_obs"]),
            streams=_tensor(infos["streams"]) if "streams" in infos else None,
        )
        ended = terminated | truncated
        self.guard.stored(batch, self.steps)
        self.replay.add(batch)
        self.learner.observe(batch, torch.as_tensor(ended))
        self.steps += self.pass_steps
        self.punishment_total += float(punishment.sum())
        self._sums += (reward, punishment)
        if ended.any():
            finished = self._sums[:, ended]
            self.recent.extend((float(r), float(p)) for r, p in finished.T)
            self._sums[:, ended] = 0.0
        return _tensor(next_obs)

    def _untaught(self) -> dict[str, Any]:
        """Let the learner begin by what is suffered before it has learned anything."""
        policy = None
        if self.config.begun_from:
            kept = self._policy()
            policy = controller_from_tensors(kept.tensors, kept.contract)
        found = untaught(self.validation.world, self.actuation, self.config.steps, policy)
        self.learner.begin(found.punishment, found.streams, found.terminations)
        return {
            "kind": "untaught",
            "steps": self.steps,
            "untaught_episodes": found.episodes,
            "untaught_punishment": found.punishment,
            "untaught_terminations": found.terminations,
        }

    def _random_action(self) -> Tensor:
        return self.actuation.random(self.config.settings.num_envs, self.generator)

    # --------------------------------------------------------------------- rows, choices, files

    def _train_row(self, metrics: Mapping[str, Tensor], clock: tuple[int, float]) -> dict[str, Any]:
        values = {name: float(value) for name, value in metrics.items()}
        recent = np.array(self.recent) if self.recent else np.full((1, 2), math.nan)
        wall = self.wall_s
        row = {
            "kind": "train",
            "steps": self.steps,
            "wall_s": wall,
            "steps_per_s": (self.steps - clock[0]) / max(wall - clock[1], 1e-9),
            "return_mean": float(recent[:, 0].mean()),
            "punishment_mean": float(recent[:, 1].mean()),
            "punishment_total": self.punishment_total,
            **self.learner.status(),
            **values,
        }
        return row | {"health": self.guard.health(row)}

    def _validate(self) -> dict[str, Any]:
        """Judge the present policy on validation seeds, and keep it if it is the best yet."""
        policy = self._policy()
        row = self.validation.judge(policy, self.steps, self.best) | {"wall_s": self.wall_s}
        row["kept"] = better(row, self.best)
        if row["kept"]:
            self.best = row
            write_policy(self.folder / RUN_FILE, set_right(policy, evaluation_line(row)))
        return row

    def _policy(self) -> PolicyFile:
        config = self.config
        return PolicyFile(
            tensors=self.family.policy_tensors(self.learner),
            contract=config.contract,
            agent=config.agent,
            seed=config.seed,
            steps=self.steps,
            settings=asdict(config.settings),
        )

    # ------------------------------------------------------------------------- saved, taken up

    def claim(self) -> None:
        """Make the folder that of this run: from now on it can be killed and resumed."""
        checkpoints.clear(self.folder)
        self._save(0, finished=False)
        checkpoints.write_config(self.folder, self.config)

    def take_up(self) -> None:
        """Continue from the folder's newest checkpoint that is whole."""
        state, self._log_of_replay = checkpoints.read_checkpoint(self.folder, self.replay)
        if state.counters.finished:
            raise FileFault(
                f"{self.folder} finished its {self.config.steps:,} steps; to train on, start a new "
                f"run from it: kcpr-safety train {self.config.task} --init {self.folder}"
            )
        self._restore(state)
        self._notes += [f"{fault}; the checkpoint before it is taken" for fault in state.faults]

    def _save(self, metrics_bytes: int, *, finished: bool) -> None:
        learner = self.family.snapshot(self.learner)
        self.guard.whole(learner, self.steps)
        counters = Counters(
            steps=self.steps,
            punishment_total=self.punishment_total,
            wall_s=self.wall_s,
            metrics_bytes=metrics_bytes,
            best={k: _finite(v) for k, v in self.best.items()} if self.best else None,
            owed=self.owed,
            replay_added=self.replay.added,
            marks=self.marks,
            recent=[list(pair) for pair in self.recent],
            sums=self._sums.tolist(),
            validation_rounds=self.validation.rounds,
            metrics={name: float(value) for name, value in self._metrics.items()},
            guard=self.guard.counts(),
            finished=finished,
        )
        kept = read_limited(self.folder / RUN_FILE, MAX_BYTES) if self.best else b""
        state = State(learner, self.world.snapshot(), self.generator.get_state(), kept, counters)
        checkpoints.write_checkpoint(self.folder, state, self.replay, self._log_of_replay)

    def _restore(self, state: State) -> None:
        """Take up where `_save` left off; the environments follow in `_begin`."""
        counters, misfit = state.counters, f"the checkpoint in {self.folder} does not fit its run"
        if np.shape(counters.sums) != self._sums.shape or set(counters.marks) != set(self.marks):
            raise FileFault(misfit)
        try:
            self.family.restore(self.learner, state.learner)
            self.generator.set_state(state.generator)
            self.guard.take(counters.guard)
        except (TrainingFault, RuntimeError, TypeError, KeyError) as error:
            raise FileFault(f"{misfit}: {error}") from error
        self.steps, self.owed = counters.steps, counters.owed
        self.punishment_total, self.best = counters.punishment_total, counters.best
        self.marks.update(counters.marks)
        self.recent.clear()
        self.recent.extend((reward, punishment) for reward, punishment in counters.recent)
        self._sums = np.array(counters.sums)
        self.validation.rounds = counters.validation_rounds
        self._metrics, self._held = counters.metrics, state
        self._wall_before, self._started = counters.wall_s, time.perf_counter()
        if state.policy:
            # A later policy may have been kept since, by steps that are about to be taken again.
            atomic_write(self.folder / RUN_FILE, state.policy)

    def _begin(self) -> np.ndarray:
        """The first observations: those of the state that is taken up, or of new episodes."""
        held, self._held = self._held, None
        if held is None or not held.world:
            first = [0] * self.world.num_envs
            return self.world.reset(options={"episodes": first})[0]
        try:
            return self.world.restore(held.world)
        except EnvironmentFault as fault:
            self._notes.append(f"{fault}; the next episodes begin instead")
            self._sums[:] = 0.0
            return self.world.reset(options={"episodes": held.world["episodes"] + 1})[0]

    def _roll_back(self, fault: Exception, log: JsonLines) -> None:
        """Return to the last good state, once; the second time, raise what went wrong."""
        left = dump(
            self.folder,
            self.steps,
            fault,
            self.family.snapshot(self.learner),
            self.world.snapshot(),
        )
        told = f"{fault}; what was at hand is in {left}" if left else str(fault)
        state, self._log_of_replay = checkpoints.read_checkpoint(self.folder, self.replay)
        before, rollbacks = state.counters.steps, self.guard.rollbacks
        if rollbacks:
            raise type(fault)(
                f"{told}; the run had been taken back once already and stops; its checkpoint at "
                f"{before:,} steps in {self.folder} is intact"
            ) from fault
        self._restore(state)
        # The same numbers would lead to the same place.
        for generator in (self.generator, self.learner.generator):
            generator.manual_seed(self.config.seed + _OTHER_NUMBERS)
        self.guard.rollbacks = rollbacks + 1
        log.rewind(state.counters.metrics_bytes)
        self._notes.append(f"{told}; the run was taken back to {before:,} steps")


class _Here(Executor):
    """Does at once, on the caller's own thread, what it is asked for."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*args, **kwargs))
        return done


def _simulator(threads: int) -> Executor:
    """A thread beside the learner's, or none: two threads on one core wait for each other."""
    return ThreadPoolExecutor(1) if threads > 1 else _Here()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
