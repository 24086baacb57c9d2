"""Folder: where a store keeps its memories, for this user alone, used by several threads and processes at a time.

A memory is `<key>.infinipot`, and `<key>.json` beside it is its note. `.lock` is held for moments, around everything
that changes names; `<key>.lock` is held by whoever is making that memory, and `<key>.<token>.part` is what they write,
locked by them for as long as they live. The system frees the locks of a process that was killed: that is how its
leftovers are known.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from infinipot_llm.errors import StoreError
from infinipot_llm.memory.ordinary import POSIX, is_ordinary
from infinipot_llm.models.catalogue import cache_dir

STORE_VARIABLE = "INFINIPOT_STORE"
SUFFIX = ".infinipot"

_KEY = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"(?P<key>[0-9a-f]{64})(?P<part>\.[0-9a-f]{16}\.part)?(?P<kind>\.infinipot|\.json|\.lock)?")
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_POLL_S = 0.05


class _Held(threading.local):
    """Locks of keys that a thread holds: what it asks for again it has."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()


_HELD = _Held()


class Folder:
    """A store's folder.

    Attributes:
        path: Where it is, absolute; it is made when the first memory is written.
    """

    def __init__(self, path: str | Path | None) -> None:
        """Say where the folder is; nothing is touched yet.

        Args:
            path: By default INFINIPOT_STORE, else `memories` in the cache folder.

        Raises:
            StoreError: A ~ in the path stands for nothing.
        """
        chosen = str(path) if path is not None else os.environ.get(STORE_VARIABLE, "")
        try:
            self.path = (Path(chosen).expanduser() if chosen else cache_dir() / "memories").absolute()
        except RuntimeError as error:  # a ~ without a home folder
            raise StoreError(f"the store's folder {chosen!r} cannot be found ({error}): give its full path.") from error

    def ready(self, *, create: bool = False) -> bool:
        """Say whether the folder is there; refuse one that others own or may write to."""
        try:
            if create and not os.path.lexists(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError):  # another process was faster
                    self.path.mkdir(mode=0o700)
                    self.path.chmod(0o700)  # a umask may have taken bits away
            problem = self._problem()
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not create:
                return False
            raise self._unusable(error) from error
        if problem:
            raise StoreError(f"the store's folder {self.path} {problem}, or set {STORE_VARIABLE} to another folder.")
        return True

    def _problem(self) -> str | None:
        """Say why memories must not be kept here, and what to do, or return None."""
        itself = self.path.lstat()
        if stat.S_ISLNK(itself.st_mode) and not self.path.exists():
            return "is a link to nothing: remove it"
        real = self.path.stat()
        if not stat.S_ISDIR(real.st_mode):
            return "is not a folder: move it away"
        if POSIX and {itself.st_uid, real.st_uid} != {os.geteuid()}:
            return "belongs to another user: use a folder of your own"
        if POSIX and real.st_mode & 0o022:
            return "may be written to by other users: run `chmod go-w` on it"
        return None

    def memory(self, key: object) -> Path:
        """Return the file of a key, which is checked here before it comes near any path."""
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise StoreError(f"{key!r:.80} is no key of a memory: keys are 64 digits of 0-9 and a-f.")
        return self.path / f"{key}{SUFFIX}"

    def memories(self) -> list[tuple[Path, os.stat_result]]:
        """Return the files of all memories and what the system says of them, the most recently used first."""
        found = [
            (self.path / name, facts)
            for name, facts in self._files().items()
            if (match := _FILE.fullmatch(name)) and not match["part"] and match["kind"] == SUFFIX
        ]
        return sorted(found, key=lambda pair: (-pair[1].st_mtime_ns, pair[0]))

    @contextlib.contextmanager
    def names(self, lock: filelock.BaseFileLock | None = None) -> Iterator[None]:
        """Hold the lock of the folder: names change, and key and scratch locks are taken and removed, only under it.

        Args:
            lock: An object for this lock, for who takes it again and again; None: a new one.
        """
        path = self.path / ".lock"
        if path in _HELD.paths:  # garbage is collected while this thread holds it, and a memory's file goes with it
            yield
            return
        _HELD.paths.add(path)
        try:
            with (lock or filelock.FileLock(path, mode=0o600)).acquire(poll_interval=_POLL_S / 10):
                yield
        finally:
            _HELD.paths.discard(path)

    @contextlib.contextmanager
    def turn(
        self, key: str, on_wait: Callable[[], None] | None, while_waiting: Callable[[], None] | None
    ) -> Iterator[bool]:
        """Be the only thread of all processes that makes a memory; yield whether the turn begins here, or goes on."""
        path = self.path / f"{key}.lock"
        if path in _HELD.paths:
            yield False
            return
        with self.sentences():
            lock = self._wait_for(path, on_wait, while_waiting)
        _HELD.paths.add(path)
        try:
            yield True
        finally:
            _HELD.paths.discard(path)
            self.drop(lock, path)

    def _wait_for(
        self, path: Path, on_wait: Callable[[], None] | None, while_waiting: Callable[[], None] | None
    ) -> filelock.BaseFileLock:
        """Take the lock of a key; between the attempts, Ctrl-C is heard."""
        lock = _lock(path)
        names = filelock.FileLock(self.path / ".lock", mode=0o600)  # once: Ctrl-C is lost while Python destroys one
        while True:
            # Under the folder's lock, because a lock file that is opened while another removes it would lock nothing.
            with self.names(names):
                if _take(lock):
                    return lock
            if on_wait:
                on_wait()
                on_wait = None
            if while_waiting:
                while_waiting()
            time.sleep(_POLL_S)

    def scratch(self, key: str) -> tuple[Path, filelock.BaseFileLock]:
        """Return a path of no file yet, to write a memory to, and the lock that keeps it."""
        path = self.path / f"{key}.{secrets.token_hex(8)}.part"
        lock = _lock(scratch_files(path)[-1])
        with self.sentences(), self.names():
            self.clean()
            lock.acquire(timeout=0)
        return path, lock

    def drop(self, lock: filelock.BaseFileLock, *files: Path) -> None:
        """Remove the files that a lock keeps, as far as that goes, and free the lock, whatever happens."""
        try:
            with contextlib.suppress(OSError), self.names():
                for path in files:
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
                lock.release()
        finally:
            lock.release(force=True)

    def remove(self, path: Path) -> bool:
        """Remove a memory and its note, under the folder's lock, and say whether it was there."""
        if not is_ordinary(path):
            return False
        path.unlink()
        with contextlib.suppress(OSError):
            path.with_suffix(".json").unlink(missing_ok=True)
        return True

    def leftovers(self) -> list[Path]:
        """Return what killed processes may have left, once each: scratches, locks of keys, notes without a memory."""
        files = self._files()
        found = set()
        for name in files:
            if not (match := _FILE.fullmatch(name)):
                continue  # not a file of the store
            if match["part"]:
                found.add(match["key"] + match["part"])  # with or without suffix, one scratch
            elif match["kind"] == ".lock" or (match["kind"] == ".json" and match["key"] + SUFFIX not in files):
                found.add(name)
        return [self.path / name for name in sorted(found)]

    def clean(self) -> None:
        """Remove what killed processes have left, under the folder's lock."""
        for path in self.leftovers():
            with contextlib.suppress(PermissionError):
                if path.suffix == ".json":
                    path.unlink(missing_ok=True)
                    continue
                files = (path,) if path.suffix == ".lock" else scratch_files(path)
                lock = _lock(files[-1])
                if _take(lock):
                    try:
                        for leftover in files:
                            leftover.unlink(missing_ok=True)
                    finally:
                        lock.release(force=True)

    def _files(self) -> dict[str, os.stat_result]:
        """Return the ordinary files of the folder by name; links, and whatever else, are not looked at."""
        found = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode):
                        found[entry.name] = facts
        return found

    @contextlib.contextmanager
    def sentences(self, *, only_full: bool = False) -> Iterator[None]:
        """Turn what the system says, or only that the disk is full, into a StoreError."""
        try:
            yield
        except OSError as error:
            if only_full and error.errno not in _FULL:
                raise
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StoreError:
        if isinstance(error, OSError) and error.errno in _FULL:
            return StoreError(
                f"the disk of the store {self.path} is full ({error}): free some space there, or set "
                f"{STORE_VARIABLE} to a folder on a larger disk."
            )
        return StoreError(
            f"the store {self.path} cannot be used ({error}): set {STORE_VARIABLE} to a folder you can write to."
        )


def scratch_files(scratch: Path) -> tuple[Path, Path, Path]:
    """Return the files of a scratch: its note, itself, and its lock."""
    return scratch.with_name(scratch.name + ".json"), scratch, scratch.with_name(scratch.name + ".lock")


def _lock(path: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(path, mode=0o600, thread_local=False)


def _take(lock: filelock.BaseFileLock) -> bool:
    """Take a lock if nobody has it."""
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    return True
