"""The file of a memory: every damaged byte is noticed, nothing in a stranger's header is believed, a write is all or
nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from infinipot_llm.errors import MemoryFileError, StoreError
from infinipot_llm.memory import file as module
from infinipot_llm.memory.file import BLOCK_BYTES, FORMAT, HEADER_BYTES, Draft, MemoryFile, begins_like_a_memory

RNG = np.random.default_rng(0)
TENSORS = {
    "rows": RNG.integers(0, 256, (40_000, 33), dtype=np.uint8),  # more than a block
    "tokens": np.arange(3000, dtype=np.int32),
    "first": np.array([0, 3000], dtype=np.int64),
    "null": RNG.normal(size=(7, 3)).astype(np.float16),
    "mean": RNG.normal(size=(2, 3, 5)).astype(np.float32),
    "nothing": np.zeros((0, 4), np.uint8),
}
ABOUT = {"model": "tiny", "fingerprints": {"model": "ab"}}


def write(path: Path, about: dict[str, Any] | None = None) -> Path:
    draft = Draft(path)
    for name, data in TENSORS.items():
        for start in range(0, max(1, len(data)), 7777):  # row by row, as the shelf does
            draft.write(data[start : start + 7777])
        draft.end(name, data.dtype, data.shape)
    draft.finish(ABOUT if about is None else about)
    return path


def sealed(path: Path, header: bytes, body: bytes, blocks: int | None = None) -> Path:
    """Write a file whose checksums are right, whatever its header says."""
    start = (HEADER_BYTES - 8).to_bytes(8, "little") + header.ljust(HEADER_BYTES - 8)
    whole = start + body
    crcs = [zlib.crc32(whole[i : i + BLOCK_BYTES]) for i in range(0, len(whole), BLOCK_BYTES)]
    path.write_bytes(whole + np.array(crcs[:blocks], np.uint32).tobytes())
    return path


def refused(path: Path) -> str:
    """Return the sentence with which a file is refused; any other outcome fails."""
    with pytest.raises(MemoryFileError) as caught:
        MemoryFile(path)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    assert len(said) < 300
    assert path.name in said
    return said


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("good") / "a.infinipot")


def test_what_was_written_comes_back_and_any_reader_of_safetensors_opens_it(good: Path) -> None:
    file = MemoryFile(good)
    theirs = load_file(good)
    for name, data in TENSORS.items():
        assert file.shape(name) == data.shape
        np.testing.assert_array_equal(file.rows(name), data)
        np.testing.assert_array_equal(theirs[name], data)
        assert theirs[name].dtype == data.dtype == file.rows(name).dtype
    assert file.about == {**ABOUT, "format": FORMAT}
    np.testing.assert_array_equal(file.rows("rows", 31_000, 31_007), TENSORS["rows"][31_000:31_007])
    assert file.rows("rows", 39_999, 50_000).shape == (1, 33)
    assert file.rows("rows", 7, 3).shape == (0, 33)
    assert begins_like_a_memory(good)
    assert file.nbytes == good.stat().st_size
    with pytest.raises(MemoryFileError, match="holds no pot"):
        file.rows("pot")
    file.close()


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_only_its_owner_reads_it(good: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = write(tmp_path / "a")
        file = MemoryFile(made)
        file.copy_to(tmp_path / "b")
        file.close()
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_draft_can_be_read_while_it_is_written_and_is_none_before_it_is_finished(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "a")
    draft.write(TENSORS["rows"][:100])
    draft.write(TENSORS["rows"][100:150])
    draft.end("rows", np.uint8, (150, 33))
    draft.write(TENSORS["tokens"][:10])
    np.testing.assert_array_equal(draft.rows("rows", 99, 101), TENSORS["rows"][99:101])
    draft.write(TENSORS["tokens"][10:])  # at the end again, not where was read
    draft.end("tokens", np.int32, (3000,))
    with pytest.raises(ValueError, match="which is not"):
        draft.end("null", np.float16, (3,))
    refused(tmp_path / "a")
    draft.finish({})
    file = MemoryFile(tmp_path / "a")
    np.testing.assert_array_equal(file.rows("tokens"), TENSORS["tokens"])
    file.close()


@pytest.mark.parametrize("blocks", [0, 1, 2], ids=["in the first", "one", "two"])
def test_every_length_around_a_block_has_its_checksums(tmp_path: Path, blocks: int) -> None:
    for extra in (-1, 0, 1):
        size = max(1, blocks * BLOCK_BYTES - HEADER_BYTES + extra)
        draft = Draft(tmp_path / "a")
        draft.add("rows", np.full(size, 7, np.uint8))
        draft.finish({})
        file = MemoryFile(tmp_path / "a")
        assert file.shape("crc") == (-(-(size + HEADER_BYTES) // BLOCK_BYTES),)
        assert int(file.rows("rows").sum()) == 7 * size
        file.close()


def test_every_damaged_byte_is_noticed(good: Path, tmp_path: Path) -> None:
    data, rng, path = good.read_bytes(), random.Random(0), tmp_path / "a"
    path.write_bytes(data)
    places = [
        *range(16),
        HEADER_BYTES - 1,
        HEADER_BYTES,
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        *range(len(data) - 8, len(data)),
    ]
    places += [rng.randrange(8, 1500) for _ in range(40)] + [rng.randrange(len(data)) for _ in range(160)]
    for place in places:
        flip = rng.randrange(1, 256)
        with path.open("r+b") as out:
            out.seek(place)
            out.write(bytes([data[place] ^ flip]))
        refused(path)
        with path.open("r+b") as out:
            out.seek(place)
            out.write(data[place : place + 1])
    MemoryFile(path).close()


def test_a_file_that_was_cut_or_grew_is_refused(good: Path, tmp_path: Path) -> None:
    data, path = good.read_bytes(), tmp_path / "a"
    edges = [0, 1, 7, 8, 9, 100, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, BLOCK_BYTES - 1, BLOCK_BYTES]
    edges += [BLOCK_BYTES + 1, len(data) - 9, len(data) - 8, len(data) - 5, len(data) - 4, len(data) - 1]
    for edge in edges:
        path.write_bytes(data[:edge])
        refused(path)
    for extra in (b"\0", b"\0" * 4, b"x" * 100, bytes(BLOCK_BYTES), data):
        path.write_bytes(data + extra)
        refused(path)


def test_what_is_no_memory_is_refused_in_a_sentence(good: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time. " * 9000)
    theirs = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((300, 300), np.float32)}, theirs)
    empty = tmp_path / "empty"
    empty.touch()
    assert "not a saved memory" in refused(text)
    assert "not a saved memory" in refused(theirs)
    assert "not a saved memory" in refused(empty)
    assert "cannot be opened" in refused(tmp_path)
    assert "cannot be opened" in refused(tmp_path / "missing")
    assert "cannot be opened" in refused(tmp_path / "zero\0byte")
    assert "cannot be opened" in refused(text / "below")
    for path in (text, theirs, empty, tmp_path, tmp_path / "missing", tmp_path / "zero\0byte"):
        assert not begins_like_a_memory(path)


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_is_refused_and_not_waited_for() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x" * 100)
    os.close(writing)
    try:
        refused(Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)


@pytest.mark.parametrize("version", [FORMAT + 1, 0, -1, 10**30])
def test_another_format_is_refused_by_name(
    good: Path, tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORMAT", version)
    write(tmp_path / "a")
    monkeypatch.undo()
    said = refused(tmp_path / "a")
    assert f"format {version!r:.20}" in said
    assert f"reads {FORMAT}" in said


@pytest.mark.parametrize("version", ["x" * 50_000, None, 1.5, True, [1], {"a": 1}, [[[]]], "1"])
def test_a_format_that_is_no_number_is_no_memory(tmp_path: Path, version: object) -> None:
    header = json.dumps({"__metadata__": {"infinipot": json.dumps({"format": version})}})
    assert "not a saved memory" in refused(sealed(tmp_path / "a", header.encode(), b""))


def described(**entries: Any) -> bytes:
    about = {"infinipot": json.dumps({"format": FORMAT})}
    return json.dumps({"__metadata__": about, **entries}).encode()


BODY = bytes(range(60))
ROWS = {"dtype": "U8", "shape": [6, 10], "data_offsets": [0, 60]}
SUMS = {"dtype": "U32", "shape": [1], "data_offsets": [60, 64]}


def test_the_header_below_is_good_where_nobody_changed_it(tmp_path: Path) -> None:
    MemoryFile(sealed(tmp_path / "a", described(rows=ROWS, crc=SUMS), BODY)).close()


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"rows": ROWS},
        {"crc": SUMS},
        {"crc": SUMS, "rows": ROWS},
        {"rows": {**ROWS, "shape": [60, 10]}, "crc": SUMS},
        {"rows": {**ROWS, "shape": [-6, -10]}, "crc": SUMS},
        {"rows": {**ROWS, "shape": [6.0, 10]}, "crc": SUMS},
        {"rows": {**ROWS, "shape": [True, 60]}, "crc": SUMS},
        {"rows": {**ROWS, "shape": [10**30, 0], "data_offsets": [0, 0]}, "crc": SUMS},
        {"rows": {**ROWS, "shape": []}, "crc": SUMS},
        {"rows": {**ROWS, "shape": [1, 1, 1, 6, 10]}, "crc": SUMS},
        {"rows": {**ROWS, "dtype": "U9"}, "crc": SUMS},
        {"rows": {**ROWS, "dtype": ["U8"]}, "crc": SUMS},
        {"rows": {**ROWS, "dtype": "F32"}, "crc": SUMS},
        {"rows": {**ROWS, "data_offsets": [0, 59]}, "crc": SUMS},
        {"rows": {**ROWS, "data_offsets": [1, 61]}, "crc": SUMS},
        {"rows": {**ROWS, "data_offsets": [60, 0]}, "crc": SUMS},
        {"rows": {**ROWS, "data_offsets": [0, 60, 60]}, "crc": SUMS},
        {"rows": {**ROWS, "data_offsets": "06"}, "crc": SUMS},
        {"a": ROWS, "b": ROWS, "crc": SUMS},
        {"a": {**ROWS, "shape": [30], "data_offsets": [0, 30]}, "b": {**ROWS, "data_offsets": [0, 60]}, "crc": SUMS},
        {"a": {**ROWS, "shape": [30], "data_offsets": [30, 60]}, "crc": SUMS},
        {"rows": ROWS, "crc": {**SUMS, "shape": []}},
        {"rows": ROWS, "crc": {**SUMS, "shape": [1, 1]}},
        {"rows": ROWS, "crc": {**SUMS, "shape": [0], "data_offsets": [60, 60]}},
        {"rows": ROWS, "crc": {**SUMS, "dtype": "I32"}},
        {"rows": ROWS, "crc": {**SUMS, "dtype": "F32"}},
        {"rows": {**ROWS, "shape": [63], "data_offsets": [0, 63]}, "crc": {**ROWS, "shape": [1]}},
        {
            "rows": {**ROWS, "shape": [63], "data_offsets": [0, 63]},
            "crc": {**ROWS, "shape": [1], "data_offsets": [63, 64]},
        },
        {"rows": {}, "crc": SUMS},
        {"rows": None, "crc": SUMS},
        {"rows": 5, "crc": SUMS},
        {"rows": "x", "crc": SUMS},
        {"rows": [ROWS], "crc": SUMS},
        {"rows": ROWS, "crc": None},
        {**{f"r{i}": {**ROWS, "shape": [0], "data_offsets": [0, 0]} for i in range(40)}, "rows": ROWS, "crc": SUMS},
    ],
)  # fmt: skip
def test_a_header_that_contradicts_the_file_is_refused(tmp_path: Path, entries: dict[str, Any]) -> None:
    assert "damaged" in refused(sealed(tmp_path / "a", described(**entries), BODY))


@pytest.mark.parametrize("shape", [[], {}, ""])
def test_a_tensor_without_rows_is_refused(tmp_path: Path, shape: object) -> None:
    rows = {"dtype": "U8", "shape": shape, "data_offsets": [0, 1]}
    entries = {"rows": rows, "crc": {**SUMS, "data_offsets": [1, 5]}}
    assert "damaged" in refused(sealed(tmp_path / "a", described(**entries), b"x"))
    entries["rows"] = {**rows, "shape": [1]}
    MemoryFile(sealed(tmp_path / "a", described(**entries), b"x")).close()


@pytest.mark.parametrize("dtype", ["I32", "F32"])
def test_checksums_of_another_type_are_refused(tmp_path: Path, dtype: str) -> None:
    for i in range(256):
        path = sealed(tmp_path / "a", described(rows=ROWS, crc={**SUMS, "dtype": dtype}), bytes([i]) * 60)
        refused(path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b"{",
        b"\xff\xfe" * 100,
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b'{"__metadata__": {}}',
        b'{"__metadata__": 3}',
        b'{"__metadata__": {"infinipot": 3}}',
        b'{"__metadata__": {"infinipot": "3"}}',
        b'{"__metadata__": {"infinipot": "[]"}}',
        b'{"__metadata__": {"infinipot": "{}"}}',
        b'{"__metadata__": {"infinipot": "' + b"[" * 60_000 + b'"}}',
        b'{"__metadata__": {"infinipot": "{\\"format\\": ' + b"[" * 900 + b"]" * 900 + b'}"}}',
        b'{"__metadata__": {"infinipot": "{\\"format\\": ' + b"9" * 5000 + b'}"}}',
        b"[" + b"9" * 60_000 + b"]",
    ],
)
def test_a_header_that_is_no_description_is_refused(tmp_path: Path, header: bytes) -> None:
    assert "not a saved memory" in refused(sealed(tmp_path / "a", header, BODY))


def test_a_header_that_claims_another_length_is_refused(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    for length in (0, 1, 100, HEADER_BYTES - 9, HEADER_BYTES, 2**40, 2**63, 2**64 - 1):
        (tmp_path / "a").write_bytes(length.to_bytes(8, "little") + data[8:])
        assert "not a saved memory" in refused(tmp_path / "a")


NUMBERS = st.one_of(st.integers(-3, 80), st.sampled_from([2**31, 2**63, 2**64, 10**40, 64, 60, 65596]))
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(["U8", "I32", "I64", "U32", "F16", "F32", "F64", "BOOL"]), ANY),
        "shape": st.one_of(st.lists(NUMBERS, max_size=5), ANY),
        "data_offsets": st.one_of(st.lists(NUMBERS, min_size=2, max_size=2), ANY),
    },
)
HEADERS = st.dictionaries(st.sampled_from(["rows", "ids", "pot.origin", "x", "crc"]), st.one_of(ENTRY, ANY), max_size=5)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HEADERS, st.booleans())
def test_no_header_breaks_anything_or_takes_memory(tmp_path: Path, entries: dict[str, Any], closed: bool) -> None:
    if closed:  # with checksums where they belong, so that more of the header counts
        entries = {**{k: v for k, v in entries.items() if k != "crc"}, "crc": SUMS}
    path = sealed(tmp_path / "a", described(**entries), BODY)
    tracemalloc.start()
    try:
        file = MemoryFile(path)
    except MemoryFileError:
        pass
    else:
        for name in entries:
            assert file.rows(name).nbytes <= len(BODY)
        file.close()
    finally:
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken < 8 * path.stat().st_size + 2 * BLOCK_BYTES


def test_opening_takes_a_block_of_memory_whatever_the_size(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "a")
    for _ in range(20):
        draft.write(np.zeros(BLOCK_BYTES, np.uint8))
    draft.end("rows", np.uint8, (20 * BLOCK_BYTES,))
    tracemalloc.start()
    draft.finish({})
    MemoryFile(tmp_path / "a").close()
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 4 * BLOCK_BYTES


def test_a_file_cut_short_while_it_is_open_is_told(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(good.read_bytes())
    file = MemoryFile(path)
    os.truncate(path, HEADER_BYTES + 1000)
    with pytest.raises(MemoryFileError, match="cut short"):
        file.rows("rows")
    with pytest.raises(MemoryFileError, match="changed while it was in use"):
        file.copy_to(tmp_path / "b")
    file.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_too_long_a_description_is_refused(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "a")
    draft.add("rows", TENSORS["rows"])
    with pytest.raises(StoreError, match="too long"):
        draft.finish({"config": "x" * HEADER_BYTES})
    draft.discard()
    assert not list(tmp_path.iterdir())


# --- disks that are full, folders that are not there ---


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
