"""How does `act` become a torch.export program (`controller.pt2`), the way on from TorchScript?

The archive is torch's own format: the graph as JSON and the weights as raw bytes. torch's writer
would also pickle example inputs and record where the exporter's source lies; both are left out, and
the entries are laid out as `archive` does, so that equal controllers give equal bytes. An archive
that asks for an unpickler is refused before torch's reader sees it. AOTInductor compiles the
program to native code of one machine, which is why the compiled form is not what is shipped.
"""

import io
import json
import re
import zipfile

import torch
from torch import Tensor, nn

from kcpr_safety.assured import AssuredController
from kcpr_safety.deploy.archive import laid_out, stored_entries
from kcpr_safety.errors import FileFault

_PLAIN = re.compile(r"[\w./-]+")


class _Act(nn.Module):
    """`act` as the only method."""

    def __init__(self, controller: AssuredController) -> None:
        super().__init__()
        self.controller = controller

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.controller.act(obs)


def export_here(controller: AssuredController) -> bytes:
    """The archive; its bytes depend on what the process has exported before."""
    batch = torch.export.Dim("batch", min=1, max=65_536)
    example = torch.zeros(2, controller.policy.obs_size)
    with torch.inference_mode(False), torch.no_grad():
        program = torch.export.export(
            _Act(controller), (example,), dynamic_shapes={"obs": {0: batch}}
        )
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(key, None)
    program._example_inputs = None
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        root = archive.namelist()[0].split("/")[0] + "/"
        entries = {
            name.removeprefix(root): archive.read(name)
            for name in sorted(archive.namelist())
            if not name.endswith(".data/serialization_id")
        }
    return laid_out(entries)


def load_exported(archive: bytes, name: str) -> nn.Module:
    """The module of an archive of `export_here`: obs -> (action, risk, mode)."""
    try:
        entries = stored_entries(archive)
        if laid_out(entries) != archive:
            raise ValueError("not laid out as this package's exporter does")
        _refuse_pickles(entries)
        program = torch.export.load(io.BytesIO(archive))
        return program.module()
    except Exception as error:  # torch's reader trusts its own JSON and falls over any other
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileFault(f"{name} is no exported program of this package: {words}") from error


def _refuse_pickles(entries: dict[str, bytes]) -> None:
    """torch's reader unpickles what its configuration says is pickled, and example inputs."""
    for entry, content in entries.items():
        if not _PLAIN.fullmatch(entry):
            raise ValueError(f"an entry named {entry!r:.80}")
        if entry.endswith("_config.json"):
            record = json.loads(content)
            if any(item.get("use_pickle") is not False for item in record["config"].values()):
                raise ValueError(f"{entry} asks for an unpickler")
        if entry.startswith("data/sample_inputs/") and content:
            raise ValueError(f"{entry} would be unpickled")
