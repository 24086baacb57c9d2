"""RemoteTier: finished memories at an address that fsspec opens (s3://, gs://, file://, ...), shared by machines.

A memory there is `<key>.<start of its SHA-256>.infinipot`, and the manifest `<key>.json`, written last, names it:
without a manifest it is absent. The bytes are named by their content, so that two machines that give the same key at
the same moment never mix their bytes; what the later manifest does not name is left over, and harmless.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from infinipot_llm.errors import StoreError

MAX_NOTE_BYTES = 1 << 16  # of a manifest, and of the note beside a memory in the store
MAX_MEMORY_BYTES = 1 << 46

_BLOCK = 1 << 22
_LOGIN = re.compile(r"(?<=:)//[^/]*@")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the remote says of one memory, checked.

    Attributes:
        key: Name of the memory.
        nbytes: Size of its file.
        sha256: Of its file, in hexadecimal.
        description: What it was put with.
    """

    key: str
    nbytes: int
    sha256: str
    description: dict[str, Any]

    @property
    def data_name(self) -> str:
        """Name of the file with the memory's bytes."""
        return f"{self.key}.{self.sha256[:16]}.infinipot"


class RemoteTier:
    """Memories at an address; whatever fails there is a StoreError.

    Attributes:
        address: The address without passwords, for messages.
    """

    def __init__(self, url: str) -> None:
        """Keep the address; nothing is imported or asked yet.

        Args:
            url: What fsspec opens, such as s3://bucket/folder or file:///shared/memories.
        """
        self._url = url
        self.address = _LOGIN.sub("//", url.partition("?")[0])
        self._opened: tuple[Any, str] | None = None

    def manifest(self, key: str) -> Manifest | None:
        """Return what the remote says of a memory, or None if it has none.

        Args:
            key: Name of the memory, checked by the caller.

        Raises:
            StoreError: The remote does not answer, or its manifest is damaged.
        """
        fs, root = self._open()
        path = f"{root}/{key}.json"
        text = b""
        try:
            fs.invalidate_cache()  # another machine may have written since
            with fs.open(path, "rb") as handle:
                while len(text) <= MAX_NOTE_BYTES and (block := handle.read(MAX_NOTE_BYTES + 1 - len(text))):
                    text += block
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed(error) from error
        try:
            return _parse(key, text)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(
                f"the manifest {key}.json at {self.address} is damaged ({_one_line(error)}): delete it there."
            ) from error

    def upload(self, key: str, file: BinaryIO, description: dict[str, Any]) -> None:
        """Give a memory to the remote, if that does not have it whole.

        Args:
            key: Name of the memory, checked by the caller.
            file: Its file, open for reading.
            description: Plain JSON on what it is.

        Raises:
            StoreError: The remote fails; the sentence says that the local store has the memory.
        """
        try:
            self._upload(key, file, description)
        except StoreError as error:
            raise StoreError(f"the memory is in the local store, but {error}") from error

    def _upload(self, key: str, file: BinaryIO, description: dict[str, Any]) -> None:
        fs, root = self._open()
        if self._is_whole(key):
            return
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
        manifest = Manifest(key, file.tell(), digest.hexdigest(), description)
        fields = {"bytes": manifest.nbytes, "sha256": manifest.sha256, "description": description}
        text = json.dumps(fields, allow_nan=False).encode("ascii")
        if len(text) > MAX_NOTE_BYTES:
            raise StoreError(f"the memory's description is too long for {self.address}: shorten it.")
        try:
            file.seek(0)
            with _create(fs, f"{root}/{manifest.data_name}", root) as out:
                while block := file.read(_BLOCK):
                    out.write(block)
            with _create(fs, f"{root}/{key}.json", root) as out:
                out.write(text)
        except Exception as error:
            raise self._failed(error) from error

    def download(self, manifest: Manifest, to: Path, verify: Callable[[Path], None] | None = None) -> None:
        """Bring a memory to a file that does not exist yet, and check it; the caller removes the file on an error.

        Args:
            manifest: What `manifest` returned.
            to: The file to make, readable by its owner alone.
            verify: Called with the file once its SHA-256 is right.

        Raises:
            StoreError: The remote fails, or has other bytes than its manifest says.
            OSError: The file cannot be written.
        """
        digest = hashlib.sha256()
        got = 0
        handle = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(handle, "wb") as out:
            for block in self._blocks(manifest):
                got += len(block)
                if got > manifest.nbytes:
                    break
                digest.update(block)
                out.write(block)
        if got != manifest.nbytes or digest.hexdigest() != manifest.sha256:
            raise StoreError(
                f"{manifest.data_name} at {self.address} is not what its manifest says: delete it and "
                f"{manifest.key}.json there."
            )
        if verify:
            verify(to)

    def _is_whole(self, key: str) -> bool:
        """Say whether the remote has a memory with a sound manifest and of the right size."""
        fs, root = self._open()
        try:
            manifest = self.manifest(key)
        except StoreError:
            return False  # damaged, so it is written anew; a remote that does not answer fails there again
        try:
            return manifest is not None and fs.size(f"{root}/{manifest.data_name}") == manifest.nbytes
        except FileNotFoundError:
            return False
        except Exception as error:
            raise self._failed(error) from error

    def _blocks(self, manifest: Manifest) -> Iterator[bytes]:
        """Read the bytes of a memory, whatever their number."""
        fs, root = self._open()
        try:
            with fs.open(f"{root}/{manifest.data_name}", "rb") as handle:
                while block := handle.read(_BLOCK):
                    yield block
        except Exception as error:  # the consumer's own errors are not thrown in here
            raise self._failed(error) from error

    def _open(self) -> tuple[Any, str]:
        """Return fsspec's file system and the path in it."""
        if self._opened is None:
            try:
                core = importlib.import_module("fsspec.core")
            except ImportError as error:
                raise StoreError(
                    f"memories at {self.address} need the package fsspec: run `pip install fsspec`."
                ) from error
            try:
                fs, root = core.url_to_fs(self._url)
            except Exception as error:  # an unknown scheme, or a package for it that is not installed
                raise self._failed(error) from error
            self._opened = (fs, root.rstrip("/"))
        return self._opened

    def _failed(self, error: Exception) -> StoreError:
        words = _one_line(error)
        for secret in (self._url, *_LOGIN.findall(self._url)):  # an address may carry a password or a signature
            words = words.replace(secret, self.address if secret == self._url else "//")
        return StoreError(
            f"the remote store {self.address} fails ({words}): check the address, the network and your permissions "
            "there, or use the store without it."
        )


def _create(fs: Any, path: str, root: str) -> Any:
    """Open a file of the remote for writing, with its folder made where there are folders."""
    try:
        return fs.open(path, "wb")
    except FileNotFoundError:
        fs.makedirs(root, exist_ok=True)
        return fs.open(path, "wb")


def _parse(key: str, text: bytes) -> Manifest:
    """Check a manifest.

    Raises:
        ValueError: It says something else than a manifest says, or too much.
        KeyError: Something is missing.
        TypeError: It is no dictionary.
    """
    if len(text) > MAX_NOTE_BYTES:
        raise ValueError(f"it is longer than {MAX_NOTE_BYTES} bytes")
    fields = json.loads(text)
    nbytes, sha256, description = fields["bytes"], fields["sha256"], fields["description"]
    if type(nbytes) is not int or not 0 <= nbytes <= MAX_MEMORY_BYTES:
        raise ValueError("its size is none")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError("its SHA-256 is none")
    if not isinstance(description, dict):
        raise ValueError("its description is none")
    return Manifest(key, nbytes, sha256, description)


def _one_line(error: BaseException) -> str:
    """Return an error's words as one clause."""
    words = " ".join(str(error).split()).rstrip(".")
    return words[:300] if words else type(error).__name__
