"""Ordinary files: never opened through a link, readable by their owner alone, on the disk before they have a name."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path
from typing import BinaryIO

POSIX = os.name == "posix"


def is_ordinary(path: Path) -> bool:
    """Say whether an ordinary file is there: links are not followed."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def open_ordinary(path: Path, flags: int = os.O_RDONLY) -> BinaryIO:
    """Open an ordinary file for reading, never through a link, and never waiting for a pipe.

    Args:
        path: The file.
        flags: More than reading, where the handle needs it.

    Raises:
        OSError: There is none.
    """
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags | careful)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not an ordinary file", str(path))
    return os.fdopen(handle, "rb")


def touch(path: Path) -> None:
    """Set the time of last use, kept as the file's time of change: mount options do not hold that back."""
    now = time.time_ns()
    os.utime(path, ns=(now, now), follow_symlinks=os.utime not in os.supports_follow_symlinks)


def seal(path: Path) -> int:
    """Make a finished file private and durable, and return its size."""
    with open_ordinary(path, os.O_RDWR) as file:
        path.chmod(0o600)
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def write_private(path: Path, text: bytes) -> None:
    """Write a new file that only its owner can read, durably."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(handle, "wb") as out:
        path.chmod(0o600)  # a umask may have taken bits away
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames durable, where a folder can be synchronised."""
    if POSIX:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
