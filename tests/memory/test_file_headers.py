"""The file of a memory: nothing in a stranger's header is believed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_samples import good as good
from file_samples import refused, sealed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinipot_llm.errors import MemoryFileError
from infinipot_llm.memory.file import BLOCK_BYTES, FORMAT, HEADER_BYTES, Draft, MemoryFile


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
