"""MemoryStore and a remote: what another machine put, and what a remote may do to the store."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from store_samples import DESCRIPTION, both, key, names, put

from infinipot_llm.errors import MemoryFileError, StoreError
from infinipot_llm.memory import remote as remote_module
from infinipot_llm.memory.store import MemoryStore


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
