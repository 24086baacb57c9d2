"""MemoryStore in one process: what appears, what goes, what is refused, and what a remote may do to it."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import filelock
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinipot_llm.errors import MemoryFileError, StoreError
from infinipot_llm.memory import remote as remote_module
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


def test_what_was_put_is_got(store: MemoryStore) -> None:
    assert not store.folder.exists()
    assert store.get(key(1)) is None
    assert store.list() == []
    assert (store.total_bytes(), store.clear(), store.remove(key(1)), key(1) in store) == (0, 0, False, False)
    assert not store.folder.exists(), "looking makes no folder"
    path = put(store, 1, b"memory", DESCRIPTION)
    assert path == store.get(key(1)) == store.folder / f"{key(1)}.infinipot"
    assert path.read_bytes() == b"memory"
    handle = store.open(key(1))
    assert handle is not None
    with handle:
        store.remove(key(1))
        assert handle.read() == b"memory"
    assert store.open(key(1)) is None
    assert names(store) == set()


def test_entries_say_what_was_put(store: MemoryStore) -> None:
    put(store, 1, b"memory", DESCRIPTION)
    (entry,) = store.list()
    assert (entry.key, entry.nbytes, entry.description) == (key(1), 6, DESCRIPTION)
    assert entry.path.read_bytes() == b"memory"
    assert abs(entry.created - entry.last_used) < 60
    assert key(1) in store
    assert key(2) not in store
    assert "../x" not in store
    assert 1 not in store


def test_order_is_that_of_use(store: MemoryStore, clock: None) -> None:
    for number in (1, 2, 3):
        put(store, number, 10)
    store.get(key(1))
    assert key(2) in store, "and asking this is no use"
    assert [entry.key for entry in store.list()] == [key(1), key(3), key(2)]


def test_least_recently_used_goes(store: MemoryStore, clock: None) -> None:
    for number in (1, 2, 3):
        put(store, number, 300)
    store.get(key(1))
    put(store, 4, 300)
    assert [entry.key for entry in store.list()] == [key(4), key(1), key(3)]
    put(store, 5, 1000)
    assert [entry.key for entry in store.list()] == [key(5)]
    assert names(store) == both(5)


def test_putting_again_replaces(store: MemoryStore, clock: None) -> None:
    put(store, 1, 900, {"a": 1})
    put(store, 1, b"new", {"a": 2})
    (entry,) = store.list()
    assert (entry.path.read_bytes(), entry.description) == (b"new", {"a": 2})
    put(store, 2, 600)
    put(store, 2, 700)
    assert len(store.list()) == 2, "what is replaced needs no room beside what replaces it"


def test_time_in_the_future_is_not_believed(store: MemoryStore) -> None:
    path = put(store, 1, 10)
    os.utime(path, (9e9, 9e9))
    assert store.list()[0].last_used < 8e9


def test_too_large_changes_nothing(store: MemoryStore) -> None:
    put(store, 1, 900)
    with pytest.raises(StoreError, match=r"takes 1\.0 kB .* take 1\.0 kB .*max_bytes\) to 1001"):
        put(store, 2, 1001)
    assert names(store) == both(1)


@pytest.mark.parametrize(
    "bad", ["", "a" * 63, "a" * 65, "A" * 64, "../" + "a" * 61, "a" * 63 + "\n", "a" * 64 + "\n", None, 7]
)
def test_bad_keys_touch_nothing(store: MemoryStore, bad: Any) -> None:
    for call in (store.get, store.open, store.scratch, store.remove, lambda k: store.writing(k).__enter__()):
        with pytest.raises(StoreError, match="no key of a memory"):
            call(bad)
    with pytest.raises(StoreError, match="no key of a memory"):
        store.put(bad, Path("x"), {})
    assert not store.folder.exists()


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_limit_must_be_positive(tmp_path: Path, limit: float) -> None:
    with pytest.raises(StoreError, match="max_bytes above 0"):
        MemoryStore(tmp_path, max_bytes=limit)


def test_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INFINIPOT_CACHE", "~/cache")
    monkeypatch.delenv("INFINIPOT_STORE", raising=False)
    assert MemoryStore().folder == tmp_path / "cache" / "memories"
    monkeypatch.setenv("INFINIPOT_STORE", "~/own")
    assert MemoryStore().folder == tmp_path / "own"
    assert MemoryStore("~/given").folder == tmp_path / "given"
    monkeypatch.chdir(tmp_path)
    relative = MemoryStore("here")
    monkeypatch.chdir("/")
    assert relative.folder == tmp_path / "here"
    with pytest.raises(StoreError, match="full path"):
        MemoryStore("~nobody-of-this-name/x")


@posix
@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_only_the_owner_can_read(store: MemoryStore, umask: int) -> None:
    store.folder.parent.mkdir()
    before = os.umask(umask)
    try:
        scratch = store.scratch(key(1))
        scratch.touch()
        scratch.chmod(0o644)
        store.put(key(1), scratch, DESCRIPTION)
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.folder.iterdir()} == dict.fromkeys(
        {*both(1), ".lock"}, 0o600
    )


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


@pytest.mark.parametrize("bad", [{"a": {1}}, {"a": float("nan")}, {"a": "x" * 70_000}, [1]])
def test_bad_descriptions_are_refused(store: MemoryStore, bad: Any) -> None:
    put(store, 1, 900)
    with pytest.raises(StoreError, match="description"):
        put(store, 2, 900, bad)
    assert names(store) == both(1)


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


def test_threads_take_turns(store: MemoryStore) -> None:
    inside, waits = [], []
    first_in, may_leave = threading.Event(), threading.Event()

    def first() -> None:
        with store.writing(key(1)), store.writing(key(1)), MemoryStore(store.folder).writing(key(1)):
            first_in.set()
            assert may_leave.wait(10)
            inside.append("first")
            put(store, 1, b"once")

    def second() -> None:
        assert first_in.wait(10)
        with store.writing(key(1), on_wait=lambda: (waits.append(1), may_leave.set())):  # type: ignore[func-returns-value]
            inside.append("second")
            assert store.get(key(1)) is not None

    threads = [threading.Thread(target=first, daemon=True), threading.Thread(target=second, daemon=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive()
    assert (inside, waits) == (["first", "second"], [1])
    with store.writing(key(1), on_wait=lambda: pytest.fail("nobody has it")), store.writing(key(2)):
        pass
    assert names(store) == both(1)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "get", "remove"]), st.integers(0, 4), st.sampled_from([0, 15, 20, 30, 70])
    ),
    max_size=25,
)


@pytest.mark.usefixtures("clock")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(steps=STEPS)
def test_store_does_as_a_simple_model(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    limit = 60
    store = MemoryStore(tmp_path_factory.mktemp("model") / "store", max_bytes=limit)
    held: dict[str, int] = {}  # the least recently used first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        for step, number, nbytes in steps:
            name = key(number)
            if step == "put" and nbytes > limit:
                with pytest.raises(StoreError):
                    put(store, number, nbytes)
            elif step == "put":
                put(store, number, nbytes)
                held.pop(name, None)
                while sum(held.values()) + nbytes > limit:
                    del held[next(iter(held))]
                held[name] = nbytes
            elif step == "get":
                assert (store.get(name) is not None) == (name in held)
                if name in held:
                    held[name] = held.pop(name)
            elif step == "remove":
                assert store.remove(name) == (held.pop(name, None) is not None)
            assert [(e.key, e.nbytes) for e in store.list()] == list(held.items())[::-1]
            assert store.total_bytes() == sum(held.values()) <= limit
    assert store.clear() == len(held)


@pytest.fixture(params=["file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared/memories" if request.param == "file" else f"memory://{uuid.uuid4().hex}/memories"


def there(address: str) -> dict[str, bytes]:
    """The remote's files."""
    import fsspec

    fs, root = fsspec.core.url_to_fs(address)
    return {path.rpartition("/")[2]: fs.cat_file(path) for path in fs.find(root)}


