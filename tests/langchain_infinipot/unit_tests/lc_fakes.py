"""An assistant that writes down what it is given and says what it is told, and a chat model over it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_infinipot import ChatInfiniPot
from pydantic import BaseModel

from infinipot_llm.answering.answer import Answer, Citation, Usage
from infinipot_llm.assistant import Reply
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.errors import DocumentError
from infinipot_llm.pot.reader import ReadStats


class FakeAssistant:
    """Stands where an Assistant would; documents are remembered by id, a token is a character."""

    def __init__(self, text: str = "It hangs behind the door.", *, how: str = "recall", finish: str = "stop") -> None:
        self.text = text
        self.how = how
        self.finish = finish
        self.pieces: list[str] = []
        """What a stream yields; the words of the text, where nothing is given."""
        self.calls: list[tuple[list[Any], list[Document], dict[str, Any]]] = []
        self.known: dict[str, Document] = {}
        self.closed = threading.Event()
        self.loop_threads: list[int] = []
        self.error: Exception | None = None
        codec = SimpleNamespace(untrusted=lambda text: list(text.encode()))
        form = SimpleNamespace(codec=codec, prefix=())
        self.llm = SimpleNamespace(form=form, name="fake", config=PotConfig(budget=512))

    def respond(self, messages: Sequence[Any], documents: Sequence[Document] = (), **options: Any) -> Reply:
        if self.error is not None:
            raise self.error
        self.calls.append((list(messages), list(documents), options))
        new = [d for d in documents if d.id not in self.known]
        self.known |= {d.id: d for d in documents}
        read = sum(len(d.text) for d in new)
        total = sum(len(d.text) for d in documents)
        cited = [
            Citation(d.name, 1, None, 0, 5, d.text[:5], 0.5, *(("Ann", 2.0) if d.turns else (None, None)))
            for d in documents
        ]
        usage = Usage(ReadStats(read), 7, 3, 5, 0.1, 0.2, 1000, 1000)
        answer = Answer(self.text, tuple(cited[:3]), self.finish, usage, 1.5 if documents else None, ("a note",))
        how = self.how if documents else "plain"
        return Reply(answer, how, tuple(documents), total + 7, read, total - read)

    def stream(self, messages: Sequence[Any], documents: Sequence[Document] = (), **options: Any) -> Iterator[Any]:
        try:
            reply = self.respond(messages, documents, **options)
            yield from self.pieces or [w if i == 0 else f" {w}" for i, w in enumerate(self.text.split(" "))]
            yield reply
        finally:
            self.closed.set()

    async def arespond(self, messages: Sequence[Any], documents: Sequence[Document] = (), **options: Any) -> Reply:
        self.loop_threads.append(threading.get_ident())
        return self.respond(messages, documents, **options)

    async def astream(
        self, messages: Sequence[Any], documents: Sequence[Document] = (), **options: Any
    ) -> AsyncIterator[Any]:
        self.loop_threads.append(threading.get_ident())
        try:
            for piece in self.stream(messages, documents, **options):
                yield piece
        finally:
            self.closed.set()

    def recognised(self, document_id: str) -> Document:
        if document_id not in self.known:
            raise DocumentError("no memory of that document is known: give the document itself once.")
        return self.known[document_id]

    def remember(self, documents: Sequence[Document], *, progress: Any = None) -> Any:
        self.known |= {d.id: d for d in documents}
        return SimpleNamespace(documents=tuple(documents))

    def count_tokens(self, text: str) -> int:
        return len(text)


DOC = Document.from_text("The key hangs behind the door.", name="notes.txt")
BLOCK = {"type": "text-plain", "text": DOC.text, "mime_type": "text/plain", "title": "notes.txt"}
QUESTION = [HumanMessage([BLOCK, {"type": "text", "text": "Where is the key?"}])]


def chat(fake: FakeAssistant | None = None, **changes: Any) -> ChatInfiniPot:
    return ChatInfiniPot(model="fake", assistant=fake or FakeAssistant(), **changes)


def check_citations(blocks: Any, text: str) -> None:
    (block,) = blocks
    assert block["text"] == text
    (cited,) = block["annotations"]
    assert (cited["type"], cited["title"], cited["cited_text"]) == ("citation", "notes.txt", "The k")
    assert text[cited["start_index"] : cited["end_index"]] == text
    assert cited["extras"]["page"] == 1
    assert cited["extras"]["document_id"] == DOC.id


def streamed(llm: ChatInfiniPot, **options: Any) -> AIMessageChunk:
    full: Any = None
    for chunk in llm.stream(QUESTION, **options):
        full = chunk if full is None else full + chunk
    assert isinstance(full, AIMessageChunk)
    return full


class Sure(BaseModel):
    """Whether it is so."""

    ok: bool
