"""Collection: documents that were read, each once, however many threads and conversations ask for them."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from infinipot_llm.documents import Document
from infinipot_llm.documents.document import ID_PREFIX, each_once
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import DocumentError, GoneError, MemoryFileError
from infinipot_llm.memory.joined import joined
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.memory.waiting import held
from infinipot_llm.pot.reader import ReadStats
from infinipot_llm.progress import reading_bar

MOST_MEMORIES = 16
"""Memories that are held open; without a store, the documents of others must be read again."""


class Collection:
    """Memories of documents, by content: the last ones open, all of them in the store.

    Attributes:
        llm: What reads.
        store: Where memories are kept; None keeps the last ones in this process alone.
    """

    def __init__(self, llm: InfiniPot, store: MemoryStore | None = None) -> None:
        self.llm = llm
        self.store = store
        self._reading = threading.Lock()  # a document that two threads want is read once
        self._keeping = threading.Lock()  # while the order below changes
        self._memories: OrderedDict[tuple[str, ...], DocumentMemory] = OrderedDict()

    def memory(
        self,
        documents: Sequence[Document],
        *,
        progress: Any = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> tuple[DocumentMemory, int]:
        """Return a memory of documents, several joined, and how many of its tokens were read for it now.

        Args:
            documents: Of what.
            progress: As in InfiniPot.read.
            cancelled: Asked while waiting and after every forward pass.

        Raises:
            DocumentError: There is nothing to read.
            StoreError: The store cannot be used.
            GoneError: `cancelled` said so.
        """
        documents = each_once(documents)
        if not documents:
            raise DocumentError("no document was given: name at least one.")
        key = tuple(f"{d.content_hash} {d.name}" for d in documents)
        if (known := self._open(documents, key)) is not None:
            return known, 0
        read = 0
        memories = []
        with held(self._reading, cancelled):
            if len(documents) > 1 and (known := self._memories.get(key)) is not None:
                return self._kept(key, known), 0
            for document in documents:
                memory, now = self._one(document, progress, cancelled)
                read += now
                memories.append(memory)
            if len(memories) == 1:
                return memories[0], read
            return self._kept(key, joined(memories)), read

    def holds(self, document: Document) -> bool:
        """Whether the memory of a document is open, or in the store, so that asking for it reads nothing."""
        if (document.content_hash,) in self._memories:
            return True
        return self.store is not None and self.llm.config.shelf != "off" and self.llm.key([document]) in self.store

    def recognised(self, document_id: str) -> Document:
        """Return the document with this id (`Document.id`), when a memory of it is here or in the store.

        Raises:
            DocumentError: The id is malformed, or no memory of that document is known.
        """
        if not re.fullmatch(rf"{ID_PREFIX}[0-9a-f]{{64}}", document_id):
            raise DocumentError(f"a document's id is {ID_PREFIX} and 64 hex digits: give the id of one that was read.")
        content = document_id.removeprefix(ID_PREFIX)
        memory = self._memories.get((content,))
        if memory is None and self.store is not None and (path := self.store.get(self.llm.key_of(content))):
            with suppress(MemoryFileError):  # damaged, or evicted in this moment
                memory = self._kept((content,), self.llm.load(path))
        if memory is None:
            raise DocumentError(f"no memory of {document_id[:12]}... is known here: give the document itself once.")
        return memory.documents[0]

    def _open(self, documents: Sequence[Document], key: tuple[str, ...]) -> DocumentMemory | None:
        """Return the memory of documents that is open: whoever asks for it does not wait for another's reading."""
        with self._keeping:
            found = self._memories.get(key if len(documents) > 1 else (documents[0].content_hash,))
        if found is None or [d.name for d in found.documents] != [d.name for d in documents]:
            return None
        return self._kept(key if len(documents) > 1 else (documents[0].content_hash,), found)

    def _one(
        self, document: Document, progress: Any, cancelled: Callable[[], bool] | None
    ) -> tuple[DocumentMemory, int]:
        """Return the memory of one document, under the name that it has now, and how many tokens were read for it."""
        passes: list[ReadStats] = []
        memory = self._memories.get((document.content_hash,))
        if memory is None:
            with self._turn(document, cancelled), telling(len(document.text) // 4, progress, cancelled) as told:

                def noted(stats: ReadStats) -> None:
                    passes[:] = [stats]
                    told(stats)

                memory = self.llm.read(document, store=self.store, progress=noted)
        if memory.documents[0].name != document.name:
            memory = memory.renamed((document,))
        self._kept((document.content_hash,), memory)
        return memory, len(memory.text) if passes else 0

    def _kept(self, key: tuple[str, ...], memory: DocumentMemory) -> DocumentMemory:
        """Put a memory last among those that are open, and let the first go where there are too many."""
        with self._keeping:
            self._memories[key] = memory
            self._memories.move_to_end(key)
            while len(self._memories) > MOST_MEMORIES:
                self._memories.popitem(last=False)
        return memory

    def _turn(self, document: Document, cancelled: Callable[[], bool] | None) -> AbstractContextManager[None]:
        """Wait until no other process reads a document, as InfiniPot.read would without asking `cancelled`."""
        if self.store is None or self.llm.config.shelf == "off":
            return nullcontext()
        return self.store.writing(self.llm.key([document]), while_waiting=partial(_still_wanted, cancelled))


def _still_wanted(cancelled: Callable[[], bool] | None) -> None:
    """Give up what nobody waits for.

    Raises:
        GoneError: `cancelled` said so.
    """
    if cancelled is not None and cancelled():
        raise GoneError


@contextmanager
def telling(tokens: int, progress: Any, cancelled: Callable[[], bool] | None) -> Iterator[Callable[[ReadStats], None]]:
    """Yield what is told after every forward pass: it passes that on, and ends the reading when nobody waits for it."""
    with reading_bar(tokens, progress) as bar:

        def told(stats: ReadStats) -> None:
            _still_wanted(cancelled)
            if bar is not None:
                bar(stats)

        yield told
