"""MemoryStore: a folder of finished memories, each found by its key, the least recently used given up for room.

In the folder a memory is `<key>.infinipot`, and `<key>.json` beside it says what it is. A memory appears by a rename
alone, so it is there whole or not at all. `.lock` is held for moments, around everything that changes names;
`<key>.lock` is held by whoever is making that memory, and `<key>.<token>.part` is what they write, locked by them for
as long as they live. The system frees the locks of a process that was killed: that is how its leftovers are known.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from infinipot_llm.errors import StoreError
from infinipot_llm.memory.remote import MAX_NOTE_BYTES, RemoteTier
from infinipot_llm.models.catalogue import cache_dir

STORE_VARIABLE = "INFINIPOT_STORE"
SUFFIX = ".infinipot"

Verify = Callable[[Path], None]

_KEY = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"(?P<key>[0-9a-f]{64})(?P<part>\.[0-9a-f]{16}\.part)?(?P<kind>\.infinipot|\.json|\.lock)?")
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_POLL_S = 0.05
_POSIX = os.name == "posix"

# Locks of keys that a thread holds: what it asks for again it has.
_MINE = threading.local()


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


Entries = list[Entry]  # the class below has a method of that name


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
        verify: Verify | None = None,
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
        self.folder = _chosen_folder(folder)
        self.max_bytes = max_bytes
        self._remote = RemoteTier(remote) if remote else None
        self._verify = verify
        self._scratches: dict[Path, tuple[filelock.BaseFileLock, int]] = {}  # with the thread that asked for it

    def __repr__(self) -> str:
        remote = f", remote {self._remote.address}" if self._remote else ""
        return f"MemoryStore({str(self.folder)!r}, up to {_size(self.max_bytes)}{remote})"

    def __contains__(self, key: object) -> bool:
        """Say whether the folder has the memory; the remote is not asked, and nothing counts as used."""
        if not isinstance(key, str) or not _KEY.fullmatch(key) or not self._ready():
            return False
        return _regular(self._path(key)) is not None

    def get(self, key: str) -> Path | None:
        """Return the file of a memory, which counts as used now, or None.

        Another process may evict the memory at any later moment: open the file at once and take FileNotFoundError for
        absence, or use `open`. A file that is open or mapped stays whole.

        Args:
            key: Name of the memory.

        Raises:
            StoreError: The key is none, the folder is not ours, or the remote fails or holds a damaged memory.
        """
        path = self._path(key)
        if self._ready() and _regular(path) is not None:
            try:
                _touch(path)
            except FileNotFoundError:
                pass  # evicted this moment: absent
            except OSError:
                return path  # a read-only disk: all that is lost is the time of use
            else:
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
        if path is None:
            return None
        try:
            return os.fdopen(_open_regular(path), "rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error

    @contextlib.contextmanager
    def writing(self, key: str, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Be the only thread of all processes that makes this memory.

        Others wait here, and find it with `get` afterwards. The lock of a killed process is free. A thread that has
        the lock may ask for it again. Scratches that the thread has taken for the key and not put are discarded at
        the end.

        Args:
            key: Name of the memory.
            on_wait: Called once if another is making it.

        Raises:
            StoreError: The folder cannot be used, or the disk is full, here or within the block.
        """
        self._path(key)
        self._ready(create=True)
        path = self.folder / f"{key}.lock"
        if path in _mine():
            yield
            return
        with self._sentences():
            lock = self._wait_for(path, on_wait)
        _mine().add(path)
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self._unusable(error) from error
            raise
        finally:
            _mine().discard(path)
            try:
                me = threading.get_ident()
                for scratch in [p for p, (_, thread) in self._scratches.items() if thread == me and _key_of(p) == key]:
                    self.discard(scratch)
                with contextlib.suppress(OSError), self._names():
                    path.unlink(missing_ok=True)
                    lock.release()
            finally:
                lock.release(force=True)

    def scratch(self, key: str) -> Path:
        """Return a path in the store, of no file yet, to write a memory to.

        It is put, or discarded, or cleaned away by the next process that writes or lists when this one is gone.

        Args:
            key: Name of the memory that is written.

        Raises:
            StoreError: The key is none, or the folder cannot be used.
        """
        self._path(key)
        self._ready(create=True)
        path = self.folder / f"{key}.{secrets.token_hex(8)}.part"
        lock = filelock.FileLock(_beside(path, ".lock"), mode=0o600, thread_local=False)
        with self._sentences(), self._names():
            self._clean(self._files())
            lock.acquire(timeout=0)
            self._scratches[path] = (lock, threading.get_ident())
        return path

    def discard(self, scratch: Path) -> None:
        """Remove a scratch that will not be put; nothing happens if it was put or discarded before.

        Args:
            scratch: What `scratch` returned.
        """
        lock, _ = self._scratches.pop(scratch, (None, 0))
        if lock is None:
            return
        try:
            with contextlib.suppress(OSError), self._names():
                for path in (_beside(scratch, ".json"), scratch, _beside(scratch, ".lock")):
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
                lock.release()
        finally:
            lock.release(force=True)

    def put(self, key: str, finished: Path, description: dict[str, Any]) -> Path:
        """Take a memory that was written to a scratch into the store, and give it to the remote.

        The least recently used others are evicted for it. On Windows one that is open stays until next time.

        Args:
            key: Name of the memory.
            finished: Its scratch, closed; it is gone afterwards, whatever happens.
            description: Plain JSON on what the memory is, up to 64 KiB.

        Returns:
            The memory's file.

        Raises:
            StoreError: The memory is larger than the store may be, the disk is full, the description is no JSON, or
                the path is no scratch of this store: the store is as it was. Or the remote fails: then the memory
                is in the folder.
        """
        target = self._path(key)
        if finished not in self._scratches or _key_of(finished) != key:
            raise StoreError(f"{finished} is no scratch for this memory: write to the path that scratch(key) returns.")
        try:
            self._ready(create=True)
            with self._sentences():
                self._install(target, finished, description)
        finally:
            self.discard(finished)
        if self._remote:
            try:
                handle = os.fdopen(_open_regular(target), "rb")
            except FileNotFoundError:
                return target  # another process has evicted or removed it already: there is nothing to give
            with handle:
                self._remote.upload(key, handle, description)
        return target

    def list(self) -> Entries:
        """Return the memories in the folder, the most recently used first.

        Raises:
            StoreError: The folder is not ours or cannot be read.
        """
        if not self._ready():
            return []
        with self._sentences():
            files = self._files()
            if _leftovers(files):
                with contextlib.suppress(OSError), self._names():  # on a read-only disk they stay
                    self._clean(self._files())
            return self._entries(files)

    def total_bytes(self) -> int:
        """Return the size of all memory files together, in bytes."""
        if not self._ready():
            return 0
        with self._sentences():
            return sum(found.st_size for name, found in self._files().items() if _is_memory(name))

    def free_bytes(self) -> int:
        """Return what the disk of the store has room for, in bytes: a check before a memory is made."""
        with self._sentences():
            place = next(p for p in (self.folder, *self.folder.parents) if p.exists())
            return shutil.disk_usage(place).free

    def remove(self, key: str) -> bool:
        """Remove a memory from the folder, not from the remote, and say whether it was there.

        Args:
            key: Name of the memory.

        Raises:
            StoreError: The key is none, or the file cannot be removed.
        """
        path = self._path(key)
        if not self._ready():
            return False
        with self._sentences(), self._names():
            return self._remove(path)

    def clear(self) -> int:
        """Remove every memory from the folder, not from the remote, and say how many there were.

        Raises:
            StoreError: A file cannot be removed.
        """
        if not self._ready():
            return 0
        with self._sentences(), self._names():
            self._clean(self._files())
            return sum(self._remove(self.folder / name) for name in self._files() if _is_memory(name))

    def _path(self, key: str) -> Path:
        """Return the file of a key, which is checked here before it comes near any path."""
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise StoreError(f"{key!r:.80} is no key of a memory: keys are 64 digits of 0-9 and a-f.")
        return self.folder / f"{key}{SUFFIX}"

    def _ready(self, *, create: bool = False) -> bool:
        """Say whether the folder is there; refuse one that others own or may write to."""
        try:
            if create and not os.path.lexists(self.folder):
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError):  # another process was faster
                    self.folder.mkdir(mode=0o700)
                    self.folder.chmod(0o700)  # a umask may have taken bits away
            problem = _folder_problem(self.folder)
        except FileNotFoundError as error:
            if create:
                raise self._unusable(error) from error
            return False
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error
        if problem:
            raise StoreError(f"the store's folder {self.folder} {problem}, or set {STORE_VARIABLE} to another folder.")
        return True

    @contextlib.contextmanager
    def _names(self) -> Iterator[None]:
        """Hold the lock of the folder: names change, and key and scratch locks are taken and removed, only under it."""
        with filelock.FileLock(self.folder / ".lock", mode=0o600).acquire(poll_interval=_POLL_S / 10):
            yield

    def _wait_for(self, path: Path, on_wait: Callable[[], None] | None) -> filelock.BaseFileLock:
        """Take the lock of a key; between the attempts, Ctrl-C is heard."""
        lock = filelock.FileLock(path, mode=0o600, thread_local=False)
        while True:
            # Under the folder's lock, because a lock file that is opened while another removes it would lock nothing.
            with self._names():
                if _take(lock):
                    return lock
            if on_wait:
                on_wait()
                on_wait = None
            time.sleep(_POLL_S)

    def _install(self, target: Path, finished: Path, description: dict[str, Any]) -> None:
        """Make a scratch durable, then give it its name."""
        text = _note_text(description)
        nbytes = _seal(finished)
        if nbytes > self.max_bytes:
            raise self._too_large(nbytes)
        note = _beside(finished, ".json")
        _write_private(note, text)
        with self._names():
            files = self._files()
            self._clean(files)
            others = [entry for entry in self._entries(files, notes=False) if entry.path != target]
            total = sum(entry.nbytes for entry in others)
            for entry in reversed(others):
                if total + nbytes <= self.max_bytes:
                    break
                with contextlib.suppress(PermissionError):  # Windows: somebody reads it, it stays this time
                    total -= entry.nbytes * self._remove(entry.path)
            _touch(finished)
            # The note first: a kill between the two leaves a note without memory, which is cleaned away.
            note.replace(target.with_suffix(".json"))
            finished.replace(target)
        _sync_folder(self.folder)

    def _get_remote(self, remote: RemoteTier, key: str) -> Path | None:
        """Bring a memory from the remote into the folder; one process does it and the others wait."""
        manifest = remote.manifest(key)
        if manifest is None:
            return None
        target = self._path(key)
        with self.writing(key):
            if _regular(target) is not None:  # by the process that was waited for
                return target
            if manifest.nbytes > self.max_bytes:
                raise self._too_large(manifest.nbytes)
            if manifest.nbytes > self.free_bytes():
                raise self._unusable(OSError(errno.ENOSPC, f"{_size(manifest.nbytes)} would come from the remote"))
            scratch = self.scratch(key)
            try:
                with self._sentences():
                    remote.download(manifest, scratch, self._verify)
                    self._install(target, scratch, manifest.description)
            finally:
                self.discard(scratch)
        return target

    def _files(self) -> dict[str, os.stat_result]:
        """Return the ordinary files of the folder by name; links, and whatever else, are not looked at."""
        found = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode):
                        found[entry.name] = facts
        return found

    def _entries(self, files: dict[str, os.stat_result], *, notes: bool = True) -> Entries:
        """Return the memories among the files, the most recently used first."""
        found = []
        for name, facts in files.items():
            if _is_memory(name):
                path = self.folder / name
                note = _read_note(path.with_suffix(".json")) if notes else {}
                description, created = note.get("description"), note.get("created")
                # A time in the future, by a clock that was wrong, must not make a memory the newest for ever.
                used = min(facts.st_mtime_ns, time.time_ns()) / 1e9
                entry = Entry(
                    key=path.stem,
                    path=path,
                    nbytes=facts.st_size,
                    created=_as_time(created, used),
                    last_used=used,
                    description=description if isinstance(description, dict) else {},
                )
                found.append((facts.st_mtime_ns, entry))
        return [entry for _, entry in sorted(found, key=lambda pair: (-pair[0], pair[1].key))]

    def _clean(self, files: dict[str, os.stat_result]) -> None:
        """Remove what killed processes have left, under the folder's lock."""
        for name in _leftovers(files):
            path = self.folder / name
            guard = path if path.suffix == ".lock" else _beside(path, ".lock")
            lock = filelock.FileLock(guard, mode=0o600, thread_local=False)
            with contextlib.suppress(PermissionError):
                if path.suffix == ".json":
                    path.unlink(missing_ok=True)
                elif _take(lock):
                    try:
                        for leftover in (path,) if path == guard else (_beside(path, ".json"), path, guard):
                            leftover.unlink(missing_ok=True)
                    finally:
                        lock.release(force=True)

    def _remove(self, path: Path) -> bool:
        """Remove a memory and its note, under the folder's lock."""
        if _regular(path) is None:
            return False
        path.unlink()
        with contextlib.suppress(OSError):
            path.with_suffix(".json").unlink(missing_ok=True)
        return True

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turn what the system says into a StoreError."""
        try:
            yield
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StoreError:
        if isinstance(error, OSError) and error.errno in _FULL:
            return StoreError(
                f"the disk of the store {self.folder} is full ({error}): free some space there, or set "
                f"{STORE_VARIABLE} to a folder on a larger disk."
            )
        return StoreError(
            f"the store {self.folder} cannot be used ({error}): set {STORE_VARIABLE} to a folder you can write to."
        )

    def _too_large(self, nbytes: int) -> StoreError:
        return StoreError(
            f"the memory takes {_size(nbytes)} but the store may take {_size(self.max_bytes)} in all: raise the "
            f"store's limit (max_bytes) to {nbytes} or more."
        )


def _chosen_folder(folder: str | Path | None) -> Path:
    """Return the store's folder as an absolute path."""
    chosen = str(folder) if folder is not None else os.environ.get(STORE_VARIABLE, "")
    try:
        return (Path(chosen).expanduser() if chosen else cache_dir() / "memories").absolute()
    except RuntimeError as error:  # a ~ without a home folder
        raise StoreError(f"the store's folder {chosen!r} cannot be found ({error}): give its full path.") from error


