"""Sentences as character ranges of a text: the passages that are ranked, quoted and pointed to."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator

from infinipot_llm.documents.lines import blocks, trim, units

MAX_CHARACTERS = 600
"""Longest range that is given; longer sentences (legal clauses, tables read as prose) are cut at a clause or a word."""

_CLOSERS = "\"'”’»)\\]」』）】》〉"
_WIDE_MARKS = "。！？｡．؟۔।॥"
_END = re.compile(rf"(?P<mark>[.!?…‽]+|[{_WIDE_MARKS}]+)(?P<closers>[{_CLOSERS}]*)(?P<note>(?:\[\d{{1,3}}\])*)")
_OPENERS = "\"'“‘«([「『（【《〈¿¡*_"
_TOKEN = re.compile(r"[\w.’'-]+$")
_WORD = re.compile(r"[^\W\d_]+")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# Never the last word of a sentence.
_TITLES = _words("dr mr mrs ms mx prof st sr sra jr gen gov sen rep lt col sgt capt rev hon pres vs cf viz г т")

# Followed by a number, they abbreviate; otherwise they may be words of their own ("no.", "fig.") and end a sentence.
_BEFORE_NUMBERS = _words(
    "no nos nr art fig figs eq eqs sec ch chap vol p pp ed par para op c jan feb mar apr jun jul aug sep sept oct "
    "nov dec рис см стр ст п"
)

# In the middle of a sentence unless the next word is one that starts sentences.
_ABBREVIATIONS = _words(
    "al approx assn bros co corp dept est etc inc incl ltd max min mt misc univ bzw ca usw vgl ff e.g i.e z.b d.h u.a "
    "p.ex т.е т.д т.п др ул им"
)
_STARTERS = _words(
    "a after an and as at but by during for from he her his how however if in it its moreover on she since some such "
    "that the their there these they this those thus to we what when where while who with you"
)

_CLAUSE_END = re.compile(r"[;:,—–؛،](?=\s)|[、，；：]")


def sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut a stretch of text into sentences, list items, table rows and headings.

    The ranges are in order, disjoint, trimmed of white space, at most `MAX_CHARACTERS` long, and hold every visible
    character. A line break within a paragraph ends nothing; a blank line always does, and so does the border between
    two pages.

    Args:
        text: The text.
        start: Offset of the stretch's first character.
        end: Offset one past its last one.

    Raises:
        ValueError: If [start, end) is reversed or lies outside of the text.
    """
    _check_range(text, start, end)
    return [
        sentence
        for block in blocks(text, start, end)
        for unit in units(text, *block)
        for sentence in _sentences_of_unit(text, *unit)
    ]


class Sentences:
    """The sentences of a stretch of text, found by a character that they hold; those that `sentences` gives.

    A block is cut when it is first asked for, and once: a text without blank lines is one block, however long.
    """

    def __init__(self, text: str, start: int, end: int) -> None:
        """Look into text[start:end].

        Raises:
            ValueError: If [start, end) is reversed, lies outside of the text, or nothing there is visible.
        """
        _check_range(text, start, end)
        self._text, self._start, self._end = text, start, end
        self._blocks = list(blocks(text, start, end))
        self._cut: dict[int, list[tuple[int, int]]] = {}
        if not self._blocks:
            raise ValueError(f"[{start}, {end}) of the text is blank")

    def at(self, offset: int) -> tuple[int, int]:
        """Return the sentence that holds a character; of one between two sentences the later, behind the last the last.

        Raises:
            ValueError: If the offset is not in [start, end].
        """
        if not self._start <= offset <= self._end:
            raise ValueError(f"offset {offset} is outside of [{self._start}, {self._end}]")
        number = _index_at(self._blocks, offset)
        if number not in self._cut:
            self._cut[number] = [
                sentence
                for unit in units(self._text, *self._blocks[number])
                for sentence in _sentences_of_unit(self._text, *unit)
            ]
        found = self._cut[number]
        return found[_index_at(found, offset)]


