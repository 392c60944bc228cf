"""Does the tutorial lead from a model to a controller, exactly as it is printed?"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcpr_safety.cli import main

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "docs" / "bring_your_own.md"
_FENCE = r"```(\w+)\n(.*?)```"
_FILE = r"Save this as `([\w.]+)`:\n\n" + _FENCE


def save_files(folder: Path) -> list[str]:
    """Write the page's files; their contents."""
    files = {match[1]: match[3] for match in re.finditer(_FILE, TUTORIAL.read_text(), re.S)}
    assert set(files) == {"cart.xml", "cart.toml", "my_world.py"}
    for name, content in files.items():
        (folder / name).write_text(content)
    return list(files.values())


def blocks(files: list[str]) -> Iterator[tuple[str, str]]:
    """What the page says to run, in its order: (language, text)."""
    for language, block in re.findall(_FENCE, TUTORIAL.read_text(), re.S):
        if block not in files:
            assert language in ("bash", "python")
            yield language, block


def test_the_tutorials_words_all_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every command and line in turn, with shorter trainings, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    printed = []
    for language, block in blocks(save_files(tmp_path)):
        if language == "python":
            exec(compile(block, "tutorial", "exec"), {})
        else:
            for line in block.splitlines():
                program, *words = shlex.split(re.sub(r"--steps [\d_]+", "--steps 6_000", line))
                assert (program, main(words)) == ("kcpr-safety", 0)
        printed.append(capfd.readouterr().out)
    sys.modules.pop("my_world")
    assert "every promise kept" in printed[0]
    assert any("nose_to_mark_x m" in text for text in printed)
    assert (tmp_path / "cart-policy" / "controller.pt").is_file()
    table = json.loads((tmp_path / "runs" / "cart" / "stress.json").read_text())
    assert "left_out" not in table
    moved = {row["fault"]: row["nominal"]["return_mean"] for row in table["faults"]}
    assert moved["mass + 30 %"] != moved["none"] != moved["mass - 30 %"]
    assert main(["stress", "cart-policy"]) == 2
    assert "name the run instead of the bundle" in capfd.readouterr().err
    stressed = json.loads((tmp_path / "runs" / "pendulum" / "stress.json").read_text())
    assert stressed["left_out"] == ["mass + 30 %", "mass - 30 %", "friction - 40 %"]
    card = json.loads((tmp_path / "cart-policy" / "card.json").read_text())
    assert {"mass + 30 %", "none"} <= {row["fault"] for row in card["stress"]["faults"]}


@pytest.mark.slow
def test_the_tutorial_as_printed_drives_to_the_mark(tmp_path: Path) -> None:
    """In a shell, as a newcomer would."""
    files = save_files(tmp_path)
    command = tmp_path / "bin" / "kcpr-safety"
    command.parent.mkdir()
    # `-P`: an installed command does not see the current folder either.
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m kcpr_safety "$@"\n')
    command.chmod(0o755)
    env = os.environ | {
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    for language, block in blocks(files):
        shell = ["bash", "-e", "-c"] if language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*shell, block], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (block, done.stdout, done.stderr)
    for name, least in (("cart", 0.5), ("pendulum", 150.0)):
        record = json.loads((tmp_path / "runs" / name / "evaluation.json").read_text())
        print(name, record["return_mean"], record["punishment_mean"], record.get("success_share"))
        assert record["return_mean"] > least, record
        assert record["punishment_mean"] <= record["budget"], record
