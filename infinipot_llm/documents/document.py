"""A document as the rest of the package sees it: one text, with pages and passages as character ranges of it."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

PAGE_BREAK = "\n\n"
"""What the loaders put between two pages; it belongs to the page before it but to no page's [start, end)."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a document.

    Attributes:
        number: Position in the file, from 1.
        label: The number printed on the page ("i", "ii", "1", "A-3") where the PDF defines page labels, else None.
        start: Offset in the document's text, in characters, of the page's first character.
        end: Offset one past the page's last character; equal to start for a page without text.
    """

    number: int
    label: str | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Span:
    """A passage of a document.

    Attributes:
        document: Name of the document.
        start: Offset of the first character in the document's text.
        end: Offset one past the last character.
        page: Number, from 1, of the page on which the passage's visible text starts.
        page_label: The number printed on that page, where the PDF defines one.
        text: The characters themselves.
    """

    document: str
    start: int
    end: int
    page: int
    page_label: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text with page borders.

    The loaders (`from_file`, `from_bytes`, `from_text`) normalise the text first and refuse a document without
    readable text; the constructor takes the text as it is and checks only that the pages describe it.

    Attributes:
        name: What the document is called in answers and messages.
        text: The whole text; pages are separated by a blank line.
        pages: The pages in order, numbered from 1; the text between two pages is white space.
        source: The path the document was read from, or None.
        notes: Sentences on what could not be read as it should (a lost page, a guessed encoding).
        content_hash: SHA-256, in hex, over the text, the page borders and the page labels; the same text under another
            name or path has the same hash.

    Raises:
        ValueError: If the pages are out of order, overlap, leave out text or lie outside of it.
    """

    name: str
    text: str = field(repr=False)
    pages: tuple[Page, ...] = field(repr=False)
    source: str | None = None
    notes: tuple[str, ...] = ()
    content_hash: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pages", tuple(self.pages))
        object.__setattr__(self, "notes", tuple(self.notes))
        _check_pages(self.text, self.pages)
        object.__setattr__(self, "content_hash", _content_hash(self.text, self.pages))

    @classmethod
    def from_file(cls, path: str | Path, *, password: str | None = None, name: str | None = None) -> Document:
        """Read a PDF or a text file.

        Args:
            path: The file; what it is is decided by its content, not by its suffix alone.
            password: Password of an encrypted PDF; ignored by files that need none.
            name: Name of the document; the file's name if left out.

        Raises:
            DocumentError: If the file is missing, unreadable, empty, encrypted, damaged, binary or without text.
        """
        from infinipot_llm.documents.loading import load_file

        return load_file(Path(path), password=password, name=name)

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str, password: str | None = None) -> Document:
        """Read a document that is already in memory: a PDF if it starts with %PDF, else text.

        Args:
            data: The content of a file.
            name: Name of the document.
            password: Password of an encrypted PDF; ignored by files that need none.

        Raises:
            DocumentError: If the data are empty, encrypted, damaged, binary or without text.
        """
        from infinipot_llm.documents.loading import load_bytes

        return load_bytes(data, name=name, password=password)

    @classmethod
    def from_text(cls, text: str, *, name: str = "text") -> Document:
        """Make a document of a string; form feeds separate pages.

        Args:
            text: Any text; it is normalised as the text of a file is.
            name: Name of the document.

        Raises:
            DocumentError: If the text holds nothing but white space.
        """
        from infinipot_llm.documents.loading import load_text

        return load_text(text, name=name)

    @property
    def page_count(self) -> int:
        """Number of pages, those without text included."""
        return len(self.pages)

    @property
    def empty_pages(self) -> tuple[int, ...]:
        """Numbers, from 1, of the pages that hold no visible text: blank ones, pictures and scans."""
        return tuple(page.number for page in self.pages if not self.text[page.start : page.end].strip())

    def page_at(self, offset: int) -> Page:
        """Give the page that holds the character at an offset.

        An offset between two pages belongs to the page before, and the end of the text to the last page.

        Args:
            offset: Offset in characters, from 0 to the length of the text inclusive.

        Raises:
            ValueError: If the offset lies outside of the text.
        """
        if not 0 <= offset <= len(self.text):
            raise ValueError(f"offset {offset} is outside of the text of {len(self.text)} characters")
        return self.pages[bisect_right(self.pages, offset, key=lambda page: page.start) - 1]

    def span(self, start: int, end: int) -> Span:
        """Cut out a passage.

        Args:
            start: Offset of its first character.
            end: Offset one past its last character.

        Raises:
            ValueError: If [start, end) is reversed or lies outside of the text.
        """
        if not 0 <= start <= end <= len(self.text):
            raise ValueError(f"[{start}, {end}) is not a range of the text of {len(self.text)} characters")
        text = self.text[start:end]
        # A passage may begin with the break between two pages; a reader looks for it where its first word is.
        leading_blank = len(text) - len(text.lstrip()) if text.strip() else 0
        page = self.page_at(start + leading_blank)
        return Span(self.name, start, end, page.number, page.label, text)


def _check_pages(text: str, pages: tuple[Page, ...]) -> None:
    """Raise ValueError unless the pages are numbered from 1, in order, and hold all visible text."""
    if not pages:
        raise ValueError("a document needs at least one page")
    reached = 0
    for expected, page in enumerate(pages, start=1):
        if page.number != expected:
            raise ValueError(f"page {page.number} stands where page {expected} should")
        if not reached <= page.start <= page.end <= len(text):
            raise ValueError(f"page {page.number} covers [{page.start}, {page.end}), which overlaps or leaves the text")
        if text[reached : page.start].strip() or (expected == 1 and page.start != 0):
            raise ValueError(f"the text before page {page.number}, from offset {reached}, belongs to no page")
        reached = page.end
    if reached != len(text):
        raise ValueError(f"the text from offset {reached} on belongs to no page")


def _content_hash(text: str, pages: tuple[Page, ...]) -> str:
    """Hash the text and the page table; the text's length keeps the two apart."""
    encoded = text.encode("utf-8", "surrogatepass")
    table = json.dumps([[page.start, page.end, page.label] for page in pages])
    return hashlib.sha256(b"%d\n%b\n%b" % (len(encoded), encoded, table.encode("ascii"))).hexdigest()
