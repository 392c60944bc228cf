"""Does `bench learner` count what an update really does, and hand back what it promises?"""

import json
import sys
import time

import pytest
import torch
from plain_update import plain_gradient
from torch.utils.flop_counter import FlopCounterMode

from kcpr_safety.agents import Learner, agent_settings
from kcpr_safety.agents.task import Task
from kcpr_safety.cli import main
from kcpr_safety.cli.benching import show_learner
from kcpr_safety.errors import EXIT_CODE, SettingsError
from kcpr_safety.replay import Layout
from kcpr_safety.studies import bench_learner
from kcpr_safety.studies.loop_parts import PARTS, Watch
from kcpr_safety.studies.products import FORWARD, INPUT, KINDS, Limit, Product, update_products

TASK = "SafetyHopperVelocity-v1"
OBS, ACTION = 7, 3
SMALL = {"updates_per_step": 0.5, "width": 24, "depth": 3, "batch": 10}


@pytest.mark.parametrize("agent", ["kcpr", "sac-lag"])
def test_the_count_is_that_of_a_plain_forward_and_backward(agent: str) -> None:
    settings = agent_settings(agent, SMALL)
    learner = Learner(settings, Task(OBS, ACTION, 25.0, 1000), num_envs=4, seed=0)
    batch = Layout(OBS, ACTION).read(torch.rand(settings.batch, 2 * OBS + ACTION + 3))
    with FlopCounterMode(display=False) as counter:
        plain_gradient(learner, batch)
    # Plain differentiation also asks the critics for dQ/d(observation), which nobody wants.
    unwanted = Product("", INPUT, 4, settings.batch, OBS, settings.width).flops
    counted = sum(product.flops for product in update_products(settings, OBS, ACTION))
    assert counter.get_total_flops() == counted + unwanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fan_out", [1, 2])
def test_a_product_that_is_timed_is_the_one_that_is_counted(kind: str, fan_out: int) -> None:
    product = Product("", kind, members=3, rows=5, fan_in=7, fan_out=fan_out)
    assert product.flops == 2 * 3 * 5 * 7 * fan_out
    for way, call in enumerate(product.ways()):
        with FlopCounterMode(display=False) as counter:
            call()
        # Matrix times vector and outer products are no GEMM that this counter knows.
        unknown = fan_out == 1 and way == 1
        assert counter.get_total_flops() == (0 if unknown else product.flops)


def test_the_limit_weighs_by_time_and_takes_the_faster_way() -> None:
    small, large = (Product("", FORWARD, 1, rows, 4, 4) for rows in (1, 1000))
    limit = Limit([small, large, large])
    limit._ways = {
        small: (lambda: time.sleep(0.02), lambda: time.sleep(0.004)),
        large: (lambda: time.sleep(0.001), lambda: time.sleep(0.02)),
    }
    for _ in range(3):
        limit.window(0.01)
    # 4 ms for next to nothing and twice 1 ms for the rest: 6 ms in all.
    assert limit.gflops(torch.get_num_threads()) * 1e9 == pytest.approx(64_032 / 6e-3, rel=0.5)


def test_the_parts_add_up_and_the_outer_one_counts() -> None:
    watch = Watch()
    inner = watch.around("critics", lambda: time.sleep(0.01))
    outer = watch.around("actors", lambda: (time.sleep(0.01), inner()))
    inner()
    outer()
    watch.to("rest")
    assert watch.seconds["actors"] > 1.5 * 0.01
    assert 0.01 <= watch.seconds["critics"] < watch.seconds["actors"]
    assert 0 < watch.cost() < 1e-3


@pytest.fixture(scope="module")
def record() -> dict:
    return bench_learner.bench_learner(
        TASK, overrides={"num_envs": 2, **SMALL}, windows=1, seconds=0.05
    )


def test_the_keys_hold_figures_of_both_agents(record: dict) -> None:
    keys = ("updates_per_s", "gflops", "gemm_gflops", "ratio_gemm", "parameters")
    for key in keys:
        assert set(record[key]) == {"kcpr", "sac-lag"}, key
        assert all(figure > 0 for figure in record[key].values()), key
    assert {"ratio_sb3", "loop_steps_per_s"} <= set(record)
    assert record["networks"] == {"kcpr": 8, "sac-lag": 7}
    for agent in ("kcpr", "sac-lag"):
        flops = record["flops_per_update"][agent]
        assert flops == sum(product["flops"] for product in record["products"][agent])
        assert record["gflops"][agent] == pytest.approx(
            flops * record["updates_per_s"][agent] / 1e9
        )
        assert record["loop_steps_per_s"][agent][TASK] > 0
    json.dumps(record, allow_nan=False)


def test_the_loop_spends_its_time_in_every_part(record: dict) -> None:
    for agent in ("kcpr", "sac-lag"):
        loop = record["loop"][agent][TASK]
        assert tuple(loop["shares"]) == PARTS
        assert all(share > 0 for share in loop["shares"].values()), loop
        assert sum(loop["shares"].values()) == pytest.approx(1.0, abs=0.01)
        assert loop["watch_share"] < 0.2


def test_people_see_the_same(record: dict, capsys: pytest.CaptureFixture[str]) -> None:
    show_learner(record)
    shown = capsys.readouterr().out
    for words in ("kcpr", "sac-lag", "target critics", "weight gradient", *PARTS, "load average"):
        assert words in shown


def test_without_the_other_library_one_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.setattr(bench_learner, "THREADS", [1])
    small = {"num_envs": 2, **SMALL}
    record = bench_learner.bench_learner(
        TASK, ["sac-lag"], overrides=small, windows=1, seconds=0.02
    )
    assert record["ratio_sb3"] == {"sac-lag": None}
    assert record["sb3"] is None
    sentence = record["sb3_note"]
    assert sentence.endswith("install it with: pip install 'stable-baselines3>=2.3'")
    show_learner(record)
    assert capsys.readouterr().out.count(sentence) == 1


def test_with_it_equal_sizes_are_compared_by_steps_of_networks(record: dict) -> None:
    pytest.importorskip("stable_baselines3")
    sb3 = record["sb3"]
    # Actor: hidden layers, then mean and log deviation; two critics of (observation, action).
    obs, action, width = 11, 3, SMALL["width"]
    hidden = (SMALL["depth"] - 1) * (width + 1) * width
    actor = (obs + 1) * width + hidden + 2 * (width + 1) * action
    critic = (obs + action + 1) * width + hidden + width + 1
    assert sb3["parameters"] == actor + 2 * critic
    theirs = max(sb3["updates_per_s"], sb3["one_thread_updates_per_s"])
    beside = record["updates_per_s"]["kcpr"] * 8 / (theirs * 3)
    assert record["ratio_sb3"]["kcpr"] == pytest.approx(beside)


def test_a_device_that_is_not_here_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for what in ("learner", "loop", "sim"):
        assert main(["bench", what, "--device", "cuda"]) == EXIT_CODE
        out, err = capfd.readouterr()
        assert out == ""
        assert "'cuda'" in err
        assert err.count("\n") == 1
    with pytest.raises(SettingsError):
        bench_learner.bench_learner(device="cuda")
