"""A store of memories in a folder, and what is put into it."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest

from infinipot_llm.memory.store import MemoryStore

DESCRIPTION: dict[str, Any] = {"documents": ["réport \udc80.pdf"], "tokens": 14133, "model": "qwen2"}
posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners of POSIX")


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def put(store: MemoryStore, number: int, data: bytes | int, description: dict[str, Any] | None = None) -> Path:
    scratch = store.scratch(key(number))
    scratch.write_bytes(data if isinstance(data, bytes) else bytes(data))
    return store.put(key(number), scratch, description or {})


def names(store: MemoryStore) -> set[str]:
    """Everything in the folder but its lock."""
    return {path.name for path in store.folder.iterdir()} - {".lock"}


def both(number: int) -> set[str]:
    return {f"{key(number)}.infinipot", f"{key(number)}.json"}


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "a" / "store", max_bytes=1000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(1_700_000_000_000_000_000, 1_000_000)
    monkeypatch.setattr(time, "time_ns", lambda: next(ticks))
