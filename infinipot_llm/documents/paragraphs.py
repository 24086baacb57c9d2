"""The paragraphs of a PDF page, which a PDF does not have: told from where pypdf found each line.

Two steps, which change white space and nothing else. `with_breaks` puts a blank line where the page leaves a gap, a
heading begins or a first line is indented. `unwrapped` then joins the lines that a paragraph was wrapped into.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from infinipot_llm.documents.lines import blocks, units

Piece = tuple[str, Sequence[float], Sequence[float], Any, float]
"""What pypdf tells a visitor of text: the text, the two matrices it is drawn with, its font and its size."""

_GAP = 1.22
"""Lines further apart than this many times the usual distance have a paragraph's end between them."""

_GAP_ALONE = 1.8
"""The same, in font sizes, on a page of too few lines to have a usual distance."""

_HEADING = 1.12
"""A line that is set larger or smaller than the one before by this factor is a heading, or what follows one."""

_INDENT, _MOST_INDENT = 0.7, 4.0
"""Font sizes by which the first line of a paragraph is indented; more is another column, or a centred line."""

_FULL = 0.6
"""Share of a paragraph's width that a line fills at least when it was wrapped; lines of code are shorter."""

_COMMON = 0.15
"""Share of a page's lines that have a distance, from which on it may be the usual one."""

_TERMINATORS = frozenset(".!?:;…。！？:؟।")
_CLOSERS = "\"'”’»)]」』*0123456789[ \t"


_LETTER, _CELL_GAP = 0.42, 0.5
"""Font sizes: the width of a letter, small to average, and the space before the next cell of a row at least."""

_ROW_GAP = 2.5
"""Rows of a table that are further apart than this many times the usual distance of lines belong to two tables."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line, and the place of its first visible piece, in points from the page's lower left corner."""

    text: str
    x: float
    y: float
    size: float

    @property
    def is_placed(self) -> bool:
        return self.size > 0


def with_breaks(text: str, pieces: Sequence[Piece]) -> str:
    """Put a blank line between the paragraphs of a page.

    Args:
        text: The text of the page, as pypdf extracts it.
        pieces: What a visitor saw meanwhile. If it does not add up to the text, the text is given back as it is.
    """
    if "".join(piece[0] for piece in pieces) != text:
        return text
    lines = _rows(_lines(pieces))
    distance = _usual_distance(lines)
    result = [lines[0].text]
    for i in range(1, len(lines)):
        result.append("\n\n" if _is_break(lines, i, distance) else "\n")
        result.append(lines[i].text)
    return "".join(result)


def unwrapped(text: str) -> str:
    """Join wrapped lines by a space, or by nothing after a hyphen; items, rows, headings and code keep their lines.

    Args:
        text: The cleaned text of a page.
    """
    result = []
    for start, end in blocks(text, 0, len(text)):
        width = max(map(len, text[start:end].split("\n")))
        result.append("\n".join(_joined(text[a:b], width) for a, b in units(text, start, end)))
    return "\n\n".join(result)


def _joined(unit: str, width: int) -> str:
    """Join the lines of a unit that are full: the next line's first word would have made them too long."""
    first, *others = [line for line in map(str.strip, unit.split("\n")) if line]
    result = [first]
    for line in others:
        above = result[-1]
        word = 1 if _is_wide(line[0]) else len(line.split(maxsplit=1)[0])
        if "\t" in above or "\t" in line or len(above) + 1 + word < _FULL * width:
            separator = "\n"
        elif above[-1] in "-\u2010" and above[-2:-1].isalpha() and line[0].isalpha():
            separator = ""
        else:
            separator = "" if _is_wide(above[-1]) and _is_wide(line[0]) else " "
        result += [separator, line]
    return "".join(result)


def _is_wide(character: str) -> bool:
    """Whether a character belongs to a script that is written without spaces: Chinese or Japanese."""
    return "\u3000" <= character <= "\u9fff" or "\uff00" <= character <= "\uffef"


