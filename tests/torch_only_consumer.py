"""What is the least that a robot's process needs? torch, controller.pt, and bytes on a pipe.

stdin: float32 observations, one after another; stdout: one float32 action for each.
"""

import struct
import sys

import torch

FOREIGN = {"kcpr_safety", "mujoco", "gymnasium", "safety_gymnasium", "safetensors", "matplotlib"}


def main() -> None:
    torch.set_num_threads(1)
    controller = torch.jit.load(sys.argv[1])
    width = int(sys.argv[2])
    with torch.inference_mode():
        while data := sys.stdin.buffer.read(4 * width):
            obs = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(1, width)
            action = controller(obs)[0].tolist()
            sys.stdout.buffer.write(struct.pack(f"={len(action)}f", *action))
            sys.stdout.buffer.flush()
    loaded = FOREIGN & {name.partition(".")[0] for name in sys.modules}
    if loaded:
        sys.exit(f"torch alone should do, but {sorted(loaded)} were imported")


if __name__ == "__main__":
    main()
