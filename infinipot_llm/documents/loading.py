"""From a path, bytes or a string to a Document, or to one sentence on why there is none."""

from __future__ import annotations

import re
from pathlib import Path

from infinipot_llm.documents.captions import caption_format, read_captions
from infinipot_llm.documents.clean import clean, one_line
from infinipot_llm.documents.document import PAGE_BREAK, Document, Page
from infinipot_llm.documents.extracted import Extracted
from infinipot_llm.documents.pdf import read_pdf
from infinipot_llm.documents.text import decode_text, split_pages
from infinipot_llm.documents.transcript import find_turns
from infinipot_llm.errors import DocumentError

_PDF_MAGIC = b"%PDF-"
_PDF_HEADER_BYTES = 1024
"""PDF readers accept other bytes before the header, as mail gateways and printers put there, up to this many."""

_SHOWN_CHARACTERS = 200

_NO_PROSE = frozenset(
    re.findall(
        r"\.\w+",
        ".log .csv .tsv .json .jsonl .ndjson .xml .html .htm .yaml .yml .toml .ini .cfg .conf .env .properties .sql "
        ".diff .patch .py .ipynb .js .ts .jsx .tsx .c .h .cc .cpp .hpp .cs .java .kt .go .rs .rb .php .pl .r .sh .bat "
        ".ps1 .lua .swift .scala .css .scss .tex .bib .srt .vtt",
    )
)
"""Suffixes of text files in which no speakers are looked for: logs, tables and programs have lines that look like
turns."""


def load_file(path: Path, *, password: str | None = None, name: str | None = None) -> Document:
    """Read a PDF, captions or a text file; see `Document.from_file`."""
    if path.parts[:1] == ("~",):
        path = path.expanduser()
    shown = one_line(str(path))
    if len(shown) > _SHOWN_CHARACTERS:  # a text in the place of a path, perhaps
        shown = f"{shown[:_SHOWN_CHARACTERS]}..."
    data = _read(path, shown)
    if not data:
        raise DocumentError(f"{shown} is empty: there is nothing to read in it.")
    suffix = path.suffix.lower()
    is_pdf = _is_pdf(data, shown, suffix)
    extracted = _extract(data, shown, password, suffix, is_pdf=is_pdf)
    is_prose = not is_pdf and suffix not in _NO_PROSE
    shown_name = one_line(path.name if name is None else name)
    return _assemble(extracted, name=shown_name, shown=shown, source=str(path), is_prose=is_prose)


def load_bytes(data: bytes, *, name: str, password: str | None = None, media_type: str | None = None) -> Document:
    """Read a document from memory; see `Document.from_bytes`."""
    shown = one_line(name)
    if not data:
        raise DocumentError(f"{shown} is empty: there is nothing to read in it.")
    # A name is no path, and most are none at all ("-"): only the suffixes that say what they are count.
    suffix = Path(shown).suffix.lower()
    is_pdf = _is_pdf(data, shown, suffix, media_type)
    extracted = _extract(data, shown, password, suffix, is_pdf=is_pdf)
    return _assemble(extracted, name=shown, shown=shown, source=None, is_prose=not is_pdf and suffix not in _NO_PROSE)


def load_text(text: str, *, name: str) -> Document:
    """Make a document of a string; see `Document.from_text`."""
    shown = one_line(name)
    return _assemble(split_pages(text), name=shown, shown=shown, source=None, is_prose=True)


def _read(path: Path, shown: str) -> bytes:
    """Read a file once, turning every way in which that fails into a sentence."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise DocumentError(f"{shown} is an address, and nothing is fetched: download it, and give the file.")
    try:
        if path.is_dir():
            raise DocumentError(f"{shown} is a folder: name the files in it one by one.")
        return path.read_bytes()
    except FileNotFoundError:
        raise DocumentError(f"{shown} does not exist: check the path.") from None
    except PermissionError:
        raise DocumentError(f"{shown} may not be read: check its permissions.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or str(error)  # not the path again
        raise DocumentError(f"{shown} cannot be read: {one_line(reason)}.") from error


def _extract(data: bytes, shown: str, password: str | None, suffix: str, *, is_pdf: bool) -> Extracted:
    if is_pdf:
        return read_pdf(data, name=shown, password=password)
    extracted = decode_text(data, name=shown)
    kind = caption_format(extracted.texts[0], suffix)
    return extracted if kind is None else read_captions(extracted, kind, name=shown)


def _is_pdf(data: bytes, shown: str, suffix: str, media_type: str | None = None) -> bool:
    """Say whether data are a PDF: they are named one, or said to be one, or look like one.

    What is said to be plain text may be that of a PDF, and bear its name.

    Raises:
        DocumentError: They are named or said to be one, and are none.
    """
    claimed = "given as application/pdf" * (media_type == "application/pdf")
    if suffix == ".pdf" and media_type != "text/plain":
        claimed = "named .pdf"
    if claimed and _PDF_MAGIC not in data[:_PDF_HEADER_BYTES]:
        raise DocumentError(
            f"{shown} is {claimed} but is not a PDF: rename it if it is text, or download or export it again."
        )
    return bool(claimed) or _starts_as_pdf(data)


def _starts_as_pdf(data: bytes) -> bool:
    """Whether data without the suffix .pdf are a PDF; a text that merely mentions the magic is not one."""
    return data[:_PDF_HEADER_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_PDF_MAGIC)


def _assemble(extracted: Extracted, *, name: str, shown: str, source: str | None, is_prose: bool) -> Document:
    """Clean the pages, join them, and take the offsets of what results; prose may turn out to be a transcript."""
    texts = [clean(text) for text in extracted.texts]
    if not any(text.strip() for text in texts):
        raise DocumentError(f"{shown} holds no text: there is nothing but white space in it.")
    pages = []
    start = 0
    for number, (text, label) in enumerate(zip(texts, extracted.labels, strict=True), start=1):
        pages.append(Page(number, label, start, start + len(text)))
        start += len(text) + len(PAGE_BREAK)
    whole = PAGE_BREAK.join(texts)
    turns = extracted.turns or (find_turns(whole) if is_prose else ())
    return Document(name, whole, tuple(pages), source, tuple(extracted.notes), tuple(turns))
