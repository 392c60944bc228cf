"""Is there always a checkpoint that loads, whatever happened to the last write?"""

import json
import os
import signal
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import KINDS, Died, Disk

from kcpr_safety.errors import FileFault
from kcpr_safety.replay import Replay
from kcpr_safety.tensor_file import pack, unpack
from kcpr_safety.training import checkpoints, replay_log
from kcpr_safety.training.checkpoints import (
    Counters,
    State,
    checkpoint_files,
    read_checkpoint,
    write_checkpoint,
)
from kcpr_safety.training.lock import LOCK_FILE, locked
from kcpr_safety.training.replay_log import ReplayLog
from kcpr_safety.transition import Batch

CAPACITY, OBS, ACTIONS = 40, 3, 2


def counters(added: int, **changed: Any) -> Counters:
    values: dict[str, Any] = {
        "steps": added,
        "punishment_total": 0.1 * added,
        "wall_s": 1.5,
        "metrics_bytes": 10 * added,
        "best": None,
        "owed": 0.25,
        "replay_added": added,
        "marks": {"log": added},
        "recent": [[1.0, 2.0]],
        "sums": [[0.1], [0.2]],
        "validation_rounds": 1,
        "metrics": {"critic_loss": 1 / 3},
        "guard": {"rollbacks": 0, "pinned": 0},
        "finished": False,
    }
    return Counters(**values | changed)


class Story:
    """A run that only saves: the transitions are numbered, so that a wrong one shows."""

    def __init__(self, run: Path) -> None:
        self.run, self.log = run, ReplayLog(run)
        self.replay = Replay(CAPACITY, OBS, ACTIONS)

    def live(self, count: int) -> None:
        numbers = torch.arange(self.replay.added, self.replay.added + count).float()
        column = numbers[:, None]
        self.replay.add(
            Batch(
                column.expand(-1, OBS),
                column.expand(-1, ACTIONS),
                numbers,
                numbers,
                numbers,
                column.expand(-1, OBS),
            )
        )

    def state(self, **changed: Any) -> State:
        added = self.replay.added
        return State(
            learner={"parameters": torch.full((7,), float(added))},
            world={"episodes": np.array([added]), "flags": np.array([True, False])},
            generator=torch.arange(5, dtype=torch.uint8),
            policy=b"policy %d" % added,
            counters=counters(added, **changed),
        )

    def save(self, **changed: Any) -> None:
        write_checkpoint(self.run, self.state(**changed), self.replay, self.log)


def reread(run: Path) -> tuple[State, Replay]:
    replay = Replay(CAPACITY, OBS, ACTIONS)
    return read_checkpoint(run, replay)[0], replay


def assert_whole(state: State, replay: Replay) -> None:
    """The state, its transitions and its policy are all of one moment."""
    added = state.counters.replay_added
    assert float(state.learner["parameters"][0]) == added == replay.added
    assert state.policy == b"policy %d" % added
    assert state.world["episodes"][0] == added
    numbers = torch.arange(max(0, added - CAPACITY), added)
    rows = replay.layout.read(replay.rows[numbers % CAPACITY])
    for column in (rows.obs[:, 0], rows.next_obs[:, -1], rows.action[:, 1], rows.punishment):
        assert torch.equal(column, numbers.float())


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    story = Story(tmp_path)
    for count in (0, 3, 1, 10, 39, 40, 0, 5):
        story.live(count)
        story.save()
        state, replay = reread(tmp_path)
        assert_whole(state, replay)
        assert state.counters == story.state().counters
        assert state.faults == ()
        assert len(checkpoint_files(tmp_path)) <= 2
    # What two generations need, and no more.
    on_disk = {path.name for path in (tmp_path / "replay").iterdir()}
    named = set()
    for path in checkpoint_files(tmp_path):
        named |= {chunk.name for chunk in checkpoints._read(path)[1].chunks}
    assert on_disk == named


def test_only_new_transitions_are_written(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.live(30)
    story.save()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "replay").iterdir()}
    story.live(5)
    story.save()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "replay").iterdir()}
    assert before.items() <= after.items()
    (new,) = set(after) - set(before)
    assert new == "000000000030-000000000035.safetensors"


def test_large_leaps_are_cut_into_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_log, "MOST_ROWS", 16)
    story = Story(tmp_path)
    story.live(39)
    story.save()
    assert [c.stop - c.first for c in story.log.chunks] == [16, 16, 7]
    assert_whole(*reread(tmp_path))


