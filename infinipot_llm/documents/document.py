"""A document as the rest of the package sees it: one text, with pages and passages as character ranges of it."""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

PAGE_BREAK = "\n\n"
"""What the loaders put between two pages; it belongs to the page before it but to no page's [start, end)."""

ID_PREFIX = "ipd_"
"""What the id of a document begins with; 64 hex digits follow."""


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
class Turn:
    """What one speaker says at a stretch, in the transcript of a recording.

    Attributes:
        start: Offset in the document's text, in characters, of the turn's first character, its label included.
        end: Offset one past the turn's last character.
        speaker: Name of the speaker as the transcript has it, or None where it does not say.
        time: Seconds from the start of the recording at which the turn begins, or None where it does not say.
    """

    start: int
    end: int
    speaker: str | None
    time: float | None


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
        speaker: Who says it, where the document is a transcript: the speaker of the turn in which the passage's visible
            text starts.
        time: Seconds from the start of the recording at which that turn begins.
    """

    document: str
    start: int
    end: int
    page: int
    page_label: str | None
    text: str
    speaker: str | None = None
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A text with page borders.

    The loaders (`from_file`, `from_bytes`, `from_text`) normalise the text first and refuse a document without
    readable text; the constructor takes the text as it is and checks only that the pages and turns describe it.

    Attributes:
        name: What the document is called in answers and messages.
        text: The whole text; pages are separated by a blank line.
        pages: The pages in order, numbered from 1; the text between two pages is white space.
        source: The path the document was read from, or None.
        notes: Sentences on what could not be read as it should (a lost page, a guessed encoding).
        turns: Who speaks when, in order, if the document is a transcript; text between two turns belongs to nobody.
        content_hash: SHA-256, in hex, over the text, the page borders and labels and the turns, which are all that a
            citation is made of; the same text under another name or path has the same hash.

    Raises:
        ValueError: If the pages are out of order, overlap, leave out text or lie outside of it, or if the turns are
            out of order, overlap, are empty, lie outside of the text or begin before the recording.
    """

    name: str
    text: str = field(repr=False)
    pages: tuple[Page, ...] = field(repr=False)
    source: str | None = None
    notes: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = field(default=(), repr=False)
    content_hash: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pages", tuple(self.pages))
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "turns", tuple(self.turns))
        _check_pages(self.text, self.pages)
        _check_turns(self.text, self.turns)
        object.__setattr__(self, "content_hash", _content_hash(self.text, self.pages, self.turns))

    @property
    def id(self) -> str:
        """A name for the content, "ipd_" and the content hash: what other programs may refer to the document by."""
        return f"{ID_PREFIX}{self.content_hash}"

    @classmethod
    def from_file(cls, path: str | Path, *, password: str | None = None, name: str | None = None) -> Document:
        """Read a PDF, captions (WebVTT, SubRip) or a text file.

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
    def from_bytes(
        cls, data: bytes, *, name: str, password: str | None = None, media_type: str | None = None
    ) -> Document:
        """Read a document that is already in memory: a PDF if it is named or looks like one, captions or else text.

        Args:
            data: The content of a file.
            name: Name of the document.
            password: Password of an encrypted PDF; ignored by files that need none.
            media_type: What the sender says it is; "application/pdf" counts as the name's ending .pdf does, and with
                "text/plain" that ending does not count: it is the text of such a file.

        Raises:
            DocumentError: If the data are empty, encrypted, damaged, binary or without text.
        """
        from infinipot_llm.documents.loading import load_bytes

        return load_bytes(data, name=name, password=password, media_type=media_type)

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

    def _check_offset(self, offset: int) -> None:
        if not 0 <= offset <= len(self.text):
            raise ValueError(f"offset {offset} is outside of the text of {len(self.text)} characters")

    def page_at(self, offset: int) -> Page:
        """Give the page that holds the character at an offset.

        An offset between two pages belongs to the page before, and the end of the text to the last page.

        Args:
            offset: Offset in characters, from 0 to the length of the text inclusive.

        Raises:
            ValueError: If the offset lies outside of the text.
        """
        self._check_offset(offset)
        return self.pages[bisect_right(self.pages, offset, key=lambda page: page.start) - 1]

    def turn_at(self, offset: int) -> Turn | None:
        """Give the turn that holds the character at an offset, or None: before, between and after turns nobody speaks.

        Args:
            offset: Offset in characters, from 0 to the length of the text inclusive.

        Raises:
            ValueError: If the offset lies outside of the text.
        """
        self._check_offset(offset)
        index = bisect_right(self.turns, offset, key=lambda turn: turn.start) - 1
        return self.turns[index] if index >= 0 and offset < self.turns[index].end else None

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
        turn = self.turn_at(start + leading_blank)
        speaker, time = (turn.speaker, turn.time) if turn else (None, None)
        return Span(self.name, start, end, page.number, page.label, text, speaker, time)


def distinctly_named(documents: Sequence[Document]) -> tuple[Document, ...]:
    """Return documents in order, no two of one name, since citations tell them by it.

    Files of one name get as much of their paths as tells them apart ("2021/report.pdf"), others a number.
    """
    names = [d.name for d in documents]
    for parts in (2, 3, 4):
        count = Counter(names)
        for i, d in enumerate(documents):
            if count[names[i]] > 1 and d.source is not None and PurePath(d.source).name == d.name:
                names[i] = "/".join(PurePath(d.source).parts[-parts:])
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 1
        while names[i] in taken:
            number += 1
            names[i] = f"{name} ({number})"
        taken.add(names[i])
    return tuple(d if d.name == name else replace(d, name=name) for d, name in zip(documents, names, strict=True))


def each_once(documents: Sequence[Document]) -> tuple[Document, ...]:
    """Return documents in order, each content under its first name, no two of one name."""
    once: dict[str, Document] = {}
    for document in documents:
        once.setdefault(document.id, document)
    return distinctly_named(tuple(once.values()))


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


def _check_turns(text: str, turns: tuple[Turn, ...]) -> None:
    """Raise ValueError unless the turns are in order, hold text each, and begin at a time."""
    reached = 0
    for number, turn in enumerate(turns, start=1):
        if not reached <= turn.start < turn.end <= len(text):
            raise ValueError(
                f"turn {number} covers [{turn.start}, {turn.end}), which is empty, overlaps or leaves the text"
            )
        if turn.time is not None and not (math.isfinite(turn.time) and turn.time >= 0):
            raise ValueError(f"turn {number} begins at {turn.time} seconds, which is no time in a recording")
        reached = turn.end


def _content_hash(text: str, pages: tuple[Page, ...], turns: tuple[Turn, ...]) -> str:
    """Hash the text, the page table and the turns, if any; the text's length and line ends keep them apart.

    Turns are part of it for the reason that page labels are: what is remembered of a document is cited with them, and
    captions that were timed anew must not be cited with the old times.
    """
    encoded = text.encode("utf-8", "surrogatepass")
    table = json.dumps([[page.start, page.end, page.label] for page in pages])
    if turns:
        table += "\n" + json.dumps([[turn.start, turn.end, turn.speaker, turn.time] for turn in turns])
    return hashlib.sha256(b"%d\n%b\n%b" % (len(encoded), encoded, table.encode("ascii"))).hexdigest()
