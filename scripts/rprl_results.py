"""Keep the rows of `reproduce rprl`, and make the tables of docs/rprl.md of them.

kcpr-safety reproduce rprl
python scripts/rprl_results.py runs/rprl    rows into results/rprl/grids.jsonl, tables into docs
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kcpr_safety.report.rprl_rows import by_world, summarise
from kcpr_safety.studies.rprl import ROWS_FILE, read_cells
from kcpr_safety.studies.rprl_plan import COMMON, MAIN

ROOT = Path(__file__).resolve().parent.parent
ROWS, PAGE = ROOT / "results" / "rprl" / "grids.jsonl", ROOT / "docs" / "rprl.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->"
_KEPT = ("world", "variant", "seed", "return_mean", "punishment_mean", "success")
_MORE = ("punishment_training", "goals_training", "collision")
_AGENTS = (*MAIN, "kcpr")
"""Those that have a row in the main table of a world; the others are ablations."""


def compact(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row is kept: figures, the numbers of its own, the budget of steps."""
    settings = row["cell"]["settings"]
    own = {key: value for key, value in settings.items() if key not in COMMON}
    figures = {key: row[key] for key in (*_KEPT, *_MORE) if key in row}
    return figures | {"steps": row["cell"]["steps"], "own": own}


def interval(found: Mapping[str, float], digits: int = 2) -> str:
    """ "0.77 [0.76, 0.78]"."""
    value, low, high = (f"{found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return value if low == high else f"{value} [{low}, {high}]"


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: every agent on every world, klDMP minus its baselines, the ablations."""
    summary = summarise(rows)
    lines: list[str] = []
    for world, of in by_world(rows).items():
        for names, what in (
            ([name for name in of if name in _AGENTS], ""),
            (["kldmp", *(name for name in of if name not in _AGENTS)], ", ablations of klDMP"),
        ):
            if len(names) < 2:
                continue
            lines += [
                f"**{world}{what}**, {summary['seeds'][world]} seeds",
                "",
                "| agent | return | punishment | success | episodes with a collision "
                "| punishment in training | spread of return | worst seed: return, punishment |",
                "|---|---|---|---|---|---|---|---|",
            ]
            for name in names:
                found = summary["worlds"][world][name]
                lines.append(
                    f"| {name} | {interval(found['return_mean'])} "
                    f"| {interval(found['punishment_mean'])} | {interval(found['success'])} "
                    f"| {interval(found['collision']) if 'collision' in found else '-'} "
                    f"| {interval(found['punishment_training'], 0)} "
                    f"| {found['return_spread']:.3f} "
                    f"| {found['return_worst']:.2f}, {found['punishment_worst']:.2f} |"
                )
            lines.append("")
    lines += [
        "**klDMP minus each baseline** (bold: the interval leaves zero out)",
        "",
        "| world, baseline | return | punishment | punishment in training | spread of return |",
        "|---|---|---|---|---|",
    ]
    for row in summary["comparisons"]:
        cells = []
        for key in ("return_mean", "punishment_mean", "punishment_training", "return_spread"):
            shown = interval(row[key])
            cells.append(shown if row[key]["verdict"] == "not shown to differ" else f"**{shown}**")
        lines.append(f"| {row['world']}, {row['baseline']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(run: Path) -> None:
    rows = read_cells(run / ROWS_FILE)
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(compact(row), sort_keys=True) + "\n" for row in rows)
    ROWS.write_text(text, encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + tables(rows) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/rprl_results.py RUN")
    main(Path(sys.argv[1]))
