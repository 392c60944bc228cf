"""Which commands make a bundle trustworthy, and find out whether it is?"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from kcpr_safety.cli import show
from kcpr_safety.cli.options import Folder


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
