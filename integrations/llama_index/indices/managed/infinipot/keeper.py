"""The documents and memories of an index at work: what was read, what was loaded, and all of it joined."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from llama_index.indices.managed.infinipot.errors import InfiniPotIndexError
from llama_index.indices.managed.infinipot.memories import MEMORY_FILE
from llama_index.indices.managed.infinipot.nodes import Source
from llama_index.indices.managed.infinipot.struct import Entry

from infinipot_llm.documents import Document
from infinipot_llm.errors import MemoryFileError
from infinipot_llm.memory.waiting import held

if TYPE_CHECKING:
    from llama_index.core.schema import BaseNode
    from llama_index.llms.infinipot import InfiniPotLLM

    from infinipot_llm.memory.memory import DocumentMemory

Asked = tuple["DocumentMemory", dict[str, Source]]


class Keeper:
    """Keeps a memory per document; every document is read at most once, by whichever thread comes first."""

    def __init__(self, llm: InfiniPotLLM, folder: Path | None, progress: bool, read: Callable[[], None]) -> None:
        """Begin with nothing.

        Args:
            llm: The model that reads.
            folder: Where memories were persisted.
            progress: Whether to show bars while reading.
            read: Called after documents were read, with the lock held.
        """
        self.llm = llm
        self.folder = folder
        self.progress = progress
        self.lock = threading.RLock()
        self._when_read = read
        self._documents: dict[str, Document] = {}
        self._memories: dict[str, DocumentMemory] = {}
        self._asked: Asked | None = None

    def put(self, entry: Entry, document: Document) -> None:
        """Take in a document, or another version of it; a memory of the same content stays."""
        with self.lock:
            known = self._documents.get(entry.ref_doc_id)
            self._documents[entry.ref_doc_id] = document
            self._asked = None
            if known is not None and known.content_hash != document.content_hash:
                self._memories.pop(entry.ref_doc_id, None)
                entry.memory = None

    def drop(self, ref_doc_id: str) -> None:
        """Forget a document and its memory."""
        with self.lock:
            self._documents.pop(ref_doc_id, None)
            self._memories.pop(ref_doc_id, None)
            self._asked = None

    def document(self, ref_doc_id: str) -> Document:
        """Return a document as it is read: offsets of passages are offsets of its text."""
        return self._documents[ref_doc_id]

    def unread(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the documents that have no memory at hand."""
        return [entry for entry in entries if entry.ref_doc_id not in self._memories]

    def read(self, entries: Sequence[Entry], cancelled: Callable[[], bool] | None = None) -> None:
        """Make sure that there is a memory of each document: persisted ones are loaded, the others are read.

        Args:
            entries: The documents.
            cancelled: Asked while reading; True ends it.

        Raises:
            MemoryFileError: A persisted memory is missing, damaged, or of another model or content.
            StoreError: There is no room for a memory.
            GoneError: `cancelled` said so.
        """
        with held(self.lock, cancelled):
            for entry in self.unread(entries):
                document = self._documents[entry.ref_doc_id]
                assistant = self.llm.assistant
                if entry.memory is not None and self.folder is not None and not self._elsewhere(entry, document):
                    memory = self._loaded(entry, document, self.folder)
                else:
                    memory = assistant.remember([document], progress=self.progress or None, cancelled=cancelled)
                    entry.memory = f"{assistant.llm.key([document])}.infinipot"
                    self._when_read()
                self._memories[entry.ref_doc_id] = memory
                self._asked = None

    def all(
        self,
        entries: Sequence[Entry],
        pages: Callable[[Entry], Sequence[BaseNode]],
        cancelled: Callable[[], bool] | None = None,
    ) -> Asked:
        """Return one memory of all documents, and what its passages refer to, by name.

        Args:
            entries: The documents of the index, in order.
            pages: Returns the pages of one.
            cancelled: As in `read`.

        Raises:
            InfiniPotIndexError: There are none.
            GoneError: `cancelled` said so.
        """
        if not entries:
            raise InfiniPotIndexError("the index holds no documents: insert one, then ask.")
        with held(self.lock, cancelled):
            if self._asked is None or self.unread(entries):
                self.read(entries, cancelled)
                from infinipot_llm.memory.joined import joined

                memories, sources = [], {}
                for entry, name in zip(entries, _names(entries), strict=True):
                    memory = self._memories[entry.ref_doc_id]
                    document = replace(self._documents[entry.ref_doc_id], name=name)
                    same = memory.documents[0].name == name
                    memories.append(memory if same else memory.renamed((document,)))
                    sources[name] = Source(entry.ref_doc_id, document, pages(entry))
                self._asked = (joined(memories), sources)
            return self._asked

    def save(self, entries: Sequence[Entry], folder: Path) -> set[str]:
        """Write the memories there are to a folder, and return the names of the files that belong there."""
        with self.lock:
            names = set()
            for entry in entries:
                if entry.memory is None:
                    continue
                names.add(entry.memory)
                memory, target = self._memories.get(entry.ref_doc_id), folder / entry.memory
                if memory is None and self.folder is not None and self.folder.resolve() != folder.resolve():
                    memory = self._loaded(entry, self._documents[entry.ref_doc_id], self.folder)
                if memory is None or (memory.file is not None and _same(memory.file.path, target)):
                    continue
                memory.save(target)
            return names

    def _elsewhere(self, entry: Entry, document: Document) -> bool:
        """Whether a memory that is not in the folder, since it was read after that was written, is at hand."""
        there = self.folder is not None and (self.folder / str(entry.memory)).is_file()
        return not there and bool(self.llm.assistant.collection.holds(document))

    def _loaded(self, entry: Entry, document: Document, folder: Path) -> DocumentMemory:
        """Open a persisted memory, and check that it is of this document and this model."""
        name = str(entry.memory)
        path = folder / name
        if not MEMORY_FILE.match(name) or not path.is_file():
            raise MemoryFileError(
                f"the memory of {entry.name} is not in {folder}: copy the whole persisted folder and give its path "
                "(persist_dir=...), or build the index again with from_documents."
            )
        try:
            return self.llm.assistant.llm.load(path, documents=[document])
        except MemoryFileError as error:
            raise MemoryFileError(f"the memory of {entry.name} cannot be used: {error}") from error


def _same(path: Any, target: Path) -> bool:
    try:
        return Path(path).samefile(target)
    except OSError:
        return False


def _names(entries: Sequence[Entry]) -> list[str]:
    """Return what answers call documents: the name, and as much of the path as tells documents of one name apart."""
    names = [entry.name for entry in entries]
    for length in (2, 3, 4):
        count = Counter(names)
        names = [
            name if count[name] == 1 else "/".join(PurePath(entry.ref_doc_id).parts[-length:]) or name
            for name, entry in zip(names, entries, strict=True)
        ]
    count = Counter(names)
    return [n if count[n] == 1 else f"{n} ({i})" for i, n in enumerate(names, start=1)]
