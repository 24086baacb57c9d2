"""The second PDF reader, for what pypdf cannot read: pypdfium2, where it is installed, in the process that parses."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

from infinipot_llm.documents.clean import describe

INSTALL = 'pip install "infinipot-llm[pdfium]"'

_PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD


def is_installed() -> bool:
    """Whether pypdfium2 can be imported, told without importing it."""
    return importlib.util.find_spec("pypdfium2") is not None


def read(data: bytes, password: str | None, indexes: Sequence[int] | None, most: int) -> Iterator[dict[str, Any]]:
    """Read pages; arguments and messages are those of `pypdf_pages.read`."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(data, password=password)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) != _PASSWORD_ERROR:
            raise
        yield {"kind": "locked"}
        return
    try:
        yield {"kind": "opened", "pages": len(pdf)}
        for index in range(len(pdf)) if indexes is None else indexes:
            try:
                text = _page_text(pdf, index)
                yield {"kind": "page", "index": index, "text": text[:most], "characters": len(text)}
            except Exception as error:
                yield {"kind": "lost", "index": index, "reason": describe(error)}
        yield {"kind": "labels", "labels": [pdf.get_page_label(i) for i in range(len(pdf))]}
    finally:
        pdf.close()


def _page_text(pdf: Any, index: int) -> str:
    """Read one page; PDFium joins a word hyphenated at a line's end by U+0002, which is put back as it is printed."""
    page = pdf[index]
    try:
        text_page = page.get_textpage()
        try:
            return str(text_page.get_text_bounded()).replace("\x02", "-\n")
        finally:
            text_page.close()
    finally:
        page.close()
