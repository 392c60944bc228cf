"""What must be mended so that the unmodified safety-gymnasium 1.0.0 wheel runs on today's stack?

The wheel pins gymnasium 0.28.1, mujoco 2.3.3 and Python <= 3.10. Everything it meets elsewhere that
has moved or changed since is mended here, when it is imported and in its own namespaces only: no
file of it is edited, and nobody else's gymnasium, numpy or dataclasses is touched afterwards. Each
function below is one mend and says what broke, and since when.
What makes models lean, which is a matter of cost alone, is in `lean.py`. One mend is for another
package, gymnasium-robotics.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import gymnasium.wrappers.utils
import mujoco
import numpy as np
from gymnasium.envs.registration import EnvSpec

from kcpr_safety.envs import lean
from kcpr_safety.envs.overlay import Overlay
from kcpr_safety.errors import EnvironmentFault, MissingPackageError

INSTALL_COMMAND = "pip install --no-deps safety-gymnasium==1.0.0"

_lock = threading.Lock()


@functools.cache
def safety_gymnasium() -> Any:
    """The safety_gymnasium package, imported and mended once per process."""
    with _lock:
        if importlib.util.find_spec("safety_gymnasium") is None:
            raise MissingPackageError("safety-gymnasium", INSTALL_COMMAND)
        package = sys.modules.get("safety_gymnasium")
        if package is None:
            with array_defaults(), moved_modules(), multi_agent_stand_in():
                package = importlib.import_module("safety_gymnasium")
        specs_without_dropped_fields()
        viewer_with_size()
        viewers_are_closed()
        arrays_may_be_copied()
        one_element_arrays_are_numbers()
        boxes_of_one_type()
        lean.models_without_pictures()
        lean.assets_read_once()
        instability_is_counted_elsewhere()
    return package


# ------------------------------------------------------------------------- while it is imported


@contextlib.contextmanager
def array_defaults() -> Iterator[None]:
    """Python 3.11: `dataclass` refuses unhashable defaults, and the wheel has arrays there."""
    original = dataclasses.dataclass

    def tolerant(cls: Any = None, /, **options: Any) -> Any:
        def decorate(decorated: Any) -> Any:
            for name in inspect.get_annotations(decorated):
                default = decorated.__dict__.get(name)
                if isinstance(default, np.ndarray):
                    setattr(decorated, name, dataclasses.field(default_factory=default.copy))
            return original(decorated, **options)

        return decorate if cls is None else decorate(cls)

    dataclasses.dataclass = tolerant
    try:
        yield
    finally:
        dataclasses.dataclass = original


@contextlib.contextmanager
def moved_modules() -> Iterator[None]:
    """gymnasium 1.0: five modules of `gymnasium.wrappers` are gone, their classes elsewhere."""
    wrappers = gymnasium.wrappers
    homes: dict[str, dict[str, Any]] = {
        "compatibility": {"EnvCompatibility": _Unavailable},
        "autoreset": {"AutoResetWrapper": wrappers.Autoreset},
        "env_checker": {"PassiveEnvChecker": wrappers.PassiveEnvChecker},
        "time_limit": {"TimeLimit": wrappers.TimeLimit},
        "normalize": {
            "NormalizeObservation": wrappers.NormalizeObservation,
            "NormalizeReward": wrappers.NormalizeReward,
            "RunningMeanStd": gymnasium.wrappers.utils.RunningMeanStd,
        },
    }
    with contextlib.ExitStack() as stack:
        for name, members in homes.items():
            stack.enter_context(_module(f"gymnasium.wrappers.{name}", members))
        yield


@contextlib.contextmanager
def multi_agent_stand_in() -> Iterator[None]:
    """gymnasium-robotics, imported at top for the multi-agent tasks alone, may be absent.

    Where present it would add a quarter of a second and a printed warning to every start.
    """
    name = "gymnasium_robotics.envs.multiagent_mujoco.mujoco_multi"
    if name in sys.modules:
        yield
        return
    with contextlib.ExitStack() as stack:
        for parent in ("gymnasium_robotics", "gymnasium_robotics.envs", name.rpartition(".")[0]):
            if parent not in sys.modules:
                stack.enter_context(_module(parent, {}))
        stack.enter_context(_module(name, {"MultiAgentMujocoEnv": _Unavailable}))
        yield


class _Unavailable:
    """Stands where the wheel names a class that this stack does not have."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise EnvironmentFault(
            "multi-agent tasks and pre-0.26 environments of safety-gymnasium are not supported here"
        )


@contextlib.contextmanager
def _module(name: str, members: dict[str, Any]) -> Iterator[None]:
    """A made-up module, visible to imports for as long as the block runs."""
    if name in sys.modules:
        yield
        return
    module = types.ModuleType(name)
    module.__path__ = []
    module.__dict__.update(members)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]


# --------------------------------------------------------------------- in its namespaces, after


