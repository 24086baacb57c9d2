"""The memories of an index beside LlamaIndex's own files, whoever persists the storage context.

    store/docstore.json, index_store.json, ...   by LlamaIndex: the text of all pages, the list of documents
    store/infinipot__vector_store.json           where the memories were written to
    store/infinipot/<key>.infinipot              one memory per document; the key covers content, model, settings

`StorageContext.persist` calls `persist` of each of its vector stores: the one place where an index can take part.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.indices.managed.infinipot.errors import InfiniPotIndexError
from llama_index.indices.managed.infinipot.struct import InfiniPotStruct

if TYPE_CHECKING:
    from llama_index.indices.managed.infinipot.base import InfiniPotIndex

NAMESPACE = "infinipot"
MEMORY_FILE = re.compile(r"[0-9a-f]{64}\.infinipot\Z")


class MemoryFiles(SimpleVectorStore):
    """Holds no vectors: when a storage context is persisted, it writes the memories of its indices."""

    _indices: list[Any] = PrivateAttr(default_factory=list)

    def persist(self, persist_path: str = "", fs: Any = None) -> None:
        """Write the memories of all documents that were read, and a note of where they are.

        Args:
            persist_path: Where a vector store would go.
            fs: The file system of that path; None: the local one.

        Raises:
            InfiniPotIndexError: The file system is not the local one.
            StoreError: A memory cannot be written.
        """
        if fs is not None and not isinstance(fs, LocalFileSystem):
            raise InfiniPotIndexError(
                "memories are files on this machine: persist to a local folder, or share them between machines with "
                "InfiniPotLLM(store=MemoryStore(remote=...))."
            )
        folder = Path(os.path.abspath(persist_path)).parent / NAMESPACE  # noqa: PTH100 - links are kept as they are
        folder.mkdir(parents=True, exist_ok=True)
        kept: set[str] = set()
        for index in self._indices:
            kept |= index.save_memories(folder)
            kept |= _named(index.storage_context)
        for stale in folder.iterdir():
            if MEMORY_FILE.match(stale.name) and stale.name not in kept:
                stale.unlink(missing_ok=True)  # of a document that was deleted, or has changed since
        self.data.metadata_dict = {NAMESPACE: {"folder": str(folder)}}
        super().persist(persist_path, fs)


def _named(context: StorageContext) -> set[str]:
    """Return the memories that any index of a storage context names, those that were not loaded among them."""
    structs = context.index_store.index_structs()
    return {e.memory for s in structs if isinstance(s, InfiniPotStruct) for e in s.documents if e.memory}


def memory_folder(context: StorageContext, persist_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder of the memories that were persisted with a storage context; None where there is none.

    Args:
        context: The storage context.
        persist_dir: Where it was persisted; None: as was noted then.
    """
    if persist_dir is not None:
        return Path(persist_dir) / NAMESPACE
    data = getattr(context.vector_stores.get(NAMESPACE), "data", None)
    noted = (data.metadata_dict or {}).get(NAMESPACE) if data is not None else None
    folder = noted.get("folder") if isinstance(noted, dict) else None
    return Path(folder) if isinstance(folder, str) else None


def attach(index: InfiniPotIndex, context: StorageContext) -> None:
    """Let an index take part in the persisting of a storage context."""
    there: Any = context.vector_stores.get(NAMESPACE)
    if not isinstance(there, MemoryFiles):
        there = MemoryFiles.from_dict(there.to_dict() if there is not None else {})
        context.add_vector_store(there, NAMESPACE)
    there._indices.append(index)
