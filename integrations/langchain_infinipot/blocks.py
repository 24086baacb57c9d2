"""One content block: the text or the document in it, or one sentence on why it cannot be taken.

LangChain normalises the blocks of OpenAI and Anthropic (`message.content_blocks`), so that there are two kinds left
that hold documents: `file` (base64, url or file_id) and `text-plain` (text besides).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from infinipot_llm.documents import Document
from infinipot_llm.errors import DocumentError
from langchain_infinipot.errors import InvalidRequestError
from langchain_infinipot.sources import Recognise, parsed

FILE_ID = re.compile(r"ipd_[0-9a-f]{64}")
"""What `file_id` may be: the id of a document by its content, never a path."""

DOCUMENT_BLOCKS = ("file", "text-plain")
SILENT_BLOCKS = (
    "tool_call",
    "tool_call_chunk",
    "invalid_tool_call",
    "reasoning",
    "server_tool_call",
    "server_tool_result",
)
"""What other models say besides their answers; it is no text of the conversation."""

_SUFFIXES = {
    "application/pdf": ".pdf",
    "text/vtt": ".vtt",
    "application/x-subrip": ".srt",
    "text/srt": ".srt",
    "text/markdown": ".md",
    "text/plain": ".txt",
}


@dataclass(frozen=True)
class Limits:
    """What blocks may hold, and what they may refer to.

    Attributes:
        recognise: Gives the document with an id, when it was read before.
        max_bytes: A block that holds more is refused before it is decoded.
        fetch_url: Returns the bytes at an address; None refuses addresses.
    """

    recognise: Recognise
    max_bytes: int
    fetch_url: Callable[[str], bytes] | None = None


def content_blocks(message: BaseMessage) -> list[dict[str, Any]]:
    """Return the blocks of a message in LangChain's standard form.

    Raises:
        InvalidRequestError: A block is malformed.
    """
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}] if message.content else []
    old_texts = [_old_text(block) for block in message.content]
    plain = message.model_copy(update={"content": old_texts})
    if isinstance(plain, AIMessage):  # as what it holds, whichever provider's it was
        plain = AIMessage(content=old_texts)
    try:
        return [dict(block) for block in plain.content_blocks]
    except Exception as error:  # it takes blocks of any shape apart, and fails as it happens
        raise InvalidRequestError(
            f"a content block of a {message.type} message is malformed ({type(error).__name__}): give 'file' blocks "
            "with base64 or file_id, 'text-plain' blocks with text, and 'text' blocks."
        ) from error


def read_block(block: dict[str, Any], number: int, limits: Limits) -> Document:
    """Return the document in a block of DOCUMENT_BLOCKS.

    Args:
        block: In LangChain's standard form.
        number: How many documents the messages hold so far, this one included; names those without a name.
        limits: What it may hold.

    Raises:
        InvalidRequestError: It is malformed, too large, or holds what cannot be read.
        DocumentError: It is unreadable, encrypted, or holds no text.
    """
    extras = block.get("extras") or {}
    given = next((v for v in (block.get("title"), *map(extras.get, ("filename", "title"))) if v), None)
    media_type = str(block.get("mime_type"))
    suffix = _SUFFIXES.get(media_type, "")
    if block["type"] == "text-plain":
        suffix = suffix or ".txt"
    name = str(given or block.get("filename") or f"document {number}{suffix}")
    if isinstance(text := block.get("text"), str) and block["type"] == "text-plain":
        _check_size(len(text), name, limits)
        return parsed(text.encode("utf-8", "replace"), name, "text/plain") if text.strip() else _no_text(name)
    if "base64" in block:
        return parsed(_decoded(block["base64"], name, limits), name, media_type)
    # LangChain puts the file id of an Anthropic block into `id`, which is a block's own name otherwise.
    reference = block.get("file_id") or (block.get("id") if "url" not in block else None)
    if reference is not None:
        if not isinstance(reference, str) or not FILE_ID.fullmatch(reference):
            raise InvalidRequestError(
                "a block has no base64, and its file_id is none of ours: give 'ipd_' and 64 hex digits, as "
                "ChatInfiniPot.read returns it in a block."
            )
        return limits.recognise(reference)
    if isinstance(url := block.get("url"), str):
        if limits.fetch_url is None:
            raise InvalidRequestError(
                "a block names an address, and nothing is fetched: give the file's bytes as base64, or opt in with "
                "fetch_url=<a function from address to bytes>."
            )
        data = limits.fetch_url(url)
        _check_size(len(data), name, limits)
        return parsed(data, name, media_type)
    raise InvalidRequestError(f"a {block['type']!r} block holds nothing: give it base64, file_id or text.")


def other_block(block: dict[str, Any]) -> InvalidRequestError:
    """Return the error for a block that holds neither text nor a document."""
    kind = block.get("type")
    if kind == "non_standard":
        inner = block.get("value")
        kind = inner.get("type") if isinstance(inner, dict) else None
    return InvalidRequestError(
        f"a content block of type {str(kind)[:40]!r} cannot be read: give 'text', 'file' (PDFs) and 'text-plain'."
    )


def _old_text(block: Any) -> Any:
    """Return a block of LangChain 0.3 that holds text in today's form; langchain-core fails on it (KeyError: 'url')."""
    if not (isinstance(block, dict) and block.get("type") == "file" and block.get("source_type") == "text"):
        return block
    return {
        "type": "text-plain",
        "text": block.get("text", ""),
        "mime_type": "text/plain",
        "extras": {k: block[k] for k in ("filename", "title") if k in block} or dict(block.get("metadata") or {}),
    }


def _decoded(data: Any, name: str, limits: Limits) -> bytes:
    """Return the bytes that base64 stands for; white space in it, and a data: address around it, are common."""
    if not isinstance(data, (str, bytes)):
        raise InvalidRequestError(f"{name}: base64 is {type(data).__name__}: give a string.")
    _check_size(len(data) * 3 // 4, name, limits)
    text = data if isinstance(data, str) else data.decode("latin-1")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(
            f"{name}: this is not base64: encode the file's bytes with base64.b64encode."
        ) from None


def _check_size(nbytes: int, name: str, limits: Limits) -> None:
    if nbytes > limits.max_bytes:
        raise InvalidRequestError(
            f"{name} holds {nbytes} bytes, and max_block_bytes is {limits.max_bytes}: raise it, or bind the file "
            "itself (document=...)."
        )


def _no_text(name: str) -> Document:
    raise DocumentError(f"{name} holds no text: there is nothing but white space in it.")
