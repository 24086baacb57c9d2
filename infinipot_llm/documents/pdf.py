"""PDFs, page by page, with pypdf; pypdfium2, where installed, reads what pypdf cannot."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

from infinipot_llm.documents import pdfium
from infinipot_llm.documents.clean import one_line
from infinipot_llm.documents.extracted import Extracted
from infinipot_llm.documents.pdfium import describe
from infinipot_llm.errors import DocumentError

if TYPE_CHECKING:
    from pypdf import PdfReader

# Silencing pypdf changes its logger for the whole process; two threads doing so at once could leave it silenced.
_reading = threading.Lock()


def read_pdf(data: bytes, *, name: str, password: str | None = None) -> Extracted:
    """Read the text and the page labels of a PDF.

    Pages that pypdf cannot read are read with pypdfium2 where that is installed; that, and every page that is lost, is
    told in the notes.

    Args:
        data: The content of the PDF.
        name: What to call it in messages.
        password: Its user or owner password; not looked at where the PDF opens without one.

    Raises:
        DocumentError: If the PDF is encrypted and the password missing or wrong, if neither reader can open it, or if
            no page holds text. Nothing else is raised, whatever the PDF makes its reader do.
    """
    try:
        with _quiet_pypdf():
            texts, failures, labels, notes = _read_with_pypdf(data, name, password)
    except DocumentError:
        raise
    except Exception as error:  # a parser of hostile data may raise anything; it becomes a sentence here
        return _read_with_pdfium(data, name, password, reason=f"pypdf failed ({describe(error)})")
    if failures:
        notes = notes + _recover_pages(data, password, texts, failures)
    extracted = Extracted(texts, labels, notes)
    if not failures and not extracted.has_text:
        return _read_with_pdfium(data, name, password, reason="pypdf found no text", is_readable=True)
    if not extracted.has_text:
        raise DocumentError(f"{_damaged(name)} ({notes[-1]}).")
    return extracted


@contextmanager
def _quiet_pypdf() -> Iterator[None]:
    """Keep pypdf's remarks on untidy PDFs off the terminal for the duration, one reader at a time."""
    logger = logging.getLogger("pypdf")
    with _reading:
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def _read_with_pypdf(
    data: bytes, name: str, password: str | None
) -> tuple[list[str], dict[int, str], list[str | None], list[str]]:
    """Read with pypdf: texts of all pages, reasons by index of those that failed, labels, and notes."""
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted:
        _unlock(reader, name, password)
    count = len(reader.pages)
    if count == 0:
        raise ValueError("no pages found")
    texts, failures = [], {}
    for index in range(count):
        try:
            texts.append(reader.pages[index].extract_text())
        except Exception as error:  # as above: one bad page must not cost the others
            texts.append("")
            failures[index] = describe(error)
    labels, notes = _page_labels(reader, count)
    return texts, failures, labels, notes


def _unlock(reader: PdfReader, name: str, password: str | None) -> None:
    """Decrypt with the empty password, which PDFs that only restrict printing have, or with the one given."""
    from pypdf import PasswordType

    if reader.decrypt("") != PasswordType.NOT_DECRYPTED:
        return
    if password is None:
        raise DocumentError(_encrypted(name))
    if reader.decrypt(password) == PasswordType.NOT_DECRYPTED:
        raise DocumentError(_wrong_password(name))


def _page_labels(reader: PdfReader, count: int) -> tuple[list[str | None], list[str]]:
    """Read the labels the PDF defines; pypdf would make up "1", "2", ... for a PDF that defines none."""
    no_labels: list[str | None] = [None] * count
    try:
        if "/PageLabels" not in reader.root_object:
            return no_labels, []
        labels = [one_line(label) or None for label in reader.page_labels]
    except Exception as error:  # as above
        return no_labels, [f"the printed page numbers could not be read ({describe(error)})"]
    return labels, []


def _recover_pages(data: bytes, password: str | None, texts: list[str], failures: dict[int, str]) -> list[str]:
    """Fill in the pages pypdf failed on, in place, and give the notes on them."""
    outcomes: dict[int, str] = {}
    for index, reason in failures.items():
        outcomes[index] = f"lost because pypdf failed ({reason}); {pdfium.INSTALL} may read it"
    if pdfium.is_installed():
        try:
            pages = pdfium.read_pages(data, password=password, indexes=list(failures))
        except pdfium.PdfiumError as error:
            pages = pdfium.PdfiumPages({}, dict.fromkeys(failures, str(error)), [])
        for index, text in pages.texts.items():
            texts[index] = text
            if text.strip():
                outcomes[index] = f"read with pypdfium2 because pypdf failed ({failures[index]})"
            else:
                outcomes[index] = f"lost because pypdf failed ({failures[index]}) and pypdfium2 found no text"
        for index, reason in pages.failures.items():
            outcomes[index] = f"lost because pypdf failed ({failures[index]}) and so did pypdfium2 ({reason})"
    return _page_notes(outcomes)


def _page_notes(outcomes: dict[int, str]) -> list[str]:
    """Say the same thing of neighbouring pages once: "page 3: ...", "pages 5 to 9: ..."."""
    notes = []
    # Consecutive indexes have the same distance to their rank.
    ranked = enumerate(sorted(outcomes.items()))
    for (_, outcome), run in groupby(ranked, key=lambda item: (item[1][0] - item[0], item[1][1])):
        numbers = [index + 1 for _, (index, _) in run]
        pages = f"page {numbers[0]}" if len(numbers) == 1 else f"pages {numbers[0]} to {numbers[-1]}"
        notes.append(f"{pages}: {outcome}")
    return notes


def _read_with_pdfium(
    data: bytes, name: str, password: str | None, *, reason: str, is_readable: bool = False
) -> Extracted:
    """Read a whole PDF that pypdf got no text from, or say in one sentence what is wrong with it.

    Args:
        data: The content of the PDF.
        name: What to call it in messages.
        password: Its password, or None.
        reason: What pypdf made of it, for the note.
        is_readable: Whether pypdf could open it, so that it is not damaged but without text.

    Raises:
        DocumentError: If pypdfium2 gets no text from it either, or is not installed.
    """
    no_text = f"{name} holds no text, only images or blank pages: run OCR on it first, for instance with ocrmypdf."
    if not pdfium.is_installed():
        raise DocumentError(no_text if is_readable else f"{_damaged(name)}, or try {pdfium.INSTALL} ({reason}).")
    try:
        pages = pdfium.read_pages(data, password=password)
    except pdfium.PdfiumError as error:
        if error.needs_password:
            raise DocumentError(_encrypted(name) if password is None else _wrong_password(name)) from None
        raise DocumentError(no_text if is_readable else f"{_damaged(name)} ({reason}; pypdfium2: {error}).") from error
    notes = [f"read with pypdfium2 because {reason}"]
    notes += _page_notes({index: f"lost because pypdfium2 failed ({why})" for index, why in pages.failures.items()})
    texts = [pages.texts.get(index, "") for index in range(len(pages.labels))]
    extracted = Extracted(texts, [one_line(label) or None for label in pages.labels], notes)
    if not extracted.has_text:
        raise DocumentError(no_text if is_readable or not pages.failures else f"{_damaged(name)} ({reason}).")
    return extracted


def _damaged(name: str) -> str:
    """The start of a sentence, for a reason in parentheses and a full stop to follow."""
    return f"{name} cannot be read as a PDF, it may be damaged or cut short: download or export it again"


def _encrypted(name: str) -> str:
    return f"{name} is encrypted: give its password with --password."


def _wrong_password(name: str) -> str:
    return f"{name} does not open with this password: check it, capital letters included."
