"""Documents that a user names in code: paths, documents, ids; never anything out of a message.

A path is opened anew only when the file has changed; parsing a PDF takes seconds, and a chain asks often.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infinipot_llm.documents import Document
from infinipot_llm.errors import DocumentError
from langchain_infinipot.errors import InvalidRequestError

Recognise = Callable[[str], Document]
"""Gives the document with an id, when it was read before."""

_KEPT = 16
_SHOWN = 200
"""Characters of a path that an error shows: it may be a document's text, given by mistake."""

_parsed: OrderedDict[str, Document] = OrderedDict()
_parsed_lock = threading.Lock()


def file_block(document: Document) -> dict[str, Any]:
    """Return the content block that refers to a document which was read before, in place of its bytes.

    It keeps megabytes out of checkpoints, traces and response caches. `ChatInfiniPot.read` reads and returns one.

    Args:
        document: What the block stands for.

    Raises:
        InvalidRequestError: It is no document.
    """
    if not isinstance(document, Document):
        raise InvalidRequestError(
            f"file_block was given something of type {_kind(document)}: give an "
            "infinipot_llm.Document, or call ChatInfiniPot.read with a path."
        )
    return {"type": "file", "file_id": document.id}


def as_sources(given: Any) -> tuple[Any, ...]:
    """Return what was bound as a tuple of paths, documents and ids, or refuse it.

    Raises:
        InvalidRequestError: Something else is among it.
    """
    if given is None:
        return ()
    several = given if isinstance(given, Sequence) and not isinstance(given, (str, bytes, bytearray)) else (given,)
    for source in several:
        if isinstance(source, (bytes, bytearray)):
            raise InvalidRequestError(
                "document holds raw bytes: give infinipot_llm.Document.from_bytes(...), or a file block in a message."
            )
        if isinstance(source, str) and not source.strip():
            raise InvalidRequestError("document is an empty string, which names no document: give a path or an id.")
        if not isinstance(source, (str, Path, Document)):
            raise InvalidRequestError(
                f"document holds {_kind(source)}: give a path, an infinipot_llm.Document, an id, or a list of these."
            )
    return tuple(several)


def open_sources(given: Any, recognise: Recognise) -> list[Document]:
    """Return the documents that were bound.

    Args:
        given: What the user named: a path, a Document, an id ("ipd_..."), or several of them.
        recognise: Gives the document with an id.

    Raises:
        DocumentError: One cannot be read.
        InvalidRequestError: It is none of these.
    """
    return [_open(source, recognise) for source in as_sources(given)]


def signature(given: Any) -> list[str]:
    """Return what tells bound documents apart, without opening any: for traces, and the key of a response cache."""
    return [source.id if isinstance(source, Document) else _file_state(source) for source in as_sources(given)]


def parsed(data: bytes, name: str, media_type: str | None = None) -> Document:
    """Read a document from memory, or take it from the few that were parsed last.

    Args:
        data: The content of a file.
        name: What it is called; captions and PDFs are told by its suffix.
        media_type: What the block says it is.

    Raises:
        DocumentError: It cannot be read.
    """
    key = f"{hashlib.sha256(data).hexdigest()} {media_type} {name}"
    return _remembered(key, lambda: Document.from_bytes(data, name=name, media_type=media_type))


def is_address(source: Any) -> bool:
    """Say whether a string is an address; nothing is fetched here."""
    return isinstance(source, str) and re.match(r"\s*[a-zA-Z][\w+.-]*://", source) is not None


def _kind(given: Any) -> str:
    """Return the name of a class, with its module, since other libraries have a Document as well."""
    kind = type(given)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _open(source: str | Path | Document, recognise: Recognise) -> Document:
    if isinstance(source, Document):
        return source
    if isinstance(source, str) and source.startswith("ipd_"):
        return recognise(source)
    if is_address(source):
        raise DocumentError("a document was bound by its address: fetch it, and bind the file or its Document.")
    named = str(source)
    if len(named) > _SHOWN and _file_state(source) == named:
        raise DocumentError(
            f"{' '.join(named[:_SHOWN].split())}... does not exist: check the path, or bind a text as "
            "infinipot_llm.Document.from_text(...)."
        )
    path = Path(source).expanduser()
    return _remembered(_file_state(path), lambda: Document.from_file(path))


def _file_state(source: str | Path) -> str:
    """Return a path with time and size of the file, which change when the file does."""
    try:
        facts = Path(source).expanduser().stat()
    except (OSError, ValueError, RuntimeError):
        return str(source)
    return f"{source} {facts.st_mtime_ns} {facts.st_size}"


def _remembered(key: str, make: Callable[[], Document]) -> Document:
    with _parsed_lock:
        if key in _parsed:
            _parsed.move_to_end(key)
            return _parsed[key]
    made = make()
    with _parsed_lock:
        _parsed[key] = made
        while len(_parsed) > _KEPT:
            _parsed.popitem(last=False)
    return made
