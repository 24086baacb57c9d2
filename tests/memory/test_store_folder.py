"""MemoryStore and its folder: owners, links, foreign files, scratches, and disks that fail."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import filelock
import pytest
from store_samples import DESCRIPTION, both, key, names, posix, put
from store_samples import clock as clock
from store_samples import store as store

from infinipot_llm.errors import StoreError
from infinipot_llm.memory.store import MemoryStore


@posix
def test_folders_that_are_not_ours_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o775)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "good").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "good")
    for name, words in {
        "file": "is not a folder",
        "file/below": "cannot be used",
        "open": "chmod go-w",
        "dangling": "link to nothing",
        "nul\0": "cannot be used",
    }.items():
        store = MemoryStore(tmp_path / name)
        for call in (store.get, store.scratch, store.remove):
            with pytest.raises(StoreError, match=words):
                call(key(1))
        for look in (store.list, store.clear, store.total_bytes):
            with pytest.raises(StoreError, match=words):
                look()
    put(MemoryStore(tmp_path / "link"), 1, 10)
    assert key(1) in MemoryStore(tmp_path / "good")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for name in ("good", "link"):
        with pytest.raises(StoreError, match="belongs to another user"):
            MemoryStore(tmp_path / name).get(key(1))


@posix
def test_links_and_pipes_are_left_alone(store: MemoryStore, tmp_path: Path) -> None:
    put(store, 1, 10)
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    os.utime(outside, (1, 1))
    link = store.folder / f"{key(2)}.infinipot"
    link.symlink_to(outside)
    os.mkfifo(store.folder / f"{key(3)}.infinipot")
    (store.folder / f"{key(4)}.infinipot").mkdir()
    (store.folder / f"{key(5)}.{'0' * 16}.part").symlink_to(outside)
    (store.folder / f"{key(1)}.json").unlink()
    os.mkfifo(store.folder / f"{key(1)}.json")
    for number in (2, 3, 4):
        assert store.get(key(number)) is None
        assert store.open(key(number)) is None
        assert not store.remove(key(number))
        assert key(number) not in store
    assert [(entry.key, entry.description) for entry in store.list()] == [(key(1), {})]
    assert store.total_bytes() == 10
    put(store, 2, b"mine")
    assert (outside.read_bytes(), outside.stat().st_mtime) == (b"precious", 1)
    assert not link.is_symlink()
    with pytest.raises(StoreError, match="cannot be used"):
        put(store, 4, 10)
    assert store.clear() == 2
    assert outside.exists()


def test_foreign_files_stay_and_do_not_count(store: MemoryStore) -> None:
    put(store, 1, 900)
    foreign = {"notes.txt", "x.infinipot", f"{key(1)}.part", f"{key(7)}.lock.json", f"{key(1)}.infinipot.bak", "x.json"}
    for name in foreign:
        (store.folder / name).write_bytes(bytes(500))
    assert store.total_bytes() == 900
    assert len(store.list()) == 1
    put(store, 2, 900)
    assert store.clear() == 1
    assert names(store) == foreign


@pytest.mark.parametrize(
    "note",
    [
        None,
        b"",
        b'{"descr',
        b"\xff\xfe",
        b"[]",
        b"7",
        b'{"description": [], "created": "now"}',
        b'{"description": null, "created": NaN}',
        b'{"description": 1, "created": 1e999}',
        b'{"description": 1, "created": true}',
        b'{"description": {}, "created": ' + b"9" * 5000 + b"}",
        b"[" * 60_000,
        b'{"description": {"a": "' + b"x" * 70_000 + b'"}}',
    ],
)
def test_damaged_notes_break_nothing(store: MemoryStore, note: bytes | None) -> None:
    path = put(store, 1, b"memory", DESCRIPTION)
    sidecar = path.with_suffix(".json")
    sidecar.unlink()
    if note is not None:
        sidecar.write_bytes(note)
    assert store.get(key(1)) == path
    (entry,) = store.list()
    assert entry.description == {}
    assert entry.created == entry.last_used > 1e9


def test_only_own_scratches_are_put(store: MemoryStore, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"x")
    for path in (stranger, MemoryStore(store.folder).scratch(key(1))):
        with pytest.raises(StoreError, match="no scratch"):
            store.put(key(1), path, {})
    assert stranger.exists()
    scratch = store.scratch(key(1))
    scratch.touch()
    with pytest.raises(StoreError, match="no scratch"):
        store.put(key(2), scratch, {})
    store.put(key(1), scratch, {})
    with pytest.raises(StoreError, match="no scratch"):
        store.put(key(1), scratch, {})


def test_scratch_that_was_not_written_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        store.put(key(1), store.scratch(key(1)), {})
    assert names(store) == set()
    if os.name == "posix":
        scratch = store.scratch(key(1))
        scratch.symlink_to(tmp_path)
        with pytest.raises(StoreError, match="cannot be used"):
            store.put(key(1), scratch, {})
        assert names(store) == set()


def test_live_scratches_stay_and_leftovers_go(store: MemoryStore) -> None:
    live, other = store.scratch(key(1)), MemoryStore(store.folder)
    live.write_bytes(b"being written")
    stem = f"{key(2)}.{'ab' * 8}.part"
    for suffix in ("", ".json", ".lock"):
        (store.folder / f"{stem}{suffix}").touch()
    (store.folder / f"{key(3)}.{'cd' * 8}.part").touch()
    for name in (f"{key(3)}.lock", f"{key(4)}.json"):
        (store.folder / name).touch()
    with store.writing(key(5)):
        assert other.list() == store.list() == []
        assert names(store) == {live.name, f"{live.name}.lock", f"{key(5)}.lock"}
    store.discard(live)
    store.discard(live)
    assert names(store) == set()


def test_scratches_end_with_the_writing(store: MemoryStore) -> None:
    outer = store.scratch(key(2))
    outer.touch()
    with store.writing(key(1)):
        store.scratch(key(1)).touch()
        assert len(names(store)) == 5
    assert names(store) == {outer.name, f"{outer.name}.lock"}


@posix
def test_a_memory_is_on_the_disk_before_its_name(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    replace = Path.replace

    def rename(path: Path, target: Path) -> Path:
        assert path.stat().st_ino in done
        return replace(path, target)

    scratch = store.scratch(key(1))
    scratch.touch()
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.fstat(handle).st_ino))
    monkeypatch.setattr(Path, "replace", rename)
    store.put(key(1), scratch, {})
    assert done[-1] == store.folder.stat().st_ino


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_leaves_nothing_half(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    put(store, 1, 400)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    home = os if function == "fsync" else Path
    with monkeypatch.context() as patch:
        patch.setattr(home, function, fails)
        with pytest.raises(StoreError, match="is full" if number == errno.ENOSPC else "cannot be used"):
            put(store, 2, 400)
    assert names(store) == both(1)
    assert store.list()[0].nbytes == 400


def test_full_disk_while_a_memory_is_written(store: MemoryStore) -> None:
    def work(error: OSError) -> None:
        with store.writing(key(1)):
            store.scratch(key(1)).touch()
            raise error

    with pytest.raises(StoreError, match="is full"):
        work(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(FileNotFoundError):
        work(FileNotFoundError())
    assert names(store) == set()


def test_what_is_open_elsewhere_stays_on_windows(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, clock: None
) -> None:
    busy = put(store, 1, 500)
    put(store, 2, 500)
    unlink = Path.unlink

    def refuses(path: Path, missing_ok: bool = False) -> None:
        if path == busy:
            raise PermissionError(errno.EACCES, "in use")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuses)
    put(store, 3, 500)
    assert [entry.key for entry in store.list()] == [key(3), key(1)]


def test_read_only_disk_can_be_read(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(store, 1, b"memory")
    (store.folder / f"{key(3)}.lock").touch()

    def refuses(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuses)
    monkeypatch.setattr(filelock, "FileLock", refuses)
    assert store.get(key(1)) == path
    assert len(store.list()) == 1


def test_free_bytes_needs_no_folder(store: MemoryStore) -> None:
    assert store.free_bytes() > 0
    assert not store.folder.exists()


def test_waiting_makes_no_lock_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is lost while Python destroys an object: none is made and destroyed in every turn of waiting."""
    store = MemoryStore(tmp_path / "memories")
    made: list[Path] = []
    real = filelock.FileLock

    def counted(path: Path, **options: Any) -> filelock.BaseFileLock:
        made.append(path)
        return real(path, **options)

    turns = iter(range(5))

    def sleep(seconds: float) -> None:
        if next(turns) == 4:
            raise KeyboardInterrupt

    with MemoryStore(tmp_path / "memories").writing(key(1)):
        monkeypatch.setattr(filelock, "FileLock", counted)
        monkeypatch.setattr("infinipot_llm.memory.folder.time.sleep", sleep)
        monkeypatch.setattr("infinipot_llm.memory.folder._HELD", type("Nothing", (), {"paths": set()})())
        with pytest.raises(KeyboardInterrupt), store.writing(key(1)):
            pass
        while_waiting = sorted(made)
    assert while_waiting == sorted(tmp_path / "memories" / name for name in (".lock", f"{key(1)}.lock"))
    assert next(turns, None) is None
