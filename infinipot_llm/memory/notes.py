"""Entry: one memory of a store, as its file and the JSON note beside it say."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinipot_llm.errors import StoreError
from infinipot_llm.memory.ordinary import open_ordinary
from infinipot_llm.memory.remote import MAX_NOTE_BYTES


@dataclass(frozen=True, slots=True)
class Entry:
    """One memory of the store.

    Attributes:
        key: Its name, 64 hexadecimal digits.
        path: Its file.
        nbytes: Size of the file.
        created: When it was put into this store, in seconds since 1970.
        last_used: When it was last put or got, in seconds since 1970.
        description: What it was put with; empty when that was lost.
    """

    key: str
    path: Path
    nbytes: int
    created: float
    last_used: float
    description: dict[str, Any]


def entry(path: Path, facts: os.stat_result) -> Entry:
    """Return the entry of a memory; a note that says no such thing as a time or a description is not believed.

    Args:
        path: Its file.
        facts: What the system says of the file.
    """
    note = _read(path.with_suffix(".json"))
    created, description = note.get("created", -1), note.get("description")
    used = min(facts.st_mtime_ns, time.time_ns()) / 1e9  # no time in the future, by a clock that was wrong
    return Entry(
        key=path.stem,
        path=path,
        nbytes=facts.st_size,
        created=float(created) if type(created) in (int, float) and 0 <= created < 1e11 else used,
        last_used=used,
        description=description if isinstance(description, dict) else {},
    )


def note_text(description: dict[str, Any]) -> bytes:
    """Return the note of a memory that is put now.

    Args:
        description: Plain JSON on what the memory is.

    Raises:
        StoreError: It is no plain JSON, or too long.
    """
    try:
        if not isinstance(description, dict):
            raise TypeError(f"it is a {type(description).__name__}, not a dict")
        text = json.dumps({"created": time.time(), "description": description}, allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"the memory's description is no plain JSON ({error}): give texts and numbers.") from error
    if len(text) > MAX_NOTE_BYTES:
        raise StoreError(f"the memory's description takes {len(text)} bytes: give at most {MAX_NOTE_BYTES}.")
    return text


def _read(path: Path) -> dict[str, Any]:
    """Return a memory's note, or an empty one if it is missing, damaged or too long."""
    try:
        with open_ordinary(path) as file:
            text = file.read(MAX_NOTE_BYTES + 1)
        note = json.loads(text) if len(text) <= MAX_NOTE_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
