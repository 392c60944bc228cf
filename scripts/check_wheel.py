"""Does the wheel work away from the repository, and does it claim one top-level name only?

Builds the wheel, installs it without its dependencies into an empty folder, and uses it from
another folder, with this folder ahead of everything that the running interpreter knows.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "kcpr_safety"

PROBE = """
import json, sys
import kcpr_safety
from kcpr_safety import cards
heavy = sorted({"torch", "mujoco", "gymnasium"} & set(sys.modules))
print(json.dumps({
    "file": kcpr_safety.__file__,
    "data": str(cards.data_root()),
    "cards": len(cards.card_names()),
    "heavy": heavy,
}))
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="kcpr-wheel-") as folder:
        scratch = Path(folder)
        wheel = build(scratch / "dist")
        check_names(wheel)
        installed = scratch / "site"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile"]
        run([*pip, "--target", str(installed), str(wheel)], scratch)
        check_use(installed, scratch)
    print(f"wheel: {wheel.name} installs, finds its data and claims '{PACKAGE}' alone")
    return 0


def build(out: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    run([*command, str(ROOT)], ROOT)
    (wheel,) = out.glob("*.whl")
    return wheel


def check_names(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    ours = {top for top in tops if not top.endswith(".dist-info")}
    expect(ours == {PACKAGE}, f"the wheel claims {sorted(ours)}")
    for kind in ("tasks", "suites", "policies"):
        shipped = {n.split("_data/")[1] for n in names if f"/_data/{kind}/" in n}
        tracked = {p.relative_to(ROOT).as_posix() for p in (ROOT / kind).rglob("*") if p.is_file()}
        expect(shipped == tracked, f"{kind}/ differs in the wheel: {sorted(shipped ^ tracked)}")
    expect(any(name.endswith("licenses/LICENSE") for name in names), "the wheel has no LICENSE")


def check_use(installed: Path, elsewhere: Path) -> None:
    facts = json.loads(run([sys.executable, "-c", PROBE], elsewhere, installed))
    for key in ("file", "data"):
        expect(Path(facts[key]).is_relative_to(installed), f"{key} is {facts[key]}")
    expect(facts["cards"] == len(list((ROOT / "tasks").glob("*.toml"))), f"{facts['cards']} cards")
    expect(not facts["heavy"], f"importing {PACKAGE} loads {facts['heavy']}")
    command = str(installed / "bin" / "kcpr-safety")
    tasks = json.loads(run([command, "tasks", "--json"], elsewhere, installed))
    expect(bool(tasks["tasks"]), "`kcpr-safety tasks` lists nothing")


def run(command: list[str], cwd: Path, installed: Path | None = None) -> str:
    environment = dict(os.environ)
    if installed is not None:
        environment["PYTHONPATH"] = str(installed)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    expect(done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"wheel check failed: {otherwise}")


if __name__ == "__main__":
    raise SystemExit(main())