def _lines(pieces: Sequence[Piece]) -> list[_Line]:
    """Put the pieces together to lines; one of which nothing visible has a place of its own gets none."""
    lines = []
    parts: list[str] = []
    place = (0.0, 0.0, 0.0)
    for text, outer, inner, _, size in pieces:
        for number, part in enumerate(text.split("\n")):
            if number:
                lines.append(_Line("".join(parts), *place))
                parts, place = [], (0.0, 0.0, 0.0)
            parts.append(part)
            if number == 0 and not place[2] and part.strip():
                place = _place(outer, inner, size)
    lines.append(_Line("".join(parts), *place))
    return lines


def _rows(lines: Sequence[_Line]) -> list[_Line]:
    """Put the cells of a table's row on one line, with tabs between; pypdf gives every cell a line of its own."""
    rows: list[_Line] = []
    reached = 0.0
    for line in lines:
        above = rows[-1] if rows else None
        is_cell = (
            above is not None
            and above.is_placed
            and line.is_placed
            and abs(above.y - line.y) < 0.3 * above.size
            and _ratio(above, line) < _HEADING
            and line.x > reached
        )
        if above is not None and is_cell:
            rows[-1] = _Line(f"{above.text}\t{line.text}", above.x, above.y, above.size)
        else:
            rows.append(line)
        reached = line.x + (_LETTER * len(line.text.strip()) + _CELL_GAP) * line.size
    return rows


def _place(outer: Sequence[float], inner: Sequence[float], size: float) -> tuple[float, float, float]:
    """Return x, y and the font's size on the page; text that is not upright gets the size 0."""
    a, b, c, d, e, f = (float(value) for value in outer)
    x = float(inner[4]) * a + float(inner[5]) * c + e
    y = float(inner[4]) * b + float(inner[5]) * d + f
    up = (float(inner[2]) * a + float(inner[3]) * c, float(inner[2]) * b + float(inner[3]) * d)
    height = abs(up[1] * size)
    is_upright = abs(up[0]) < 0.5 * abs(up[1]) and all(map(math.isfinite, (x, y, height)))
    return (x, y, height) if is_upright else (0.0, 0.0, 0.0)


def _usual_distance(lines: Sequence[_Line]) -> float:
    """Return the least distance, in font sizes, that many neighbouring lines have."""
    found: Counter[int] = Counter()
    for above, below in pairwise(lines):
        if above.is_placed and below.is_placed and _ratio(above, below) < _HEADING:
            distance = (above.y - below.y) / below.size
            if 0.8 < distance < 4:
                found[round(20 * distance)] += 1
    common = [step for step, count in found.items() if count >= max(3, _COMMON * found.total())]
    return min(common) / 20 if common else _GAP_ALONE / _GAP


def _is_break(lines: Sequence[_Line], i: int, distance: float) -> bool:
    """Whether a paragraph begins with line i."""
    above, below = lines[i - 1], lines[i]
    if not (above.is_placed and below.is_placed):
        return False
    size = max(above.size, below.size)
    down = above.y - below.y
    if down < -0.5 * size:  # the next column, or a box beside it: a paragraph may go on there
        return _ends(above.text) or not below.text.lstrip()[:1].islower()
    if down < 0.5 * size:  # beside it
        return False
    if "\t" in above.text and "\t" in below.text:
        return down > _ROW_GAP * distance * size
    if _ratio(above, below) > _HEADING or down > _GAP * distance * size:
        return True
    following = lines[i + 1] if i + 1 < len(lines) else None
    indent = (below.x - above.x) / size
    return (
        _INDENT < indent < _MOST_INDENT
        and following is not None
        and abs(following.x - above.x) < 0.2 * size
        and 0 < below.y - following.y < _GAP * distance * size
        and _ends(above.text)
    )


def _ratio(above: _Line, below: _Line) -> float:
    return max(above.size, below.size) / min(above.size, below.size)


def _ends(text: str) -> bool:
    """Whether a line ends as a sentence does, reference marks ("[12]") left aside."""
    return text.rstrip().rstrip(_CLOSERS)[-1:] in _TERMINATORS
