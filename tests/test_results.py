"""Is the README's table made of the rows that are kept?"""

import json
import runpy
from pathlib import Path

from kcpr_safety.report.trials import read_trials

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "results.py"))


def test_the_readme_shows_the_rows() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert SCRIPT["readme"](text) == text, "run: python scripts/results.py table"


def test_the_ablations_are_those_of_the_rows() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert SCRIPT["experiments"](text) == text, "run: python scripts/results.py table"


def test_the_page_shows_every_row() -> None:
    told = json.loads((ROOT / "docs" / "results" / "report.json").read_text(encoding="utf-8"))
    shown = {
        (compared["protocol"]["task"], compared["protocol"]["steps"], ranked["label"], seed)
        for compared in told["comparisons"]
        for ranked in compared["ranking"] + compared["ablations"]
        for seed in ranked["seeds"]
    }
    rows = [row for path in (ROOT / "results").glob("*.jsonl") for row in SCRIPT["read"](path)]
    trials, _ = read_trials((str(i), SCRIPT["complete"](row)) for i, row in enumerate(rows))
    kept = {(t.evidence.task, t.evidence.steps, t.label, t.evidence.seed) for t in trials}
    assert len(kept) == len(rows)
    assert shown == kept, "run: python scripts/results.py page"


def test_every_row_has_the_stable_keys_and_its_command() -> None:
    files = sorted((ROOT / "results").glob("*.jsonl"))
    assert files
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert set(SCRIPT["STABLE_KEYS"]) <= set(row)
            assert row["task"] == path.stem
            assert row["eval_seed"] >= 10_000
            assert row["episodes"] == SCRIPT["EPISODES"]
            assert row["command"].startswith(f"kcpr-safety train {row['task']}")
