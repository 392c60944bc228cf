"""Does any foreign input make this package fail otherwise than with one sentence?

    python scripts/fuzz.py [--inputs 1_100_000] [--seconds 200] [--out FOLDER] [--target NAME ...]

Valid inputs of every kind are mutated (bytes flipped, cut, doubled and spliced; values in JSON
replaced by other kinds, huge, deep, infinite ones; entries of archives and words of command lines
exchanged) and given to the function that reads them, in this process. An input passes if it is
read, or refused by a `KcprError` of one line. It fails if anything else escapes, if it takes more
than 5 s, if the process grows beyond 1 GiB, or if a file outside its own folder is opened for
writing, made, moved or removed. Failing inputs are kept in FOLDER and the exit code is 1.

Input number N of a target is the same in every run. Counts are kept in FOLDER/counts.json: type
the command again and it goes on.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SHARES = {
    "contract": 25,
    "bundle card": 20,
    "task card": 15,
    "policy": 12,
    "controller": 10,
    "evaluation": 6,
    "run checkpoint": 5,
    "run config": 4,
    "transitions": 2,
    "metrics": 2,
    "report": 1,
    "command line": 1,
    "bundle": 1,
}
"""Of all inputs, in parts: the cheaper, the more."""
LIMIT_S = 5
MOST_MB = 1024
BLOCK = 500
"""Inputs between two looks at the clock, with one seed each block."""

WORDS = [b"", b"\x00", b"\xff\xfe", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"null"]
WORDS += [
    b"[" * 60,
    b'{"a":' * 60,
    b"]",
    b"}",
    b'"',
    b"\\",
    b"\n",
    b"../../../tmp/x",
    b"/etc/passwd",
]
WORDS += [
    b"__metadata__",
    b"data_offsets",
    b"'''",
    b"[[a]]",
    b"a.b.c = 1",
    b"\x80\x04\x95",
    b"%s{0}",
]
VALUES: list[Any] = [None, True, -1, 0, 2**31, 2**63, 10**400, -(10**30), 1e308, float("nan")]
VALUES += [float("inf"), "", "x" * 1000, "\ud800", "../x", [], {}, [[[[]]]], [None] * 50, {"": {}}]


class TooSlow(BaseException):
    """An input took longer than it may."""


class Fuzz:
    """The valid inputs, and the readers that mutated ones are given to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
        from fakes import fake_policy, fake_run

        from kcpr_safety.cards import card_names, data_root
        from kcpr_safety.deploy.bundle import FILES, export_bundle

        policy = fake_policy(width=4)
        self.run = fake_run(folder / "valid", policy)
        export_bundle(self.run, folder / "valid-bundle")
        self.bundle = {name: (folder / "valid-bundle" / name).read_bytes() for name in FILES}
        self.checkpoint, self.chunk = self._checkpoint()
        self.cards = [(data_root() / "tasks" / f"{n}.toml").read_bytes() for n in card_names()]
        (folder / "now").mkdir(exist_ok=True)

    def _checkpoint(self) -> tuple[bytes, bytes]:
        import numpy as np
        import torch

        from kcpr_safety.replay import Replay
        from kcpr_safety.training.checkpoints import Counters, State, write_checkpoint
        from kcpr_safety.training.replay_log import ReplayLog

        counters = Counters(
            steps=5,
            punishment_total=1.0,
            wall_s=1.0,
            metrics_bytes=3,
            best={"feasible": True, "judged_return": 1.0, "overspent": 0.0},
            owed=0.5,
            replay_added=9,
            marks={"log": 1},
            recent=[[1.0, 2.0]],
            sums=[[0.0], [0.0]],
            validation_rounds=1,
            metrics={"loss": 1.0},
            guard={"rollbacks": 0, "pinned": 0},
            finished=False,
        )
        replay, run = Replay(20, 2, 1), self.folder / "valid-checkpoint"
        replay.added = 9
        world = {"episodes": np.zeros(1, dtype=np.int64), "obs": np.zeros((1, 2))}
        state = State({"a": torch.zeros(3)}, world, torch.zeros(8), b"policy", counters)
        write_checkpoint(run, state, replay, ReplayLog(run))
        (chunk,) = (run / "replay").iterdir()
        return (run / "checkpoint-1.safetensors").read_bytes(), chunk.read_bytes()

    # --------------------------------------------------------------------------------- readers

    def target(self, name: str) -> Callable[[random.Random], None]:
        """Makes one input of a kind from the random numbers and has it read."""
        reader: Callable[[random.Random], None] = getattr(self, "_" + name.replace(" ", "_"))
        return reader

    def _file(self, name: str, data: bytes) -> Path:
        path = self.folder / "now" / name
        path.write_bytes(data)
        return path

    def _task_card(self, rng: random.Random) -> None:
        from kcpr_safety.cards import load_card

        load_card(self._file("card.toml", mutated(rng, rng.choice(self.cards), self.cards)))

    def _bundle_card(self, rng: random.Random) -> None:
        from kcpr_safety.deploy.card import card_from_bytes

        card_from_bytes(any_json(rng, self.bundle["card.json"]), "card.json")

    def _contract(self, rng: random.Random) -> None:
        from kcpr_safety.contract import Contract

        text = json.dumps(json.loads(self.bundle["card.json"])["contract"]).encode()
        Contract.from_json(any_json(rng, text).decode(errors="replace"))

    def _evaluation(self, rng: random.Random) -> None:
        from kcpr_safety.evidence import read_evidence

        data = (self.run / "evaluation.json").read_bytes()
        read_evidence(self._file("evaluation.json", any_json(rng, data)))

    def _run_config(self, rng: random.Random) -> None:
        from kcpr_safety.training.checkpoints import read_config

        record = json.loads((self.run / "config.json").read_bytes()) | {"device": "cpu"}
        record["settings"] = {"width": 8, "gamma": 0.9}
        self._file("config.json", any_json(rng, json.dumps(record).encode()))
        read_config(self.folder / "now")

    def _policy(self, rng: random.Random) -> None:
        from kcpr_safety.policy_file import policy_from_bytes

        policy_from_bytes(tensors(rng, self.bundle["weights.safetensors"]), "policy")

    def _run_checkpoint(self, rng: random.Random) -> None:
        from kcpr_safety.training.checkpoints import _read

        _read(self._file("checkpoint-1.safetensors", tensors(rng, self.checkpoint)))

    def _transitions(self, rng: random.Random) -> None:
        import zlib

        from kcpr_safety.replay import Replay
        from kcpr_safety.training.replay_log import Chunk, ReplayLog

        data = tensors(rng, self.chunk)
        log = ReplayLog(self.folder / "now", [Chunk(0, 9, zlib.crc32(data))])
        log.folder.mkdir(exist_ok=True)
        (log.folder / log.chunks[0].name).write_bytes(data)
        log.read_into(Replay(20, 2, 1), 9)

    def _controller(self, rng: random.Random) -> None:
        from kcpr_safety.deploy.archive import extras_of

        extras_of(archive(rng, self.bundle["controller.pt"]), "controller.pt")

    def _bundle(self, rng: random.Random) -> None:
        from fakes import reseal

        from kcpr_safety.deploy.load import open_bundle

        place = self.folder / "now" / "bundle"
        place.mkdir(exist_ok=True)
        # Those that are read before the controller is loaded, which takes long.
        kinds = {"card.json": any_json, "controller.pt": archive}
        changed = rng.choice([*kinds, "weights.safetensors", "golden.safetensors"])
        for name, data in self.bundle.items():
            change = kinds.get(name, tensors)
            (place / name).write_bytes(change(rng, data) if name == changed else data)
        open_bundle(reseal(place))

    def _metrics(self, rng: random.Random) -> None:
        from kcpr_safety.report.runs import _read_rows
        from kcpr_safety.training.sinks import read_rows

        lines = (self.run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        some = b"".join(rng.sample(lines, 3))
        data = any_json(rng, lines[0]) + b"\n" if rng.random() < 0.5 else mutated(rng, some, lines)
        path = self._file("metrics.jsonl", data)
        with contextlib.suppress(_fault()):
            read_rows(path.parent)
        _read_rows(path)

    def _report(self, rng: random.Random) -> None:
        from kcpr_safety.report.runs import read_run

        place = self.folder / "now" / "run"
        place.mkdir(exist_ok=True)
        names = ("config.json", "evaluation.json", "metrics.jsonl")
        changed = rng.choice(names)
        for name in names:
            data = (self.run / name).read_bytes()
            (place / name).write_bytes(any_json(rng, data) if name == changed else data)
        run = read_run(place)
        for kind in ("train", "validation"):
            run.curve(kind, "return_mean")

    def _command_line(self, rng: random.Random) -> None:
        from kcpr_safety.cli import parsing
        from kcpr_safety.cli.commands import COMMANDS

        name = rng.choice(list(COMMANDS))
        command = COMMANDS[name]
        known = parsing.option_names(command)
        odd = ["", "-", "--", "=", "--=", "-x", "nan", "-1", "9" * 400, "\ud800", "a b", "é", "'"]
        odd += ["--help=1", "runs/a", "1e5", "{", "\x00", "\n", "--seed=", "true", "None"]
        words = [
            rng.choice(known + odd + [w + "=" + rng.choice(odd) for w in known])
            for _ in range(rng.randrange(6))
        ]
        words = [word for word in words if word not in ("-h", "--help")]
        parsing.parse(command, name, command.examples, words)


def _fault() -> type[Exception]:
    from kcpr_safety.errors import KcprError

    return KcprError


# ------------------------------------------------------------------------------------- mutations


def mutated(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Some changes of bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8, 30])):
        at = rng.randrange(len(changed) + 1)
        span = rng.choice([1, 1, 2, 8, 64, 1000])
        kind = rng.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + span]
        elif kind == 2:
            changed[at:at] = changed[at : at + span] * rng.choice([1, 1, 2, 50])
        elif kind == 3:
            changed[at : at + rng.choice([0, span])] = rng.choice(WORDS)
        elif kind == 4:
            changed[at : at + span] = rng.randbytes(rng.choice([1, 4, span]))
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            changed[at:at] = other[start : start + span]
        else:
            del changed[at:]
    return bytes(changed)


