"""MemoryStore: a folder of finished memories, each found by its key, the least recently used given up for room.

A memory appears by a rename alone, so it is there whole or not at all. The folder with its locks, and what becomes of
the leftovers of killed processes, is in folder.py; the note that says what a memory is, in notes.py.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import filelock

from infinipot_llm.errors import StoreError
from infinipot_llm.memory.folder import STORE_VARIABLE, Folder, scratch_files
from infinipot_llm.memory.notes import Entry, entry, note_text
from infinipot_llm.memory.ordinary import is_ordinary, open_ordinary, seal, sync_folder, touch, write_private
from infinipot_llm.memory.remote import RemoteTier

__all__ = ["STORE_VARIABLE", "Entry", "MemoryStore"]

Entries = list[Entry]  # the class below has a method of that name


class _Scratch(NamedTuple):
    """A scratch that is neither put nor discarded: its key, its lock, and the thread that asked for it."""

    key: str
    lock: filelock.BaseFileLock
    thread: int


class MemoryStore:
    """A folder of finished memories that several threads and processes may use at the same time.

    Making a memory once, whoever comes first:

        with store.writing(key):
            path = store.get(key)
            if path is None:
                scratch = store.scratch(key)
                ...  # write the memory to scratch
                path = store.put(key, scratch, {"documents": ["report.pdf"]})

    Attributes:
        folder: Where the memories are; it is made when the first one is written.
        max_bytes: What all memory files together may take.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        max_bytes: float = 20e9,
        remote: str | None = None,
        verify: Callable[[Path], None] | None = None,
    ) -> None:
        """Say where the store is; nothing is touched yet.

        Args:
            folder: The folder; by default INFINIPOT_STORE, else `memories` in the cache folder (INFINIPOT_CACHE).
            max_bytes: What all memory files together may take, in bytes.
            remote: Address of a second store (anything fsspec opens, such as s3://bucket/folder) that is asked for
                memories not in the folder and given every memory that is put.
            verify: Called with a file that came from the remote, before it is taken into the store; raises what the
                reader of a damaged memory file raises.

        Raises:
            StoreError: max_bytes is not above 0, or a ~ in the folder's name stands for nothing.
        """
        if not max_bytes > 0:
            raise StoreError(f"the store's limit is {max_bytes} bytes: give max_bytes above 0.")
        self._place = Folder(folder)
        self.folder = self._place.path
        self.max_bytes = max_bytes
        self._remote = RemoteTier(remote) if remote else None
        self._verify = verify
        self._scratches: dict[Path, _Scratch] = {}

    def __repr__(self) -> str:
        remote = f", remote {self._remote.address}" if self._remote else ""
        return f"MemoryStore({str(self.folder)!r}, up to {_size(self.max_bytes)}{remote})"

    def __contains__(self, key: object) -> bool:
        """Say whether the folder has the memory; the remote is not asked, and nothing counts as used."""
        try:
            path = self._place.memory(key)
        except StoreError:
            return False
        return self._place.ready() and is_ordinary(path)

    def get(self, key: str) -> Path | None:
        """Return the file of a memory, which counts as used now, or None.

        Another process may evict the memory at any later moment: open the file at once and take FileNotFoundError for
        absence, or use `open`. A file that is open or mapped stays whole.

        Args:
            key: Name of the memory.

        Raises:
            StoreError: The key is none, the folder is not ours, or the remote fails or holds a damaged memory.
        """
        path = self._place.memory(key)
        if self._place.ready() and is_ordinary(path):
            with contextlib.suppress(OSError):  # a read-only disk: all that is lost is the time of use
                touch(path)
            if is_ordinary(path):  # not evicted this moment
                return path
        return self._get_remote(self._remote, key) if self._remote else None

    def open(self, key: str) -> BinaryIO | None:
        """Open a memory for reading, as `get` does; what is open stays whole, whatever becomes of its name.

        Args:
            key: Name of the memory.

        Raises:
            StoreError: As `get`, or the file cannot be opened.
        """
        path = self.get(key)
        with self._place.sentences():
            return _open(path) if path else None

    @contextlib.contextmanager
    def writing(
        self,
        key: str,
        *,
        on_wait: Callable[[], None] | None = None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Iterator[None]:
        """Be the only thread of all processes that makes this memory.

        Others wait here, and find it with `get` afterwards. The lock of a killed process is free. A thread that has
        the lock may ask for it again. Scratches that the thread has taken for the key and not put are discarded at
        the end.

        Args:
            key: Name of the memory.
            on_wait: Called once if another is making it.
            while_waiting: Called again and again as long as another is making it; what it raises ends the waiting.

        Raises:
            StoreError: The folder cannot be used, or the disk is full, here or within the block.
        """
        self._place.memory(key)
        self._place.ready(create=True)
        mine = (key, threading.get_ident())
        with self._place.turn(key, on_wait, while_waiting) as begins, self._place.sentences(only_full=True):
            try:
                yield
            finally:
                for path in [p for p, s in list(self._scratches.items()) if begins and (s.key, s.thread) == mine]:
                    self.discard(path)

    def scratch(self, key: str) -> Path:
        """Return a path in the store, of no file yet, to write a memory to.

        It is put, or discarded, or cleaned away by the next process that writes or lists when this one is gone.

        Args:
            key: Name of the memory that is written.

        Raises:
            StoreError: The key is none, or the folder cannot be used.
        """
        self._place.memory(key)
        self._place.ready(create=True)
        path, lock = self._place.scratch(key)
        self._scratches[path] = _Scratch(key, lock, threading.get_ident())
        return path

    def discard(self, scratch: Path) -> None:
        """Remove a scratch that will not be put; nothing happens if it was put or discarded before.

        Args:
            scratch: What `scratch` returned.
        """
        if taken := self._scratches.pop(scratch, None):
            self._place.drop(taken.lock, *scratch_files(scratch))

    def put(self, key: str, finished: Path, description: dict[str, Any]) -> Path:
        """Take a memory that was written to a scratch into the store, and give it to the remote.

        The least recently used others are evicted for it. On Windows one that is open stays until next time.

        Args:
            key: Name of the memory.
            finished: Its scratch, written to its end; it is gone afterwards, whatever happens.
            description: Plain JSON on what the memory is, up to 64 KiB.

        Returns:
            The memory's file.

        Raises:
            StoreError: The memory is larger than the store may be, the disk is full, the description is no JSON, or
                the path is no scratch of this store: the store is as it was. Or the remote fails: then the memory
                is in the folder.
        """
        target = self._place.memory(key)
        if finished not in self._scratches or self._scratches[finished].key != key:
            raise StoreError(f"{finished} is no scratch for this memory: write to the path that scratch(key) returns.")
        try:
            self._place.ready(create=True)
            with self._place.sentences():
                self._install(target, finished, description)
        finally:
            self.discard(finished)
        # Another process may have evicted or removed it already: then there is nothing to give.
        if self._remote and (file := _open(target)):
            with file:
                self._remote.upload(key, file, description)
        return target

    def list(self) -> Entries:
        """Return the memories in the folder, the most recently used first.

        Raises:
            StoreError: The folder is not ours or cannot be read.
        """
        if not self._place.ready():
            return []
        with self._place.sentences():
            if self._place.leftovers():
                with contextlib.suppress(OSError), self._place.names():  # on a read-only disk they stay
                    self._place.clean()
            return [entry(path, facts) for path, facts in self._place.memories()]

    def total_bytes(self) -> int:
        """Return the size of all memory files together, in bytes."""
        if not self._place.ready():
            return 0
        with self._place.sentences():
            return sum(facts.st_size for _, facts in self._place.memories())

    def free_bytes(self) -> int:
        """Return what the disk of the store has room for, in bytes: a check before a memory is made."""
        with self._place.sentences():
            place = next(p for p in (self.folder, *self.folder.parents) if p.exists())
            return shutil.disk_usage(place).free

    def remove(self, key: str) -> bool:
        """Remove a memory from the folder, not from the remote, and say whether it was there.

        Args:
            key: Name of the memory.

        Raises:
            StoreError: The key is none, or the file cannot be removed.
        """
        path = self._place.memory(key)
        if not self._place.ready():
            return False
        with self._place.sentences(), self._place.names():
            return self._place.remove(path)

    def clear(self) -> int:
        """Remove every memory from the folder, not from the remote, and say how many there were.

        Raises:
            StoreError: A file cannot be removed.
        """
        if not self._place.ready():
            return 0
        with self._place.sentences(), self._place.names():
            self._place.clean()
            return sum(self._place.remove(path) for path, _ in self._place.memories())

    def check_size(self, nbytes: int) -> None:
        """Refuse a memory that the store could not take, whatever it evicted: before it is made, and when it is put.

        Raises:
            StoreError: It is larger than the store may be.
        """
        if nbytes > self.max_bytes:
            raise StoreError(
                f"the memory takes {_size(nbytes)} but the store may take {_size(self.max_bytes)} in all: raise the "
                f"store's limit (max_bytes) to {nbytes} or more."
            )

    def _install(self, target: Path, finished: Path, description: dict[str, Any]) -> None:
        """Make a scratch durable and room for it, then give it its name."""
        text = note_text(description)
        nbytes = seal(finished)
        self.check_size(nbytes)
        note = scratch_files(finished)[0]
        write_private(note, text)
        with self._place.names():
            self._place.clean()
            others = [(path, facts.st_size) for path, facts in self._place.memories() if path != target]
            total = nbytes + sum(size for _, size in others)
            while others and total > self.max_bytes:
                path, size = others.pop()
                with contextlib.suppress(PermissionError):  # Windows: somebody reads it, it stays this time
                    self._place.remove(path)
                    total -= size
            touch(finished)
            # The note first: a kill between the two leaves a note without memory, which is cleaned away.
            note.replace(target.with_suffix(".json"))
            finished.replace(target)
        sync_folder(self.folder)

    def _get_remote(self, remote: RemoteTier, key: str) -> Path | None:
        """Bring a memory from the remote into the folder; one process does it and the others wait."""
        manifest = remote.manifest(key)
        if manifest is None:
            return None
        target = self._place.memory(key)
        with self.writing(key), self._place.sentences():
            if is_ordinary(target):  # by the process that was waited for
                return target
            self.check_size(manifest.nbytes)
            if manifest.nbytes > self.free_bytes():
                raise OSError(errno.ENOSPC, f"{_size(manifest.nbytes)} would come from the remote")
            scratch = self.scratch(key)
            try:
                remote.download(manifest, scratch, self._verify)
                self._install(target, scratch, manifest.description)
            finally:
                self.discard(scratch)
        return target


def _open(path: Path) -> BinaryIO | None:
    """Open a memory, or return None if it is evicted this moment."""
    try:
        return open_ordinary(path)
    except FileNotFoundError:
        return None


def _size(nbytes: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes:.0f} bytes"
