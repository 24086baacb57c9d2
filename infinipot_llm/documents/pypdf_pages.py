"""The first PDF reader, pypdf, in the process that parses: a message for each page, as soon as it is read."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from infinipot_llm.documents.annotations import typed_text
from infinipot_llm.documents.clean import describe
from infinipot_llm.documents.page_labels import page_labels
from infinipot_llm.documents.paragraphs import Piece, with_breaks

if TYPE_CHECKING:
    from pypdf import PdfReader


def read(data: bytes, password: str | None, indexes: Sequence[int] | None, most: int) -> Iterator[dict[str, Any]]:
    """Read pages; see `worker.READERS` for the messages.

    Args:
        data: The content of the PDF.
        password: Its user or owner password; not looked at where the PDF opens without one.
        indexes: The pages to read, from 0, or None for all.
        most: Characters of a page that are kept.
    """
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not _unlock(reader, password):
        yield {"kind": "locked"}
        return
    count = len(reader.pages)
    if count == 0:
        raise ValueError("no pages found")
    yield {"kind": "opened", "pages": count}
    for index in range(count) if indexes is None else indexes:
        try:
            pieces: list[Piece] = []
            page = reader.pages[index]
            text = page.extract_text(visitor_text=lambda *piece: pieces.append(piece))  # noqa: B023
            text = "\n\n".join(filter(None, (with_breaks(text, pieces), typed_text(page))))
            yield {"kind": "page", "index": index, "text": text[:most], "characters": len(text)}
        except Exception as error:  # a parser of hostile data may raise anything; one bad page must not cost the others
            yield {"kind": "lost", "index": index, "reason": describe(error)}
    try:
        yield {"kind": "labels", "labels": page_labels(reader.root_object, count)}
    except Exception as error:  # as above
        yield {"kind": "labels", "labels": [], "reason": describe(error)}


def _unlock(reader: PdfReader, password: str | None) -> bool:
    """Decrypt with the empty password, which PDFs that only restrict printing have, or with the one given."""
    from pypdf import PasswordType

    return any(reader.decrypt(p) != PasswordType.NOT_DECRYPTED for p in ("", password) if p is not None)
