"""Does the unmodified safety-gymnasium wheel run here, with each mend doing what it says?"""

import dataclasses
import importlib
import subprocess
import sys
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from kcpr_safety import envs
from kcpr_safety.envs import compat, lean, official, plainly
from kcpr_safety.errors import EnvironmentFault, MissingPackageError, UnknownNameError


@pytest.fixture(autouse=True)
def loaded() -> None:
    compat.safety_gymnasium()


def test_arrays_as_dataclass_defaults_work_inside_only_and_are_not_shared() -> None:
    def declare() -> Any:
        @dataclasses.dataclass
        class Thing:
            colour: np.ndarray = np.zeros(2)  # noqa: RUF009 (what the wheel does)

        return Thing

    with pytest.raises(ValueError, match="mutable default"):
        declare()
    with compat.array_defaults():
        thing = declare()
    one, other = thing(), thing()
    one.colour[0] = 1
    assert other.colour[0] == 0
    with pytest.raises(ValueError, match="mutable default"):
        declare()


def test_moved_modules_are_there_inside_only() -> None:
    name = "gymnasium.wrappers.time_limit"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    with compat.moved_modules():
        assert importlib.import_module(name).TimeLimit is gymnasium.wrappers.TimeLimit
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_specs_drop_what_gymnasium_dropped() -> None:
    registration: Any = importlib.import_module("safety_gymnasium.utils.registration")
    spec = registration.EnvSpec(id="A-v0", entry_point="a:b", autoreset=True)
    assert type(spec) is gymnasium.envs.registration.EnvSpec
    assert isinstance(spec, registration.EnvSpec)


def test_numpy_stand_ins_change_only_what_they_say() -> None:
    base: Any = importlib.import_module("safety_gymnasium.bases.base_agent")
    row = [1, 2]
    assert base.np.array(row, copy=False).tolist() == row
    array = np.ones(2)
    assert base.np.array(array, copy=False) is array
    assert base.np.array(array) is not array
    assert base.float(np.array([1.5])) == 1.5
    assert base.np.clip is np.clip


def test_an_import_leaves_everybody_elses_names_alone() -> None:
    """In a fresh process: dataclasses, numpy and sys.modules are as before."""
    code = (
        "import dataclasses, sys, numpy as np\n"
        "before = dataclasses.dataclass, np.array\n"
        "from kcpr_safety.envs.compat import safety_gymnasium\n"
        "safety_gymnasium()\n"
        "assert (dataclasses.dataclass, np.array) == before\n"
        "assert 'gymnasium_robotics' not in sys.modules\n"
        "assert 'gymnasium.wrappers.autoreset' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "")


def test_a_missing_package_is_answered_with_the_command() -> None:
    code = (
        "import sys\n"
        "sys.modules['safety_gymnasium'] = None\n"
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'safety_gymnasium' else find(n, *a)\n"
        "from kcpr_safety import envs\n"
        "from kcpr_safety.errors import MissingPackageError\n"
        "try:\n"
        "    envs.resolve('SafetyPointGoal1-v0')\n"
        "except MissingPackageError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install --no-deps safety-gymnasium==1.0.0" in run.stdout
    assert issubclass(MissingPackageError, Exception)


def test_models_carry_no_sky_unless_pictures_are_taken() -> None:
    env = envs.make_official("SafetyPointGoal0-v0")
    env.reset(seed=0)
    model = env.unwrapped.task.model
    skies = model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX
    assert not skies.any()
    assert model.narena == lean.ARENA_BYTES
    env.close()


@pytest.mark.slow
def test_the_sky_changes_no_number() -> None:
    rows = []
    for pictures in (False, True):
        env = envs.make_official("SafetyPointGoal2-v0", pictures=pictures)
        obs, _ = env.reset(seed=3)
        seen = [obs]
        rng = np.random.default_rng(0)
        for _ in range(200):
            obs, reward, cost, *_ = env.step(rng.uniform(-1, 1, 2))
            seen.append(np.append(obs, [reward, cost]))
        rows.append(np.concatenate(seen))
        if pictures:
            model = env.unwrapped.task.model
            assert (model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX).any()
            assert model.narena > lean.ARENA_BYTES
        env.close()
    assert np.array_equal(rows[0], rows[1])


def test_unknown_and_impossible_ids() -> None:
    with pytest.raises(UnknownNameError, match="SafetyPointGoal1-v0"):
        envs.resolve("SafetyPointGoall1-v0")
    with pytest.raises(UnknownNameError):
        envs.resolve("SafetyPointGoal1Debug-v0")
    with pytest.raises(EnvironmentFault, match="no_such_module"):
        envs.resolve("no_such_module:Thing-v0")


def test_a_missing_texture_is_named() -> None:
    findings = envs.check_environment("SafetyPointRace0-v0")
    assert findings[0].severity == "error"
    assert "village_floor" in findings[0].sentence


def test_missing_gl_is_named() -> None:
    error = plainly.translated("T", RuntimeError("No OpenGL backend could be imported."))
    assert isinstance(error, EnvironmentFault)
    assert "libegl1" in str(error)
    other = ValueError("something else")
    assert plainly.translated("T", other) is other


def test_a_missing_gl_library_is_said_at_the_door() -> None:
    """MuJoCo loads what MUJOCO_GL names while it is imported; here it is made to miss it."""
    code = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'mujoco':\n"
        "            raise AttributeError(\"'NoneType' object has no attribute 'glGetError'\")\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from kcpr_safety.errors import EnvironmentFault\n"
        "try:\n"
        "    import kcpr_safety.envs\n"
        "except EnvironmentFault as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "libosmesa6" in run.stdout
    assert run.stdout.count("\n") == 1


def test_joints_of_every_kind_are_read_and_set_by_name() -> None:
    """What gymnasium-robotics asks of each joint, whichever mujoco is installed."""
    official.registered_spec("gymnasium_robotics:FetchPush-v4")
    utils: Any = importlib.import_module("gymnasium_robotics.utils.mujoco_utils")
    kinds = {"hinge": (1, 1), "slide": (1, 1), "ball": (4, 3), "free": (7, 6)}
    bodies = "".join(
        f'<body><joint name="{kind}" type="{kind}"/><geom size="1"/></body>' for kind in kinds
    )
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{bodies}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    for column, widths in (("qpos", 0), ("qvel", 1)):
        given = {
            kind: np.arange(of[widths]) + 10.0 * i for i, (kind, of) in enumerate(kinds.items())
        }
        for kind, value in given.items():
            getattr(utils, f"set_joint_{column}")(model, data, kind, value)
        np.testing.assert_array_equal(getattr(data, column), np.concatenate(list(given.values())))
        for kind, value in given.items():
            read = getattr(utils, f"get_joint_{column}")(model, data, kind)
            np.testing.assert_array_equal(read, value)
            read[:] = -1.0
            assert (getattr(data.joint(kind), column) == value).all()
