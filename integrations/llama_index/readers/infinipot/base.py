"""InfiniPotPDFReader: a PDF as one LlamaIndex document per page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import Document as LlamaDocument

from infinipot_llm.documents import Document
from infinipot_llm.documents.clean import one_line
from infinipot_llm.errors import DocumentError

PAGE = "page"
PAGE_LABEL = "page_label"
TOTAL_PAGES = "total_pages"
NOTES = "reading_notes"
"""Metadata keys. `page` counts from 1; `page_label` is what is printed on the page, or else the number as text."""

HIDDEN = (PAGE, TOTAL_PAGES, NOTES, "file_path")
"""Metadata that tells a language model or an embedding nothing."""

_MAGIC = b"%PDF-"
_MAGIC_WITHIN = 1024


class InfiniPotPDFReader(BaseReader):
    """Read PDFs page by page, with pypdf, as `infinipot ask report.pdf` does.

    Pages without text stay in the list, so that the numbers of the others are right; `InfiniPotIndex` joins the pages
    of a file again, in order.

    Examples:
        `SimpleDirectoryReader("reports/", file_extractor={".pdf": InfiniPotPDFReader()}, raise_on_error=True)`
    """

    def __init__(self, password: str | None = None) -> None:
        """Make a reader.

        Args:
            password: Opens encrypted PDFs; not looked at where a PDF opens without one.
        """
        self._password = password

    def lazy_load_data(
        self, file: str | PurePath, extra_info: dict[str, Any] | None = None, fs: Any = None, **_: Any
    ) -> Iterable[LlamaDocument]:
        """Yield the pages of a PDF.

        Args:
            file: Its path.
            extra_info: Metadata for every page, as SimpleDirectoryReader gives it.
            fs: The fsspec file system that the path is of; None: the local one.

        Raises:
            DocumentError: The file is missing, no PDF, encrypted, damaged, or holds no text.
        """
        document = self._opened(file, fs)
        shared = {
            "file_name": document.name,
            "file_path": str(file),
            **(extra_info or {}),
            TOTAL_PAGES: document.page_count,
        }
        for page in document.pages:
            told = {**shared, PAGE_LABEL: page.label or str(page.number), PAGE: page.number}
            if page.number == 1 and document.notes:
                told[NOTES] = "; ".join(document.notes)
            yield LlamaDocument(
                text=document.text[page.start : page.end],
                metadata=told,
                excluded_llm_metadata_keys=list(HIDDEN),
                excluded_embed_metadata_keys=list(HIDDEN),
            )

    def _opened(self, file: str | PurePath, fs: Any) -> Document:
        name = PurePath(file).name
        if fs is not None:
            with fs.open(str(file), "rb") as stream:
                data = stream.read()
            _check_magic(data, name)
            return Document.from_bytes(data, name=name, password=self._password)
        if re.match(r"[A-Za-z][\w+.-]+:/", str(file)):
            raise DocumentError(
                f"{one_line(str(file))[:200]} is an address, and this reader fetches none: download it and give the "
                "path, or give the fsspec file system of it as fs."
            )
        path = Path(file)
        if path.suffix.lower() != ".pdf" and path.is_file():  # of a file named .pdf, Document.from_file says it
            with path.open("rb") as stream:
                _check_magic(stream.read(_MAGIC_WITHIN), name)
        return Document.from_file(path, password=self._password)


def _check_magic(data: bytes, name: str) -> None:
    """Refuse what is no PDF: a text would come out as one page with a number that nobody printed."""
    if _MAGIC not in data[:_MAGIC_WITHIN]:
        raise DocumentError(
            f"{name} is not a PDF: leave it to SimpleDirectoryReader, which reads text files by itself."
        )
