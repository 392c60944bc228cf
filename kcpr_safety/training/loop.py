"""How does a run go from nothing to a kept policy?

One pass: act, let the world step, learn meanwhile, store, note what ended. The learner updates from
what was stored *before* that step: a fixed schedule, not a race, so the same seed gives the same
numbers however fast either side is, and whether the world steps on a thread of its own or not.

Every few thousand steps the noiseless policy runs full episodes on validation seeds. The policy
that is kept is the one with the highest return among those whose mean punishment was within a
margin of the budget; while none was, the one with the least punishment.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcpr_safety import envs
from kcpr_safety.agents import Learner, agent_settings
from kcpr_safety.agents.continuous import Task
from kcpr_safety.agents.snapshots import policy_tensors, restore, snapshot, warm_start
from kcpr_safety.cards import TaskCard
from kcpr_safety.controller import controller_from_tensors
from kcpr_safety.errors import FileFault, SettingsError, TrainingFault
from kcpr_safety.policy_file import RUN_FILE, PolicyFile, read_policy, write_policy
from kcpr_safety.replay import Replay
from kcpr_safety.seeds import FIRST_VALIDATION_SEED, consecutive_seeds, training_seeds
from kcpr_safety.stats import over_budget
from kcpr_safety.training import checkpoints
from kcpr_safety.training.checkpoints import Config, Counters
from kcpr_safety.training.evaluation import Critic, act_together, rollout, torch_threads
from kcpr_safety.training.options import RunSummary, TrainOptions
from kcpr_safety.training.sinks import JsonLines, Sink
from kcpr_safety.training.stopping import Interrupted, stop_requests
from kcpr_safety.transition import Batch

DEFAULT_STEPS = 300_000
VALIDATION_EPISODES = 10
FEASIBLE_SHARE = 0.8
"""A validated policy counts as feasible up to this share of the budget: ten episodes are few."""

CHECKPOINT_PERIOD_S = 180.0
_LOG_EVERY = 2_000
_EPISODES_SHOWN = 20


def train_run(options: TrainOptions, sinks: Sequence[Sink] = ()) -> RunSummary:
    """Train from the start into a folder that holds no run yet."""
    check_device(options.device)
    card = envs.resolve(options.task)
    if options.budget is not None:
        if not (math.isfinite(options.budget) and options.budget >= 0):
            raise SettingsError(f"budget is {options.budget}; it must be a number >= 0")
        card = replace(card, budget=options.budget)
    overrides = {name: override.value for name, override in card.overrides.items()}
    overrides |= dict(options.overrides)
    if options.num_envs is not None:
        overrides["num_envs"] = options.num_envs
    settings = agent_settings(options.agent, overrides)
    steps = DEFAULT_STEPS if options.steps is None else options.steps
    if steps < settings.num_envs:
        raise SettingsError(f"{steps} steps are fewer than one step of {settings.num_envs} envs")
    init = None if options.init is None else read_policy(options.init)
    world = training_world(card, settings.num_envs, options.seed)
    if world.contract.commands:
        raise SettingsError(
            f"{card.task} lets a policy choose among {len(card.commands)} commands, and "
            f"{options.agent} learns continuous ones; take a task without a table of commands"
        )
    config = Config(
        task=card.task,
        agent=options.agent,
        seed=options.seed,
        steps=steps,
        budget=card.budget,
        settings=settings,
        contract=world.contract,
        device=options.device,
        threads=learner_threads(options.threads),
    )
    checkpoints.write_config(options.out, config)
    training = Training(options.out, config, world, card)
    if init is not None:
        warm_start(training.learner, init.tensors)
    return training.run(sinks)


def resume_run(run: Path, sinks: Sequence[Sink] = ()) -> RunSummary:
    """Continue a run from its last checkpoint; its environments begin their next episodes."""
    config = checkpoints.read_config(run)
    learner, replay, counters = checkpoints.read_checkpoint(run)
    if counters.finished:
        raise FileFault(
            f"{run} finished its {config.steps:,} steps; to train on, start a new run from it: "
            f"kcpr-safety train {config.task} --init {run}"
        )
    check_device(config.device)
    card = replace(envs.resolve(config.task), budget=config.budget)
    world = training_world(card, config.settings.num_envs, config.seed)
    training = Training(run, config, world, card)
    training.restore(learner, replay, counters)
    return training.run(sinks)


def training_world(card: TaskCard, num_envs: int, seed: int) -> envs.World:
    """A world on one thread: the learner takes far longer and needs the other core more."""
    return envs.make_world(card, num_envs, episode_seeds=training_seeds(seed), threads=1)


def learner_threads(asked: int | None) -> int:
    """Cores that the learner gets: more than two only get in each other's way at these sizes."""
    cores = os.cpu_count() or 1
    if asked is None:
        return min(2, cores)
    if not 1 <= asked <= cores:
        raise SettingsError(f"{asked} threads; this machine has 1 to {cores} to give")
    return asked


