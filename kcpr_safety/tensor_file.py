"""How do tensors become the same bytes every time, and how are foreign bytes refused?

The format is safetensors. The library's writer puts the metadata in a random order, so that two
equal files differ; this writer sorts everything: equal tensors and texts give equal bytes, in any
process. Reading goes through the library, which checks every offset; nothing is ever unpickled.

    8 bytes: length of the header | header: JSON, padded with spaces to 8 bytes | data
"""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from torch import Tensor

from kcpr_safety.errors import FileFault
from kcpr_safety.texts import json_object

MAX_HEADER_BYTES = 4 * 2**20
MAX_TENSORS = 1024

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The safetensors file that holds these tensors and texts."""
    return b"".join(pieces(tensors, metadata))


def pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """`pack` in parts, for what is too large to be in memory twice: header, then each tensor."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    # Wider types first keeps every tensor aligned to its own size, as the library does.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.numpy().view(np.uint8).data


def unpack(data: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; `name` is what a fault calls it."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length:,} bytes")
        header = json_object(data[8 : 8 + length])
        if len(header) > MAX_TENSORS:
            raise ValueError(f"{len(header):,} tensors")
        tensors = parse(data)
        metadata = header.get("__metadata__") or {}
    except (SafetensorError, ValueError, TypeError, KeyError, struct.error) as error:
        raise FileFault(f"{name} is not a safetensors file, or is damaged ({error})") from error
    # The parsed tensors are views of `data` at any address; kernels may round differently on
    # memory that is not aligned, so every tensor gets its own.
    return {key: tensor.clone() for key, tensor in tensors.items()}, metadata
