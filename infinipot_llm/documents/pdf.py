"""PDFs, page by page, with pypdf; pypdfium2, where installed, reads what pypdf cannot.

Both parse in a process of their own (`process.py`), so that a hostile PDF costs pages and not this process.
"""

from __future__ import annotations

from collections.abc import Sequence

from infinipot_llm.documents import pdfium, reading
from infinipot_llm.documents.clean import clean
from infinipot_llm.documents.extracted import Extracted
from infinipot_llm.documents.limits import Limits
from infinipot_llm.documents.page_notes import page_list, page_notes
from infinipot_llm.documents.paragraphs import unwrapped
from infinipot_llm.documents.process import ParserMissingError, Process
from infinipot_llm.documents.reading import Reading
from infinipot_llm.errors import DocumentError

LIMITS = Limits()

_CUT = "cut after {} characters, since no page of writing is longer"
_LEFT_OUT = "left out, since the pages before hold more text than is kept of a PDF"
_BLANK = "they may be scans, which need OCR first, for instance with ocrmypdf, or blank"
_ONE_BLANK = "it may be a scan, which needs OCR first, for instance with ocrmypdf, or blank"


def read_pdf(data: bytes, *, name: str, password: str | None = None) -> Extracted:
    """Read the text and the page labels of a PDF.

    Pages that pypdf cannot read, or finds no text on, are read with pypdfium2 where that is installed; that, every page
    that is lost and every page without text is told in the notes.

    Args:
        data: The content of the PDF.
        name: What to call it in messages.
        password: Its user or owner password; not looked at where the PDF opens without one.

    Raises:
        DocumentError: If the PDF is encrypted and the password missing or wrong, if neither reader can open it, if no
            page holds text, or if no process can be started to parse it in. Nothing else is raised, whatever the PDF
            makes its reader do.
    """
    try:
        with Process(LIMITS) as process:
            return read_with(process, data, name=name, password=password)
    except ParserMissingError as error:
        raise DocumentError(
            f"{name} cannot be read, since PDFs are parsed in a Python process of their own and {error}:"
            " run it with an ordinary Python, or convert the PDF to text first."
        ) from error


def read_with(process: Process, data: bytes, *, name: str, password: str | None) -> Extracted:
    """Read a PDF in a given process; see `read_pdf`.

    Raises:
        DocumentError: As `read_pdf`.
        ParserMissingError: If no process can be started.
    """
    first = reading.read(process, data, "pypdf", password=password)
    if first.is_locked:
        raise DocumentError(_locked(name, password))
    wanted = None if first.count is None else sorted([*first.lost, *first.blank])
    second = None
    if wanted != [] and pdfium.is_installed():
        second = reading.read(process, data, "pypdfium2", password=password, indexes=wanted)
    if first.count is None:
        return _from_second_alone(first, second, name, password)
    outcomes = _merge(first, second)
    return _extracted(first, outcomes, name)


def _merge(first: Reading, second: Reading | None) -> dict[int, str]:
    """Fill pypdf's gaps with what pypdfium2 read, and say what became of each of those pages, by its index."""
    outcomes = {}
    for index, reason in list(first.lost.items()):
        failed = f"pypdf failed ({reason})"
        if second is None:
            outcomes[index] = f"lost because {failed}; {pdfium.INSTALL} may read it"
        elif second.texts.get(index, "").strip():
            outcomes[index] = f"read with pypdfium2 because {failed}"
            del first.lost[index]
        elif index in second.texts:
            outcomes[index] = f"lost because {failed} and pypdfium2 found no text"
        else:
            why = second.lost.get(index) or second.failure or "it could not open the file"
            outcomes[index] = f"lost because {failed} and so did pypdfium2 ({why})"
    if second is not None:
        for index in first.blank:
            if second.texts.get(index, "").strip():
                outcomes[index] = "read with pypdfium2 because pypdf found no text"
        for index, text in second.texts.items():
            if text.strip():
                first.texts[index] = text
                first.cut.pop(index, None)
                if index in second.cut:
                    first.cut[index] = second.cut[index]
    return outcomes


def _from_second_alone(first: Reading, second: Reading | None, name: str, password: str | None) -> Extracted:
    """Take a whole PDF from pypdfium2, since pypdf could not open it, or say in one sentence what is wrong with it."""
    reason = f"pypdf failed ({first.failure})"
    if second is None:
        raise DocumentError(f"{_damaged(name)}, or try {pdfium.INSTALL} ({reason}).")
    if second.is_locked:
        raise DocumentError(_locked(name, password))
    if second.count is None:
        raise DocumentError(f"{_damaged(name)} ({reason}; pypdfium2: {second.failure}).")
    outcomes = {index: f"lost because pypdfium2 failed ({why})" for index, why in second.lost.items()}
    return _extracted(second, outcomes, name, [f"read with pypdfium2 because {reason}"])


def _extracted(read: Reading, outcomes: dict[int, str], name: str, notes: Sequence[str] = ()) -> Extracted:
    """Put pages, labels and notes together; what was lost is told before what the file itself lacks.

    Raises:
        DocumentError: If there is no text.
    """
    texts = [unwrapped(clean(read.texts.get(index, ""))) for index in range(read.count or 0)]
    notes = [*notes, *page_notes(outcomes), *_text_notes(read)]
    labels: list[str | None] = [None] * len(texts)
    if read.label_failure is not None:
        notes.append(f"the printed page numbers could not be read ({read.label_failure})")
    elif len(read.labels) == len(texts):
        labels = [label or None for label in read.labels]
    extracted = Extracted(texts, labels, notes)
    if extracted.has_text:
        return extracted
    if read.lost:
        raise DocumentError(f"{_damaged(name)} ({notes[0]}).")
    raise DocumentError(
        f"{name} holds no text, only images or blank pages: run OCR on it first, for instance with ocrmypdf."
    )


def _text_notes(read: Reading) -> list[str]:
    """Say which pages have more text than is kept, and which have none."""
    notes = page_notes({index: _CUT.format(length) if length else _LEFT_OUT for index, length in read.cut.items()})
    if len(read.blank) == 1:
        notes.append(f"{page_list(read.blank)} holds no text: {_ONE_BLANK}")
    elif read.blank:
        notes.append(f"{page_list(read.blank)} hold no text: {_BLANK}")
    return notes


def _damaged(name: str) -> str:
    """The start of a sentence, for a reason in parentheses and a full stop to follow."""
    return f"{name} cannot be read as a PDF, it may be damaged or cut short: download or export it again"


def _locked(name: str, password: str | None) -> str:
    if password is None:
        return (
            f"{name} is encrypted: give its password (--password, or password=... in Python), or save it without one."
        )
    return f"{name} does not open with this password: check it, capital letters included."
