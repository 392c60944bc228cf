"""Does the page say what the episodes show, to everyone, alone, and no more than that?"""

import base64
import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fakes import STREAMS, fake_contract, fake_policy, fake_run, fake_streams

from kcpr_safety.errors import FileFault
from kcpr_safety.policy_file import PolicyFile
from kcpr_safety.report import build_report

TESTS = Path(__file__).parent
VOID = {"meta", "br", "hr", "img", "input", "link", "circle", "rect", "line", "path"}


def policy(seed: int = 0, agent: str = "kcpr", **contract: Any) -> PolicyFile:
    changed = dataclasses.replace(fake_contract(), **contract)
    return dataclasses.replace(fake_policy(seed, contract=changed, width=4), agent=agent)


def punished(*punishments: float) -> dict[str, Any]:
    """Changes of `evaluation.json` for episodes with these punishments."""
    count = len(punishments)
    return {
        "episodes": count,
        "punishments": list(punishments),
        "punishment_mean": sum(punishments) / count,
        "returns": [2000.0 + i for i in range(count)],
        "return_mean": 2000.0 + (count - 1) / 2,
        "lengths": [1000] * count,
        "over_budget_share": 0.0,
    }


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def built(*runs: Path) -> tuple[str, dict[str, Any]]:
    """Page and record of these runs."""
    page = build_report(runs, runs[0].parent / "report")
    record = json.loads(page.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    return page.read_text(), record


class Document(HTMLParser):
    """Checks nesting; collects tags, ids and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("report")
    runs = [
        fake_run(root / "good", policy(0)),
        fake_run(root / "lag", policy(1, "sac-lag"), **punished(31, 40, 22, 60, 80)),
        fake_run(root / "bare", policy(2, "sac")),
        fake_run(root / "maze", policy(0, task="SafetyMaze-v0")),
    ]
    (runs[2] / "evaluation.json").unlink()
    return built(*runs)[0]


class TestPage:
    def test_nothing_outside_is_asked_for(self, page: str) -> None:
        document = Document(page)
        assert not document.all("script")
        assert not document.all("link")
        assert not document.all("img")
        for _, attrs in document.tags:
            for name, value in attrs.items():
                assert not name.startswith("on")
                if name in ("href", "src", "xlink:href"):
                    assert (value or "").startswith("#")
        assert "http:" not in page
        assert "https:" not in page
        assert "url(" not in page
        assert "@import" not in page

    def test_it_can_be_read_by_ear(self, page: str) -> None:
        document = Document(page)
        for svg in document.all("svg"):
            assert svg.get("aria-hidden") == "true" or len(svg["aria-label"] or "") > 20
            assert svg.get("aria-hidden") == "true" or svg["role"] == "img"
        assert len(document.all("table")) == len(document.all("caption")) > 4
        assert all(th.get("scope") in ("row", "col") for th in document.all("th"))
        ids = [attrs["id"] for _, attrs in document.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        labelled = [a["aria-labelledby"] for _, a in document.tags if "aria-labelledby" in a]
        assert set(labelled) <= set(ids)
        assert len(document.all("h1")) == 1
        assert document.all("html")[0]["lang"] == "en"

    def test_the_verdict_comes_first(self, page: str) -> None:
        words = Document(page).text
        verdict = words.index("2 of 4 policies shown to be within budget")
        assert verdict < words.index("Final evaluation")
        assert verdict < 200

    def test_light_dark_and_print(self, page: str) -> None:
        assert "prefers-color-scheme: dark" in page
        assert "@media print" in page
        assert "width=device-width" in page

    def test_unlike_runs_are_apart(self, page: str) -> None:
        words = Document(page).text
        assert "Part 1 of 2" in words
        assert "must not be compared" in words
        assert words.index("sac-lag · seed 1") < words.index("Part 2 of 2 SafetyMaze-v0")

    def test_what_it_must_show(self, page: str) -> None:
        words = Document(page).text
        for part in (
            "Return while learning",
            "Punishment while learning",
            "Weight of punishment, λ",
            "Predicted against measured punishment",
            "Every episode of the final evaluation",
            "budget 25",
            "seeds 10000 to 10009",
            "2.13.0",
            "3.3.7",
            "What is not claimed",
        ):
            assert part in words, part


@pytest.mark.parametrize(
    ("punishments", "verdict"),
    [
        ([10.0, 12.0, 11.0], "within"),
        ([25.0, 25.0], "within"),  # the budget itself is allowed
        ([0.0, 40.0, 20.0], "unsure"),  # mean 20, t(2) = 4.30, so +- 50
        ([26.0, 27.0, 28.0], "over"),
        ([24.0, 27.0], "over"),  # the mean alone decides, however wide the interval
        ([3.0], "unsure"),  # one episode has no interval
    ],
)
def test_verdicts_by_hand(tmp_path: Path, punishments: list[float], verdict: str) -> None:
    words, record = built(fake_run(tmp_path / "run", policy(), **punished(*punishments)))
    (run,) = record["groups"][0]["runs"]
    assert run["verdict"] == verdict
    title = {
        "within": "<h1>Within budget</h1>",
        "unsure": "<h1>Not shown to be within budget</h1>",
        "over": "<h1>Over budget</h1>",
    }
    assert title[verdict] in words


def test_numbers_by_hand(tmp_path: Path) -> None:
    """6 of 10 over budget; the exact interval of the table is 26.24 % to 87.84 %."""
    values = punished(30, 31, 32, 33, 34, 35, 5, 5, 5, 5)
    page, record = built(fake_run(tmp_path / "run", policy(), **values))
    evaluation = record["groups"][0]["runs"][0]["evaluation"]
    assert evaluation["over_budget"]["episodes"] == 6
    assert evaluation["over_budget"]["low"] == pytest.approx(0.2624, abs=1e-4)
    assert evaluation["over_budget"]["high"] == pytest.approx(0.8784, abs=1e-4)
    assert evaluation["punishment_mean"]["value"] == 21.5
    # Squared deviations sum to 1832.5: s = 14.269, s / sqrt(10) = 4.5123, t(9) = 2.26216.
    assert evaluation["punishment_mean"]["high"] == pytest.approx(31.7076, abs=1e-4)
    assert evaluation["punishment_worst"] == evaluation["punishment_cvar"] == 35
    words = Document(page).text
    assert "6 of 10" in words
    assert "true share 26.2 to 87.8 %" in words
    assert "11.3 to 31.7" in words


def test_the_verdict_is_the_worst_of_total_and_streams(tmp_path: Path) -> None:
    values = punished(10, 11, 12, 13)
    good = fake_run(
        tmp_path / "good",
        policy(0, streams=STREAMS),
        **values,
        streams=fake_streams((5, 6, 5, 6), (5, 5, 7, 7)),
    )
    over = fake_run(
        tmp_path / "over",
        policy(1, streams=STREAMS),
        **values,
        streams=fake_streams((5, 30, 12, 13), (5, 5, 0, 0)),
    )
    plain = fake_run(tmp_path / "plain", policy(2), **values)
    page, record = built(good, over, plain)
    assert len(record["groups"]) == 2
    alone, parted = sorted(record["groups"], key=lambda group: len(group["runs"]))
    assert "streams" not in alone["runs"][0]["evaluation"]
    within, worse = parted["runs"]
    assert (within["verdict"], worse["verdict"]) == ("within", "over")
    told = worse["evaluation"]["streams"]
    assert [(part["name"], part["verdict"]) for part in told] == [
        ("force", "over"),
        ("speed", "within"),
    ]
    assert told[0]["over_budget"]["episodes"] == 2 and told[0]["punishment_mean"]["value"] == 15
    words = Document(page).text
    assert "kcpr · seed 1: force" in words and "15 of 12" in words and "2 of 4" in words
    assert "(force 12, speed 15; the verdict is the worst of all)" in words


def test_a_run_whose_streams_were_not_judged_is_refused(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", policy(0, streams=STREAMS), **punished(1, 2))
    with pytest.raises(FileFault, match="does not judge the streams"):
        built(run)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"punishments": [1.0]}, "stream force differ in number"),
        ({"punishments": [1.0, -1.0], "punishment_mean": 0.0}, "negative"),
        ({"punishments": [1.0, float("inf")]}, "not finite|is not JSON"),
        ({"name": "speed"}, "twice"),
        ({"punishment_mean": 7.0}, "stream force: punishment_mean is 7.0"),
        ({"budget": None}, "no evaluation"),
    ],
)
def test_odd_streams_are_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    streams = fake_streams((1, 2), (3, 4))
    streams[0] |= changed
    run = fake_run(tmp_path / "run", policy(0, streams=STREAMS), **punished(4, 6), streams=streams)
    with pytest.raises(FileFault, match=words):
        built(run)


def test_a_policy_over_budget_never_stands_above_one_within(tmp_path: Path) -> None:
    rich = fake_run(tmp_path / "rich", policy(0), **punished(40, 40, 41))
    rich_values = {"returns": [9000.0] * 3, "return_mean": 9000.0}
    edit(rich / "evaluation.json", **rich_values)
    unsure = fake_run(tmp_path / "unsure", policy(1), **punished(0, 40, 20))
    poor = fake_run(tmp_path / "poor", policy(2), **punished(1, 2, 3))
    unknown = fake_run(tmp_path / "unknown", policy(3))
    (unknown / "evaluation.json").unlink()
    page, record = built(unknown, rich, unsure, poor)
    order = [run["verdict"] for run in record["groups"][0]["runs"]]
    assert order == ["within", "unsure", "over", "unknown"]
    words = Document(page).text
    places = [words.index(f"kcpr · seed {seed}") for seed in (2, 1, 0, 3)]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "unlike",
    [{"task": "SafetyMaze-v0"}, {"budget": 10.0}, {"time_limit": 500}],
)
def test_unequal_runs_get_their_own_part(tmp_path: Path, unlike: dict[str, Any]) -> None:
    one = fake_run(tmp_path / "one", policy(0))
    two = fake_run(tmp_path / "two", policy(1, **unlike), budget=unlike.get("budget", 25.0))
    edit(two / "config.json", budget=unlike.get("budget", 25.0))
    page, record = built(one, two)
    assert [len(group["runs"]) for group in record["groups"]] == [1, 1]
    assert "must not be compared" in Document(page).text


def test_unequal_steps_get_their_own_part(tmp_path: Path) -> None:
    one, two = fake_run(tmp_path / "one", policy(0)), fake_run(tmp_path / "two", policy(1))
    assert len(built(one, two)[1]["groups"]) == 1
    edit(two / "config.json", steps=200_000)
    assert [group["steps"] for group in built(one, two)[1]["groups"]] == [100_000, 200_000]


def test_other_differences_are_named(tmp_path: Path) -> None:
    one = fake_run(tmp_path / "one", policy(0))
    two = fake_run(tmp_path / "two", policy(1), episodes=20)
    three = fake_run(tmp_path / "three", policy(1), **punished(0, 0, 0))
    edit(two / "config.json", versions={"torch": "9.9"})
    cautions = " ".join(built(one, two, three)[1]["groups"][0]["cautions"])
    assert "different episodes" in cautions
    assert "different versions of kcpr-safety, mujoco, torch" in cautions
    assert "share agent and seed" in cautions
    assert "no width" in cautions


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "<b>&", policy(0, "<i>agent", task="<script>alert(1)</script>"))
    edit(run / "config.json", machine='"><img src=x>', settings={"<u>": "<s>"})
    page, _ = built(run)
    document = Document(page)
    assert not {"script", "b", "i", "u", "s", "img"} & {
        tag for tag, attrs in document.tags if tag != "b" or attrs
    }
    assert "<script>alert(1)</script>" in document.text


@pytest.mark.parametrize(
    ("values", "budget"),
    [
        (punished(0, 0, 0, 0), 25.0),
        (punished(0, 0, 0, 0), 0.0),
        (punished(0, 5), 0.0),
        (punished(7), 25.0),
        (punished(1e6, 2e6), 25.0),
        (punished(1e-6, 2e-6), 25.0),
    ],
)
@pytest.mark.parametrize("rows", ["all", "one", "none", "missing", "empty values", "huge"])
def test_unusual_numbers_are_drawn(
    tmp_path: Path, values: dict[str, Any], budget: float, rows: str
) -> None:
    run = fake_run(tmp_path / "run", policy(budget=budget), **values, budget=budget)
    edit(run / "config.json", budget=budget)
    metrics = run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    if rows == "one":
        lines = lines[:1]
    elif rows == "none":
        lines = []
    elif rows == "empty values":
        lines = [{"kind": row["kind"], "steps": row["steps"]} for row in lines]
    elif rows == "huge":
        lines = [{**row, "return_mean": -1e9, "punishment_mean": 1e5} for row in lines]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in lines))
    if rows == "missing":
        metrics.unlink()
    page, record = built(run)
    Document(page)
    assert not re.search(r"[\d\"](nan|inf)\b", page)
    assert record["groups"][0]["runs"][0]["evaluation"]["episodes"] == len(values["returns"])


class TestInput:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        return fake_run(tmp_path / "run", policy())

    def refused(self, *runs: Path) -> str:
        with pytest.raises(FileFault) as fault:
            build_report(runs, Path(runs[0] if runs else "x").parent / "report")
        assert "\n" not in str(fault.value)
        return str(fault.value)

    def test_nothing_or_the_same_twice(self, run: Path) -> None:
        assert "at least one run" in self.refused()
        assert "given twice" in self.refused(run, run.parent / "." / "run")

    def test_no_run_folder(self, run: Path, tmp_path: Path) -> None:
        assert "is no run folder" in self.refused(tmp_path)
        (tmp_path / "card.json").write_text("{}")
        assert "is a bundle" in self.refused(tmp_path)

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("config.json", "{", "is not JSON"),
            ("config.json", "[]", "one JSON object"),
            ("config.json", "{}", "schema version None"),
            ("config.json", '{"schema_version": "1"}', "not the configuration"),
            ("evaluation.json", "{}", "lacks 'task'"),
            ("evaluation.json", "\x00", "is not JSON"),
            ("metrics.jsonl", "{}\n{}\n", "damaged in line 1"),
            ("metrics.jsonl", '{"kind": "train", "steps": 1}\nx\n', "damaged in line 2"),
            ("metrics.jsonl", '{"kind": "train", "steps": NaN}\n', "damaged in line 1"),
        ],
    )
    def test_damaged_files(self, run: Path, name: str, content: str, words: str) -> None:
        (run / name).write_text(content)
        sentence = self.refused(run)
        assert words in sentence
        assert str(run / name) in sentence

    @pytest.mark.parametrize("key", ["task", "agent", "seed", "budget"])
    def test_an_evaluation_of_something_else(self, run: Path, key: str) -> None:
        edit(run / "evaluation.json", **{key: 7})
        assert f"about {key}" in self.refused(run)

    def test_a_budget_that_is_none(self, run: Path) -> None:
        edit(run / "config.json", budget=-1.0)
        assert "must be a number >= 0" in self.refused(run)

    def test_an_outdated_evaluation_is_not_used(self, run: Path) -> None:
        edit(run / "evaluation.json", policy_sha256="0" * 64)
        page, record = built(run)
        assert record["groups"][0]["runs"][0]["verdict"] == "unknown"
        assert "judged another policy" in Document(page).text

    def test_a_line_that_was_cut_off(self, run: Path) -> None:
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(text[:-20])
        page, record = built(run)
        assert "was cut off" in Document(page).text
        assert record["groups"][0]["runs"][0]["notes"]

    def test_missing_values_are_named(self, run: Path) -> None:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        trained = [row for row in rows if row["kind"] == "train"]
        trained[0]["return_mean"] = None  # no episode had ended yet: no fault
        trained[7]["return_mean"] = None
        trained[9]["return_mean"] = float("nan")
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert "2 training rows have no finite return_mean" in Document(built(run)[0]).text

    def test_rows_of_a_resumed_run_count_once(self, run: Path) -> None:
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        clean, _ = built(run)
        (run / "metrics.jsonl").write_text("".join(lines[:40] + lines[30:]))
        page, record = built(run)
        (note,) = record["groups"][0]["runs"][0]["notes"]
        assert "10 rows were written again" in note
        drawn = re.compile(r"<svg.*?</svg>", re.S)
        assert drawn.findall(page) == drawn.findall(clean)


def test_a_film_of_the_first_episode_is_shown(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    plain = build_report([run], tmp_path / "plain").read_text()
    assert "<h3>Films" not in plain
    (run / "episode.gif").write_bytes(b"GIF89a and so on")
    shown = build_report([run], tmp_path / "shown").read_text()
    assert base64.b64encode(b"GIF89a and so on").decode() in shown
    evidence = json.loads((run / "evaluation.json").read_text())
    assert f"the first of the evaluated episodes (seed {evidence['eval_seed']})" in shown
    (run / "episode.gif").write_bytes(bytes(2**20 + 1))
    told = build_report([run], tmp_path / "large").read_text()
    assert "<h3>Films" not in told and "its film is not shown" in told


def test_where_it_is_written(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", policy())
    assert build_report([run], tmp_path / "out") == tmp_path / "out" / "report.html"
    assert build_report([run], tmp_path / "demo.html") == tmp_path / "demo.html"
    assert (tmp_path / "demo.json").read_bytes() == (tmp_path / "out/report.json").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["demo.html", "demo.json", "out", "run"]
    with pytest.raises(FileFault, match="cannot write"):
        build_report([run], run / "config.json" / "out")


def test_same_bytes_without_torch_or_simulator(tmp_path: Path) -> None:
    """In a fresh process with another hash seed, which imports neither."""
    run = fake_run(tmp_path / "run", policy())
    ours = build_report([run], tmp_path / "ours").read_bytes()
    child = (
        "import sys; from pathlib import Path; from kcpr_safety.report import build_report\n"
        "build_report([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "heavy = {'torch', 'mujoco', 'gymnasium', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} were imported' if heavy else 0)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", child, str(run), str(tmp_path / "theirs")]
    subprocess.run(command, check=True, env=environment)
    assert (tmp_path / "theirs" / "report.html").read_bytes() == ours