def check_device(device: str) -> None:
    """Raise `SettingsError` unless learning can happen there."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise SettingsError(f"'{device}' is no device to learn on; use cpu, cuda or cuda:0 ...")
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= found:
            raise SettingsError(
                f"device '{device}' is not there: torch {torch.__version__} finds {found} CUDA "
                "devices on this machine; use cpu"
            )


class Training:
    """One run in progress."""

    def __init__(self, run: Path, config: Config, world: envs.World, card: TaskCard) -> None:
        settings, contract = config.settings, config.contract
        self.folder, self.config, self.world, self.card = run, config, world, card
        task = Task(contract.obs_size, contract.action_size, config.budget, contract.time_limit)
        self.learner = Learner(settings, task, settings.num_envs, config.seed, config.device)
        capacity = min(settings.capacity, config.steps + settings.num_envs)
        self.replay = Replay(capacity, contract.obs_size, contract.action_size, config.device)
        # Apart from the learner's stream, so that a change of one leaves the other alone.
        self.generator = torch.Generator().manual_seed(config.seed + 2**32)
        self.steps, self.owed, self.punishment_total = 0, 0.0, 0.0
        self.best: dict[str, Any] | None = None
        self.recent: deque[tuple[float, float]] = deque(maxlen=_EPISODES_SHOWN)
        self._sums = np.zeros((2, settings.num_envs))
        self._wall_before, self._started = 0.0, time.perf_counter()
        self._first_episodes = [0] * settings.num_envs
        self._metrics_bytes = 0
        self._low = np.array([entry.low for entry in contract.action])
        self._span = np.array([entry.high for entry in contract.action]) - self._low

    @property
    def wall_s(self) -> float:
        return self._wall_before + time.perf_counter() - self._started

    # -------------------------------------------------------------------------------- the loop

    def run(self, sinks: Sequence[Sink]) -> RunSummary:
        """Train to the end, or until interrupted (which saves and raises `Interrupted`)."""
        log = JsonLines(self._metrics_bytes)
        everyone: list[Sink] = [log, *sinks]
        opened: list[Sink] = []
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
                self._loop(simulator, everyone, log, stop)
        finally:
            for sink in opened:
                sink.close()
        return RunSummary(
            self.config, self.folder, self.wall_s, self.best or {}, self.punishment_total
        )

    def _loop(
        self,
        simulator: Executor,
        sinks: Sequence[Sink],
        log: JsonLines,
        stop: threading.Event,
    ) -> None:
        settings, total = self.config.settings, self.config.steps
        validate_every = max(5_000, total // 40)
        obs = _tensor(self.world.reset(options={"episodes": self._first_episodes})[0])
        metrics: dict[str, Tensor] = {}
        saved = time.perf_counter()
        marks = {"log": self.steps, "validate": max(self.steps, settings.random_steps)}
        clock = (self.steps, self.wall_s)
        while self.steps < total:
            learning = self.steps >= settings.random_steps
            action = self.learner.act(obs) if learning else self._random_action()
            stepping = simulator.submit(self.world.step, self._command(action))
            if learning:
                log_due = self.steps + settings.num_envs - marks["log"] >= _LOG_EVERY
                metrics = self._learn(measure=log_due) or metrics
            obs = self._store(obs, action, stepping.result())
            if learning:
                self.learner.controller.advance(settings.num_envs)
            if self.steps - marks["log"] >= _LOG_EVERY or self.steps >= total:
                marks["log"] = self.steps
                row = self._train_row(metrics, clock)
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
                self._save(log.size, finished=False)
                raise Interrupted(
                    f"stopped at {self.steps:,} of {total:,} steps; everything is saved, "
                    f"continue with: kcpr-safety resume {self.folder}"
                )
            if time.perf_counter() - saved > CHECKPOINT_PERIOD_S:
                self._save(log.size, finished=False)
                saved = time.perf_counter()
        self._save(log.size, finished=True)

    def _learn(self, *, measure: bool = True) -> dict[str, Tensor]:
        """The updates that this step owes, from transitions stored before it."""
        settings = self.config.settings
        self.owed += settings.updates_per_step * settings.num_envs
        metrics: dict[str, Tensor] = {}
        while self.owed >= 1.0:
            self.owed -= 1.0
            batch = self.replay.draw(settings.batch, self.generator)
            metrics = self.learner.update(batch, measure=measure and self.owed < 1.0)
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
        )
        ended = terminated | truncated
        self.replay.add(batch)
        self.learner.observe(batch, torch.as_tensor(ended))
        self.steps += len(reward)
        self.learner.progress = min(self.steps / self.config.steps, 1.0)
        self.punishment_total += float(punishment.sum())
        self._sums += (reward, punishment)
        if ended.any():
            finished = self._sums[:, ended]
            self.recent.extend((float(r), float(p)) for r, p in finished.T)
            which = np.flatnonzero(ended).tolist()
            self.learner.finished(dict(zip(which, finished[1].tolist(), strict=True)))
            self._sums[:, ended] = 0.0
        return _tensor(next_obs)

    def _random_action(self) -> Tensor:
        shape = (self.config.settings.num_envs, self.config.contract.action_size)
        return 2.0 * torch.rand(shape, generator=self.generator) - 1.0

    def _command(self, action: Tensor) -> np.ndarray:
        """From [-1, 1] to actuator units."""
        command: np.ndarray = self._low + (action.numpy().astype(np.float64) + 1) / 2 * self._span
        return command

    # --------------------------------------------------------------------- rows, choices, files

    def _train_row(self, metrics: Mapping[str, Tensor], clock: tuple[int, float]) -> dict[str, Any]:
        values = {name: float(value) for name, value in metrics.items()}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise TrainingFault(
                f"{', '.join(broken)} became not finite at {self.steps:,} steps of "
                f"{self.config.task}; the last checkpoint in {self.folder} is intact"
            )
        recent = np.array(self.recent) if self.recent else np.full((1, 2), math.nan)
        wall = self.wall_s
        return {
            "kind": "train",
            "steps": self.steps,
            "wall_s": wall,
            "steps_per_s": (self.steps - clock[0]) / max(wall - clock[1], 1e-9),
            "return_mean": float(recent[:, 0].mean()),
            "punishment_mean": float(recent[:, 1].mean()),
            "punishment_total": self.punishment_total,
            "deployed_punishment": self.learner.controller.spent,
            "coupling_m": self.learner.controller.m,
            "lambda": self.learner.weight,
            "entropy_temperature": math.exp(self.learner.log_tau),
            "reward_scale": self.learner.return_scale.scale,
            "updates": self.learner.updates,
            **values,
        }

    def _validate(self) -> dict[str, Any]:
        """Judge the present policy on validation seeds, and keep it if it is the best yet."""
        policy = self._policy()
        controller = controller_from_tensors(policy.tensors, policy.contract)
        # Many rows at once: nothing is claimed from these episodes, and it saves a third.
        done = rollout(
            controller,
            self._validation_world(),
            VALIDATION_EPISODES,
            Critic(policy),
            act=act_together,
        )
        row = {
            "kind": "validation",
            "steps": self.steps,
            "wall_s": self.wall_s,
            "return_mean": done.return_mean,
            "punishment_mean": done.punishment_mean,
            "episodes": VALIDATION_EPISODES,
            "over_budget_share": over_budget(done.punishments, self.config.budget)
            / VALIDATION_EPISODES,
            "predicted_punishment": done.predicted,
            "measured_discounted_punishment": done.realised,
            "feasible": done.punishment_mean <= FEASIBLE_SHARE * self.config.budget,
        }
        row["kept"] = self.best is None or _rank(row) > _rank(self.best)
        if row["kept"]:
            self.best = row
            write_policy(self.folder / RUN_FILE, policy)
        return row

    def _validation_world(self) -> envs.World:
        if not hasattr(self, "_judged"):
            seeds = consecutive_seeds(FIRST_VALIDATION_SEED, VALIDATION_EPISODES)
            self._judged = envs.make_world(self.card, VALIDATION_EPISODES, episode_seeds=seeds)
        return self._judged

    def _policy(self) -> PolicyFile:
        config = self.config
        return PolicyFile(
            tensors=policy_tensors(self.learner),
            contract=config.contract,
            agent=config.agent,
            seed=config.seed,
            steps=self.steps,
            settings=asdict(config.settings),
        )

    def _save(self, metrics_bytes: int, *, finished: bool) -> None:
        counters = Counters(
            steps=self.steps,
            episodes=[int(episode) + 1 for episode in self.world.episodes],
            punishment_total=self.punishment_total,
            wall_s=self.wall_s,
            metrics_bytes=metrics_bytes,
            best={k: _finite(v) for k, v in self.best.items()} if self.best else None,
            owed=self.owed,
            replay_added=self.replay.added,
            finished=finished,
        )
        # A finished run cannot be resumed; its transitions would only fill the disk.
        rows = self.replay.rows[: 0 if finished else len(self.replay)]
        tensors = snapshot(self.learner) | {"loop_generator": self.generator.get_state()}
        checkpoints.write_checkpoint(self.folder, tensors, rows, counters)

    def restore(self, state: Mapping[str, Tensor], rows: Tensor, counters: Counters) -> None:
        """Take up where `_save` left off."""
        if rows.shape[1:] != self.replay.rows.shape[1:] or len(rows) > len(self.replay.rows):
            raise TrainingFault(f"the checkpoint in {self.folder} does not fit its config.json")
        restore(self.learner, state)
        self.generator.set_state(state["loop_generator"])
        self.replay.rows[: len(rows)] = rows
        self.replay.added = counters.replay_added
        self.steps, self.owed = counters.steps, counters.owed
        self.punishment_total, self.best = counters.punishment_total, counters.best
        self._wall_before, self._metrics_bytes = counters.wall_s, counters.metrics_bytes
        self._first_episodes = counters.episodes


class _Here(Executor):
    """Does at once, on the caller's own thread, what it is asked for."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*args, **kwargs))
        return done


def _simulator(threads: int) -> Executor:
    """A thread beside the learner's, or none: two threads on one core wait for each other."""
    return ThreadPoolExecutor(1) if threads > 1 else _Here()


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    """Feasible before infeasible; then by return, or by the least punishment."""
    return (row["feasible"], row["return_mean"] if row["feasible"] else -row["punishment_mean"])


def _tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
