"""How does a run begin, with what cores and device, and how is it taken up again?"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kcpr_safety import envs
from kcpr_safety.agents.families import FAMILIES, family_of
from kcpr_safety.cards import TaskCard
from kcpr_safety.contract import Contract
from kcpr_safety.errors import SettingsError
from kcpr_safety.policy_file import PolicyFile, locate_policy, read_policy
from kcpr_safety.punishments import Stream
from kcpr_safety.seeds import training_seeds
from kcpr_safety.training import checkpoints, kept_task
from kcpr_safety.training.checkpoints import Config
from kcpr_safety.training.inheritance import inherited, shared_entries
from kcpr_safety.training.lock import locked
from kcpr_safety.training.loop import Training
from kcpr_safety.training.options import RunSummary, TrainOptions
from kcpr_safety.training.sinks import Sink

DEFAULT_STEPS = 300_000


def train_run(options: TrainOptions, sinks: Sequence[Sink] = ()) -> RunSummary:
    """Train from the start into a folder that holds no run yet."""
    check_device(options.device)
    card = own = envs.resolve(options.task)
    if options.budget is not None:
        if not (math.isfinite(options.budget) and options.budget >= 0):
            raise SettingsError(f"budget is {options.budget}; it must be a number >= 0")
        card = replace(card, budget=options.budget)
    overrides = {name: override.value for name, override in card.overrides.items()}
    overrides |= dict(options.overrides)
    if options.num_envs is not None:
        overrides["num_envs"] = options.num_envs
    family = family_of(options.agent)
    steps = DEFAULT_STEPS if options.steps is None else options.steps
    settings = family.settings(options.agent, overrides, max(steps, 1))
    hold = getattr(settings, "hold", 1)
    if steps < settings.num_envs * hold:
        raise SettingsError(f"{steps} steps are fewer than one action of {settings.num_envs} envs")
    if options.init is None and overrides.get("critics_first"):
        raise SettingsError(
            "critics_first lets a policy stay as it is while critics learn of it; without --init "
            "there is none yet"
        )
    world = training_world(card, settings.num_envs, options.seed).hold(hold)
    if bool(world.contract.commands) != family.chooses:
        others = [name for kind in FAMILIES if kind is not family for name in kind.agents]
        rows = len(world.contract.commands)
        asks = f"a choice among {rows} commands" if rows else "continuous actions"
        raise SettingsError(
            f"{card.task} asks for {asks}, which {options.agent} does not learn; "
            f"choose an agent that does: {', '.join(others)}"
        )
    _check_streams(world.contract.streams, options, own, chooses=family.chooses)
    tensors = begun_from = None
    if options.init is not None:
        policy = read_policy(options.init)
        tensors = inherited(policy, world.contract)
        begun_from = _origin(options.init, policy, world.contract)
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
        card_sha256=_card_sha256(card),
        begun_from=begun_from,
    )
    with locked(options.out):
        checkpoints.refuse_existing(options.out)
        training = Training(options.out, config, world, card)
        if tensors is not None:
            family.warm_start(training.learner, tensors)
        if options.task.endswith(".toml"):
            kept_task.keep(options.out, card)
        training.claim()
        return training.run(sinks)


def _check_streams(
    streams: Sequence[Stream], options: TrainOptions, card: TaskCard, *, chooses: bool
) -> None:
    """Refuse what would leave the budgets of a task's streams unheld or half replaced."""
    told = ", ".join(f"{stream.name} {stream.budget:g}" for stream in streams)
    if streams and chooses:
        raise SettingsError(
            f"{card.task} has streams with budgets of their own ({told}), which only agents with "
            f"continuous actions learn to hold, not {options.agent}; take 'commands' or the "
            "streams out of its card"
        )
    if streams and options.budget not in (None, card.budget):
        raise SettingsError(
            f"a budget of {options.budget:g} would replace the total of {card.task} and leave its "
            f"streams' ({told}) as they are; change all of them in a copy of its card and train "
            "that: kcpr-safety train ./my_card.toml"
        )


def resume_run(run: Path, sinks: Sequence[Sink] = ()) -> RunSummary:
    """Continue a run from its last checkpoint, as if it had never been stopped."""
    config = checkpoints.read_config(run)
    check_device(config.device)
    with locked(run), kept_task.task_of(run):
        card = replace(envs.resolve(config.task), budget=config.budget)
        world = training_world(card, config.settings.num_envs, config.seed)
        world.hold(config.contract.hold)
        training = Training(run, config, world, card)
        training.take_up()
        return training.run(sinks)


def _card_sha256(card: TaskCard) -> str | None:
    files = [content for name, content in card.source.items() if name.endswith(".toml")]
    return hashlib.sha256(files[0]).hexdigest() if files else None


def _origin(place: Path, policy: PolicyFile, contract: Contract) -> dict[str, Any]:
    """What a run's record says of the policy that it began with."""
    return {
        "task": policy.task,
        "agent": policy.agent,
        "seed": policy.seed,
        "steps": policy.steps,
        "policy_sha256": hashlib.sha256(locate_policy(place).read_bytes()).hexdigest(),
        "observations_known": shared_entries(policy, contract),
    }


def training_world(card: TaskCard, num_envs: int, seed: int) -> envs.World:
    """A world on one thread: the learner takes far longer and needs the other core more."""
    return envs.make_world(card, num_envs, episode_seeds=training_seeds(seed), threads=1)


def learner_threads(asked: int | None) -> int:
    """Cores that the learner gets: more than two only get in each other's way at these sizes.

    `OMP_NUM_THREADS=1` keeps it on one where nothing else is asked for.
    """
    cores = os.cpu_count() or 1
    if asked is None:
        told = os.environ.get("OMP_NUM_THREADS", "")
        return min(2, cores, int(told)) if told.isdigit() and int(told) > 0 else min(2, cores)
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