def any_json(rng: random.Random, data: bytes) -> bytes:
    """Other values, or other bytes."""
    if rng.random() < 0.4:
        return mutated(rng, data, [data])
    record = json.loads(data.splitlines()[0] if data.count(b"\n{") else data)
    return json.dumps(other_values(rng, record)).encode("utf-8", "surrogatepass")


def other_values(rng: random.Random, record: Any) -> Any:
    """One to three values somewhere in the record, replaced, removed or doubled."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        node, key = record, None
        holder: Any = None
        while isinstance(node, dict | list) and node and (holder is None or rng.random() < 0.8):
            holder, key = (
                node,
                rng.choice(list(node) if isinstance(node, dict) else range(len(node))),
            )
            node = holder[key]
        if holder is None:
            return copy.deepcopy(rng.choice(VALUES))
        kind = rng.random()
        if kind < 0.7:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind < 0.85:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(["", "schema_version", "é", "x" * 200])] = copy.deepcopy(node)
        else:
            holder.insert(0, copy.deepcopy(node))
    return record


def tensors(rng: random.Random, data: bytes) -> bytes:
    """Another header, other bytes behind it, or any bytes."""
    kind = rng.random()
    (length,) = struct.unpack_from("<Q", data)
    header, body = data[8 : 8 + length], data[8 + length :]
    if kind < 0.3:
        return mutated(rng, data, [data])
    if kind < 0.7:
        record = json.loads(header)
        if rng.random() < 0.5 and "__metadata__" in record:
            texts = record["__metadata__"]
            name = rng.choice(list(texts))
            with contextlib.suppress(ValueError):
                texts[name] = json.dumps(other_values(rng, json.loads(texts[name])))
        else:
            record = other_values(rng, record)
        header = json.dumps(record).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(header)) + header + body
    if kind < 0.8:
        return rng.randbytes(8) + header + body
    return data[: 8 + length] + mutated(rng, body, [body])


def archive(rng: random.Random, data: bytes) -> bytes:
    """Other entries, or other bytes."""
    if rng.random() < 0.7:
        return mutated(rng, data, [data])
    buffer = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for info in old.infolist():
            content, name = old.read(info), info.filename
            if rng.random() < 0.1:
                content = mutated(rng, content, [content])
            if rng.random() < 0.05:
                name = rng.choice(
                    ["../x", "/tmp/x", name + "/", "archive/é", "x", "archive/data.pkl"]
                )
            if rng.random() > 0.05:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    new.writestr(name, content)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------- judging


class Watch:
    """Notes every file outside of a folder that this process writes, makes, moves or removes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outside = str(folder), []  # type: ignore[var-annotated]
        self.on = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = args
            written = (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if not written:
                return
        elif event not in (
            "os.remove",
            "os.rename",
            "os.mkdir",
            "os.rmdir",
            "os.symlink",
            "os.link",
        ):
            return
        path = args[0]
        if isinstance(path, int) or str(path).startswith((self.folder, "/dev/null")):
            return
        self.outside.append(f"{event} {path}")


def run_block(name: str, block: int, fuzz: Fuzz, watch: Watch) -> tuple[dict[str, int], list[str]]:
    """Some inputs of one kind; counts, and what went wrong."""
    fault = _fault()
    reader = fuzz.target(name)
    counts, wrong = {"read": 0, "refused": 0, "failed": 0}, []
    for number in range(block * BLOCK, (block + 1) * BLOCK):
        rng = random.Random(f"{name} {number}")
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        watch.on = True
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                reader(rng)
            counts["read"] += 1
        except fault as refused:
            counts["refused"] += 1
            if "\n" in str(refused).strip():
                wrong.append(f"{name} {number}: more than one line: {refused!r:.300}")
        except TooSlow:
            wrong.append(f"{name} {number}: more than {LIMIT_S} s")
        except (Exception, SystemExit):
            wrong.append(f"{name} {number}: {traceback.format_exc()[-1500:]}")
        finally:
            watch.on = False
            signal.setitimer(signal.ITIMER_REAL, 0)
    grown = peak_mb()
    if grown > MOST_MB:
        wrong.append(f"{name} block {block}: the process has grown to {grown:.0f} MB")
    wrong += [f"{name} block {block}: {place}" for place in watch.outside]
    watch.outside.clear()
    counts["failed"] = len(wrong)
    return counts, wrong


def peak_mb() -> float:
    """Most memory that this process has held; `ru_maxrss` would count that of who started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def slow(*_: object) -> None:
    raise TooSlow


def turns(names: list[str], inputs: int) -> Iterator[tuple[str, int]]:
    """Blocks of all kinds, dealt out by their shares."""
    whole = sum(SHARES[name] for name in names)
    blocks = {name: -(-inputs * SHARES[name] // (whole * BLOCK)) for name in names}
    for share in range(100):  # every hundredth of the work is a little of everything
        for name, count in blocks.items():
            yield from ((name, b) for b in range(count * share // 100, count * (share + 1) // 100))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--target", nargs="+", default=list(SHARES), choices=list(SHARES))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    note = given.out / "counts.json"
    done: dict[str, dict[str, Any]] = json.loads(note.read_text()) if note.exists() else {}
    signal.signal(signal.SIGALRM, slow)
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="kcpr-fuzz-"))
    started, wrong = time.perf_counter(), []
    try:
        fuzz, watch = Fuzz(folder), Watch(folder)
        for name, block in turns(given.target, given.inputs):
            known = done.setdefault(name, {"blocks": 0, "read": 0, "refused": 0, "failed": 0})
            if block < known["blocks"] or time.perf_counter() - started > given.seconds:
                continue
            counts, found = run_block(name, block, fuzz, watch)
            known |= {"blocks": block + 1} | {key: known[key] + counts[key] for key in counts}
            done[name] = known
            wrong += found
            note.write_text(json.dumps(done, indent=1))  # also where it is killed later
            for text in found:
                with open(given.out / "failures.txt", "a") as stream:
                    stream.write(text + "\n\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    total = 0
    for name, known in done.items():
        count = known["read"] + known["refused"]
        total += known["blocks"] * BLOCK
        print(
            f"{name:13s} {known['blocks'] * BLOCK:9,} inputs: {known['read']:8,} read, "
            f"{known['refused']:9,} refused, {known['failed']} failed"
        )
        assert count <= known["blocks"] * BLOCK
    peak = peak_mb()
    print(f"{total:,} inputs, peak memory of this process {peak:.0f} MB")
    for text in wrong[:5]:
        print(text)
    return int(any(known["failed"] for known in done.values()))


if __name__ == "__main__":
    sys.exit(main())
