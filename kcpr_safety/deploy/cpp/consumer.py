"""How does a Python process with nothing but torch act on a signed bundle?

    python consumer.py BUNDLE        float32 observations on stdin, float32 actions on stdout

It checks the hashes of the manifest. The signature it leaves to `kcpr-safety verify` or `kcpr-robot
verify`, one of which must have passed: torch has no ed25519.
"""

import hashlib
import io
import json
import sys
from pathlib import Path

import torch


def main(folder: Path) -> None:
    files = {}
    for name, digest in json.loads((folder / "manifest.json").read_bytes())["files"].items():
        files[name] = (folder / name).read_bytes()
        if hashlib.sha256(files[name]).hexdigest() != digest:
            sys.exit(f"{folder / name} is not the file that was signed")
    card = json.loads(files["card.json"])
    torch.set_num_threads(1)
    controller = torch.jit.load(io.BytesIO(files["controller.pt"]))  # type: ignore[no-untyped-call]
    error = controller.self_test()
    if not error <= card["parity"]["replay_tolerance"]:
        sys.exit(f"the controller does not repeat its golden answers here: it is off by {error}")
    width = len(card["contract"]["observation"])
    with torch.inference_mode():
        while data := sys.stdin.buffer.read(4 * width):
            obs = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(1, width)
            action, _risk, _mode = controller.act(obs)
            sys.stdout.buffer.write(bytes(action.view(torch.uint8).flatten().tolist()))
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
