"""Words: which spans share the question's words, by BM25 (the library bm25s).

Attention finds what a question means and is weak at telling near-duplicates, names and numbers apart; words are good at
just that.
Shapes: `M` spans.
"""

from __future__ import annotations

import logging
import math
import unicodedata

import bm25s
import numpy as np
import regex
from numpy.typing import NDArray

from infinipot_llm.documents.clean import clean
from infinipot_llm.memory.spans import Spans
from infinipot_llm.models.text import TokenizedText

MOST_WORDS = 40
"""A question has no more words; an instruction may."""

STEM = 4
"""Letters that a word needs for another ending of it to count."""

_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")
"""Marks go with their letters: without them, names of Indic scripts that differ in a vowel are the same."""

_COMMON = """
a about an and are as at be but by can could did do does for from has have how i if in into is it its me my no not of on
or our please such tell that the their then there these they this to was we were what when where which who whom why will
with would you your
"""
_STOP = frozenset(_COMMON.split())
_LEFT_OUT = regex.compile(r"[\u0307\u200c\u200d]")
"""Joiners, which not everybody types, and the dot that is left of a Turkish capital I in lower case."""

_UNSPACED = regex.compile(
    r"[\p{Hiragana}\p{Katakana}\p{Han}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
)  # Hangul has blanks, but endings without any

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it reports every step at the level of debugging


class Words:
    """An index of the words of every span."""

    def __init__(self, text: TokenizedText, spans: Spans) -> None:
        pieces = []
        for a, b in zip(spans.starts[:-1].tolist(), spans.starts[1:].tolist(), strict=True):
            pieces.append(" ".join(text.span(x, y).text for x, y in text.per_document(a, b)))
        self._index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
        words = [_words(piece) or ["\x00"] for piece in pieces]  # the library knows no empty text
        self._index.index(words, show_progress=False)
        self._known = set(self._index.vocab_dict)

    def scores(self, question: str) -> NDArray[np.float32]:
        """Return the BM25 score of every span, [M] float32; zeros where no word is shared."""
        words = [w for w in _words(clean(question)) if w in self._known]
        if not words:
            return np.zeros(self._index.scores["num_docs"], dtype=np.float32)
        return np.asarray(self._index.get_scores(words), dtype=np.float32)

    def share(self, question: str, passage: str) -> float | None:
        """Return which share of a question's words stands in a passage, 0 to 1, rare words counting more.

        A word may stand there with another ending: "burn" in "burned". None for a question of common words alone, and
        for more than MOST_WORDS: most of those do not say what is looked for.
        """
        words = set(_words(clean(question)))
        if not words or len(words) > MOST_WORDS:
            return None
        weights = {word: self._rarity(word) for word in words}
        there = set(_words(passage))
        found = sum(weight for word, weight in weights.items() if word in there or _inflected(word, there))
        return found / sum(weights.values())

    def _rarity(self, word: str) -> float:
        """Return the inverse document frequency of a word, as BM25 counts it."""
        M = int(self._index.scores["num_docs"])
        ends = self._index.scores["indptr"]
        number = self._index.vocab_dict.get(word)
        holding = 0 if number is None else int(ends[number + 1] - ends[number])
        return math.log(1.0 + (M - holding + 0.5) / (holding + 0.5))


def _inflected(word: str, words: set[str]) -> bool:
    """Tell whether one of some words begins with this one or is its beginning, four letters at least.

    Of numbers and names with digits none is another's ending: 5001 says nothing about 50012.
    """
    return len(word) >= STEM and any(
        len(other) >= STEM
        and (other.startswith(word) or word.startswith(other))
        and not any(letter.isdigit() for letter in word + other)
        for other in words
    )


def _words(text: str) -> list[str]:
    """Return the words of a text, lower-case, without common ones; letter pairs in scripts without blanks.

    Letters and digits in other widths and shapes (NFKC) are the same ones.
    """
    found = []
    for word in _WORD.findall(_LEFT_OUT.sub("", unicodedata.normalize("NFKC", text).casefold())):
        if len(word) > 2 and _UNSPACED.search(word):
            found += [word[i : i + 2] for i in range(len(word) - 1)]
        elif word not in _STOP:
            found.append(word)
    return found
