"""What is to be shown on one benchmark page, where does it come from, and what is missing?

Places may be: the folder of a benchmark; a file of rows (`.jsonl`) or a folder of such files; a run
folder; OmniSafe's `progress.csv` or the folder that holds one. Whatever cannot be used is a
`Problem` that the page shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcpr_safety.errors import FileFault
from kcpr_safety.evidence import read_json
from kcpr_safety.files import read_limited
from kcpr_safety.report.published import Published, read_progress, references
from kcpr_safety.report.runs import MAX_FILM_BYTES, Row, read_run
from kcpr_safety.report.standings import Across, Comparison, across, compare_trials
from kcpr_safety.report.trials import Problem, Trial, read_rows, read_trials, row_of

SUITE_FILE, CELLS, VIDEOS, INDEX = "suite.json", "cells", "videos", "index.json"
PROGRESS = "progress.csv"


@dataclass(frozen=True)
class Film:
    """An episode of a trained policy, as a film."""

    task: str
    label: str
    seed: int
    kind: str
    """nominal or worst."""
    eval_seed: int
    punishment: float
    returned: float
    suffix: str
    data: bytes


@dataclass(frozen=True)
class Collection:
    """All that one page shows."""

    title: str
    description: str
    trials: tuple[Trial, ...]
    comparisons: tuple[Comparison, ...]
    across: Across | None
    imported: tuple[Published, ...]
    films: tuple[Film, ...]
    problems: tuple[Problem, ...]


def is_plain_run(path: Path) -> bool:
    """Whether this is a run folder, which has a page of its own kind."""
    return (path / "config.json").is_file() and not (path / PROGRESS).is_file()


def collect(paths: Sequence[Path]) -> Collection:
    """Read everything; raises `FileFault` where nothing at all can be shown."""
    found = _Found()
    for path in map(Path, paths):
        _take(path, found)
    trials, wrong = read_trials(found.rows)
    if not trials and not found.imported:
        told = "; ".join(f"{p.where}: {p.what}" for p in [*found.problems, *wrong][:3])
        raise FileFault(f"{', '.join(map(str, paths))}: no row can be shown ({told or 'empty'})")
    comparisons = compare_trials(trials)
    return Collection(
        title=found.title or "Safety benchmark",
        description=found.description,
        trials=tuple(trials),
        comparisons=tuple(comparisons),
        across=across(comparisons, references()),
        imported=tuple(found.imported),
        films=tuple(found.films),
        problems=(*found.problems, *wrong, *_separated(comparisons)),
    )


class _Found:
    """What the places hold, so far."""

    def __init__(self) -> None:
        self.title, self.description = "", ""
        self.rows: list[tuple[str, Row]] = []
        self.imported: list[Published] = []
        self.films: list[Film] = []
        self.problems: list[Problem] = []


def _take(path: Path, found: _Found) -> None:
    if path.name.endswith(".csv"):
        found.imported.append(read_progress(path))
    elif path.is_file():
        _take_rows(path, found)
    elif (path / PROGRESS).is_file():
        found.imported.append(read_progress(path / PROGRESS))
    elif is_plain_run(path):
        found.rows.append((str(path), row_of(read_run(path))))
    elif (path / SUITE_FILE).is_file():
        _take_benchmark(path, found)
    else:
        if (path / "card.json").is_file():
            raise FileFault(f"{path} is a bundle; a report needs the run")
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else []
        if not files:
            raise FileFault(
                f"{path} is no run folder, no benchmark's, none with .jsonl files of rows, and "
                "none with OmniSafe's progress.csv"
            )
        for file in files:
            _take_rows(file, found)


def _take_rows(path: Path, found: _Found) -> None:
    rows, problems = read_rows(path)
    found.rows += rows
    found.problems += problems


def _take_benchmark(path: Path, found: _Found) -> None:
    """Rows of the cells that were asked for; those that are missing or not asked for are named."""
    suite = read_json(path / SUITE_FILE)
    found.title = str(suite.get("title", path.name))
    found.description = str(suite.get("description", ""))
    asked = list(suite.get("cells", {}))
    for name in asked:
        file = path / CELLS / f"{name}.json"
        if file.is_file():
            _take_rows(file, found)
        else:
            found.problems.append(Problem(name, "is missing: it has not been trained and judged"))
    others = sorted({f.stem for f in (path / CELLS).glob("*.json")} - set(asked))
    found.problems += [
        Problem(name, "is another cell than this suite asks for; not shown") for name in others
    ]
    if (path / VIDEOS / INDEX).is_file():
        _take_films(path / VIDEOS, found)


def _take_films(folder: Path, found: _Found) -> None:
    index = read_json(folder / INDEX)
    if index.get("problem"):
        found.problems.append(Problem("films", f"could not be made: {index['problem']}"))
    for record in index.get("films", []):
        try:
            found.films.append(_film(record, folder))
        except FileFault as fault:
            found.problems.append(Problem(str(record.get("file", "a film")), str(fault)))
        except (KeyError, TypeError, ValueError) as error:
            found.problems.append(Problem("a film", f"is not described as one: {error!r}"))


def _film(record: dict[str, Any], folder: Path) -> Film:
    file = folder / Path(str(record["file"])).name
    return Film(
        task=str(record["task"]),
        label=str(record["label"]),
        seed=int(record["seed"]),
        kind=str(record["kind"]),
        eval_seed=int(record["eval_seed"]),
        punishment=float(record["punishment"]),
        returned=float(record["return"]),
        suffix=file.suffix,
        data=read_limited(file, MAX_FILM_BYTES),
    )


def _separated(comparisons: Sequence[Comparison]) -> list[Problem]:
    """Tasks whose trials must not be compared with each other."""
    found = []
    for task in sorted({c.protocol.task for c in comparisons}):
        of = [c.protocol for c in comparisons if c.protocol.task == task]
        if len(of) > 1:
            differ = [
                f"{words} ({' and '.join(str(v) for v in sorted({getattr(p, key) for p in of}))})"
                for key, words in (
                    ("steps", "training steps"),
                    ("budget", "budget"),
                    ("time_limit", "episode length"),
                    ("mode", "evaluation mode"),
                )
                if len({getattr(p, key) for p in of}) > 1
            ]
            found.append(
                Problem(
                    task, f"was run under different {', '.join(differ)}: shown apart, never ranked"
                )
            )
    return found