def test_a_chunk_ends_where_the_ring_begins_again(tmp_path: Path) -> None:
    story = Story(tmp_path)
    for count in (CAPACITY - 5, 12):
        story.live(count)
        story.save()
    ends = [(c.first, c.stop) for c in story.log.chunks]
    assert ends == [(0, CAPACITY - 5), (CAPACITY - 5, CAPACITY), (CAPACITY, CAPACITY + 7)]
    assert_whole(*reread(tmp_path))


def test_a_finished_run_keeps_no_transitions(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.live(30)
    story.save()
    story.save(finished=True)
    assert len(checkpoint_files(tmp_path)) == 1
    assert not (tmp_path / "replay").exists()
    assert read_checkpoint(tmp_path, Replay(1, 1, 1))[0].counters.finished


# -------------------------------------------------------------------------------- refused writes


def operations(tmp_path: Path) -> list[tuple[str, str]]:
    """Every operation of the third checkpoint of a story."""
    story = two_checkpoints(tmp_path / "count")
    with Disk(tmp_path) as disk:
        story.save()
    return disk.operations


def two_checkpoints(run: Path) -> Story:
    """Two checkpoints, and transitions that a third one would write."""
    story = Story(run)
    for _ in range(2):
        story.live(25)
        story.save()
    story.live(10)
    return story


def test_the_last_good_checkpoint_always_loads(tmp_path: Path) -> None:
    """Every operation of a checkpoint refused, torn, or the last thing that the process did."""
    count = len(operations(tmp_path))
    assert count >= 12
    seen = set()
    for turn in range(count):
        for kind in KINDS:
            run = tmp_path / f"{turn}-{kind}"
            story = two_checkpoints(run)
            # (A folder that cannot be flushed, as on some network disks, is no fault.)
            with suppress(FileFault, Died), Disk(run, turn, kind) as disk:
                story.save()
            assert len(disk.operations) > turn
            state, replay = reread(run)
            assert_whole(state, replay)
            assert state.counters.replay_added in (50, 60)
            assert state.faults == ()
            seen.add((kind, state.counters.replay_added))
            # The disk is mended: the same process goes on, or another one takes the run up.
            story.save()
            assert reread(run)[0].counters.replay_added == 60
    assert {("enospc", 50), ("dies before", 50), ("dies after", 60)} <= seen


def test_files_are_on_the_disk_before_they_get_their_name(tmp_path: Path) -> None:
    """A power cut keeps the order of flushes only: what is renamed has been flushed, its folder
    afterwards, the transitions before the checkpoint that names them."""
    done = operations(tmp_path)
    renamed = [i for i, (name, _) in enumerate(done) if name == "replace"]
    assert len(renamed) == 2
    for i in renamed:
        assert done[i - 1] == ("fsync", done[i][1])
        assert done[i + 1][0] == "fsync"
        assert ("write", done[i][1]) in done[:i]
        assert ("write", done[i][1]) not in done[i:]
    assert ".safetensors" in done[renamed[0]][1] and "checkpoint" in done[renamed[1]][1]
    removed = [i for i, (name, _) in enumerate(done) if name == "unlink"]
    assert removed and min(removed) > renamed[1] + 1


# ------------------------------------------------------------------------------------- damage


DAMAGES = {
    "truncated": lambda data: data[:-10],
    "empty": lambda data: b"",
    "foreign": lambda data: b"hello",
    "flipped": lambda data: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:],
    "pickle": lambda data: b"\x80\x04\x95" + data[3:],
    "huge header": lambda data: b"\xff" * 8 + data[8:],
}


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "flipped"])
def test_a_damaged_checkpoint_falls_back_and_says_so(tmp_path: Path, damage: str) -> None:
    two_checkpoints(tmp_path)
    newest = checkpoint_files(tmp_path)[0]
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    state, replay = reread(tmp_path)
    assert_whole(state, replay)
    assert state.counters.replay_added == 25
    (fault,) = state.faults
    assert str(newest) in fault and "\n" not in fault
    # It is set aside, so that the next checkpoint does not count it as a generation.
    story = Story(tmp_path)
    state, story.log = read_checkpoint(tmp_path, story.replay)
    story.live(3)
    story.save()
    assert len(checkpoint_files(tmp_path)) == 2
    assert [checkpoints._read(p)[0].counters.steps for p in checkpoint_files(tmp_path)] == [28, 25]


@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
def test_damaged_transitions_fall_back_too(tmp_path: Path, damage: str) -> None:
    two_checkpoints(tmp_path)
    chunk = tmp_path / "replay" / "000000000040-000000000050.safetensors"
    data = chunk.read_bytes()
    chunk.unlink()
    if damage != "missing":
        chunk.write_bytes(DAMAGES[damage](data))
    state, replay = reread(tmp_path)
    assert_whole(state, replay)
    assert state.counters.replay_added == 25
    assert str(chunk) in state.faults[0]