def specs_without_dropped_fields() -> None:
    """gymnasium 1.0: `EnvSpec` lost `autoreset` and `apply_api_compatibility`; both are used."""
    registration: Any = importlib.import_module("safety_gymnasium.utils.registration")
    dropped = ("autoreset", "apply_api_compatibility")
    find_spec: Callable[[str], EnvSpec] = registration._find_spec

    class SpecType(type):
        def __call__(cls, *args: Any, **fields: Any) -> EnvSpec:
            return EnvSpec(*args, **{k: v for k, v in fields.items() if k not in dropped})

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, EnvSpec)

    def find_spec_with_both(env_id: str) -> EnvSpec:
        spec = find_spec(env_id)
        for name in dropped:
            object.__setattr__(spec, name, False)
        return spec

    registration.EnvSpec = SpecType("EnvSpec", (), {})
    registration._find_spec = find_spec_with_both


def viewer_with_size() -> None:
    """gymnasium 1.0: `OffScreenViewer` must be told its size; the wheel sets it on the model."""
    underlying: Any = importlib.import_module("safety_gymnasium.bases.underlying")
    viewer = underlying.OffScreenViewer

    def sized(model: Any, data: Any) -> Any:
        return viewer(model, data, model.vis.global_.offwidth, model.vis.global_.offheight)

    underlying.OffScreenViewer = sized


def viewers_are_closed() -> None:
    """`Builder` has no `close`, so its viewers meet their end after OpenGL's, with a traceback."""
    builder: Any = importlib.import_module("safety_gymnasium.builder")

    def close(self: Any) -> None:
        for viewer in self.task._viewers.values():
            viewer.free()
        self.task._viewers.clear()
        self.task.viewer = None

    builder.Builder.close = close


def arrays_may_be_copied() -> None:
    """numpy 2.0: `np.array(a, copy=False)` raises where it must copy; the wheel means `asarray`."""

    def array(value: Any, copy: bool = True) -> Any:
        return np.array(value) if copy else np.asarray(value)

    for name in ("safety_gymnasium.builder", "safety_gymnasium.bases.base_agent"):
        module: Any = importlib.import_module(name)
        module.np = Overlay(np, array=array)


def one_element_arrays_are_numbers() -> None:
    """numpy 2.4: `float(a)` and indexing by `a` raise for arrays of one element; agents do both."""
    base_agent: Any = importlib.import_module("safety_gymnasium.bases.base_agent")
    agent = base_agent.BaseAgent
    init_sensors = agent._init_jnt_sensors

    def number(value: Any) -> float:
        return float(value.item() if isinstance(value, np.ndarray) else value)

    class Model(Overlay):
        def jnt(self, index: Any) -> Any:
            return self._below.jnt(int(np.asarray(index).item()))

    def init_sensors_by_numbers(self: Any) -> None:
        engine = self.engine
        self.engine = base_agent.Engine(Model(engine.model), engine.data)
        try:
            init_sensors(self)
        finally:
            self.engine = engine

    base_agent.float = number
    agent._init_jnt_sensors = init_sensors_by_numbers


def boxes_of_one_type() -> None:
    """gymnasium 1.1: `Box` of float64 with float32 bounds warns of an overflow in its checks."""
    base_agent: Any = importlib.import_module("safety_gymnasium.bases.base_agent")
    spaces = base_agent.spaces

    def box(low: Any, high: Any, dtype: Any) -> Any:
        return spaces.Box(low=low.astype(dtype), high=high.astype(dtype), dtype=dtype)

    base_agent.spaces = Overlay(spaces, Box=box)


def instability_is_counted_elsewhere() -> None:
    """MuJoCo prints its warnings on stdout and writes a file where it stands; worlds count them."""
    if mujoco.get_mju_user_warning() is not None:
        return

    def heard(message: str) -> None:
        if "simulation is unstable" not in message:
            sys.stderr.write(f"MuJoCo: {message}\n")

    mujoco.set_mju_user_warning(heard)


# --------------------------------------------------------------------------- gymnasium-robotics


def joints_by_name() -> None:
    """mujoco 4: a joint type no longer equals numpy's integer of it, so that no hinge is one."""
    utils: Any = importlib.import_module("gymnasium_robotics.utils.mujoco_utils")

    def setter(column: str) -> Callable[..., None]:
        def assign(model: mujoco.MjModel, data: mujoco.MjData, name: str, value: Any) -> None:
            getattr(data.joint(name), column)[:] = value

        return assign

    def getter(column: str) -> Callable[..., np.ndarray]:
        def read(model: mujoco.MjModel, data: mujoco.MjData, name: str) -> np.ndarray:
            return np.array(getattr(data.joint(name), column))

        return read

    for column in ("qpos", "qvel"):
        setattr(utils, f"set_joint_{column}", setter(column))
        setattr(utils, f"get_joint_{column}", getter(column))
