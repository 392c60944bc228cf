"""Is the comparison of agents resumable and honest, and its pictures of the right thing?"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from kcpr_safety.cli import main
from kcpr_safety.errors import EXIT_CODE, FileFault
from kcpr_safety.report.rprl_page import headline, rprl_page
from kcpr_safety.report.rprl_rows import compare, summarise
from kcpr_safety.studies import rprl, rprl_cells, rprl_plan
from kcpr_safety.studies.rprl_cells import Cell, judge, train_cell
from kcpr_safety.studies.rprl_plan import (
    ABLATED_WORLDS,
    MAIN,
    SEEDS,
    TUNABLE,
    TUNED,
    ablations,
    plan,
    settings_of,
)


def small_cell(world: str = "corridor", agent: str = "kldmp", steps: int = 800) -> Cell:
    settings = settings_of(agent, world, steps, {**TUNED[agent.split("-")[0]], "width": 8})
    return Cell(world, agent, settings, (20, 21), steps)


def test_every_agent_had_as_many_candidates_and_got_one_of_them() -> None:
    assert {len(candidates) for candidates in TUNABLE.values()} == {3}
    assert all(TUNED[name] in TUNABLE[name] for name in TUNABLE)


def test_the_plan_is_what_the_documents_promise() -> None:
    cells = plan(quick=False)
    assert {cell.world for cell in cells if cell.variant == "kldmp"} == {
        "corridor",
        "cliff",
        "rooms",
        "windy-cliff",
    }
    assert len(SEEDS) >= 10 and {cell.seeds for cell in cells} == {SEEDS}
    main_cells = [cell for cell in cells if cell.variant in MAIN]
    shared = {
        (c.steps, c.settings.width, c.settings.batch, c.settings.exploration_steps)
        for c in main_cells
    }
    assert len(shared) == 1  # equal budgets
    base = settings_of("kldmp", "corridor", 1_000, TUNED["kldmp"])
    for name, settings in ablations(base).items():
        if "equal eta" in name:
            eta = settings.numbers[0] / (1 - settings.softening**2)
            assert eta == pytest.approx(base.numbers[0] / (1 - base.softening**2))
    assert {cell.world for cell in plan(quick=True)} == set(ABLATED_WORLDS)


def test_judging_carries_the_distribution_as_episodes_would_go() -> None:
    """Exact return, punishment and success against sampled episodes of the same policy."""
    from kcpr_safety.agents.discrete import DiscreteLearner
    from kcpr_safety.agents.task import Task
    from kcpr_safety.envs.grids import grid_of
    from kcpr_safety.envs.gridworld import COMMANDS, GridWorld

    grid, cell = grid_of("windy-cliff"), small_cell("windy-cliff")
    task = Task(grid.states, 4, 0.0, grid.time_limit)
    learner = DiscreteLearner(cell.settings, task, 8, seed=5, replicas=2)
    found = judge(learner, grid)
    count = 500
    world = GridWorld(grid, 2 * count, lambda i, k: 10_000 + i)
    obs, _ = world.reset()
    sums, alive = np.zeros((3, 2 * count)), np.ones(2 * count, dtype=bool)
    for _ in range(grid.time_limit):
        rows = rprl_cells._float(obs)
        moves = learner.act_greedily(rows)[:, 0].long().numpy()
        obs, reward, terminated, truncated, infos = world.step(np.array(COMMANDS)[moves])
        sums += alive * np.stack([reward, infos["punishment"], terminated])
        alive &= ~(terminated | truncated)
    for replica, exact in enumerate(found):
        sampled = sums[:, replica * count : (replica + 1) * count]
        error = 5 * sampled.std(1) / np.sqrt(count) + 1e-9
        assert (abs(sampled.mean(1) - exact) <= error).all()


def test_a_cell_repeats_and_its_seeds_differ() -> None:
    first, again = train_cell(small_cell()), train_cell(small_cell())
    for row in (*first, *again):
        row.pop("cell_wall_s")
    assert first == again
    assert first[0]["punishment_training"] != first[1]["punishment_training"]
    assert len(first[0]["curve"]) == rprl_cells.POINTS


def test_a_killed_comparison_goes_on_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [small_cell(agent=agent, steps=160) for agent in ("dqn", "softdmp", "kldmp")]
    monkeypatch.setattr(rprl, "plan", lambda quick: cells)
    trained: list[str] = []

    def counted(cell: Cell, show: object) -> list[dict[str, object]]:
        if len(trained) == 2:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append(cell.variant)
        return train_cell(cell)

    monkeypatch.setattr(rprl, "train_cell", counted)
    with pytest.raises(KeyboardInterrupt):
        rprl.run(tmp_path, quick=True, maze=False)
    summary = rprl.run(tmp_path, quick=True, maze=False)
    assert trained == ["dqn", "softdmp", "killed", "kldmp"]
    assert list(summary["agents"]) == ["dqn", "softdmp", "kldmp"]
    for figures in summary["agents"].values():
        for key in ("return_mean", "punishment_mean", "punishment_training", "success"):
            assert figures[key]["low"] <= figures[key]["value"] <= figures[key]["high"]
    page = (tmp_path / "report.html").read_text()
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", page)
    assert page.count("<svg") >= 3 and "quick version" in page
    (tmp_path / "rows.jsonl").write_text("a shopping list\n")
    with pytest.raises(FileFault, match="does not hold rows of this comparison"):
        rprl.run(tmp_path, quick=True, maze=False)


def made_up(
    variant: str, punishments: list[float], returns: list[float]
) -> list[dict[str, object]]:
    return [
        {
            "world": "corridor",
            "variant": variant,
            "seed": seed,
            "return_mean": r,
            "punishment_mean": p,
            "punishment_training": 10 * p,
            "success": 1.0,
            "curve": [[100, r, p, 1.0, p], [200, r, p, 1.0, 2 * p]],
        }
        for seed, (p, r) in enumerate(zip(punishments, returns, strict=True))
    ]


def test_differences_are_called_by_their_sign_and_only_where_shown() -> None:
    low, high = [0.1, 0.2, 0.15, 0.12], [1.1, 0.9, 1.0, 1.2]
    same = [0.5, 0.7, 0.6, 0.65]
    found = compare("corridor", "dqn", made_up("kldmp", low, same), made_up("dqn", high, same))
    assert found["punishment_mean"]["verdict"] == "lower"
    assert found["return_mean"]["verdict"] == "not shown to differ"
    turned = compare("corridor", "dqn", made_up("kldmp", high, same), made_up("dqn", low, same))
    assert turned["punishment_mean"]["verdict"] == "higher"
    assert "less in 0 and more in 1" in headline([turned])


def test_the_page_shows_every_agent_and_the_worst_seed() -> None:
    rows = [
        *made_up("kldmp", [0.1, 0.2], [0.5, -2.0]),
        *made_up("dqn", [1.0, 3.0], [0.5, 0.6]),
        *made_up("kldmp, b 0.3, equal h", [0.1, 0.2], [0.5, 0.4]),
    ]
    summary = summarise(rows)
    assert summary["worlds"]["corridor"]["kldmp"]["return_worst"] == -2.0
    assert summary["worlds"]["corridor"]["dqn"]["punishment_worst"] == 3.0
    page = rprl_page(rows, summary)
    assert "klDMP with one thing changed" in page and "b 0.3, equal h" in page


# ------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", ["corridor", "windy-cliff"])
def test_a_grid_is_solved_and_drawn(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "grid.png"
    assert main(["grid", name, "--softening", "0.3", "--temperature", "5", "--out", str(out)]) == 0
    shown = capfd.readouterr().out
    for title in ("value of reward", "value of minus punishment", "KL(pi_R", "deployed"):
        assert title in shown
    assert out.read_bytes().startswith(b"\x89PNG")


def test_softening_moves_the_corridor_from_the_short_to_the_safe_route(
    capfd: pytest.CaptureFixture[str],
) -> None:
    punished = {}
    for softening in ("0.1", "0.7"):
        assert main(["grid", "corridor", "--softening", softening, "--json"]) == 0
        record = json.loads(capfd.readouterr().out)
        punished[softening] = record["discounted_punishment"]
    assert punished["0.1"] > 0.5 and punished["0.7"] == pytest.approx(0.0)


@pytest.mark.parametrize("temperature", ["0", "inf", "-inf", "-3"])
def test_every_real_temperature_and_its_limits_are_legal(
    capfd: pytest.CaptureFixture[str], temperature: str
) -> None:
    words = ["grid", "corridor", f"--temperature={temperature}", "--punishment-temperature", "5"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["residual"] <= 1e-8


def test_bad_input_is_one_sentence(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "walled.txt").write_text("#####\n#S#G#\n#####\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    for words, sentence in (
        (["grid", "corridor", "--softening", "1"], "softening is 1.0; it must lie in [0, 1)"),
        (["grid", "corridor", "--softening", "nan"], "softening is nan"),
        (["grid", "corridor", "--temperature", "nan"], "inverse temperature is NaN"),
        (["grid", "coridor"], "did you mean corridor"),
        (["grid", str(tmp_path / "walled.txt")], "the goal cannot be reached from the start"),
        (["grid", str(tmp_path / "bytes.txt")], "is no text"),
        (["grid", str(tmp_path / "none.txt")], "no such file"),
        (["grid", "corridor", "--out", "x.doc"], "is no figure"),
        (["reproduce", "everything"], "unknown comparison 'everything'"),
    ):
        assert main(words) == EXIT_CODE
        out, err = capfd.readouterr()
        assert out == "" and sentence in err and err.count("\n") == 1, err


def test_maze_cells_are_runs_of_train() -> None:
    cells = rprl_plan.maze_cells()
    assert len({cell.seed for cell in cells}) == 5
    assert {cell.variant for cell in cells} == {"dqn", "sql", "dmp", "softdmp", "kldmp", "kcpr"}