def plant(address: str, name: str, data: bytes) -> None:
    import fsspec

    fs, root = fsspec.core.url_to_fs(address)
    fs.makedirs(root, exist_ok=True)
    with fs.open(f"{root}/{name}", "wb") as handle:
        handle.write(data)


def with_remote(tmp_path: Path, name: str, address: str, **more: Any) -> MemoryStore:
    return MemoryStore(tmp_path / name, max_bytes=1000, remote=address, **more)


def test_remote_gives_what_another_machine_put(tmp_path: Path, address: str) -> None:
    seen: list[bytes] = []
    one = with_remote(tmp_path, "one", address)
    two = with_remote(tmp_path, "two", address, verify=lambda path: seen.append(path.read_bytes()))
    assert two.get(key(1)) is None
    assert not two.folder.exists()
    put(one, 1, b"memory", DESCRIPTION)
    assert set(there(address)) == {
        f"{key(1)}.json",
        f"{key(1)}.{hashlib.sha256(b'memory').hexdigest()[:16]}.infinipot",
    }
    assert key(1) not in two
    path = two.get(key(1))
    assert path is not None
    assert path.read_bytes() == b"memory"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name != "posix"
    assert two.list()[0].description == DESCRIPTION
    two.get(key(1))
    assert seen == [b"memory"]
    assert names(two) == both(1)
    two.remove(key(1))
    handle = two.open(key(1))
    assert handle is not None
    with handle:
        assert handle.read() == b"memory"


