"""Text files of any suffix: their encoding is told from their bytes, and what was guessed is noted."""

from __future__ import annotations

import codecs
import re

from infinipot_llm.documents.extracted import Extracted
from infinipot_llm.errors import DocumentError

# The longer marks first: the mark of UTF-32 LE begins with that of UTF-16 LE.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)

_BINARY_KINDS = (
    (b"PK\x03\x04", "a ZIP container, as Word, OpenDocument and EPUB files are: export it as PDF or text"),
    (b"\xd0\xcf\x11\xe0", "an old Office file: export it as PDF or text"),
    (b"{\\rtf", "an RTF file: export it as PDF or text"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x89PNG", "a picture: it needs OCR first"),
    (b"\xff\xd8\xff", "a picture: it needs OCR first"),
)

# Controls that no text file needs; tab, line ends, form feed, backspace (in formatted manual pages) and escape (in
# logs) occur in real ones.
_ODD_CONTROL = re.compile(rb"[\x00-\x07\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_NON_ASCII = re.compile(rb"[\x80-\xff]")

_MAX_ODD_CONTROL_SHARE = 0.02
_MAX_WESTERN_SHARE = 0.25
"""Western European text has accents on at most about a tenth of its letters; Cyrillic or CJK bytes are far above."""


def decode_text(data: bytes, *, name: str) -> Extracted:
    """Decode a text file and split it into pages at form feeds.

    UTF-8 is expected; UTF-16 and UTF-32 are recognised by their byte order mark. Text that is UTF-8, or marked as such,
    but for damaged bytes gets replacement characters, and text of a Western European code page is read as such; both
    are noted.

    Args:
        data: The content of the file, not empty.
        name: What to call the file in messages.

    Raises:
        DocumentError: If the data are binary, damaged, or text in an encoding that cannot be told.
    """
    for mark, codec, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return split_pages(data.decode(codec))
            except UnicodeDecodeError:
                raise DocumentError(
                    f"{name} is marked as {encoding} but is damaged: save it again as UTF-8 text."
                ) from None
    is_marked = data.startswith(codecs.BOM_UTF8)
    data = data.removeprefix(codecs.BOM_UTF8)
    _refuse_binary(data, name)
    try:
        return split_pages(data.decode("utf-8"))
    except UnicodeDecodeError:
        return _decode_damaged_or_western(data, name, is_marked=is_marked)


def split_pages(text: str) -> Extracted:
    """Split a text into pages at form feeds; one at its very end closes the last page rather than opening another."""
    texts = text.removesuffix("\f").split("\f")
    return Extracted(texts, [None] * len(texts))


def _refuse_binary(data: bytes, name: str) -> None:
    """Raise DocumentError for data that are no text in any encoding without NUL bytes."""
    for magic, kind in _BINARY_KINDS:
        if data.startswith(magic):
            raise DocumentError(f"{name} looks like binary data, not text: it is {kind}.")
    if b"\x00" in data:
        raise DocumentError(
            f"{name} looks like binary data, not text: only PDF and text files can be read"
            " (UTF-16 text needs a byte order mark, or is best saved as UTF-8)."
        )
    if len(_ODD_CONTROL.findall(data)) > _MAX_ODD_CONTROL_SHARE * len(data):
        raise DocumentError(f"{name} looks like binary data, not text: only PDF and text files can be read.")


def _decode_damaged_or_western(data: bytes, name: str, *, is_marked: bool) -> Extracted:
    """Decode data that are not valid UTF-8, but perhaps marked as such, noting how; see `decode_text`."""
    lenient = data.decode("utf-8", "replace")
    damaged = lenient.count("\ufffd")
    if is_marked or sum(character > "\x7f" for character in lenient) - damaged > damaged:
        # More of its non-ASCII characters are right than wrong: UTF-8, cut or joined carelessly.
        note = f"{damaged} damaged characters are shown as \ufffd: the file is not valid UTF-8 throughout"
        extracted = split_pages(lenient)
        return Extracted(extracted.texts, extracted.labels, [note])
    if len(_NON_ASCII.findall(data)) > _MAX_WESTERN_SHARE * len(data):
        raise DocumentError(
            f"{name} is neither UTF-8 nor Western European text:"
            " convert it to UTF-8, for instance with iconv -f ENCODING -t UTF-8."
        )
    try:
        text, encoding = data.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:
        text, encoding = data.decode("latin-1"), "Latin-1"
    extracted = split_pages(text)
    note = f"read as {encoding} because it is not UTF-8: accented letters may be wrong"
    return Extracted(extracted.texts, extracted.labels, [note])
