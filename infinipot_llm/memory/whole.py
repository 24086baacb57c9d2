"""Whole sentences: what is brought back begins and ends with them, since a model reads fragments badly.

Spans are scored in pieces of some 32 tokens (spans.py), cut wherever that many are full.
"""

from __future__ import annotations

from bisect import bisect_right

from infinipot_llm.documents.sentences import Sentences
from infinipot_llm.models.text import TokenizedText

MOST_MORE = 64
"""Tokens on each side beyond which a span is not widened: there is no end of a sentence, or none worth the room."""


class WholeSentences:
    """Widens token ranges of a text to the sentences that they cut; what was cut into sentences is kept."""

    def __init__(self, text: TokenizedText) -> None:
        self._text = text
        self._pages: dict[tuple[int, int], Sentences] = {}  # by document and page

    def widen(self, start: int, end: int) -> tuple[int, int]:
        """Return the tokens [a, b) of the sentences that hold the tokens start .. end - 1, of one document."""
        a, b = self._sentence(start)[0], self._sentence(end - 1)[1]
        return (a if 0 < start - a <= MOST_MORE else start), (b if 0 < b - end <= MOST_MORE else end)

    def _sentence(self, token: int) -> tuple[int, int]:
        """Return the tokens of the sentence that holds a token; of white space the token alone."""
        text = self._text
        number = text.document_of(token)
        document = text.documents[number]
        first, last = int(text.starts[token]), int(text.ends[token])
        if not document.text[first:last].strip():
            return token, token + 1
        while document.text[first].isspace():  # many tokens begin with the blank before their word
            first += 1
        page = document.pages[bisect_right(document.pages, first, key=lambda page: page.start) - 1]
        if (number, page.number) not in self._pages:
            self._pages[number, page.number] = Sentences(document.text, page.start, page.end)
        return text.tokens_in(number, *self._pages[number, page.number].at(first))