def test_what_the_remote_has_is_not_sent_again(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(with_remote(tmp_path, "one", address), 1, b"first")
    before = there(address)
    put(with_remote(tmp_path, "two", address), 1, b"other")
    assert there(address) == before
    plant(address, f"{key(1)}.json", b"damaged")
    put(with_remote(tmp_path, "two", address), 1, b"other")
    fetched = with_remote(tmp_path, "three", address).get(key(1))
    assert fetched is not None
    assert fetched.read_bytes() == b"other"


def test_manifest_comes_last(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = remote_module._create

    def fails(fs: Any, path: str, root: str) -> Any:
        if path.endswith(".json"):
            raise ConnectionResetError("gone")
        return create(fs, path, root)

    one = with_remote(tmp_path, "one", address)
    with monkeypatch.context() as patch:
        patch.setattr(remote_module, "_create", fails)
        with pytest.raises(StoreError, match=r"is in the local store, but the remote store .* fails"):
            put(one, 1, b"memory")
    assert names(one) == both(1)
    assert len(there(address)) == 1
    assert with_remote(tmp_path, "two", address).get(key(1)) is None


GOOD = {"bytes": 6, "sha256": hashlib.sha256(b"memory").hexdigest(), "description": {}}


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 60_000,
        json.dumps({**GOOD, "bytes": -1}).encode(),
        json.dumps({**GOOD, "bytes": True}).encode(),
        json.dumps({**GOOD, "bytes": 6.0}).encode(),
        json.dumps({**GOOD, "bytes": 1 << 80}).encode(),
        json.dumps({**GOOD, "sha256": "../../" + "a" * 58}).encode(),
        json.dumps({**GOOD, "description": []}).encode(),
        json.dumps({"bytes": 6}).encode(),
        json.dumps({**GOOD, "description": {"a": "x" * 70_000}}).encode(),
    ],
)
def test_damaged_manifests_are_refused(tmp_path: Path, manifest: bytes) -> None:
    address = f"memory://{uuid.uuid4().hex}"
    store = with_remote(tmp_path, "one", address)
    plant(address, f"{key(1)}.json", manifest)
    with pytest.raises(StoreError, match=r"manifest .* is damaged .*delete it there"):
        store.get(key(1))
    assert not store.folder.exists()


@pytest.mark.parametrize("data", [b"", b"memor", b"memorx", b"memory and more", b"x" * 10_000])
def test_damaged_bytes_are_refused(tmp_path: Path, address: str, data: bytes) -> None:
    store = with_remote(tmp_path, "one", address)
    plant(address, f"{key(1)}.json", json.dumps(GOOD).encode())
    with pytest.raises(StoreError, match=r"remote store .* fails"):
        store.get(key(1))
    plant(address, f"{key(1)}.{GOOD['sha256'][:16]}.infinipot", data)  # type: ignore[index]
    with pytest.raises(StoreError, match="not what its manifest says"):
        store.get(key(1))
    assert names(store) == set()


def test_a_memory_that_fails_its_check_is_not_taken(tmp_path: Path, address: str) -> None:
    def refuses(path: Path) -> None:
        raise MemoryFileError("made with another model.")

    put(with_remote(tmp_path, "one", address), 1, b"memory")
    two = with_remote(tmp_path, "two", address, verify=refuses)
    with pytest.raises(MemoryFileError):
        two.get(key(1))
    assert names(two) == set()


def test_remote_memory_that_does_not_fit(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(with_remote(tmp_path, "one", address), 1, 900)
    small = MemoryStore(tmp_path / "two", max_bytes=800, remote=address)
    with pytest.raises(StoreError, match=r"900 bytes .* 800 bytes"):
        small.get(key(1))
    full = with_remote(tmp_path, "three", address)
    monkeypatch.setattr(MemoryStore, "free_bytes", lambda self: 10)
    with pytest.raises(StoreError, match="is full"):
        full.get(key(1))
    assert names(small) == names(full) == set()


def test_remote_that_fails_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "file").touch()
    for address in ("nonsense://x/y", f"file://{tmp_path}/file/below"):
        store = with_remote(tmp_path, "one", address)
        with pytest.raises(StoreError, match=r"remote store .* fails"):
            store.get(key(1))
        with pytest.raises(StoreError, match="is in the local store, but"):
            put(store, 1, b"memory")
        assert store.get(key(1)) is not None
        store.clear()


def test_passwords_in_addresses_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = with_remote(tmp_path, "one", "nonsense://user:secret@host/path?sig=secret")
    assert "secret" not in repr(store)
    assert "nonsense://host/path" in repr(store)

    def refuses(url: str) -> None:
        raise ConnectionError(f"{url} and //user:secret@host/path refuse")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuses)
    with pytest.raises(StoreError, match="refuse") as caught:
        store.get(key(1))
    assert "secret" not in str(caught.value)
    assert with_remote(tmp_path, "one", "file:///a@b/c")._remote.address == "file:///a@b/c"  # type: ignore[union-attr]


def test_fsspec_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(StoreError, match="pip install fsspec"):
        with_remote(tmp_path, "one", "memory://x").get(key(1))


def test_importing_is_light() -> None:
    code = "import sys, infinipot_llm.memory.store as s; s.MemoryStore('x', remote='s3://y'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "fsspec", "numpy"} & set(done.stdout.split())


def test_a_memory_that_is_collected_while_its_thread_holds_the_folder_goes_all_the_same(tmp_path: Path) -> None:
    """Garbage is collected anywhere, so that a finalizer may run under the very lock that it takes."""
    store = MemoryStore(tmp_path)
    scratch = store.scratch("0" * 64)
    scratch.write_bytes(b"x")
    with store._place.names():
        store.discard(scratch)
        assert not scratch.exists()
    with store._place.names(), store._place.names():
        pass
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
