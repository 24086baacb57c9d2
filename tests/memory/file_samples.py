"""A small file of a memory, and files that are damaged in every way."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infinipot_llm.errors import MemoryFileError
from infinipot_llm.memory.file import BLOCK_BYTES, HEADER_BYTES, Draft, MemoryFile

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
