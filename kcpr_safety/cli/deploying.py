"""Which commands make a bundle trustworthy, and find out whether it is?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from kcpr_safety.cli import show
from kcpr_safety.cli.options import Folder, Trust
from kcpr_safety.errors import KcprError
from kcpr_safety.seeds import FIRST_EVALUATION_SEED


@dataclass(frozen=True)
class Keygen:
    """Make a key pair: a private key to sign bundles with, a public one to verify them by."""

    examples: ClassVar[str] = """
  kcpr-safety keygen my-lab                    two files in your own key folder
  kcpr-safety export runs/demo --out policy --key my-lab
  kcpr-safety keygen release --out /media/usb  the private half goes where no repository is
"""
    key_id: Annotated[Positional[str], arg(metavar="ID")]
    """Name of the key, and of its two files ID.key and ID.pub."""
    out: Folder = None
    """Folder for both files; not given: your own (~/.config/kcpr-safety/keys), trusted here."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety.deploy import keys

        private, public = keys.generate(self.key_id, self.out)
        fingerprint = keys.read_public(public).fingerprint
        return {"private": str(private), "public": str(public), "fingerprint": fingerprint}, 0

    def show(self, record: dict[str, Any]) -> None:
        show.table("keygen", ("", ""), list(record.items()))
        show.console().print("keep the private file to yourself; copy the public one to the robot")


@dataclass(frozen=True)
class Calibrate:
    """Find a run's ranges and thresholds: how far its predicted punishment may be trusted.

    On validation seeds that training never met: predicted against realised punishment, whether the
    fallback earns its place, and which threshold calls it.
    """

    examples: ClassVar[str] = """
  kcpr-safety calibrate runs/demo
  kcpr-safety calibrate runs/demo --episodes 50 --json
"""
    run_folder: Annotated[Positional[str], arg(metavar="RUN")]
    """A run folder; `calibration.json` is written into it."""
    episodes: int = 20
    """Episodes of each way of acting."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api

        with show.progress("calibrating") as on_step:
            return api.calibrate(self.run_folder, episodes=self.episodes, on_step=on_step), 0

    def show(self, record: dict[str, Any]) -> None:
        report, assurance = record["calibration"], record["assurance"]
        rows = [
            ("return", report["return_mean"]),
            ("punishment (cost)", report["punishment_mean"]),
            ("fallback acts", assurance["fallback"]),
            ("  its punishment, and the nominal", _pair(report["fallback"])),
            ("threshold (risk)", assurance["engage"]),
            *((f"alarm {key}", value) for key, value in report["alarms"].items()),
            ("conformal quantile", report["conformal"]["quantile"]),
        ]
        show.table("calibrate", ("", ""), rows)


def _pair(found: dict[str, Any]) -> str:
    return f"{found['punishment']:.4g}, {found['nominal_punishment']:.4g}"


@dataclass(frozen=True)
class Stress:
    """Inject faults into sensors, actuators and body, with and without runtime assurance."""

    examples: ClassVar[str] = """
  kcpr-safety stress runs/demo                    after: kcpr-safety calibrate runs/demo
  kcpr-safety stress SafetyHalfCheetahVelocity-v1 --episodes 3
"""
    place: Annotated[Positional[str], arg(metavar="RUN|BUNDLE")]
    """A calibrated run (keeps the table as stress.json), a bundle, or a shipped policy's name."""
    episodes: int = 10
    """Episodes of each fault and way of acting."""
    eval_seed: int = FIRST_EVALUATION_SEED
    """Seed of the first episode."""
    trust: Trust = ()
    """Further public keys that a bundle may be signed with."""
    json: bool = False
    """One JSON object on stdout, nothing else."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api

        with show.progress("injecting faults") as on_step:
            record = api.stress(
                self.place,
                episodes=self.episodes,
                eval_seed=self.eval_seed,
                trust=self.trust,
                on_step=on_step,
            )
        return record, 0

    def show(self, record: dict[str, Any]) -> None:
        keys = ("return_mean", "punishment_mean", "over_budget_share")
        rows = [
            (row["fault"], *(row[way][key] for key in keys for way in ("nominal", "assured")))
            for row in record["faults"]
        ]
        columns = ("fault", "return", "assured", "punishment", "assured", "over budget", "assured")
        show.table(f"stress {self.place}", columns, rows)
        if "left_out" in record:
            told = ", ".join(record["left_out"])
            show.console().print(f"not tried, for want of a MuJoCo model: {told}")
        verdict = "helps" if record["verdict"]["helps"] else "does not help"
        show.console().print(f"runtime assurance {verdict} here")


@dataclass(frozen=True)
class Verify:
    """Prove a bundle on this machine: signature, hashes, schema, golden answers, parity, task."""

    examples: ClassVar[str] = """
  kcpr-safety verify my-policy
  kcpr-safety verify my-policy --trust my-lab.pub --json    exits 1 and names file and reason
"""
    bundle: Annotated[Positional[str], arg(metavar="BUNDLE")]
    """A bundle folder, or the name of a shipped policy."""
    trust: Trust = ()
    """Further public keys, beside those of the package and your own."""
    json: bool = False
    """One JSON object on stdout, nothing else; exit code 1 if anything is wrong."""

    def run(self) -> tuple[dict[str, Any], int]:
        from kcpr_safety import api
        from kcpr_safety.deploy import keys

        # What is not there is no verdict about a bundle.
        folder = api.locate(self.bundle)
        keys.trusted_keys(map(Path, self.trust))
        try:
            return {"ok": True, **api.verify(folder, trust=self.trust)}, 0
        except KcprError as fault:
            return {"ok": False, "path": self.bundle, "fault": str(fault)}, 1

    def show(self, record: dict[str, Any]) -> None:
        show.table("verify", ("", ""), list(record.items()))
