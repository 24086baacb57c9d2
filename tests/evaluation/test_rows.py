"""Rows: whole lines whatever happens, and nothing is run or written twice."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinipot_llm.errors import StoreError
from infinipot_llm.evaluation.rows import OUT_OF_MEMORY, Rows, digest


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"arm": "full", "key": f"case {number}", "settings": "0123", "score": 0.5, **more}


def written(path: Path, count: int) -> bytes:
    with Rows(path) as rows:
        for number in range(count):
            rows.add(row(number))
    return path.read_bytes()


def test_what_was_written_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Rows(path) as rows:
        assert not path.exists(), "a file is made by its first row"
        rows.add(row(1, key="ключ", facts={"depth": 50}))
        assert len(path.read_bytes().splitlines()) == 1, "a row is there at once"
        rows.add({"score": 1.0, "key": "b", "settings": "0123", "arm": "full"})
    again = Rows(path)
    assert again.find("full", "ключ", "0123") == row(1, key="ключ", facts={"depth": 50})
    assert again.find("full", "ключ", "other") is None
    assert again.find("streaming", "b", "0123") is None
    assert [r["key"] for r in again.of("0123")] == ["ключ", "b"]
    with pytest.raises(ValueError, match="already"):
        again.add(row(1, key="ключ", score=0.0))
    again.add(row(1, settings="4567"))
    assert (len(again), len(again.of("0123")), len(Rows(path))) == (3, 2, 3)


def test_a_row_whose_memory_ran_out_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    refused = {"arm": "full", "key": "case 1", "settings": "0123", "refused": OUT_OF_MEMORY}
    with Rows(path) as rows:
        for _ in range(2):
            rows.add(refused)
            assert rows.find("full", "case 1", "0123") == refused
            assert not rows.holds("full", "case 1", "0123")
        rows.add(row(1))
        assert rows.holds("full", "case 1", "0123")
        with pytest.raises(ValueError, match="already"):
            rows.add(refused)
    with path.open("a") as file:
        file.write(json.dumps(refused) + "\n")
    assert list(Rows(path)) == [row(1)]


def test_rows_in_memory_alone() -> None:
    rows = Rows(None)
    rows.add(row(1))
    assert len(rows) == 1


@given(cut=st.integers(0, 400))
def test_a_torn_last_line_is_dropped_and_said(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "rows.jsonl"
    data = written(path, 4)
    cut = min(cut, len(data))
    path.write_bytes(data[:cut])
    whole = [line for line in data[:cut].split(b"\n") if line.endswith(b"}")]
    rows = Rows(path)
    assert len(rows) == len(whole)
    assert (rows.dropped > 0) == (data[:cut].rpartition(b"\n")[2] not in (b"", data.split(b"\n")[0], *whole))
    assert path.read_bytes() == data[:cut], "looking changes nothing"
    rows.add(row(9))
    rows.close()
    lines = path.read_bytes().decode().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [json.loads(line)["key"] for line in whole] + ["case 9"]
    assert Rows(path).dropped == 0


@pytest.mark.parametrize(
    "content",
    [
        b"a letter\n",
        b"a letter",
        b"[1, 2]\n",
        b'{"arm": "full", "key": "x"}\n',
        b'{"arm": "full", "key": 3, "settings": "0123"}\n',
        b"\xff\xfe\x00",
        b"\x00\x00\x00\x00",
        b"\n\n",
        b"[" * 100_000 + b"\n",
        b'{"arm": "full", "ke\n{"arm": "full", "key": "x", "settings": "y"}\n',
    ],
)
def test_a_file_of_something_else_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="no file of results") as refused:
        Rows(path)
    assert "line 1" in str(refused.value)
    assert path.read_bytes() == content


def test_an_empty_file_is_no_obstacle_and_a_folder_is(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert len(Rows(tmp_path / "empty")) == 0
    with pytest.raises(StoreError, match="cannot be read"):
        Rows(tmp_path)
    with pytest.raises(StoreError, match="cannot be written"):
        Rows(tmp_path / "no" / "folder").add(row(1))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    rows.add(row(1))
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:20]))
    with pytest.raises(StoreError, match="disk is full"):
        rows.add(row(2))

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        rows.add(row(2))
    monkeypatch.undo()
    rows.add(row(2))
    assert [r["key"] for r in Rows(path)] == ["case 1", "case 2"]


def test_what_is_no_row_is_not_written(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    for wrong in (row(1, score=float("nan")), row(1, key=7)):
        with pytest.raises(ValueError, match=r"no row|not JSON compliant"):
            rows.add(wrong)
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_digest_is_of_values_and_not_of_their_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
