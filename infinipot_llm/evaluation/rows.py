"""Results as JSON lines: each is written whole when it is there, and what is there is not run again.

Rows say how an answer did, never what was asked: the data may be private. A file may hold the rows of several runs;
they are told apart by `settings`, a digest of everything beside arm and case that decides an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from infinipot_llm.errors import StoreError

Row: TypeAlias = dict[str, Any]

IDENTITY = ("arm", "key", "settings")
"""What tells a row from all others: way of answering, case, and digest of the settings."""

OUT_OF_MEMORY = "memory ran out."
"""`refused` of what another day, or with less beside it, may be done: such a row gives way to a later one."""

_BEGINS = b'{"arm": '  # every row does: this tells a torn line of ours from a line of something else


def digest(settings: Mapping[str, Any]) -> str:
    """Return 16 hex digits that stand for settings, plain JSON values, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class Rows:
    """The rows of a file, and those that are added.

    Attributes:
        path: The file; None keeps the rows in memory alone.
        dropped: Bytes of a torn last line, which does not count: a run was killed while it wrote. 0 mostly.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the rows of a file that may not be there yet; it is made, or mended, when the first row is added.

        One run at a time may write to a file.

        Raises:
            StoreError: It is not a file of rows, or cannot be read.
        """
        self.path = path
        self.dropped = 0
        self._rows: dict[tuple[str, ...], Row] = {}
        self._file: int | None = None
        self._unended = False
        if path is not None:
            self._read(path)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, arm: str, key: str, settings: str) -> Row | None:
        """Return the row of an arm and a case under these settings, if it is there."""
        return self._rows.get((arm, key, settings))

    def holds(self, arm: str, key: str, settings: str) -> bool:
        """Whether such a row is there, and need not be made again."""
        row = self.find(arm, key, settings)
        return row is not None and row.get("refused") != OUT_OF_MEMORY

    def of(self, settings: str) -> list[Row]:
        """Return the rows under these settings, in the order in which they were written."""
        return [row for row in self if row["settings"] == settings]

    def add(self, row: Mapping[str, Any]) -> Row:
        """Write a row, and return it as it stands in the file.

        Args:
            row: Plain JSON values; `arm`, `key` and `settings` are strings that no row has together yet, but one of a
                run whose memory ran out.

        Raises:
            StoreError: The file cannot be written.
            ValueError: The row is there already.
        """
        first = {name: row[name] for name in IDENTITY}
        line = json.dumps({**first, **row}, ensure_ascii=True, allow_nan=False).encode() + b"\n"
        written = _row(line)
        if written is None or self.holds(*(where := _identity(written))):
            raise ValueError(f"no row, or one that is there already: {first}")
        if self.path is not None:
            self._append(self.path, line)
        self._rows[where] = written
        return written

    def close(self) -> None:
        """Close the file; more rows open it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror}): give another file.") from error
        *lines, rest = data.split(b"\n")
        if rest and _row(rest) is not None:  # whole, but for its line break
            lines.append(rest)
            self._unended = True
        elif rest and not (rest.startswith(_BEGINS) or _BEGINS.startswith(rest)):
            raise _foreign(path, len(lines) + 1)
        else:
            self.dropped = len(rest)
        for number, line in enumerate(lines, start=1):
            row = _row(line)
            if row is None:
                raise _foreign(path, number)
            if not self.holds(*(where := _identity(row))):
                self._rows[where] = row

    def _append(self, path: Path, line: bytes) -> None:
        """Write a line in one go, so that an interruption leaves whole lines; take it back where the disk is full."""
        try:
            if self._file is None:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                if self.dropped:
                    os.ftruncate(self._file, os.fstat(self._file).st_size - self.dropped)
                    self.dropped = 0
                if self._unended:
                    line = b"\n" + line
                    self._unended = False
            size = os.fstat(self._file).st_size
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, size)
                raise StoreError(f"{path} cannot be written: the disk is full.")
        except OSError as error:
            raise StoreError(f"{path} cannot be written ({error.strerror}): give another place.") from error


def _identity(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in IDENTITY)


def _row(line: bytes) -> Row | None:
    """Return the row in a line, or None where it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in IDENTITY) else None


def _foreign(path: Path, number: int) -> StoreError:
    return StoreError(f"{path} is no file of results (line {number}): give another place, or move that file away.")
