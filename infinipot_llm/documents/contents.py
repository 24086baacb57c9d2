"""Tables of contents: where a document lists its headings with pages, which answers little and matches everything.

A heading in the list has the words of a question about its section, and so have all its neighbours: left alone, the
list takes the room of the section itself.
"""

from __future__ import annotations

import re
from collections import Counter

from infinipot_llm.documents.document import Document

ENTRIES = 6
"""Entries that make a list."""

WORDS = 15
"""Most words of an entry: more is a sentence."""

BEYOND = 30
"""How far a printed page number may lie beyond the number of pages."""

_LINE = re.compile(r"[^\n]+")
_PAGE = re.compile(r"(?<!\w)\d{1,4}$")
_LEADERS = " .·…_\t"
_WORD = re.compile(r"[^\W\d_]+")


def tables_of_contents(document: Document) -> list[tuple[int, int]]:
    """Return where tables of contents stand, characters [start, end) in order; [] in a document of fewer than 6 pages.

    A table is a run of at least 6 titles, each followed by a page number, on the same line or the next, that is not
    below the one before it. At least half of the titles stand alone on another line, as headings do, or are followed by
    leaders (" . . . "): figures and steps that happen to rise are no table.
    """
    last_page = len(document.pages) + BEYOND
    if len(document.pages) < ENTRIES:
        return []
    lines = [(line.start(), line.end(), line.group().strip()) for line in _LINE.finditer(document.text)]
    alone = Counter(text for _, _, text in lines)
    found: list[tuple[int, int]] = []
    start = end = entries = headings = page = words = 0  # of the run so far; words since its last number
    before = ""  # the line before, where it is a title without its number

    for begin, over, text in lines:
        page_number = _PAGE.search(text)
        number = int(page_number.group()) if page_number else None
        title = len(_WORD.findall(text))
        if entries and not (words + title <= WORDS and (number is None or (words + title and number >= page))):
            if entries >= ENTRIES and 2 * headings >= entries:
                found.append((start, end))
            entries = headings = words = 0
        if number is None or not 1 <= number <= last_page:  # the title alone, or none
            start, words = (start, words + title) if entries else (begin, title if title <= WORDS else 0)
            before = text
        elif words + title:
            start = start if entries or (words and not title) else begin
            named = text[: -len(page_number.group())] if page_number and title else before
            bare = named.rstrip(_LEADERS)
            headings += len(named) - len(bare) > 3 or alone[bare] > (not title)  # a title's own line is no heading
            end, entries, page, words = over, entries + 1, number, 0
    if entries >= ENTRIES and 2 * headings >= entries:
        found.append((start, end))
    return found
