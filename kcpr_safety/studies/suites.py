"""Which trainings does a benchmark consist of?

A suite is a TOML file (`suites/`, or one's own): tasks, agents, ablations, seeds, steps, episodes.
Its cells are all combinations. A cell is known by every number that its result depends on; when a
default changes it is another cell, with another name, and an old result is not taken for it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kcpr_safety import envs
from kcpr_safety.agents.families import family_of
from kcpr_safety.cards import data_root
from kcpr_safety.errors import FileFault, SettingsError, UnknownNameError
from kcpr_safety.files import read_limited
from kcpr_safety.texts import toml_table

MAX_BYTES = 2**16
_KINDS: Mapping[str, type] = {
    "title": str,
    "description": str,
    "tasks": list,
    "agents": list,
    "seeds": list,
    "steps": int,
    "episodes": int,
}
_OPTIONAL: Mapping[str, type] = {"steps_of": dict, "ablations": list}


@dataclass(frozen=True)
class Variant:
    """An agent, or an agent with some of its numbers changed."""

    label: str
    agent: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """What is to be trained and judged."""

    name: str
    title: str
    description: str
    tasks: tuple[str, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    steps: int
    episodes: int
    steps_of: Mapping[str, int] = field(default_factory=dict)

    def cells(self) -> list["Cell"]:
        """Seed by seed, so that early on there is something of everything."""
        return [
            Cell.of(task, variant, seed, self.steps_of.get(task, self.steps), self.episodes)
            for seed in self.seeds
            for task in self.tasks
            for variant in self.variants
        ]


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation."""

    task: str
    label: str
    agent: str
    overrides: Mapping[str, Any]
    seed: int
    steps: int
    episodes: int
    numbers: str
    """Hash of all that the result depends on beside these: settings, budget, what the card says."""

    @classmethod
    def of(cls, task: str, variant: Variant, seed: int, steps: int, episodes: int) -> "Cell":
        card = envs.resolve(task)
        family = family_of(variant.agent)
        carded = {name: override.value for name, override in card.overrides.items()}
        settings = family.settings(variant.agent, {**carded, **variant.overrides}, steps)
        numbers = json.dumps(
            {"settings": asdict(settings), "budget": card.budget, "task": asdict(card)},
            sort_keys=True,
            default=str,
        )
        digest = hashlib.sha256(numbers.encode()).hexdigest()
        return cls(
            task, variant.label, variant.agent, variant.overrides, seed, steps, episodes, digest
        )

    @property
    def name(self) -> str:
        """Of its files: readable, and different wherever the result may be."""
        whole = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        words = "".join(c if c.isalnum() or c in ".-" else "-" for c in self.label)
        return f"{self.task}-{words}-{self.steps}-seed{self.seed}-{whole[:8]}"


def suite_names() -> list[str]:
    """Suites that came with the package."""
    return sorted(path.stem for path in (data_root() / "suites").glob("*.toml"))


def load_suite(name_or_path: str) -> Suite:
    """A shipped suite by its name, or the one in a file whose name ends in `.toml`."""
    if name_or_path.endswith(".toml"):
        return _read(Path(name_or_path))
    if name_or_path not in suite_names():
        raise UnknownNameError("suite", name_or_path, suite_names())
    return _read(data_root() / "suites" / f"{name_or_path}.toml")


def narrowed(
    suite: Suite, agents: tuple[str, ...], seeds: tuple[int, ...], steps: int | None
) -> Suite:
    """The suite with other agents, seeds or steps where any are given."""
    variants = suite.variants
    if agents:
        known = {variant.label: variant for variant in variants}
        variants = tuple(known.get(name) or Variant(name, name) for name in agents)
    if steps is not None:
        suite = replace(suite, steps=steps, steps_of={})
    return _checked(
        replace(suite, variants=variants, seeds=seeds or suite.seeds), f"suite '{suite.name}'"
    )


def _read(path: Path) -> Suite:
    try:
        record = toml_table(read_limited(path, MAX_BYTES))
    except ValueError as error:
        raise FileFault(f"suite {path} is not TOML: {error}") from error
    known = {**_KINDS, **_OPTIONAL}
    for key, value in record.items():
        if key not in known:
            raise FileFault(f"suite {path} has an unknown key '{key}'; known: {', '.join(known)}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise FileFault(f"suite {path}: '{key}' must be {_WORDS[known[key]]}, not {value!r}")
    if missing := [key for key in _KINDS if key not in record]:
        raise FileFault(f"suite {path} lacks {', '.join(missing)}")
    variants = [Variant(str(agent), str(agent)) for agent in record["agents"]]
    variants += [_ablation(item, path) for item in record.get("ablations", [])]
    suite = Suite(
        name=path.stem,
        title=record["title"],
        description=record["description"].strip(),
        tasks=tuple(map(str, record["tasks"])),
        variants=tuple(variants),
        seeds=tuple(record["seeds"]),
        steps=record["steps"],
        episodes=record["episodes"],
        steps_of=record.get("steps_of", {}),
    )
    return _checked(suite, f"suite {path}")


def _ablation(item: Any, path: Path) -> Variant:
    if not isinstance(item, dict) or set(item) != {"label", "agent", "set"}:
        raise FileFault(f"suite {path}: an ablation has exactly a label, an agent and a set")
    return Variant(str(item["label"]), str(item["agent"]), dict(item["set"]))


def _checked(suite: Suite, where: str) -> Suite:
    counts = (suite.steps, suite.episodes, *suite.steps_of.values())
    if not all(isinstance(n, int) and n >= 1 for n in counts):
        raise SettingsError(f"{where}: steps and episodes must be whole numbers >= 1")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in suite.seeds):
        raise SettingsError(f"{where}: seeds must be whole numbers >= 0")
    for kind, names in (
        ("task", suite.tasks),
        ("agent", [variant.label for variant in suite.variants]),
        ("seed", suite.seeds),
    ):
        if not names:
            raise SettingsError(f"{where} has no {kind}")
        if len(set(names)) < len(names):
            raise SettingsError(f"{where} names a {kind} twice; every cell is counted once")
    if strangers := set(suite.steps_of) - set(suite.tasks):
        raise SettingsError(
            f"{where}: steps_of names {', '.join(sorted(strangers))}, no task of it"
        )
    suite.cells()  # an unknown task, agent or number is told now, not hours later
    return suite


_WORDS = {str: "text", list: "a list", int: "a whole number", dict: "a table"}