def test_nothing_left_to_fall_back_to_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="has no checkpoint to resume from"):
        read_checkpoint(tmp_path)
    two_checkpoints(tmp_path)
    for path in checkpoint_files(tmp_path):
        path.write_bytes(b"hello")
    with pytest.raises(
        FileFault, match=r"cannot be resumed: .*checkpoint-2.*checkpoint-1"
    ) as fault:
        read_checkpoint(tmp_path)
    assert "\n" not in str(fault.value)


def test_an_earlier_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(FileFault, match=r"by an earlier version.*--init"):
        read_checkpoint(tmp_path)


def test_checkpoints_of_another_version_tell_the_way_out(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    for path in checkpoint_files(tmp_path):
        tensors, header = unpack(path.read_bytes(), "NAME")
        path.write_bytes(pack(tensors, {**header, "schema_version": "3"}))
    with pytest.raises(FileFault, match=r"version '3' is not known here.*--init"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", -1),
        ("steps", 1.5),
        ("steps", True),
        ("steps", 10**30),
        ("owed", float("inf")),
        ("owed", "much"),
        ("recent", [[1.0]]),
        ("recent", 3),
        ("validation_rounds", 1.5),
        ("validation_rounds", -1),
        ("marks", {"log": None}),
        ("metrics", {"loss": [1]}),
        ("best", {"feasible": True}),
        ("best", {"feasible": True, "judged_return": 1, "overspent": "x"}),
        ("best", [1]),
        ("finished", 1),
        ("guard", None),
    ],
)
def test_counters_of_another_kind_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    story = Story(tmp_path)
    story.live(5)
    story.save()
    (path,) = checkpoint_files(tmp_path)
    tensors, header = unpack(path.read_bytes(), "checkpoint")
    record = json.loads(header["counters"])
    record[key] = value
    path.write_bytes(pack(tensors, header | {"counters": json.dumps(record)}))
    with pytest.raises(FileFault, match="not a checkpoint of this package"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "chunks", [[[0, 5]], [[5, 0, 1]], [[0, 10**9, 1]], [[-5, 5, 1]], [["../x", 5, 1]], 7, [None]]
)
def test_chunks_of_another_kind_are_refused(tmp_path: Path, chunks: Any) -> None:
    story = Story(tmp_path)
    story.live(5)
    story.save()
    (path,) = checkpoint_files(tmp_path)
    tensors, header = unpack(path.read_bytes(), "checkpoint")
    path.write_bytes(pack(tensors, header | {"chunks": json.dumps(chunks)}))
    with pytest.raises(FileFault):
        read_checkpoint(tmp_path, Replay(CAPACITY, OBS, ACTIONS))


def test_chunks_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    story = two_checkpoints(tmp_path)
    for kept in (story.log.chunks[1:], story.log.chunks[:1], []):
        log = ReplayLog(tmp_path, kept)
        with pytest.raises(FileFault, match=r"transitions"):
            log.read_into(Replay(CAPACITY, OBS, ACTIONS), 60)


def test_a_chunk_of_another_shape_is_refused(tmp_path: Path) -> None:
    story = two_checkpoints(tmp_path)
    with pytest.raises(FileFault):
        story.log.read_into(Replay(CAPACITY, OBS + 1, ACTIONS), 50)
    (first, *_) = story.log.chunks
    path = story.log.folder / first.name
    data = pack({"other": torch.zeros(25, 13)}, {"schema_version": "1"})
    path.write_bytes(data)
    log = ReplayLog(tmp_path, [replay_log.Chunk(0, 25, zlib.crc32(data))])
    with pytest.raises(FileFault, match="holds no transitions"):
        log.read_into(Replay(CAPACITY, OBS, ACTIONS), 25)


# -------------------------------------------------------------------------------------- the lock


def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run):
        code = (
            "import sys; from pathlib import Path; from kcpr_safety.training.lock import *\n"
            "from kcpr_safety.errors import FileFault\n"
            "try:\n    with locked(Path(sys.argv[1])): print('taken')\n"
            "except FileFault as fault: print(fault)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True
        )
        assert f"is being trained by process {os.getpid()} on" in done.stdout
        assert done.stdout.count("\n") == 1
        with pytest.raises(FileFault, match="is being trained by"), locked(run):
            pass
    assert not (run / LOCK_FILE).exists()
    with locked(run):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from kcpr_safety.training.lock import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / LOCK_FILE).exists()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileFault, match="symbolic link"), locked(tmp_path):
        pass
    assert (tmp_path / "elsewhere").read_text() == "precious"


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileFault, match="cannot write"), locked(tmp_path / "file" / "run"):
        pass