def _index_at(ranges: list[tuple[int, int]], offset: int) -> int:
    """Return the number of the range that holds an offset, or of the next one, or else of the last one."""
    return min(bisect_left(ranges, offset + 1, key=lambda one: one[1]), len(ranges) - 1)


def _check_range(text: str, start: int, end: int) -> None:
    if not 0 <= start <= end <= len(text):
        raise ValueError(f"[{start}, {end}) is not a range of the text of {len(text)} characters")


def _sentences_of_unit(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a run of lines at the ends of its sentences, and those at the longest length."""
    position = start
    for candidate in _END.finditer(text, start, end):
        if candidate.end() < end and _ends_sentence(text, candidate, start, end):
            yield from _pieces(text, *trim(text, position, candidate.end()))
            position = candidate.end()
    yield from _pieces(text, *trim(text, position, end))


def _ends_sentence(text: str, candidate: re.Match[str], start: int, end: int) -> bool:
    """Whether a full stop, question or exclamation mark within a unit ends a sentence there."""
    mark, after = candidate["mark"], text[candidate.end()]
    if mark[0] in _WIDE_MARKS:
        # A digit follows the point of a wide decimal; hiragana carry on after a quotation (「...。」と言った).
        return not (after.isdigit() or (candidate["closers"] and "\u3041" <= after <= "\u309f"))
    before = text[candidate.start() - 1] if candidate.start() > start else " "
    if not after.isspace():
        return mark == "." and _is_east_asian(before) and _is_east_asian(after)
    if before.isspace() or (len(mark) > 3 and mark[0] == "."):
        return False  # dot leaders of a table of contents
    following = _skip_openers(text, candidate.end(), end)
    if following < end and text[following].islower():
        return False
    return mark != "." or not _is_abbreviated(text, candidate.start(), start, following, end)


def _is_abbreviated(text: str, dot: int, start: int, following: int, end: int) -> bool:
    """Whether the full stop at `dot` belongs to the word before it; `following` is where the next word starts."""
    token_match = _TOKEN.search(text, max(start, dot - 24), dot)
    if token_match is None:
        return False
    token = token_match.group().lower()
    is_first = token_match.start() - start <= 1  # a list's number may stand in parentheses
    if token.replace(".", "").isdigit():
        # "1. Item" and "Strategy 5.1.1. Name", but "in 2015. The".
        return is_first or ("." in token and not _starts_sentence(text, following, end))
    if token in _TITLES:
        return True
    if token in _BEFORE_NUMBERS:
        return following < end and text[following].isdigit()
    is_initial = len(token) == 1 and token_match.group().isupper()
    is_acronym = "." in token and all(len(part) == 1 for part in token.split("."))  # U.S., e.g.
    if is_initial or is_acronym or token in _ABBREVIATIONS:
        return not _starts_sentence(text, following, end)
    return False


def _starts_sentence(text: str, offset: int, end: int) -> bool:
    """Whether the word at an offset is one that commonly starts sentences and not names."""
    word = _WORD.match(text, offset, end)
    return word is not None and word.group().lower() in _STARTERS


def _skip_openers(text: str, offset: int, end: int) -> int:
    while offset < end and (text[offset].isspace() or text[offset] in _OPENERS):
        offset += 1
    return offset


def _is_east_asian(character: str) -> bool:
    return "\u3041" <= character <= "\u9fff" or "\uac00" <= character <= "\ud7af"


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a sentence that is too long at the last clause end, else white space, in the second half of what may be."""
    while end - start > MAX_CHARACTERS:
        earliest, latest = start + MAX_CHARACTERS // 2, start + MAX_CHARACTERS
        clause_ends = [match.end() for match in _CLAUSE_END.finditer(text, earliest, latest)]
        if clause_ends:
            cut = clause_ends[-1]
        else:
            cut = next((i for i in range(latest, earliest, -1) if text[i].isspace()), latest)
        while cut > earliest and unicodedata.combining(text[cut]):
            cut -= 1  # an accent stays with its letter
        yield trim(text, start, cut)
        start = trim(text, cut, end)[0]
    if start < end:
        yield start, end
