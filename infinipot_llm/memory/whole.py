"""Whole sentences: what is brought back begins and ends with them, since a model reads fragments badly.

Spans are scored in pieces of some 32 tokens (spans.py), cut wherever that many are full.
"""

from __future__ import annotations

from infinipot_llm.answering.token_sentences import TokenSentences
from infinipot_llm.models.text import TokenizedText

MOST_MORE = 64
"""Tokens on each side beyond which a span is not widened: there is no end of a sentence, or none worth the room."""


class WholeSentences:
    """Widens token ranges of a text to the sentences that they cut."""

    def __init__(self, text: TokenizedText) -> None:
        self._text = text
        self._sentences = TokenSentences(text)

    def widen(self, start: int, end: int) -> tuple[int, int]:
        """Return the tokens [a, b) of the sentences that hold the tokens start .. end - 1, of one document."""
        a, b = self._sentence(start)[0], self._sentence(end - 1)[1]
        return (a if 0 < start - a <= MOST_MORE else start), (b if 0 < b - end <= MOST_MORE else end)

    def _sentence(self, token: int) -> tuple[int, int]:
        """Return the tokens of the sentence that holds a token; of one that shows nothing the token alone."""
        found = self._sentences.at(token)
        return (token, token + 1) if found is None else self._text.tokens_in(*found)
