"""How are the other forms of a controller asked for `act`, without the training stack?

Both take float32 [1, N] and give (action [1, M], risk [1, 1], mode int64 [1]).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kcpr_safety.deploy.exported import load_exported
from kcpr_safety.deploy.parity import Act
from kcpr_safety.errors import FileFault

if TYPE_CHECKING:
    import onnxruntime


@contextmanager
def asked(name: str) -> Iterator[None]:
    """Whatever a signed but odd file raises when it is asked becomes one sentence about it."""
    try:
        yield
    except FileFault:
        raise
    except Exception as error:  # TorchScript's and onnxruntime's own have no common parent
        words = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise FileFault(f"{name} fails when it is asked: {words.strip()}") from error


def onnx_contract(data: bytes, name: str) -> str | None:
    """The contract in the graph's metadata."""
    found: str | None = _session(data, name).get_modelmeta().custom_metadata_map.get("contract")
    return found


def onnx_act(data: bytes, name: str) -> Act:
    """The graph in ONNX Runtime on one thread."""
    session = _session(data, name)

    def act(obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with asked(name):
            action, risk, mode = session.run(["action", "risk", "mode"], {"obs": obs.numpy()})
            return torch.from_numpy(action), torch.from_numpy(risk), torch.from_numpy(mode)

    return act


def _session(data: bytes, name: str) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common parent
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileFault(f"{name} cannot be loaded by ONNX Runtime: {words}") from error


def exported_act(data: bytes, name: str) -> Act:
    """The exported program, run by torch."""
    module = load_exported(data, name)

    @torch.no_grad()
    def act(obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with asked(name):
            action, risk, mode = module(obs)
        return action, risk, mode

    return act
