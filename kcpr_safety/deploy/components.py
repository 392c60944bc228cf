"""What is a bundle made with, and under which licences? (CycloneDX 1.5, JSON.)

The package and what a controller needs to run, at the versions that exported it. No serial number
and no time: the same installation gives the same bytes.
"""

import json
from importlib import metadata

from kcpr_safety import __version__
from kcpr_safety.errors import FileFault
from kcpr_safety.texts import json_object

_COMPONENTS = (
    ("torch", "BSD-3-Clause", "runs controller.pt and controller.pt2"),
    ("onnx", "Apache-2.0", "wrote controller.onnx"),
    ("onnxruntime", "MIT", "runs controller.onnx"),
    ("safetensors", "Apache-2.0", "format of weights and golden answers"),
    ("cryptography", "Apache-2.0 OR BSD-3-Clause", "signature"),
    ("numpy", "BSD-3-Clause", "arrays"),
)


def components() -> bytes:
    """The list as the bytes of a file."""
    listed = [
        _component("kcpr-safety", __version__, "Apache-2.0", "trained and exported the policy")
    ]
    for name, licence, purpose in _COMPONENTS:
        listed.append(_component(name, metadata.version(name), licence, purpose))
    record = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": listed,
    }
    return (json.dumps(record, sort_keys=True, indent=1) + "\n").encode()


def check_components(data: bytes, name: str) -> None:
    """Raise `FileFault` unless the bytes are such a list; its versions are the exporter's."""
    try:
        record = json_object(data)
        if record.get("bomFormat") != "CycloneDX" or not isinstance(record["components"], list):
            raise ValueError("it is not CycloneDX")
    except (ValueError, KeyError) as error:
        raise FileFault(f"{name} is no list of components: {error}") from error


def _component(name: str, version: str, licence: str, purpose: str) -> dict[str, object]:
    return {
        "type": "library",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
        "licenses": [{"expression": licence}],
        "description": purpose,
    }
