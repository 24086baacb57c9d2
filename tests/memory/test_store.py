"""MemoryStore in one process: what appears, what goes, in which order, and threads that take turns."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import DESCRIPTION, both, key, names, posix, put
from store_samples import clock as clock
from store_samples import store as store

from infinipot_llm.errors import StoreError
from infinipot_llm.memory.store import MemoryStore


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


@pytest.mark.parametrize("bad", [{"a": {1}}, {"a": float("nan")}, {"a": "x" * 70_000}, [1]])
def test_bad_descriptions_are_refused(store: MemoryStore, bad: Any) -> None:
    put(store, 1, 900)
    with pytest.raises(StoreError, match="description"):
        put(store, 2, 900, bad)
    assert names(store) == both(1)


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
