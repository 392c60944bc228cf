"""How does a policy become the same TorchScript bytes every time?

TorchScript numbers its types by what else the process has compiled, and its optimiser has global
switches. So the module is scripted, frozen and saved in a process of its own: a policy file goes in
by stdin, the archive comes back by stdout.
"""

import io
import os
import subprocess
import sys
from pathlib import Path

import torch

import kcpr_safety
from kcpr_safety.controller import METHODS, controller_from_tensors
from kcpr_safety.deploy.archive import canonical, quiet
from kcpr_safety.policy_file import PolicyFile, policy_from_bytes, policy_to_bytes

_CHILD = "import sys; sys.path.insert(0, {!r}); from kcpr_safety.deploy.script import main; main()"


def scripted(policy: PolicyFile) -> bytes:
    """The policy's controller, scripted and frozen, as a canonical archive without extra files."""
    root = str(Path(kcpr_safety.__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CHILD.format(root)],
        input=policy_to_bytes(policy, "policy"),
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"scripting failed:\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def script_here(policy: PolicyFile) -> bytes:
    """`scripted` in this process: its bytes depend on what the process has scripted before."""
    controller = controller_from_tensors(policy.tensors, policy.contract)
    buffer = io.BytesIO()
    with quiet(), torch.inference_mode():
        module = torch.jit.script(controller)
        # Freezing drops methods that are not named; its numeric rewrites would cost parity.
        frozen = torch.jit.freeze(
            module, preserved_attrs=list(METHODS[1:]), optimize_numerics=False
        )
        torch.jit.save(frozen, buffer)
    return canonical(buffer.getvalue(), {})


def main() -> None:
    """The child process."""
    policy = policy_from_bytes(sys.stdin.buffer.read(), "stdin")
    archive = script_here(policy)
    sys.stdout.buffer.write(archive)
