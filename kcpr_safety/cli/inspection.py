"""Which commands look at what is here: tasks, policies, an environment, this machine?"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from kcpr_safety.cli import show


@dataclass(frozen=True)
class Tasks:
    """List the tasks that can be trained, and by which simulator path."""

    examples: ClassVar[str] = """
  kcpr-safety tasks            those with a card: described, tested, with tuned numbers
  kcpr-safety tasks --all      every registered Safety-Gymnasium id (the rest train with defaults)
  kcpr-safety tasks --terms    what a card can punish by declaration ([[punish]])
"""
    all: bool = False
    """Also those without a task card."""
    terms: bool = False
    """List the terms of punishment instead."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import envs
        from kcpr_safety.cards import load_card

        if self.terms:
            from kcpr_safety.envs.terms import TERMS

            listed = [{"term": name, **dataclasses.asdict(term)} for name, term in TERMS.items()]
            return {"terms": listed}, 0
        rows = []
        for row in envs.registered_tasks():
            if row.has_card or self.all:
                card = load_card(row.task) if row.has_card else None
                facts = {"title": card.title, "budget": card.budget} if card else {}
                rows.append(dataclasses.asdict(row) | facts)
        return {"tasks": rows}, 0

    def show(self, record: dict[str, Any]) -> None:
        if self.terms:
            columns = ("term", "punished is that", "threshold in", "rule", "takes (*: needs)")
            rows = []
            for row in record["terms"]:
                takes = (f"{key}*" if key in row["needs"] else key for key in row["takes"])
                rows.append(
                    (row["term"], row["meaning"], row["unit"], row["rule"], ", ".join(takes))
                )
            show.table("terms", columns, rows)
            return
        show.table(
            "tasks",
            ("task", "what it is", "budget", "simulator path"),
            [(r["task"], r.get("title"), r.get("budget"), r["path"]) for r in record["tasks"]],
        )


@dataclass(frozen=True)
class Policies:
    """List the policies that came with the package."""

    examples: ClassVar[str] = """
  kcpr-safety policies
  kcpr-safety evaluate NAME    judges one of them
"""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api
        from kcpr_safety.deploy.bundle import CARD_FILE
        from kcpr_safety.deploy.card import card_from_bytes
        from kcpr_safety.files import read_limited

        rows = []
        for folder in api.shipped_policies():
            file = folder / CARD_FILE
            card = card_from_bytes(read_limited(file, 2**22), str(file))
            rows.append({"name": folder.name, "path": str(folder), "card": card})
        return {"policies": rows}, 0

    def show(self, record: dict[str, Any]) -> None:
        if not record["policies"]:
            show.console().print("no policies are shipped with this version")
            return
        rows = []
        for row in record["policies"]:
            evidence = row["card"]["evidence"]
            figures = (show.interval(evidence[key]) for key in ("return_mean", "punishment_mean"))
            rows.append((row["name"], *figures, evidence["episodes"], row["path"]))
        columns = ("name", "return [95 %]", "punishment (cost)", "episodes", "path")
        show.table("policies", columns, rows)


@dataclass(frozen=True)
class Check:
    """Check that an environment keeps its promises, and say how to mend what does not."""

    examples: ClassVar[str] = """
  kcpr-safety check SafetyPointGoal1-v0
  kcpr-safety check my_package:MyRobot-v0    imports my_package first, which registers the id
  kcpr-safety check ./my_robot.toml          a MuJoCo model with its card

It is built, reset and stepped with random actions, twice from each of two seeds and once beside a
second one. Found are wrong shapes, types and numbers of values, a missing or negative cost, NaN,
spaces that change, seeds that do nothing, state that two environments share, 'terminated' where
only time ran out, pixels, exceptions with their line of code, steps that take too long.
"""
    env_id: Annotated[Positional[str], arg(metavar="ENV_ID")]
    """A registered environment id, with `module:` before it if a module must be imported; or a
    card, ./my_robot.toml."""
    json: bool = False
    """One JSON object on stdout, nothing else; exit code 1 if a promise is broken."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import envs

        # An id that is unknown here is a mistake in the command, no finding about the environment.
        envs.resolve(self.env_id)
        findings = [dataclasses.asdict(finding) for finding in envs.check_environment(self.env_id)]
        broken = any(finding["severity"] == "error" for finding in findings)
        return {"env_id": self.env_id, "ok": not broken, "findings": findings}, int(broken)

    def show(self, record: dict[str, Any]) -> None:
        found = record["findings"]
        rows = [(finding["severity"], finding["sentence"], finding["mend"]) for finding in found]
        show.table(f"check {self.env_id}", ("", "what was found", "how to mend it"), rows)


@dataclass(frozen=True)
class Doctor:
    """Say what is installed, what is missing, and the exact command that mends it."""

    examples: ClassVar[str] = "  kcpr-safety doctor    exits 0 when training is possible, else 2"
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety.errors import EXIT_CODE
        from kcpr_safety.studies import doctor

        record = doctor.examine()
        return record, 0 if record["can_train"] else EXIT_CODE

    def show(self, record: dict[str, Any]) -> None:
        rows = [(c["name"], c["found"], c["state"], c["mend"]) for c in record["checks"]]
        show.table("doctor", ("what", "found", "state", "mend with"), rows)
        if record["tasks_by_path"]:
            paths = [f"{count} {path}" for path, count in sorted(record["tasks_by_path"].items())]
            show.console().print(f"\ntasks by simulator path: {', '.join(paths)}")
        verdict = "training is possible" if record["can_train"] else "training is not possible"
        show.console().print(f"{verdict} here")
