"""Do the parts of a navigation world do what the official code does, and stop what is unstable?"""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import xmltodict

from kcpr_safety import envs
from kcpr_safety.envs import layouts, lean, navigation, sensing
from kcpr_safety.envs.crew import Crew, default_threads
from kcpr_safety.envs.official import make_plain
from kcpr_safety.envs.world import UnstablePhysicsWarning
from kcpr_safety.errors import SettingsError


def make(task: str, num_envs: int = 3, threads: int = 1) -> Any:
    return envs.make_world(
        envs.resolve(task), num_envs, episode_seeds=lambda i, k: 10 * i + k, threads=threads
    )


@pytest.mark.parametrize(
    "task", ["SafetyPointGoal1-v0", "SafetyCarButton1-v0", "SafetyHalfCheetahVelocity-v1"]
)
def test_only_lidars_tell_of_closeness(task: str) -> None:
    world = make(task, num_envs=1)
    contract = world.contract
    for entry, close in zip(contract.observation, contract.closeness, strict=True):
        assert close == ("_lidar_" in entry.name), entry.name
    world.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "task", ["SafetyPointGoal1-v0", "SafetyPointButton1-v0", "SafetyHalfCheetahVelocity-v1"]
)
@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e20])
def test_unstable_physics_ends_that_episode_alone(task: str, broken: float, threads: int) -> None:
    world = make(task, threads=threads)
    world.reset()
    action = np.zeros(world.action_space.shape)
    before, *_ = world.step(action)
    world._datas[1].qvel[:] = broken
    with pytest.warns(UnstablePhysicsWarning, match="environment 1, episode seed 10, step 2.*1 so"):
        obs, reward, terminated, truncated, infos = world.step(action)
    assert truncated.tolist() == [False, True, False]
    assert not terminated.any()
    assert infos["_final_obs"].tolist() == [False, True, False]
    assert np.array_equal(infos["final_obs"][1], before[1])
    assert (reward[1], infos["punishment"][1]) == (0.0, 0.0)
    for row in (obs, reward, infos["final_obs"], infos["punishment"]):
        assert np.isfinite(row).all()
    assert world.unstable_episodes == 1
    assert world.seeds[1] == 11
    world.step(action)
    assert world.unstable_episodes == 1
    world.close()


@pytest.mark.parametrize("broken", [np.nan, 1e20])
def test_unstable_physics_on_the_official_path(broken: float) -> None:
    world = make("SafetyPointRun0-v0", num_envs=2)
    assert world.path == "official"
    world.reset()
    before, *_ = world.step(np.zeros((2, 2)))
    world._envs[1].task.data.qvel[:] = broken
    with pytest.warns(UnstablePhysicsWarning, match="environment 1"):
        obs, _, _, truncated, infos = world.step(np.zeros((2, 2)))
    assert truncated.tolist() == [False, True]
    assert np.array_equal(infos["final_obs"][1], before[1])
    assert np.isfinite(obs).all()
    world.close()


def test_instability_leaves_no_trace_on_stdout_or_disk(tmp_path: Path) -> None:
    """MuJoCo's own habit is to print it and to write a file where the program stands."""
    code = (
        "import numpy as np\n"
        "from kcpr_safety import envs\n"
        "world = envs.make_world(envs.resolve('SafetyPointGoal0-v0'), 1,"
        " episode_seeds=lambda i, k: k)\n"
        "world.reset()\n"
        "world._datas[0].qvel[:] = np.nan\n"
        "world.step(np.zeros((1, 2)))\n"
    )
    root = str(Path(__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == ""
    assert "UnstablePhysicsWarning" in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["SafetyPointButton1-v0", "SafetyCarGoal2-v0"])
def test_layouts_and_generator_are_the_official_ones(task: str) -> None:
    builder, _ = make_plain(task)
    builder.reset(seed=0)
    generator = builder.task.random_generator
    assert layouts.can_draw(generator)
    for seed in range(5):
        drawn, after = [], []
        for draw in (type(generator).build_layout, layouts.build_layout):
            generator.set_random_seed(seed)
            drawn.append(draw(generator))
            assert generator.layout is drawn[-1]
            after.append(generator.uniform(0, 1, size=700))
        assert list(drawn[0]) == list(drawn[1])
        assert all(np.array_equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
        assert np.array_equal(after[0], after[1])


def test_a_choice_among_areas_is_left_to_the_official_code() -> None:
    class Generator:
        placements = {"goal": ([(0, 0, 1, 1), (2, 2, 3, 3)], 0.1)}  # noqa: RUF012

    assert not layouts.can_draw(Generator())


def test_an_impossible_layout_fails_as_officially(monkeypatch: pytest.MonkeyPatch) -> None:
    builder, _ = make_plain("SafetyPointGoal1-v0")
    builder.reset(seed=0)
    generator = builder.task.random_generator
    generator.placements_margin = 100.0
    monkeypatch.setattr(layouts, "_TRIES_PER_LAYOUT", 2)
    official: Any = importlib.import_module("safety_gymnasium.utils.common_utils")
    with pytest.raises(official.ResamplingError):
        layouts.build_layout(generator)


@pytest.mark.parametrize(
    "task", ["SafetyRacecarPush2-v0", "SafetyPointButton2-v0", "SafetyAntCircle2-v0"]
)
def test_the_model_text_compiles_to_the_same_model(task: str) -> None:
    builder, _ = make_plain(task)
    builder.reset(seed=0)
    tree = builder.task.world.xml
    models = [
        mujoco.MjModel.from_xml_string(text)
        for text in (lean.to_xml(tree), xmltodict.unparse(tree))
    ]
    sizes = [mujoco.mj_sizeModel(model) for model in models]
    assert sizes[0] == sizes[1]
    images = [np.zeros(size, dtype=np.uint8) for size in sizes]
    for model, image in zip(models, images, strict=True):
        mujoco.mj_saveModel(model, None, image)
    assert np.array_equal(images[0], images[1])


def test_text_in_models_is_quoted() -> None:
    tree = {"mujoco": {"@model": 'a<b>&"c"', "size": {"@memory": "8M"}, "asset": None}}
    assert xmltodict.parse(lean.to_xml(tree)) == tree | {
        "mujoco": {**tree["mujoco"], "asset": None}
    }


def test_rotations_are_mujocos() -> None:
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(20, 4))
    quaternions[:10] /= np.linalg.norm(quaternions[:10], axis=1, keepdims=True)
    for row, quaternion in zip(sensing.rotation(quaternions), quaternions, strict=True):
        theirs = np.zeros(9)
        mujoco.mju_quat2Mat(theirs, quaternion)
        assert np.allclose(row, theirs, rtol=0, atol=1e-14)


def test_lidar_by_hand() -> None:
    """A worked example: four sectors, one object ahead-left at 45 degrees, 1 m of 2 m away."""
    plan = sensing.Sensing(
        size=4,
        copied_to=np.zeros(0, dtype=int),
        copied_from=np.zeros(0, dtype=int),
        sine_to=np.zeros(0, dtype=int),
        angle_from=np.zeros(0, dtype=int),
        matrix_to=np.zeros(0, dtype=int),
        quaternion_from=np.zeros(0, dtype=int),
        lidar_to=np.array([0]),
        lidar_body=np.array([1]),
        bins=4,
        max_dist=2.0,
        exp_gain=1.0,
    )
    here = np.array([[0.0, 0.0, 0.3]])
    there = np.array([[[9.0, 9.0, 9.0], [np.sqrt(0.5), np.sqrt(0.5), 0.7]]])
    facing_east = np.eye(3).reshape(1, 9)
    obs = sensing.observe(plan, np.zeros((1, 0)), there, here, facing_east)
    # In the middle of sector 0: seen at half strength there, half of that on either side.
    assert obs == pytest.approx(np.array([[0.5, 0.25, 0.0, 0.25]]))
    facing_north = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).reshape(1, 9)
    obs = sensing.observe(plan, np.zeros((1, 0)), there, here, facing_north)
    assert obs == pytest.approx(np.array([[0.25, 0.0, 0.25, 0.5]]))


