"""Spans cover a text once, in order, and end where paragraphs, turns and documents end."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from infinipot_llm.documents import Document, Page
from infinipot_llm.documents.document import Turn
from infinipot_llm.memory.spans import FEWEST_TOKENS, MOST_TOKENS, Spans, cut
from infinipot_llm.models.text import TextCodec, TokenizedText

CODEC = TextCodec(byte_tokenizer())  # a token is a byte


def document(text: str, name: str = "d", turns: tuple[Turn, ...] = ()) -> Document:
    return Document(name, text, (Page(1, None, 0, len(text)),), turns=turns)


def tokens(*texts: str) -> TokenizedText:
    return CODEC.document([document(t, f"d{i}") for i, t in enumerate(texts)])


def check(text: TokenizedText, spans: Spans) -> None:
    assert spans.starts[0] == 0
    assert spans.starts[-1] == len(text)
    assert len(spans.starts) == len(spans.paragraph) + 1 == len(spans) + 1
    lengths = np.diff(spans.starts)
    assert lengths.min() >= 1
    assert lengths.max() <= MOST_TOKENS
    assert (np.diff(spans.paragraph) >= 0).all()
    for a, b in pairwise(spans.starts.tolist()):
        assert text.document_of(a) == text.document_of(b - 1)
    for number in np.unique(spans.paragraph):  # cut about evenly
        inside = lengths[spans.paragraph == number]
        assert inside.max() - inside.min() <= 1
        assert len(inside) == -(-inside.sum() // MOST_TOKENS)


def pieces(text: TokenizedText, spans: Spans) -> list[list[str]]:
    """The text of every span, by paragraph."""
    found: list[list[str]] = []
    last = -1
    for (a, b), number in zip(pairwise(spans.starts.tolist()), spans.paragraph.tolist(), strict=True):
        if number != last:
            found.append([])
            last = number
        found[-1].append(CODEC.decode(text.ids[a:b].tolist()))
    return found


PARTS = st.sampled_from(["a", "word ", "\n", "\n\n", " \n \t\n  ", "x" * 15, "y" * 16, "z" * 33, "東京", "\r\n\r\n"])
TEXTS = st.lists(PARTS, min_size=1, max_size=30).map("".join)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_any_text_is_covered_once_in_order(texts: list[str]) -> None:
    text = tokens(*texts)
    spans = cut(text)
    check(text, spans)
    # A paragraph shorter than the least is the last of its document, for it is joined to what follows.
    ends = {int(f) for f in text.first}
    for number in np.unique(spans.paragraph):
        inside = np.flatnonzero(spans.paragraph == number)
        a, b = int(spans.starts[inside[0]]), int(spans.starts[inside[-1] + 1])
        assert b - a >= FEWEST_TOKENS or b in ends


def test_spans_end_where_paragraphs_end() -> None:
    first, second, third = "The mill burned in 1903. ", "It was rebuilt in 1904 for 68,211 crowns. ", "He moved away."
    text = tokens(f"{first}\n\n{second}\n \t\n\n{third}")
    spans = cut(text)
    check(text, spans)
    assert ["".join(p) for p in pieces(text, spans)] == [f"{first}\n\n", f"{second}\n \t\n\n", third]
    assert spans.paragraph.tolist() == [0, 1, 1, 2]


def test_a_line_break_alone_ends_no_paragraph() -> None:
    text = tokens("The mill burned in 1903,\nand the owner of it moved away.\n")
    assert set(cut(text).paragraph.tolist()) == {0}


def test_short_paragraphs_are_joined_to_what_follows() -> None:
    text = tokens("Chapter\n\nOne\n\nThe mill burned in 1903 and was lost.\n\nTwo\n\nThe owner of it moved away then.")
    spans = cut(text)
    check(text, spans)
    assert ["".join(p) for p in pieces(text, spans)] == [
        "Chapter\n\nOne\n\nThe mill burned in 1903 and was lost.\n\n",
        "Two\n\nThe owner of it moved away then.",
    ]


@pytest.mark.parametrize("length", [1, 15, 16, 31, 32, 33, 64, 65])
def test_a_single_paragraph_of_any_length(length: int) -> None:
    text = tokens("x" * length)
    spans = cut(text)
    check(text, spans)
    assert len(spans) == -(-length // 32)


@pytest.mark.parametrize("blank", ["\n", "\n\n", "\n" * 100, " \n \n" * 50])
def test_a_text_of_blank_lines(blank: str) -> None:
    text = tokens(blank)
    check(text, cut(text))
    both = tokens(blank, blank)
    check(both, cut(both))


def test_documents_are_never_joined_and_headers_belong_to_theirs() -> None:
    text = tokens("One.", "Two.", "x" * 40)
    spans = cut(text)
    check(text, spans)
    assert ["".join(p) for p in pieces(text, spans)] == ["d0:\nOne.", "\n\nd1:\nTwo.", "\n\nd2:\n" + "x" * 40]
    assert set(text.first.tolist()) <= set(spans.starts.tolist())
    assert len(set(spans.paragraph.tolist())) == 3  # a neighbour in another document is beyond a border


def test_a_document_without_text_between_others() -> None:
    text = tokens("x" * 40, "", "y" * 40)
    check(text, cut(text))
    last = tokens("x" * 40, "")
    check(last, cut(last))


def test_turns_of_a_transcript_are_borders() -> None:
    lines = ["Ada: The mill burned in 1903.\n", "Ben: Yes.\n", "Cyd: And it was rebuilt for 68,211 crowns in 1904.\n"]
    turns, at = [], 0
    for line in lines:
        turns.append(Turn(at, at + len(line) - 1, line[:3], None))
        at += len(line)
    text = CODEC.document([document("".join(lines), turns=tuple(turns))])
    spans = cut(text)
    check(text, spans)
    assert ["".join(p) for p in pieces(text, spans)] == [lines[0], lines[1] + lines[2]]  # the short one is joined


def test_a_token_that_reaches_over_a_border_belongs_before_it() -> None:
    """Tokens of real tokenizers hold line breaks and the letters behind them."""
    words = ["x" * 20, "\n", "\ny", "z" * 20, "\n\n", "w" * 20]
    words = [w for word in words for w in ([word] if "\n" in word else list(word))]
    ends = np.cumsum([len(w) for w in words]).astype(np.int32)
    starts = (ends - [len(w) for w in words]).astype(np.int32)
    doc = document("".join(words))
    text = TokenizedText((doc,), starts, starts, ends, np.asarray([0, len(words)], np.int64))
    spans = cut(text)
    check(text, spans)
    assert spans.starts.tolist() == [0, 22, 43, 63]


def test_a_long_text_without_a_break_is_cut_fast() -> None:
    for text in (tokens("x" * 100_000), tokens(" " * 100_000), tokens("\n" * 100_000), tokens("\n" + " " * 99_999)):
        started = time.process_time()
        spans = cut(text)
        assert time.process_time() - started < 2.0
        check(text, spans)
