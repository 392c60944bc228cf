"""How are the other forms of a controller asked for `act`, without the training stack?

Both take float32 [1, N] and give (action [1, M], risk [1, 1], mode int64 [1]).
"""

import torch
from torch import Tensor

from kcpr_safety.deploy.exported import load_exported
from kcpr_safety.deploy.parity import Act
from kcpr_safety.errors import FileFault


def onnx_act(data: bytes, name: str) -> Act:
    """The graph in ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common parent
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileFault(f"{name} cannot be loaded by ONNX Runtime: {words}") from error

    def act(obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        action, risk, mode = session.run(["action", "risk", "mode"], {"obs": obs.numpy()})
        return torch.from_numpy(action), torch.from_numpy(risk), torch.from_numpy(mode)

    return act


def exported_act(data: bytes, name: str) -> Act:
    """The exported program, run by torch."""
    module = load_exported(data, name)

    @torch.no_grad()
    def act(obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        action, risk, mode = module(obs)
        return action, risk, mode

    return act
