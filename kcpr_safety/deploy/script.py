"""How does a policy become the same bytes every time: TorchScript, exported program, ONNX?

TorchScript and torch.export number their types and nodes by what else the process has compiled, and
optimisers have global switches. So everything is made in a process of its own: policy file and
assurance go in by stdin, the files come back by stdout. Golden answers are computed there and
written into the controller, which is scripted, frozen and saved.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import kcpr_safety
from kcpr_safety.assurance import Assurance
from kcpr_safety.assured import ALL_METHODS, AssuredController, assured
from kcpr_safety.deploy.archive import canonical, quiet
from kcpr_safety.deploy.parity import answers, golden_observations
from kcpr_safety.policy_file import PolicyFile, policy_from_bytes, policy_to_bytes
from kcpr_safety.tensor_file import pack, unpack

CONTROLLER_FILE = "controller.pt"
ONNX_FILE = "controller.onnx"
EXPORTED_FILE = "controller.pt2"

_CHILD = "import sys; sys.path.insert(0, {!r}); from kcpr_safety.deploy.script import main; main()"


def scripted(policy: PolicyFile, assurance: Assurance) -> dict[str, bytes]:
    """File name -> bytes of every form of the controller; `controller.pt` without extra files."""
    root = str(Path(kcpr_safety.__file__).resolve().parent.parent)
    record = json.dumps(assurance.to_record(), allow_nan=False)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CHILD.format(root)],
        input=record.encode() + b"\n" + policy_to_bytes(policy, "policy"),
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"scripting failed:\n{done.stderr.decode(errors='replace')}")
    tensors, _ = unpack(done.stdout, "the child's answer")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def proven(policy: PolicyFile, assurance: Assurance) -> AssuredController:
    """The controller with its golden answers inside, as it is exported."""
    controller = assured(policy, assurance)
    obs = golden_observations(policy.tensors)
    controller.set_golden({"obs": obs, **answers(controller, obs)})
    return controller


def script_here(controller: AssuredController) -> bytes:
    """TorchScript in this process: its bytes depend on what the process has scripted before."""
    buffer = io.BytesIO()
    with quiet(), torch.inference_mode():
        module = torch.jit.script(controller)
        # Freezing drops methods that are not named; its numeric rewrites would cost parity.
        frozen = torch.jit.freeze(
            module, preserved_attrs=list(ALL_METHODS[1:]), optimize_numerics=False
        )
        torch.jit.save(frozen, buffer)
    return canonical(buffer.getvalue(), {})


def main() -> None:
    """The child process."""
    from kcpr_safety.deploy.exported import export_here
    from kcpr_safety.deploy.onnx_file import onnx_bytes

    line, _, data = sys.stdin.buffer.read().partition(b"\n")
    policy = policy_from_bytes(data, "stdin")
    sizes = (policy.contract.obs_size, policy.contract.action_size)
    assurance = Assurance.from_record(json.loads(line), sizes, "stdin")
    controller = proven(policy, assurance)
    files = {
        CONTROLLER_FILE: script_here(controller),
        ONNX_FILE: onnx_bytes(controller),
        EXPORTED_FILE: export_here(assured(policy, assurance)),
    }
    tensors = {
        name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()
    }
    sys.stdout.buffer.write(pack(tensors, {}))
