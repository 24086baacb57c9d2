"""Spans: the pieces of a text that recall scores and brings back, some 32 tokens each.

They end where paragraphs, turns of a transcript and documents end, since what answers a question seldom reaches over
such a border, while within a paragraph the answer often stands a sentence or two from the words that match.
Shapes: `M` spans.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from infinipot_llm.documents import Document
from infinipot_llm.models.text import TokenizedText

MOST_TOKENS = 32
"""Longest span. Longer ones waste recalled tokens, shorter ones break sentences apart."""

FEWEST_TOKENS = 16
"""Shorter paragraphs (headings, lines of a table) are joined to what follows."""

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")


@dataclass(frozen=True)
class Spans:
    """How a text is cut.

    Attributes:
        starts: [M + 1] int64, first token of each span, and the end of the last.
        paragraph: [M] int64, number of the paragraph that each span belongs to, increasing.
    """

    starts: NDArray[np.int64]
    paragraph: NDArray[np.int64]

    def __len__(self) -> int:
        """Return M."""
        return len(self.paragraph)


def cut(text: TokenizedText) -> Spans:
    """Cut a text into spans of about equal length within each paragraph."""
    starts: list[NDArray[np.int64]] = []
    paragraph: list[NDArray[np.int64]] = []
    borders = _borders(text)
    for number, (a, b) in enumerate(pairwise(borders)):
        pieces = -(-(b - a) // MOST_TOKENS)
        starts.append(a + np.arange(pieces, dtype=np.int64) * (b - a) // pieces)
        paragraph.append(np.full(pieces, number, dtype=np.int64))
    return Spans(np.append(np.concatenate(starts), len(text)), np.concatenate(paragraph))


def _borders(text: TokenizedText) -> list[int]:
    """Return the first token of every paragraph, and the end of the text."""
    borders = [0]
    for number, document in enumerate(text.documents):
        low, high = int(text.first[number]), int(text.first[number + 1])
        found = low + np.searchsorted(text.starts[low:high], _breaks(document), side="left")
        if low > borders[-1]:
            borders.append(low)  # documents are never joined
        for token in found.tolist():
            if token - borders[-1] >= FEWEST_TOKENS and high - token >= 1:
                borders.append(token)
    return [*borders, len(text)] if len(text) > borders[-1] else borders


def _breaks(document: Document) -> NDArray[np.int64]:
    """Return the characters at which paragraphs and turns begin."""
    found = {m.end() for m in _PARAGRAPH.finditer(document.text)} | {turn.start for turn in document.turns}
    return np.asarray(sorted(found), dtype=np.int64)