def test_a_crew_does_all_the_work_and_reports_what_fails() -> None:
    for threads in (1, 3):
        crew = Crew(threads)
        done: list[int] = []
        crew.each(done.append, 20)
        assert sorted(done) == list(range(20))

        def fail(i: int) -> None:
            if i == 7:
                raise ValueError("seven")

        with pytest.raises(ValueError, match="seven"):
            crew.each(fail, 20)
        crew.close()
    with pytest.raises(SettingsError):
        Crew(0)


def test_threads_by_default() -> None:
    assert default_threads(1) == 1
    assert 1 <= default_threads(100) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("task", ["SafetyPointGoal1-v0", "SafetyRacecarGoal2-v0"])
def test_memory_per_environment_stays_small(task: str) -> None:
    """A Racecar with its ornaments has 20 MB, a sky 191 MB, a full arena 472 MB."""
    world = make(task, num_envs=1)
    world.reset()
    model, data = world._models[0], world._datas[0]
    assert mujoco.mj_sizeModel(model) + data.nbuffer + data.narena < 12e6
    assert data.maxuse_arena < lean.ARENA_BYTES / 10
    world.close()


def test_only_what_touches_or_weighs_is_kept() -> None:
    def mesh(name: str, **more: str) -> dict[str, str]:
        return {"@type": "mesh", "@mesh": name} | {f"@{key}": v for key, v in more.items()}

    ghost = {"contype": "0", "conaffinity": "0"}
    tree = {
        "asset": {"mesh": [{"@name": name} for name in "abcde"]},
        "worldbody": {
            "geom": {"@type": "plane"},
            "body": [
                {"geom": [mesh("a", **ghost, density="0"), mesh("b"), mesh("c", **ghost)]},
                {"inertial": {}, "geom": mesh("d", **ghost), "body": {"geom": mesh("e")}},
            ],
        },
    }
    lean.drop_ornaments(tree)
    assert [asset["@name"] for asset in tree["asset"]["mesh"]] == ["b", "c", "e"]
    assert tree["worldbody"]["body"][1]["geom"] == []  # type: ignore[index]
    assert tree["worldbody"]["geom"] == [{"@type": "plane"}]


def test_older_mujoco_takes_the_official_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert navigation.is_known("SafetyPointGoal1-v0")
    monkeypatch.setattr(navigation, "_VERSION", (3, 3, 5))
    assert not navigation.is_known("SafetyPointGoal1-v0")
    world = make("SafetyPointGoal0-v0", 1)
    assert world.path == "official"
    world.close()


def test_bench_gives_the_named_figures() -> None:
    from kcpr_safety.studies.bench_sim import bench_sim

    figures = bench_sim("SafetyHopperVelocity-v1", num_envs=2, windows=1, seconds=0.02)
    named = {
        "task", "envs", "threads", "official_steps_per_s", "official_fixed_steps_per_s",
        "ours_steps_per_s", "limit_steps_per_s", "ratio_official", "ratio_limit",
        "one_thread_ratio_limit",
    }  # fmt: skip
    assert named <= set(figures)
    assert figures["ratio_limit"] == pytest.approx(
        figures["ours_steps_per_s"] / figures["limit_steps_per_s"]
    )
    assert all(figures[key] > 0 for key in named - {"task"})
