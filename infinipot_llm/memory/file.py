"""The file of a memory: one safetensors file, written front to back, checked whole before anything in it is used.

    8 bytes   length of the header
    header    JSON: name -> dtype, shape, offsets; under __metadata__ the memory's own description; padded with blanks
    tensors   back to back, in the order in which they were written
    crc       the last tensor: a CRC-32 of every MiB before it

Any safetensors reader can open it. The header's room is set aside before its content is known, so that the shelf is
written while a document is being read. CRCs guard against damage, not against forgery; a stranger's file can be wrong,
but nothing in it is run, and no size in it is believed before it was compared with the file's own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from infinipot_llm.errors import MemoryFileError, StoreError

FORMAT = 2
HEADER_BYTES = 64 * 1024
"""Room of the header with its length; the data behind it are aligned to pages."""

BLOCK_BYTES = 1024 * 1024
"""Bytes that share a checksum."""

MOST_TENSORS = 32
CRC = "crc"
_TYPES: dict[str, type[Any]] = {
    "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I32": np.int32, "I64": np.int64, "F16": np.float16,
    "F32": np.float32,
}  # fmt: skip
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}


class Tensors:
    """Tensors in a file, read row by row."""

    path: Path
    _file: IO[bytes]

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()  # a seek and a read belong together

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read the rows start .. stop - 1 of a tensor, one sequential read.

        Raises:
            MemoryFileError: The tensor is not there, or the file was cut short while it was open.
        """
        entry = self._entry(name)
        dtype, shape = np.dtype(_TYPES[entry["dtype"]]), entry["shape"]
        stop = shape[0] if stop is None else min(stop, shape[0])
        count = max(0, stop - start)
        stride = prod(shape[1:]) * dtype.itemsize
        data = bytearray(count * stride)
        try:
            got = self._fill(memoryview(data), HEADER_BYTES + entry["data_offsets"][0] + start * stride)
        except OSError as error:
            raise MemoryFileError(
                f"{self.path.name} cannot be read ({error.strerror}): read the document again."
            ) from error
        if got < len(data):
            raise MemoryFileError(f"{self.path.name} was cut short while it was in use: read the document again.")
        return np.frombuffer(data, dtype).reshape(count, *shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    def _fill(self, view: memoryview, offset: int) -> int:
        with self._lock:
            return _fill(self._file, view, offset)

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._entries:
            raise MemoryFileError(f"{self.path.name} holds no {name}: it is incomplete, read the document again.")
        return self._entries[name]


class Draft(Tensors):
    """A memory file being written; nobody can open it before `finish`.

    Attributes:
        path: Where it is written; for the caller to move into place, or to remove.
    """

    def __init__(self, path: Path) -> None:
        """Create the file, readable by its owner only.

        Raises:
            StoreError: The file cannot be created.
        """
        super().__init__()
        self.path = path
        with full_disk_told(path):
            self._file: IO[bytes] = os.fdopen(
                os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _BINARY, 0o600), "r+b"
            )
            try:
                self._file.truncate(HEADER_BYTES)
            except BaseException:
                self.discard()
                raise
        self._begun: int | None = None

    def write(self, data: NDArray[Any]) -> None:
        """Append rows of the tensor that `end` will name."""
        with full_disk_told(self.path):
            self._file.seek(0, os.SEEK_END)  # rows may have been read back in between
            if self._begun is None:
                self._begun = self._file.tell()
            self._file.write(np.ascontiguousarray(data).data)

    def end(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        """Name what was written since the last tensor ended."""
        with full_disk_told(self.path):  # a seek writes out what was held back
            reached = self._file.seek(0, os.SEEK_END)
        begun = reached if self._begun is None else self._begun
        size = reached - begun
        if size != prod(shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"{name}: {size} bytes were written, which is not {dtype} {shape}")
        offsets = [begun - HEADER_BYTES, begun - HEADER_BYTES + size]
        self._entries[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": offsets}
        self._begun = None

    def add(self, name: str, data: NDArray[Any]) -> None:
        """Append a whole tensor."""
        self.write(data)
        self.end(name, data.dtype, data.shape)

    def finish(self, about: dict[str, Any]) -> None:
        """Write header and checksums, and make the file last.

        Args:
            about: The memory's description, plain JSON.
        """
        with full_disk_told(self.path):
            size = self._file.seek(0, os.SEEK_END)
        blocks = -(-size // BLOCK_BYTES)
        offsets = [size - HEADER_BYTES, size - HEADER_BYTES + 4 * blocks]
        self._entries[CRC] = {"dtype": "U32", "shape": [blocks], "data_offsets": offsets}
        described = {"infinipot": json.dumps({**about, "format": FORMAT})}
        header = json.dumps({"__metadata__": described, **self._entries}).encode()
        if len(header) > HEADER_BYTES - 8:
            raise StoreError("the description of this memory is too long to be saved: read fewer documents at once.")
        with full_disk_told(self.path):
            self._file.seek(0)
            self._file.write((HEADER_BYTES - 8).to_bytes(8, "little") + header.ljust(HEADER_BYTES - 8))
            self._file.flush()
            found = np.fromiter(_checksums(self._file, size), np.uint32, blocks)
            self._file.seek(size)
            self._file.write(found.data)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # a full disk: closing writes out what was held back
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


class MemoryFile(Tensors):
    """A finished file, opened and checked; it can be moved or unlinked (not on Windows) while it is open.

    Attributes:
        path: Where it was opened.
        about: The memory's description.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and verify every byte of it.

        Raises:
            MemoryFileError: It is missing, no memory, of another format version, truncated or damaged.
        """
        super().__init__()
        self.path = path
        try:
            self._file: IO[bytes] = path.open("rb", buffering=0)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            why = getattr(error, "strerror", None) or error
            raise MemoryFileError(f"{path.name} cannot be opened ({why}): check the path.") from error
        try:
            self.about, self._entries = _header(self._file, path.name)
            self._verify()
        except OSError as error:  # a pipe, or a disk that fails
            self._file.close()
            raise MemoryFileError(f"{path.name} cannot be read ({error.strerror}): check the path.") from error
        except BaseException:
            self._file.close()
            raise
        weakref.finalize(self, self._file.close)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._entry(name)["shape"])

    def expect(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        """Refuse a tensor that is not of this dtype and shape.

        Raises:
            MemoryFileError: It is not.
        """
        if _TYPES[self._entry(name)["dtype"]] is not dtype or self.shape(name) != shape:
            raise MemoryFileError(f"{self.path.name} contradicts itself ({name}): read the document again.")

    def copy_to(self, target: Path) -> None:
        """Copy the file, atomically: the target is whole, or what it was before.

        Raises:
            StoreError: The target cannot be written.
            MemoryFileError: The file was cut short while it was open.
        """
        fresh = beside(target)
        whole = HEADER_BYTES + self._entry(CRC)["data_offsets"][1]
        try:
            with full_disk_told(target), os.fdopen(os.open(fresh, _CREATE, 0o600), "wb") as out:
                block, offset = memoryview(bytearray(8 * BLOCK_BYTES)), 0
                while got := self._fill(block, offset):
                    out.write(block[:got])
                    offset += got
                if offset != whole:
                    raise MemoryFileError(f"{self.path.name} was changed while it was in use: read the document again.")
                out.flush()
                os.fsync(out.fileno())
            with full_disk_told(target):
                fresh.replace(target)
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _verify(self) -> None:
        """Compare every block with its checksum."""
        begin = self._entry(CRC)["data_offsets"][0] + HEADER_BYTES
        noted = self.rows(CRC)
        for number, found in enumerate(_checksums(self._file, begin)):
            if found != noted[number]:
                raise MemoryFileError(
                    f"{self.path.name} is damaged (block {number} of {len(noted)}): delete it and read the document "
                    "again."
                )


def beside(target: Path) -> Path:
    """Return the name under which a file is written before it takes the place of `target`.

    Raises:
        StoreError: The target is no name of a file.
    """
    if not target.name or "\0" in str(target):
        raise StoreError(f"{str(target)!r} is no name of a file: give one, for example book.infinipot.")
    return target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")


def begins_like_a_memory(path: Path) -> bool:
    """Tell whether a file begins like a memory; False for one that is not there, and for pipes, which are read once."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(64)
    except (OSError, ValueError):
        return False
    return start[:8] == (HEADER_BYTES - 8).to_bytes(8, "little") and start[8:].startswith(b'{"__metadata__"')


def _fill(file: IO[bytes], view: memoryview, offset: int) -> int:
    """Read into `view` from an offset; returns the bytes read, fewer at the end of the file only."""
    file.seek(offset)
    done = 0
    while done < len(view) and (got := file.readinto(view[done:])):  # type: ignore[attr-defined]
        done += got
    return done


def _checksums(file: IO[bytes], size: int) -> Iterator[int]:
    """Yield the CRC-32 of every block of the first `size` bytes."""
    block = memoryview(bytearray(BLOCK_BYTES))
    for offset in range(0, size, BLOCK_BYTES):
        got = _fill(file, block[: min(BLOCK_BYTES, size - offset)], offset)
        yield zlib.crc32(block[:got])


def _header(file: IO[bytes], name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Read and check the header: nothing in it may disagree with the file's size."""
    no_memory = MemoryFileError(f"{name} is not a saved memory: give a file that `infinipot read` wrote.")
    size = os.fstat(file.fileno()).st_size
    start = bytearray(HEADER_BYTES)
    if _fill(file, memoryview(start), 0) < HEADER_BYTES or int.from_bytes(start[:8], "little") != HEADER_BYTES - 8:
        raise no_memory
    try:
        header = json.loads(start[8:])
        about = json.loads(header.pop("__metadata__")["infinipot"])
        version = about["format"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise no_memory from error
    if type(version) is not int:
        raise no_memory
    if version != FORMAT:
        raise MemoryFileError(
            f"{name} has format {version!r:.20} and this version reads {FORMAT}: read the document again."
        )
    damaged = MemoryFileError(f"{name} is damaged or cut short (its header does not fit its size): read it again.")
    if not 1 <= len(header) <= MOST_TENSORS:
        raise damaged
    reached = 0
    for entry in header.values():  # in the order written, so without holes and overlaps
        try:
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            numbers = [*shape, begin, end]
            rank = len(shape) if type(shape) is list else 0
            itemsize = np.dtype(_TYPES[entry["dtype"]]).itemsize
        except (ValueError, KeyError, TypeError) as error:
            raise damaged from error
        if not all(type(x) is int and 0 <= x <= size for x in numbers) or not 1 <= rank <= 4:
            raise damaged
        if begin != reached or end - begin != prod(shape) * itemsize:
            raise damaged
        reached = end
    if reached + HEADER_BYTES != size or list(header)[-1] != CRC or header[CRC]["dtype"] != "U32":
        raise damaged
    blocks = -(-(HEADER_BYTES + header[CRC]["data_offsets"][0]) // BLOCK_BYTES)
    if header[CRC]["shape"] != [blocks]:
        raise damaged
    return about, header


_BINARY = getattr(os, "O_BINARY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing into a sentence.

    Raises:
        StoreError: Anything could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"the disk of {path.parent} is full: make room, or give another place.") from error
        raise StoreError(f"{path} cannot be written ({error.strerror}): give another place.") from error