def _folder_problem(folder: Path) -> str | None:
    """Say why memories must not be kept in a folder, and what to do, or return None."""
    itself = folder.lstat()
    if stat.S_ISLNK(itself.st_mode) and not folder.exists():
        return "is a link to nothing: remove it"
    real = folder.stat()
    if not stat.S_ISDIR(real.st_mode):
        return "is not a folder: move it away"
    if _POSIX:
        if {itself.st_uid, real.st_uid} != {os.geteuid()}:
            return "belongs to another user: use a folder of your own"
        if real.st_mode & 0o022:
            return "may be written to by other users: run `chmod go-w` on it"
    return None


def _mine() -> set[Path]:
    """Return the locks of keys that this thread holds."""
    held: set[Path] = _MINE.__dict__.setdefault("held", set())
    return held


def _take(lock: filelock.BaseFileLock) -> bool:
    """Take a lock if nobody has it."""
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    return True


def _is_memory(name: str) -> bool:
    match = _FILE.fullmatch(name)
    return match is not None and not match["part"] and match["kind"] == SUFFIX


def _key_of(scratch: Path) -> str:
    return scratch.name.partition(".")[0]


def _beside(path: Path, suffix: str) -> Path:
    """Return the file that goes with a scratch."""
    return path.with_name(path.name + suffix)


