"""Does the benchmark page say what its rows show, name what is wrong, and mix nothing unequal?"""

import csv
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import AGENTS, MORE_TASKS, TASKS, fake_row, fake_rows, write_rows
from fakes import fake_policy, fake_run, fake_streams
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import Document

from kcpr_safety.envs import make_world, resolve
from kcpr_safety.errors import FileFault
from kcpr_safety.report import build_report
from kcpr_safety.report.benchmark_build import ablations
from kcpr_safety.report.benchmark_steadiness import stability_table, tenths_table
from kcpr_safety.report.benchmark_tables import ablation_table
from kcpr_safety.report.collection import collect
from kcpr_safety.report.numbers import short
from kcpr_safety.report.published import published, read_progress, references, sources
from kcpr_safety.report.standings import ablated, across, compare_trials, standing
from kcpr_safety.report.trials import Trial, read_trials, trial_from, untimed
from kcpr_safety.seeds import training_seeds
from kcpr_safety.stats import share_interval

TASK = TASKS[0]


def trials(*rows: dict[str, Any]) -> list[Trial]:
    return [trial_from(row, "row") for row in rows]


def built(folder: Path, rows: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    page = build_report([write_rows(folder / "rows.jsonl", rows)], folder)
    record = json.loads(page.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    return page.read_text(), record


def ranking(record: dict[str, Any], index: int = 0) -> list[str]:
    return [s["label"] for s in record["comparisons"][index]["ranking"]]


class TestRanking:
    @settings(max_examples=25)
    @given(
        st.lists(
            st.tuples(st.floats(0, 200), st.floats(-1e4, 1e4)), min_size=2, max_size=6, unique=True
        )
    )
    def test_an_infeasible_agent_never_outranks_a_feasible_one(
        self, agents: list[tuple[float, float]]
    ) -> None:
        rows = []
        for i, (punishment, returned) in enumerate(agents):
            for seed in range(3):
                p, r = [punishment + seed] * 4, [returned] * 4
                rows.append(
                    fake_row(
                        TASK,
                        f"a{i}",
                        seed,
                        4,
                        punishments=p,
                        returns=r,
                        punishment_mean=p[0],
                        return_mean=r[0],
                    )
                )
        (comparison,) = compare_trials(trials(*rows))
        over = [s.punished.value > 25 for s in comparison.standings]
        assert over == sorted(over)

    def test_a_stream_over_its_budget_is_the_agents_verdict(self, tmp_path: Path) -> None:
        rows = []
        for agent, force in (("a", 14.0), ("b", 1.0)):
            for seed in range(3):
                told = {"punishments": [15.0] * 4, "punishment_mean": 15.0}
                told |= {"returns": [9.0 if agent == "a" else 1.0] * 4}
                told |= {"return_mean": told["returns"][0]}
                row = fake_row(TASK, agent, seed, 4, **told)
                rows.append(row | {"streams": fake_streams([force] * 4, [1.0] * 4)})
        page, record = built(tmp_path, rows)
        assert ranking(record) == ["b", "a"]
        b, a = record["comparisons"][0]["ranking"]
        assert (b["verdict"], a["verdict"]) == ("within", "over")
        assert (b["seeds_feasible"], a["seeds_feasible"]) == (3, 0)
        assert [(p["name"], p["verdict"]) for p in a["streams"]] == [
            ("force", "over"),
            ("speed", "within"),
        ]
        words = Document(page).text
        assert "a: force" in words and "14 of 12" in words
        plain = [{k: v for k, v in row.items() if k != "streams"} for row in rows]
        unparted = built(tmp_path / "plain", plain)[1]["comparisons"][0]
        assert ranking({"comparisons": [unparted]}) == ["a", "b"]
        assert "streams" not in unparted["protocol"] | unparted["ranking"][0]
        assert len(built(tmp_path / "both", plain[:3] + rows[3:])[1]["comparisons"]) == 2

    def test_verdicts_need_every_seed_and_an_interval(self) -> None:
        def verdict(*means: float) -> str:
            rows = [
                fake_row(TASK, "a", i, 2, punishments=[m, m], punishment_mean=m)
                | {"returns": [1.0, 2.0], "return_mean": 1.5}
                for i, m in enumerate(means)
            ]
            return standing("a", trials(*rows)).verdict

        assert verdict(5.0, 6.0, 5.5, 6.5, 5.0) == "within"
        assert verdict(5.0) == "unsure"  # one seed has no interval
        assert verdict(5.0, 6.0, 5.5, 26.0, 5.0) == "unsure"  # one seed is over
        assert verdict(1.0, 24.0, 12.0) == "unsure"  # the interval is wide
        assert verdict(30.0, 31.0, 29.0) == "over"

    def test_the_worst_seed_has_its_exact_interval(self) -> None:
        good, bad = [0.0] * 50, [0.0] * 40 + [60.0] * 10
        rows = [
            fake_row(TASK, "a", seed, punishments=p, punishment_mean=sum(p) / 50)
            for seed, p in enumerate([good, bad, good])
        ]
        found = standing("a", trials(*rows))
        assert found.worst_policy == (1, 10, 50, share_interval(10, 50))
        assert found.share.value == pytest.approx(10 / 150)

    def test_no_breach_in_any_seed_still_allows_some(self) -> None:
        rows = [
            fake_row(TASK, "a", seed, punishments=[0.0] * 50, punishment_mean=0.0)
            for seed in range(5)
        ]
        found = standing("a", trials(*rows)).share
        assert (found.value, found.low) == (0.0, 0.0)
        assert found.high == pytest.approx(0.0711, abs=1e-4)


class TestSeparation:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"steps": 500_000}, "training steps (500000 and 1000000)"),
            ({"budget": 10.0}, "budget (10.0 and 25.0)"),
            ({"time_limit": 500}, "episode length (500 and 1000)"),
            ({"mode": "stochastic"}, "evaluation mode (deterministic and stochastic)"),
        ],
    )
    def test_unequal_trials_are_never_ranked_together(
        self, tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        rows = [fake_row(TASK, "steady", s) for s in range(3)]
        rows += [fake_row(TASK, "lucky", s, **change) for s in range(3)]
        page, record = built(tmp_path, rows)
        assert sorted(ranking(record, i) for i in range(2)) == [["lucky"], ["steady"]]
        (problem,) = record["problems"]
        assert problem["where"] == TASK and words in problem["what"]
        assert words in Document(page).text

    def test_a_task_of_two_protocols_is_in_no_average(self) -> None:
        rows = fake_rows((*TASKS, "SafetyHopperVelocity-v1"), ("steady", "lucky"), 3)
        rows.append(fake_row(TASK, "steady", 9, steps=7_000))
        found = across(compare_trials(trials(*rows)), references())
        assert found is not None
        assert found.tasks == ("SafetyHopperVelocity-v1", "SafetyPointGoal1-v0")
        assert found.left_out == ((TASK, "was run under 2 protocols"),)

    def test_other_differences_are_told(self) -> None:
        rows = [fake_row(TASK, "steady", s) for s in range(3)]
        rows.append(fake_row(TASK, "lucky", 0, eval_seed=20_000, versions={"torch": "9"}))
        rows[0]["lengths"] = [400] * 50
        (comparison,) = compare_trials(trials(*rows))
        told = " ".join(comparison.cautions)
        for words in (
            "not all judged on the same episodes",
            "not trained from the same seeds",
            "one training seed",
            "different versions of",
            "ended before their time",
        ):
            assert words in told


class TestProblems:
    def test_every_bad_row_is_named_and_the_good_ones_are_shown(self, tmp_path: Path) -> None:
        rows = [fake_row(TASK, "steady", s) for s in range(3)]
        rows.append(dict(rows[0], wall_s=99.0))  # line 4: the same training, another clock
        rows.append(fake_row(TASK, "steady", 7))
        rows.append(fake_row(TASK, "steady", 7, punishment_training=1.0))  # contradicts line 5
        rows.append(fake_row(TASK, "steady", 8, schema_version="trial-0"))  # line 7
        rows.append({k: v for k, v in fake_row(TASK, "steady", 9).items() if k != "punishments"})
        rows.append(fake_row(TASK, "steady", 10, punishment_mean=3.0))
        path = write_rows(tmp_path / "rows.jsonl", rows)
        spoilt = fake_row(TASK, "steady", 11)
        spoilt["returns"][3] = math.nan
        with open(path, "a") as stream:
            stream.write(json.dumps(spoilt) + "\n{half a ro\n")
        page = build_report([path], tmp_path)
        record = json.loads(page.with_suffix(".json").read_text())
        told = {p["where"].split(", ")[-1]: p["what"] for p in record["problems"]}
        assert "counted once" in told["line 4"]
        assert "contradict each other" in told["line 5"]
        assert "'trial-0'" in told["line 7"]
        assert "lacks 'punishments'" in told["line 8"]
        assert "punishment_mean is 3.0, but its episodes give" in told["line 9"]
        assert "not finite" in told["line 10"]
        assert "is no row" in told["line 11"]
        assert record["comparisons"][0]["ranking"][0]["seeds"] == [0, 1, 2]
        text = Document(page.read_text()).text
        assert all(what in text for what in told.values())

    def test_missing_and_foreign_cells_of_a_benchmark_are_named(self, tmp_path: Path) -> None:
        suite = {"title": "Mine", "description": "", "cells": {"one": {}, "two": {}}}
        (tmp_path / "cells").mkdir()
        (tmp_path / "suite.json").write_text(json.dumps(suite))
        for name, seed in (("one", 0), ("old", 1)):
            (tmp_path / "cells" / f"{name}.json").write_text(
                json.dumps(fake_row(TASK, "steady", seed))
            )
        found = collect([tmp_path])
        assert [(p.where, p.what.split(":")[0]) for p in found.problems] == [
            ("two", "is missing"),
            ("old", "is another cell than this suite asks for; not shown"),
        ]
        assert [t.evidence.seed for t in found.trials] == [0]

    def test_nothing_at_all_is_one_sentence(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", [{"schema_version": "trial-0"}])
        with pytest.raises(FileFault, match="no row can be shown"):
            build_report([path], tmp_path)
        with pytest.raises(FileFault, match="is no run folder"):
            collect([tmp_path / "nowhere"])

    def test_only_the_clock_may_differ_between_two_runs_of_one_training(self) -> None:
        row = fake_row(TASK, "steady", 0)
        later = dict(row, wall_s=1.0, train_wall_s=2.0, first_feasible_wall_s=3.0)
        assert untimed(row) == untimed(later)
        kept, problems = read_trials([("a", row), ("b", later)])
        assert len(kept) == len(problems) == 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Page and record of three agents on two tasks, with an ablation."""
    folder = tmp_path_factory.mktemp("page")
    less = {"label": "steady, less", "overrides": {"softening": 0.5}}
    rows = fake_rows() + [fake_row(TASK, "steady", s, **less) for s in range(5)]
    return built(folder, rows)


class TestPage:
    def test_the_verdict_comes_first_and_tells_what_the_mean_hides(
        self, made: tuple[str, dict[str, Any]]
    ) -> None:
        document = Document(made[0])
        assert document.text.index("4 of 6 pairs") < document.text.index("Verdicts")
        assert "2 of these break it in more than 1 of 20 episodes" in document.text
        assert "32 % of its episodes break it" in document.text
        assert ranking(made[1]) == ["steady", "lucky", "eager"]
        assert "0 of 50 still allows 7.1 %" in document.text

    def test_it_needs_nothing_from_outside(self, made: tuple[str, dict[str, Any]]) -> None:
        document = Document(made[0])
        for _, attrs in document.tags:
            for name, value in attrs.items():
                assert not name.startswith("on")
                if name in ("href", "src"):
                    assert (value or "").startswith(("#", "data:"))
        assert "http:" not in made[0] and "https:" not in made[0]
        (policy,) = [a["content"] for a in document.all("meta") if "http-equiv" in a]
        assert (
            policy is not None and "script-src 'sha256-" in policy and "unsafe-eval" not in policy
        )

    def test_figures_have_words_and_tables_headers(self, made: tuple[str, dict[str, Any]]) -> None:
        document = Document(made[0])
        figures = [svg for svg in document.all("svg") if svg.get("role") == "img"]
        assert len(figures) == 13  # six a task and the profile
        assert all(len(svg["aria-label"] or "") > 40 for svg in figures)
        labels = [a["aria-label"] for a in document.all("div") if a.get("role") == "region"]
        assert len(labels) == len(set(labels)), "landmarks are told apart by their names"
        ids = [attrs["id"] for _, attrs in document.tags if attrs.get("id")]
        targets = {a["href"] for a in document.all("a")}
        assert len(ids) == len(set(ids)) and {t[1:] for t in targets if t} <= set(ids)

    def test_published_results_stand_apart_with_steps_and_protocol(
        self, made: tuple[str, dict[str, Any]]
    ) -> None:
        text = Document(made[0]).text
        assert "FOCOPS" in text and "10 times ours" in text and "not ranked with ours" in text
        assert "FOCOPS" not in json.dumps(made[1]["comparisons"])

    def test_an_ablation_is_shown_beside_its_agent_and_not_ranked(
        self, made: tuple[str, dict[str, Any]]
    ) -> None:
        assert "softening = 0.5" in Document(made[0]).text
        assert "steady, less" not in ranking(made[1])
        assert made[1]["comparisons"][0]["ablations"][0]["label"] == "steady, less"

    def test_an_ablation_tells_its_difference_with_an_interval(self) -> None:
        less = {"label": "steady, less", "overrides": {"softening": 0.5}}
        rows = [fake_row(TASK, "steady", s, punishment_training=90.0 + s) for s in range(3)]
        rows += [
            fake_row(TASK, "steady", s, punishment_training=190.0 + s, **less) for s in range(3)
        ]
        trials, _ = read_trials([(str(i), row) for i, row in enumerate(rows)])
        (comparison,) = compare_trials(trials)
        assert "| steady, less | 3 |" in ablations(comparison)[2]
        assert ablations(comparison)[2].endswith("| 100 (97.7 to 102.3) |")
        (alone,) = compare_trials([t for t in trials if t.overrides])
        assert ablations(alone)[2].endswith("| – | – | – | – |"), "nothing to be held against"
        assert "–" in Document(ablation_table(alone)).text

    def test_trainings_of_different_settings_are_no_seeds_of_one_agent(self) -> None:
        rows = [
            fake_row(TASK, "steady", seed, settings={"aim": aim, "hold": 2})
            for seed, aim in ((0, 0.8), (0, 0.5), (1, 0.8))
        ]
        rows += [fake_row(TASK, "eager", 0, settings={"aim": 0.8, "hold": 1, "tau": 1.0})]
        trials, problems = read_trials([(str(i), row) for i, row in enumerate(rows)])
        (comparison,) = compare_trials(trials)
        seeds = {s.label: [t.evidence.seed for t in s.trials] for s in comparison.standings}
        assert seeds == {"steady, aim 0.5": [0], "steady, aim 0.8": [0, 1], "eager": [0]}
        (problem,) = problems
        assert problem.where == TASK
        assert "steady over 1,000,000 steps with different settings (aim)" in problem.what
        assert "settings differ in aim, hold:" in " ".join(comparison.cautions)

    def test_a_setting_that_a_row_does_not_tell_of_is_not_guessed(self) -> None:
        rows = [fake_row(TASK, "steady", 0), fake_row(TASK, "steady", 1, settings={"aim": 0.5})]
        trials, _ = read_trials([(str(i), row) for i, row in enumerate(rows)])
        assert [t.label for t in trials] == ["steady, aim 0.5", "steady, aim untold"]

    def test_an_ablation_is_held_against_nothing_that_differs_in_more(self) -> None:
        whole = fake_row(TASK, "steady", 0, settings={"aim": 0.5, "softening": 0.9})
        rows = [whole] + [
            fake_row(
                TASK,
                "steady",
                0,
                label=f"steady, softening 0.5, aim {aim}",
                overrides={"softening": 0.5},
                settings={"aim": aim, "softening": 0.5},
            )
            for aim in (0.5, 0.8)
        ]
        trials, _ = read_trials([(str(i), row) for i, row in enumerate(rows)])
        (comparison,) = compare_trials(trials)
        told = {s.label: found is not None for s, found in ablated(comparison)}
        assert told == {
            "steady, softening 0.5, aim 0.5": True,
            "steady, softening 0.5, aim 0.8": False,
        }

    def test_calibration_by_tenths_is_the_mean_over_seeds(self) -> None:
        rows = [fake_row(TASK, "steady", seed) for seed in range(2)]
        for row, factor in zip(rows, (1.0, 3.0), strict=True):
            row["reliability"] = [
                {"steps": 9, "predicted": i * factor, "realised": i} for i in range(10)
            ]
        trials, problems = read_trials([(str(i), row) for i, row in enumerate(rows)])
        assert not problems
        (comparison,) = compare_trials(trials)
        text = Document(tenths_table(comparison)).text
        assert "2 / 1" in text and "18 / 9" in text
        without = [fake_row(TASK, "steady", seed, reliability=[]) for seed in range(2)]
        trials, _ = read_trials([(str(i), row) for i, row in enumerate(without)])
        assert tenths_table(compare_trials(trials)[0]) == ""

    def test_stability_tells_the_worst_seed_and_compares_at_equal_time(self) -> None:
        rows = [
            fake_row(TASK, agent, seed, train_wall_s=wall, largest_fall=31.7 * seed)
            for agent, wall in (("steady", 2000.0), ("lucky", 1000.0))
            for seed in range(3)
        ]
        for row in rows:
            row["validation"] = [[100_000 * (i + 1), float(i), 7.0, 1.0, 1.0] for i in range(10)]
        trials, _ = read_trials([(str(i), row) for i, row in enumerate(rows)])
        (comparison,) = compare_trials(trials)
        text = Document(stability_table(comparison)).text
        worst = min(r["return_mean"] for r in rows if r["agent"] == "steady")
        assert short(worst) in text
        assert "4 / 7" in text, "at 500,000 steps the slower agent has used as much time"
        assert "9 / 7" in text
        assert "63.4" in text, "the largest fall of the worst seed"

    def test_coverage_is_told_where_intervals_are_too_narrow(
        self, made: tuple[str, dict[str, Any]]
    ) -> None:
        assert "too narrow" in Document(made[0]).text

    def test_the_same_rows_give_the_same_bytes(self, tmp_path: Path) -> None:
        rows = fake_rows(TASKS[:1], seeds=2)
        first, _ = built(tmp_path / "a", rows)
        again, _ = built(tmp_path / "b", rows)
        assert first == again

    def test_machines_get_the_same_numbers(self, tmp_path: Path) -> None:
        rows = fake_rows(TASKS[:1], seeds=2)
        _, record = built(tmp_path, rows)
        lines = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
        assert len(lines) == len(rows)
        by_name = {(r["label"], str(r["seed"])): r for r in rows}
        for line in lines:
            row = by_name[line["label"], line["seed"]]
            assert float(line["punishment_mean"]) == row["punishment_mean"]
            assert float(line["over_budget_share"]) == row["over_budget_share"]
        words = (tmp_path / "report.md").read_text()
        assert record["headline"] in words
        assert all(f"| {agent} |" in words for agent in AGENTS)

    def test_names_from_files_cannot_become_markup(self, tmp_path: Path) -> None:
        bad = "<script>alert(1)</script>"
        page, _ = built(tmp_path, [fake_row(TASK, bad, 0), fake_row(bad, "steady", 0)])
        assert "alert(1)</script>" not in page.replace(bad, "") and bad not in page

    def test_films_are_inside_and_say_what_they_show(self, tmp_path: Path) -> None:
        suite = {"title": "Mine", "description": "", "cells": {"one": {}}}
        (tmp_path / "cells").mkdir()
        (tmp_path / "videos").mkdir()
        (tmp_path / "suite.json").write_text(json.dumps(suite))
        (tmp_path / "cells" / "one.json").write_text(json.dumps(fake_row(TASK, "steady", 0)))
        film = {"task": TASK, "label": "steady", "seed": 0, "eval_seed": 10_007, "punishment": 19.0}
        films = [
            film | {"kind": "worst", "return": 1987.0, "file": "worst.mp4"},
            film | {"kind": "nominal", "return": 1987.0, "file": "nominal.gif"},
            film | {"kind": "nominal", "return": 1987.0, "file": "../../lost.gif"},
        ]
        (tmp_path / "videos" / "worst.mp4").write_bytes(b"film")
        (tmp_path / "videos" / "nominal.gif").write_bytes(b"GIF89a")
        (tmp_path / "videos" / "index.json").write_text(
            json.dumps({"films": films, "problem": None})
        )
        page = build_report([tmp_path], tmp_path).read_text()
        document = Document(page)
        (video,) = document.all("video")
        assert (video["src"] or "").startswith("data:video/mp4;base64,")
        assert "controls" in video and "loop" in video
        assert "worst of the evaluated episodes (seed 10007), punishment 19" in document.text
        (picture,) = document.all("img")
        assert "nominal" in (picture["alt"] or "")
        assert "lost.gif" in document.text  # named among the problems


def test_a_run_folder_becomes_a_trial_among_rows(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", fake_policy(3))
    rows = write_rows(tmp_path / "rows.jsonl", [fake_row(TASK, "steady", 0)])
    found = collect([run, rows])
    mine = next(t for t in found.trials if t.label == "kcpr")
    assert mine.evidence.seed == 3 and mine.run == "run"
    assert mine.first_feasible is not None
    assert len(mine.validation) == 10 and len(mine.training) == 50
    assert len(mine.config_sha256) == 64


def test_ten_tasks_four_agents_five_seeds_in_a_minute(tmp_path: Path) -> None:
    """CPU time of one core; measured about four seconds."""
    rows = fake_rows(MORE_TASKS, (*AGENTS, "fourth"), 5)
    started = time.process_time()
    page, record = built(tmp_path, rows)
    assert time.process_time() - started < 60
    assert len(page) < 5 * 2**20
    assert len(record["comparisons"]) == 10
    assert len(record["across"]["tasks"]) == 9  # PointCircle1 has nothing equal to measure by


class TestPublished:
    def test_every_figure_has_a_source_and_makes_sense(self) -> None:
        tasks = set(MORE_TASKS) | {"SafetyPointButton1-v0"}
        found = [p for task in tasks for p in published(task)]
        assert len(found) == 150
        assert {p.source for p in found} == set(sources())
        for p in found:
            assert p.steps in (1_000_000, 3_000_000, 10_000_000)
            assert p.budget == 25.0 and p.punishment_mean >= 0
        assert set(references()) == tasks - {p.task for p in found if p.unequal}

    def test_nothing_is_measured_by_more_than_physics_allow(self) -> None:
        """PointCircle1: a step returns a tenth of the speed at most, and an episode has 500."""
        world = make_world(resolve("SafetyPointCircle1-v0"), 1, episode_seeds=training_seeds(0))
        world.reset()
        for _ in range(200):
            obs, *_ = world.step(np.array([[1.0, 0.0]]))
        speed = float(np.hypot(*obs[0, 3:5]))
        assert 1.4 < speed < 1.5
        circling = published("SafetyPointCircle1-v0")
        assert max(p.return_mean for p in circling) > 0.1 * 1.5 * 500
        assert all(p.unequal for p in circling) and "SafetyPointCircle1-v0" not in references()

    def test_figures_as_they_were_printed(self) -> None:
        """Checked by hand against the tables that they were taken from."""
        by_name = {(p.agent, p.steps): p for p in published("SafetyHopperVelocity-v1")}
        cup = by_name["CUP", 10_000_000]
        assert (cup.return_mean, cup.return_spread, cup.punishment_mean) == (1716.08, 5.93, 7.48)
        assert by_name["SACPID", 1_000_000].punishment_mean == 92.23
        humanoid = next(p for p in published("SafetyHumanoidVelocity-v1") if p.agent == "TD3PID")
        assert (humanoid.steps, humanoid.return_mean) == (3_000_000, 6179.38)
        assert references()["SafetyHalfCheetahVelocity-v1"] == 3016

    def test_within_budget_first(self) -> None:
        feasible = [p.feasible for p in published("SafetyPointGoal1-v0")]
        assert feasible == sorted(feasible, reverse=True)


PROGRESS = "TotalEnvSteps,Metrics/EpRet,Metrics/EpCost,Metrics/EpLen\n"


def progress(folder: Path, lines: str, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    told = {"env_id": TASK, "algo": "PPOLag", "lagrange_cfgs": {"cost_limit": 25.0}, **config}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "progress.csv").write_text(lines)
    return folder / "progress.csv"


class TestImport:
    def test_the_last_twentieth_is_the_result(self, tmp_path: Path) -> None:
        lines = "".join(f"{20_000 * (i + 1)},{10.0 * i},{50.0 - i},1000\n" for i in range(40))
        found = read_progress(progress(tmp_path / "run", PROGRESS + lines))
        assert (found.steps, found.agent, found.task) == (800_000, "PPOLag", TASK)
        assert found.return_mean == 385.0 and found.punishment_mean == 11.5  # of the last two
        assert "training episodes, mean of the last 2 of 40" in found.protocol
        assert found.feasible and len(found.curve) == 40

    def test_test_episodes_are_preferred_and_said(self, tmp_path: Path) -> None:
        head = "TotalEnvSteps,Metrics/EpRet,Metrics/EpCost,Metrics/TestEpRet,Metrics/TestEpCost\n"
        found = read_progress(progress(tmp_path / "run", head + "100,1,2,3,4\n"))
        assert (found.return_mean, found.punishment_mean) == (3.0, 4.0)
        assert found.protocol.startswith("test episodes")

    def test_it_stands_on_the_page_beside_ours(self, tmp_path: Path) -> None:
        theirs = progress(tmp_path / "seed-000", PROGRESS + "1000000,2100,19.5,1000\n")
        rows = write_rows(tmp_path / "rows.jsonl", [fake_row(TASK, "steady", s) for s in range(3)])
        page = build_report([rows, theirs.parent], tmp_path / "out")
        record = json.loads(page.with_suffix(".json").read_text())
        assert record["imported"][0]["return_mean"] == 2100.0
        assert "imported: seed-000/progress.csv" in Document(page.read_text()).text

    @pytest.mark.parametrize(
        ("lines", "config", "sentence"),
        [
            ("a,b\n1,2\n", {}, "is no progress.csv of OmniSafe"),
            (PROGRESS, {}, "is no progress.csv of OmniSafe"),
            (PROGRESS + "1,nan,2,3\n", {}, "line 2 holds a number that is not finite"),
            (PROGRESS + "1,,2,3\n", {}, "line 2: could not convert"),
            (PROGRESS + "1,2,3,4\n", {"algo": 3}, "does not say env_id and algo"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(
        self, tmp_path: Path, lines: str, config: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(FileFault, match=sentence):
            read_progress(progress(tmp_path / "run", lines, **config))
