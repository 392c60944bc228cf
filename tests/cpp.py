"""What do the tests of the C++ program and of the generated C share?"""

import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import ndarray

from kcpr_safety.contract import Contract
from kcpr_safety.deploy.keys import OWN_KEY, key_folder
from kcpr_safety.deploy.native import missing_tool, robot_program

STALE, LATE, FAULT = 1, 2, 4


@cache
def program() -> Path:
    """kcpr-robot, built once for this machine; the test is skipped where it cannot be."""
    if (tool := missing_tool()) is not None:
        pytest.skip(f"the C++ program cannot be built here: {tool} is not installed")
    return robot_program()


def trusted() -> Path:
    """The public key of this session."""
    return key_folder() / f"{OWN_KEY}.pub"


def robot(
    command: str, bundle: Path, *options: object, stdin: bytes = b"", trust: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """One run of kcpr-robot."""
    words = [str(program()), command, str(bundle), "--trust", str(trust or trusted())]
    return subprocess.run(
        [*words, *map(str, options)], input=stdin, capture_output=True, check=False
    )


def refusal(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one sentence of a run that refused."""
    sentences = done.stderr.decode().splitlines()
    assert done.returncode == 2, (done.returncode, sentences)
    assert len(sentences) == 1, sentences
    assert sentences[0].startswith("kcpr-robot: ")
    assert done.stdout == b""
    return sentences[0]


def observations(contract: Contract, module: torch.nn.Module, rows: int, seed: int = 3) -> ndarray:
    """float32 [rows, obs] around the golden ones, some far outside, some not finite."""
    generator = np.random.default_rng(seed)
    width = contract.obs_size
    obs = generator.normal(size=(rows, width)) * 10.0 ** generator.uniform(-2, 1, (rows, 1))
    for i, value in enumerate((np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0)):
        chosen = np.arange(i, rows, 97)
        obs[chosen, generator.integers(0, width, len(chosen))] = value
    return obs.astype(np.float32)
