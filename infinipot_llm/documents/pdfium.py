"""The second PDF reader, for what pypdf cannot read: pypdfium2, where it is installed."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infinipot_llm.documents.clean import one_line

INSTALL = 'pip install "infinipot-llm[pdfium]"'

_PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD

# Some messages quote the bytes that were not understood, at any length.
_REASON_CHARACTERS = 80

# PDFium itself is not thread-safe.
_reading = threading.Lock()


class PdfiumError(Exception):
    """PDFium cannot read the file; `needs_password` tells whether that is for want of the right password."""

    def __init__(self, reason: str, *, needs_password: bool = False) -> None:
        super().__init__(reason)
        self.needs_password = needs_password


@dataclass(frozen=True, slots=True)
class PdfiumPages:
    """What PDFium read.

    Attributes:
        texts: Text by page index, from 0, of the pages that could be read.
        failures: Reason by page index of those that could not.
        labels: Printed label of every page of the file ("" for none).
    """

    texts: dict[int, str]
    failures: dict[int, str]
    labels: list[str]


def is_installed() -> bool:
    """Whether pypdfium2 can be imported, told without importing it."""
    return importlib.util.find_spec("pypdfium2") is not None


def read_pages(data: bytes, *, password: str | None, indexes: Sequence[int] | None = None) -> PdfiumPages:
    """Read pages with PDFium.

    Args:
        data: The content of the PDF.
        password: Its password, or None.
        indexes: The pages to read, from 0; all of them if left out.

    Raises:
        PdfiumError: If the file cannot be opened, or pypdfium2 not be used.
    """
    with _reading:
        try:
            import pypdfium2

            pdf = pypdfium2.PdfDocument(data, password=password)
        except Exception as error:
            code = getattr(error, "err_code", None)
            raise PdfiumError(describe(error), needs_password=code == _PASSWORD_ERROR) from error
        try:
            pages = PdfiumPages({}, {}, [pdf.get_page_label(i) for i in range(len(pdf))])
            for index in range(len(pdf)) if indexes is None else indexes:
                try:
                    pages.texts[index] = _page_text(pdf, index)
                except Exception as error:
                    pages.failures[index] = describe(error)
            return pages
        except Exception as error:
            raise PdfiumError(describe(error)) from error
        finally:
            pdf.close()


def describe(error: Exception) -> str:
    """Name an exception of a PDF library in a few words, on one line: "PdfReadError: EOF marker not found"."""
    message = one_line(str(error)).rstrip(".")[:_REASON_CHARACTERS].rstrip()
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


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