def _leftovers(files: dict[str, os.stat_result]) -> list[str]:
    """Return what may be left of killed processes, once each: scratches, locks of keys, notes without a memory."""
    found = set()
    for name in files:
        match = _FILE.fullmatch(name)
        if match is None:
            continue  # not a file of the store
        if match["part"]:
            found.add(match["key"] + match["part"])  # with or without suffix, one scratch
        elif match["kind"] == ".lock" or (match["kind"] == ".json" and match["key"] + SUFFIX not in files):
            found.add(name)
    return sorted(found)


def _regular(path: Path) -> os.stat_result | None:
    """Return the facts of an ordinary file, or None: links are not followed."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return None
    return facts if stat.S_ISREG(facts.st_mode) else None


def _open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open an ordinary file, never through a link, and never waiting for a pipe.

    Raises:
        OSError: There is none.
    """
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags | careful)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not an ordinary file", str(path))
    return handle


def _touch(path: Path) -> None:
    """Set the time of last use, kept as the file's time of change: mount options do not hold that back."""
    now = time.time_ns()
    os.utime(path, ns=(now, now), follow_symlinks=os.utime not in os.supports_follow_symlinks)


def _seal(path: Path) -> int:
    """Make a finished file private and durable, and return its size."""
    handle = _open_regular(path, os.O_RDWR)
    try:
        path.chmod(0o600)
        os.fsync(handle)
        return os.fstat(handle).st_size
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make renames durable, where a folder can be synchronised."""
    if _POSIX:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_private(path: Path, text: bytes) -> None:
    """Write a new file that only its owner can read, durably."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(handle, "wb") as out:
        path.chmod(0o600)
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def _note_text(description: dict[str, Any]) -> bytes:
    """Return the note of a memory that is put now."""
    try:
        if not isinstance(description, dict):
            raise TypeError(f"it is a {type(description).__name__}, not a dict")
        text = json.dumps({"created": time.time(), "description": description}, allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"the memory's description is no plain JSON ({error}): give texts and numbers.") from error
    if len(text) > MAX_NOTE_BYTES:
        raise StoreError(f"the memory's description takes {len(text)} bytes: give at most {MAX_NOTE_BYTES}.")
    return text


def _read_note(path: Path) -> dict[str, Any]:
    """Return a memory's note, or an empty one if it is missing, damaged or too long."""
    try:
        with os.fdopen(_open_regular(path), "rb") as handle:
            text = handle.read(MAX_NOTE_BYTES + 1)
        note = json.loads(text) if len(text) <= MAX_NOTE_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _as_time(value: object, otherwise: float) -> float:
    """Return what a note gives as a time, if it is one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e11:
        return float(value)
    return otherwise


def _size(nbytes: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes:.0f} bytes"
