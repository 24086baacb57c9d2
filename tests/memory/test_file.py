"""The file of a memory: what was written comes back, and every damaged byte is noticed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from file_samples import ABOUT, TENSORS, refused, sealed, write
from file_samples import good as good
from safetensors.numpy import load_file, save_file

from infinipot_llm.errors import MemoryFileError, StoreError
from infinipot_llm.memory import file as module
from infinipot_llm.memory.file import BLOCK_BYTES, FORMAT, HEADER_BYTES, Draft, MemoryFile, begins_like_a_memory


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
