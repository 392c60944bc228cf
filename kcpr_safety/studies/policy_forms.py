"""In which forms can a bundle's `act` be called here, and why not in the others?

Each form is a call without arguments on one observation of zeros: eager and TorchScript from
Python, ONNX Runtime on the bundle's file, AOTInductor compiled from the eager controller, and, as
inputs of the C++ program, a bare network and the generated C. A bare network is the reward module's
alone, of `torch.nn.Linear` and ReLU as anybody would write it, scripted and frozen.
"""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from kcpr_safety.assured import AssuredController
from kcpr_safety.deploy.archive import extras_of, load_script, quiet
from kcpr_safety.deploy.c_header import HEADER
from kcpr_safety.deploy.native import c_library
from kcpr_safety.deploy.script import CONTROLLER_FILE, ONNX_FILE
from kcpr_safety.errors import FileFault, MissingPackageError
from kcpr_safety.policy_file import PolicyFile, layer_count

BARE_FILE = "bare.pt"
FLOOR_FILE = "floor.so"
_FLOOR = f"""#include "{HEADER}"
void floor_act(void);
void floor_act(void) {{
    static const float obs[KCPR_OBSERVATIONS];
    static float action[KCPR_ACTIONS];
    float risk;
    (void)kcpr_act(obs, action, &risk);
}}
"""

Call = Callable[[], object]


def python_forms(
    contents: Mapping[str, bytes], policy: PolicyFile, eager: AssuredController, scratch: Path
) -> tuple[dict[str, Call], dict[str, str]]:
    """Name -> call, and name -> why it cannot run here; `eager` is the assured controller."""
    obs = torch.zeros(1, policy.contract.obs_size)
    extras_of(contents[CONTROLLER_FILE], CONTROLLER_FILE)
    script: Any = load_script(contents[CONTROLLER_FILE], CONTROLLER_FILE)
    bare = bare_network(policy)
    with quiet():
        torch.jit.save(bare, str(scratch / BARE_FILE))
    calls: dict[str, Call] = {
        "empty_python": lambda: None,
        "act_torchscript_python": lambda: script.act(obs),
        "bare_torchscript_python": lambda: bare(obs),
        "act_eager": lambda: eager.act(obs),
    }
    makers: dict[str, Callable[[], Call]] = {
        "act_onnxruntime": lambda: _onnx(contents, obs),
        "act_aotinductor": lambda: _aotinductor(eager, obs, scratch),
    }
    absent: dict[str, str] = {}
    for name, make in makers.items():
        try:
            calls[name] = make()
        except Exception as error:  # a compiler's and a runtime's own, which have no common parent
            words = str(error).strip().splitlines() or [type(error).__name__]
            absent[name] = words[0]
    return calls, absent


def c_floor(header: str, scratch: Path) -> Path:
    """The generated C as a library with `void floor_act(void)`, for this very processor."""
    sources = {HEADER: header, "floor.c": _FLOOR}
    return c_library(sources, scratch / FLOOR_FILE, "-march=native")


def bare_network(policy: PolicyFile) -> nn.Module:
    """The reward module's network alone: float32 [1, obs] -> [1, outputs]."""
    stack = "q" if policy.contract.commands else "actor"
    layers: list[nn.Module] = []
    for i in range(layer_count(policy.tensors, stack)):
        weight = policy.tensors[f"{stack}.{i}.weight"][0]
        linear = nn.Linear(*weight.shape)
        linear.weight.data = weight.t().contiguous()
        linear.bias.data = policy.tensors[f"{stack}.{i}.bias"][0, 0].clone()
        layers += [linear, nn.ReLU()]
    with quiet():
        module = torch.jit.script(nn.Sequential(*layers[:-1]).eval())
        frozen: nn.Module = torch.jit.freeze(module)
    return frozen


class _Act(nn.Module):
    """`act` as the forward of a module, which is what compilers ask for."""

    def __init__(self, controller: AssuredController) -> None:
        super().__init__()
        self.controller = controller

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        answer: tuple[Tensor, Tensor, Tensor] = self.controller.act(obs)
        return answer


def _onnx(contents: Mapping[str, bytes], obs: Tensor) -> Call:
    if ONNX_FILE not in contents:
        raise FileFault(f"the bundle holds no {ONNX_FILE}")
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackageError("onnxruntime", "pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        contents[ONNX_FILE], options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: obs.numpy()}
    return lambda: session.run(None, feed)


def _aotinductor(eager: AssuredController, obs: Tensor, scratch: Path) -> Call:
    if shutil.which("g++") is None:
        raise MissingPackageError("g++, which AOTInductor compiles with,", "apt-get install g++")
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    words = "compiling with AOTInductor (about a minute)"
    with (
        Console(stderr=True).status(words),
        torch.inference_mode(False),
        torch.no_grad(),
        warnings.catch_warnings(action="ignore"),
    ):
        program = torch.export.export(_Act(eager), (torch.zeros_like(obs),))
        package = aoti_compile_and_package(program, package_path=str(scratch / "act.pt2"))
        runner = aoti_load_package(package)
    return lambda: runner(obs)
