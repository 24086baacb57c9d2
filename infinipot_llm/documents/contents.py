"""Tables of contents: where a document lists its headings with pages, which answers little and matches everything.

A heading in the list has the words of a question about its section, and so have all its neighbours: left alone, the
list takes the room of the section itself.
"""

from __future__ import annotations

import re

from infinipot_llm.documents.document import Document

ENTRIES = 6
"""Entries that make a list."""

WORDS = 15
"""Most words of an entry: more is a sentence."""

BEYOND = 30
"""How far a printed page number may lie beyond the number of pages."""

_PAGE = re.compile(r"(?<!\w)\d{1,4}$")
_LINE = re.compile(r"[^\n]+")
_WORD = re.compile(r"[^\W\d_]+")


def tables_of_contents(document: Document) -> list[tuple[int, int]]:
    """Return where tables of contents stand, characters [start, end) in order; [] in a document of fewer than 6 pages.

    A table is a run of at least 6 titles, each followed by a page number, on the same line or the next, that is not
    below the one before it.
    """
    last_page = len(document.pages) + BEYOND
    if len(document.pages) < ENTRIES:
        return []
    found: list[tuple[int, int]] = []
    start = end = entries = page = words = 0  # of the run so far; words since its last number

    for line in _LINE.finditer(document.text):
        text = line.group().strip()
        page_number = _PAGE.search(text)
        number = int(page_number.group()) if page_number else None
        title = len(_WORD.findall(text))
        if entries and not (words + title <= WORDS and (number is None or (words + title and number >= page))):
            if entries >= ENTRIES:
                found.append((start, end))
            entries = words = 0
        if number is None or not 1 <= number <= last_page:  # the title alone, or none
            start, words = (start, words + title) if entries else (line.start(), title if title <= WORDS else 0)
        elif words + title:
            start = start if entries or (words and not title) else line.start()
            end, entries, page, words = line.end(), entries + 1, number, 0
    if entries >= ENTRIES:
        found.append((start, end))
    return found
