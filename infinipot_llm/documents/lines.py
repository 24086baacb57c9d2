"""Line ends that mean something: where a paragraph, list item, table row or heading ends, and not a wrapped line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_FIRST_WORD = re.compile(r"\S+")

# What opens a list item or a numbered heading. A number or letter that may as well have been wrapped to the start of
# a line ("3.5 million", "A. Smith") is not taken for one.
_ITEM = re.compile(
    r"""(?: [•‣◦⁃▪▫●○■□►▶➢✓✔※・]            # a bullet
        | [-*–—·∙]\s                          # a mark that is a bullet only before white space
        | \#{1,6}\s                           # a Markdown heading
        | \(?\d{1,3}[.)]\s                    # 1.  1)  (1)
        | \([a-zA-Z]\)\s | [a-z][.)]\s        # (a)  a)  a.
        | \(?[ivx]{2,5}[.)]\s                 # ii)  (iv)  iii.
        | \d+(?:\.\d+)+\.?\s+[^\W\d_a-z]      # 2.3 Heading
        | [①-⑳]
    )""",
    re.VERBOSE,
)
_DOT_LEADERS = re.compile(r"(?:\.\s?){4,}\S{0,8}\Z")
_PAGE_NUMBER = re.compile(r"(?<!\S)(?:\d{1,4}|[ivxlc]{1,7})\Z")
_WIDE_GAP = re.compile(r"\S(?:\t+|\s{3,})(?=\S)")
_CASELESS = re.compile("[\u0590-\u08ff\u1100-\u11ff\u2e80-\ud7af\uf900-\ufaff\uff00-\uffef]")

_NEIGHBOURS = 5
"""Lines on either side that show how wide the column is: a page may have narrow stretches beside its pictures."""

_SHORT = 0.65
"""Share of the column's width below which a line was ended on purpose: ragged margins leave less room than that."""

_WRAP_LIMIT = 200
"""Characters; text with longer lines is not wrapped at all, so that every line of it is a paragraph."""


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    end: int
    is_item: bool
    is_row: bool

    @property
    def length(self) -> int:
        return self.end - self.start


def blocks(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Give the stretches of text[start:end] between blank lines, trimmed of white space, in order."""
    position = start
    for blank in _BLANK_LINE.finditer(text, start, end):
        trimmed = trim(text, position, blank.start())
        if trimmed[0] < trimmed[1]:
            yield trimmed
        position = blank.end()
    trimmed = trim(text, position, end)
    if trimmed[0] < trimmed[1]:
        yield trimmed


def units(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Give the stretches of a block that no sentence crosses: runs of wrapped lines, items, rows and headings.

    Args:
        text: The text that holds the block.
        start: Offset of the block's first character.
        end: Offset one past its last one.
    """
    lines = list(_lines(text, start, end))
    first = 0
    for i in range(1, len(lines)):
        if _ends_unit(text, lines, i - 1):
            yield lines[first].start, lines[i - 1].end
            first = i
    if lines:
        yield lines[first].start, lines[-1].end


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Move both ends of a range inwards past white space; a blank range becomes empty."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _lines(text: str, start: int, end: int) -> Iterator[_Line]:
    """Give the lines that hold something, trimmed, and what kind they look like."""
    while start < end:
        newline = text.find("\n", start, end)
        stop = end if newline < 0 else newline
        left, right = trim(text, start, stop)
        if left < right:
            line = text[left:right]
            is_row = line[0] == "|" or len(_WIDE_GAP.findall(line)) >= 2 or bool(_DOT_LEADERS.search(line[-80:]))
            yield _Line(left, right, bool(_ITEM.match(line)), is_row)
        start = stop + 1


def _ends_unit(text: str, lines: list[_Line], i: int) -> bool:
    """Whether the line break after line i is one that the author made, rather than one of the layout."""
    line, following = lines[i], lines[i + 1]
    if following.is_item or following.is_row or line.is_row:
        return True
    if _is_page_number(text, lines, i) or _is_page_number(text, lines, i + 1):
        return True
    around = lines[max(0, i - _NEIGHBOURS) : i + 2 + _NEIGHBOURS]
    width = max(neighbour.length for neighbour in around)
    if width > _WRAP_LIMIT:
        return True
    is_short = line.length + 1 + _first_word_length(text, following) < _SHORT * width
    if i == 0 and is_short and _PAGE_NUMBER.search(text, max(line.start, line.end - 7), line.end):
        return True  # a running head: "Chapter 1: Introduction 7"
    return is_short and not text[following.start].islower()


def _is_page_number(text: str, lines: list[_Line], i: int) -> bool:
    """Whether line i is the first or last of its block and nothing but a page number."""
    return i in (0, len(lines) - 1) and bool(_PAGE_NUMBER.fullmatch(text, lines[i].start, lines[i].end))


def _first_word_length(text: str, line: _Line) -> int:
    """Characters that would have had to fit on the line before; scripts without spaces wrap at any character."""
    if _CASELESS.match(text, line.start):
        return 1
    word = _FIRST_WORD.match(text, line.start, line.end)
    return len(word.group()) if word else 0
