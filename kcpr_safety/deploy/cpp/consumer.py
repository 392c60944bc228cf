"""How does a Python process with nothing but torch act on a signed bundle?

    python consumer.py BUNDLE        float32 observations on stdin, float32 actions on stdout

It checks the hashes of the manifest. The signature it leaves to `kcpr-safety verify` or `kcpr-robot
verify`, one of which must have passed: torch has no ed25519. A fault is one sentence, exit code 2.
"""

import hashlib
import io
import json
import sys
from pathlib import Path

import torch

try:
    if len(sys.argv) != 2:
        raise ValueError("it takes one argument, the folder of a bundle")
    folder = Path(sys.argv[1])
    digests = json.loads((folder / "manifest.json").read_bytes())["files"]
    files = {name: (folder / name).read_bytes() for name in digests}
    if odd := [n for n in files if hashlib.sha256(files[n]).hexdigest() != digests[n]]:
        raise ValueError(f"{folder / odd[0]} is not the file that was signed")
    card, program = json.loads(files["card.json"]), io.BytesIO(files["controller.pt"])
    torch.set_num_threads(1)
    controller = torch.jit.load(program)  # type: ignore[no-untyped-call]
    if not (off := controller.self_test()) <= card["parity"]["replay_tolerance"]:
        raise ValueError(f"the controller repeats its golden answers only to {off} here")
    with torch.inference_mode():
        while data := sys.stdin.buffer.read(4 * len(card["contract"]["observation"])):
            if len(data) < 4 * len(card["contract"]["observation"]):
                raise ValueError("the last observation is cut short")
            obs = torch.frombuffer(bytearray(data), dtype=torch.float32).unsqueeze(0)
            action = controller.act(obs)[0].view(torch.uint8).flatten()
            sys.stdout.buffer.write(bytes(action.tolist()))
            sys.stdout.buffer.flush()
except Exception as error:
    sys.stderr.writelines(["consumer.py: ", str(error).split("\n")[0], "\n"])
    sys.exit(2)
