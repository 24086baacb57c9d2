"""The file of a memory on disks that are full or fail: a write is all or nothing."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from file_samples import ABOUT, TENSORS, write
from file_samples import good as good

from infinipot_llm.errors import StoreError
from infinipot_llm.memory import file as module
from infinipot_llm.memory.file import HEADER_BYTES, Draft, MemoryFile


class FullRaw(io.FileIO):
    """A file on a disk with room for so many bytes."""

    room = 0

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > FullRaw.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def _full_fdopen(handle: int, mode: str, *_: Any) -> IO[bytes]:
    raw = FullRaw(handle, "r+b" if "+" in mode else mode)
    return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)  # type: ignore[return-value]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def fill(room: int) -> None:
        monkeypatch.setattr(FullRaw, "room", room)
        monkeypatch.setattr(module.os, "fdopen", _full_fdopen)

    return fill


TOTAL = HEADER_BYTES + sum(t.nbytes for t in TENSORS.values())


@pytest.mark.parametrize("room", [0, HEADER_BYTES, HEADER_BYTES + 500, TOTAL // 2, TOTAL - 60, TOTAL - 1, TOTAL + 3])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, full_disk: Callable[[int], None], room: int
) -> None:
    def work() -> None:
        for name, data in TENSORS.items():
            draft.add(name, data)
            draft.rows(name, 0, 1)
        draft.finish(ABOUT)

    full_disk(room)
    draft = Draft(tmp_path / "a")
    with pytest.raises(StoreError, match="is full"):
        work()
    draft.discard()
    assert not list(tmp_path.iterdir())


def test_a_small_rest_held_back_by_the_system_does_not_keep_a_draft_alive(
    tmp_path: Path, full_disk: Callable[[int], None]
) -> None:
    full_disk(HEADER_BYTES)
    draft = Draft(tmp_path / "a")
    draft.write(np.zeros(10, np.uint8))  # stays in the buffer
    draft.discard()
    assert not list(tmp_path.iterdir())


def test_a_draft_that_cannot_even_begin_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoRoom(FullRaw):
        def truncate(self, size: int | None = None) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fdopen", lambda handle, mode: io.BufferedRandom(NoRoom(handle, mode)))
    with pytest.raises(StoreError, match="is full"):
        Draft(tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [0, 1000, TOTAL - 1])
def test_a_copy_onto_a_full_disk_leaves_what_was_there(
    good: Path, tmp_path: Path, full_disk: Callable[[int], None], room: int
) -> None:
    target = tmp_path / "old"
    target.write_bytes(b"as it was")
    file = MemoryFile(good)
    full_disk(room)
    with pytest.raises(StoreError, match="is full"):
        file.copy_to(target)
    file.close()
    assert target.read_bytes() == b"as it was"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_a_place_that_cannot_be_written_is_a_sentence(good: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("x")
    file = MemoryFile(good)
    places = ["missing/a", "folder", "text/a", "a" * 300, "a\0b"]
    for target in (*(tmp_path / place for place in places), Path("/"), Path()):
        with pytest.raises(StoreError) as caught:
            file.copy_to(target)
        assert "give" in str(caught.value)
        assert "\n" not in str(caught.value)
    file.close()
    for place in places[:4]:
        if place != "folder":
            with pytest.raises(StoreError):
                Draft(tmp_path / place)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder", "text"]


def test_a_memory_is_copied_over_itself(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(good.read_bytes())
    file = MemoryFile(path)
    file.copy_to(path)
    file.close()
    assert path.read_bytes() == good.read_bytes()
    assert len(list(tmp_path.iterdir())) == 1


KILLED = """
import os, sys
from pathlib import Path
from infinipot_llm.memory.file import MemoryFile

files = [MemoryFile(Path(p)) for p in sys.argv[1:3]]

def work():
    while True:
        for file in files:
            file.copy_to(Path(sys.argv[3]))

for kill in range(25):
    child = os.fork()
    if not child:
        work()
    print(child, flush=True)
    assert os.waitpid(child, 0)[1] == 9, "it ended by itself"
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_save_that_is_killed_leaves_the_target_whole(good: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"model": "other"})
    target = tmp_path / "there" / "target"
    target.parent.mkdir()
    target.write_bytes(good.read_bytes())
    whole, rng, seen = {good.read_bytes(), other.read_bytes()}, random.Random(0), set()
    command = [sys.executable, "-c", KILLED, str(good), str(other), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(25):
            child = int(process.stdout.readline())
            time.sleep(rng.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
            now = target.read_bytes()
            assert now in whole
            MemoryFile(target).close()
            seen.add(now)
        assert process.wait(20) == 0
    assert len(seen) == 2  # it did save in between
    left = [p.name for p in target.parent.iterdir() if p != target]
    assert all(name.startswith(".target.") and name.endswith(".tmp") for name in left)  # what a kill may leave
