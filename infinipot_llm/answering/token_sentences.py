"""From a token to the sentence that holds it: what is cited, and what a passage is widened to."""

from __future__ import annotations

from bisect import bisect_right

from infinipot_llm.documents.sentences import Sentences
from infinipot_llm.models.text import TokenizedText


class TokenSentences:
    """The sentences of a text by their tokens; each block of a page is cut into sentences once."""

    def __init__(self, text: TokenizedText) -> None:
        self._text = text
        self._pages: dict[tuple[int, int], Sentences] = {}  # by document and page: a page may be a whole text

    def at(self, token: int) -> tuple[int, int, int] | None:
        """Return (document, first character, one past the last) of a token's sentence; None if it shows nothing."""
        text = self._text
        number = text.document_of(token)
        document = text.documents[number]
        first, last = int(text.starts[token]), int(text.ends[token])
        if not document.text[first:last].strip():
            return None
        while document.text[first].isspace():  # many tokens begin with the blank before their word
            first += 1
        page = document.pages[bisect_right(document.pages, first, key=lambda page: page.start) - 1]
        if (number, page.number) not in self._pages:
            self._pages[number, page.number] = Sentences(document.text, page.start, page.end)
        return number, *self._pages[number, page.number].at(first)
