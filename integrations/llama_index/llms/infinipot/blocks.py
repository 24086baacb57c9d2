"""Chat messages of LlamaIndex as messages and documents of ours: nothing is dropped without a word, nothing fetched.

`DocumentBlock.resolve_document()` opens paths and fetches addresses, which a message from elsewhere may name: it is
called on data that came with the block, and on anything else only where the caller allowed it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from infinipot_llm.answering.prompt import Message
from infinipot_llm.documents import Document
from infinipot_llm.documents.clean import one_line
from infinipot_llm.errors import DocumentError, QuestionError

_ROLES: dict[MessageRole, Literal["system", "user", "assistant"]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
"""Anything else is said to the model, as users and tools do."""

_SHOWN_ARGUMENTS = 500
"""Characters of what a tool was called with."""

_UNTITLED = "input_document"
"""What LlamaIndex calls a document that was given no title."""


@dataclass(frozen=True)
class Given:
    """What a conversation consists of.

    Attributes:
        messages: What was said.
        documents: What came with it, in order.
        remembered: How many of them stand before a CachePoint: their memory is kept for the next call.
    """

    messages: tuple[Message, ...]
    documents: tuple[Document, ...]
    remembered: int = 0


def given(messages: Sequence[ChatMessage], paths: bool | Sequence[str] = False, urls: bool = False) -> Given:
    """Take messages apart.

    Args:
        messages: The conversation.
        paths: Whether paths in it are opened: none, any, or those within these folders.
        urls: Whether addresses in it are fetched.

    Raises:
        QuestionError: It holds what a language model of text cannot read, or what was not allowed.
        DocumentError: A document in it cannot be read.
    """
    said: list[Message] = []
    documents: list[Document] = []
    remembered = 0
    for message in messages:
        text: list[str] = []
        for block in message.blocks:
            if isinstance(block, TextBlock):
                text.append(block.text)
            elif isinstance(block, DocumentBlock):
                documents.append(document_of(block, paths, urls))
            elif isinstance(block, CitableBlock):
                documents.extend(_citable(block, paths, urls))
            elif isinstance(block, CachePoint):
                remembered = len(documents)
            elif isinstance(block, ToolCallBlock):  # of another model, whose conversation goes on here
                text.append(f"[calls {block.tool_name} with {one_line(str(block.tool_kwargs))[:_SHOWN_ARGUMENTS]}]")
            elif not isinstance(block, (ThinkingBlock, CitationBlock)):  # a model's own; it says them to others
                kind = getattr(block, "block_type", type(block).__name__)
                raise QuestionError(f"this model reads text and documents, no block of type {kind!r}: leave it out.")
        said.append(Message(_ROLES.get(message.role, "user"), "\n".join(text)))
    return Given(tuple(said), tuple(documents), remembered)


def document_of(block: DocumentBlock, paths: bool | Sequence[str] = False, urls: bool = False) -> Document:
    """Read the document of a block; what it is, its content decides.

    Raises:
        QuestionError: It is a path or an address, and that was not allowed.
        DocumentError: It cannot be read.
    """
    title = one_line(block.title or "")
    if title == _UNTITLED:
        title = ""
    if block.data:
        return Document.from_bytes(_bytes(block.data), name=title or "document")
    url = str(block.url or "")
    if block.path or url.startswith("file:"):
        path = Path(str(block.path) if block.path else unquote(urlparse(url).path))
        if not _allowed(path, paths):
            raise QuestionError(
                f"a message names the file {one_line(str(path))}, which is not opened: give its content as data, or "
                "allow its folder with InfiniPotLLM(allow_paths=[...])."
            )
        return Document.from_file(path, name=title or None)
    if not url:
        raise DocumentError(f"the document block {title or 'without a title'} is empty: give it data.")
    if not (urls or url.startswith("data:")):
        raise QuestionError(
            f"a message names the address {one_line(url)[:200]}, which is not fetched: give the content as data, or "
            "allow it with InfiniPotLLM(allow_urls=True)."
        )
    return Document.from_bytes(_fetched(block, url), name=title or Path(urlparse(url).path).name[:100] or "document")


def _bytes(data: bytes | IOBase) -> bytes:
    if isinstance(data, IOBase):
        data.seek(0)
        read: Any = data.read()
        return read.encode() if isinstance(read, str) else bytes(read)
    try:
        return base64.b64decode(data, validate=True)  # as DocumentBlock keeps bytes
    except binascii.Error:
        return data


def _fetched(block: DocumentBlock, url: str) -> bytes:
    try:
        return bytes(block.resolve_document().read())
    except Exception as error:  # requests, sockets, bad data: whatever it is, the user sees a sentence
        raise DocumentError(f"{one_line(url)[:200]} cannot be read: {one_line(str(error))[:200]}.") from error


def _allowed(path: Path, paths: bool | Sequence[str]) -> bool:
    if isinstance(paths, bool):
        return paths
    real = path.expanduser().resolve()
    return any(real.is_relative_to(Path(folder).expanduser().resolve()) for folder in paths)


def _citable(block: CitableBlock, paths: bool | Sequence[str], urls: bool) -> list[Document]:
    """Return what a block offers for citation."""
    documents = []
    for part in block.content:
        if isinstance(part, TextBlock):
            documents.append(Document.from_text(part.text, name=block.title or block.source or "text"))
        elif isinstance(part, DocumentBlock):
            documents.append(document_of(part, paths, urls))
        else:
            raise QuestionError("this model cites text and documents, no pictures: leave them out.")
    return documents
