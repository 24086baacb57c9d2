"""What is brought back begins and ends with sentences, as far as the room allows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from infinipot_llm.documents import Document
from infinipot_llm.documents.sentences import sentences
from infinipot_llm.memory.recall import Passage, fill
from infinipot_llm.memory.spans import cut
from infinipot_llm.memory.whole import MOST_MORE, WholeSentences
from infinipot_llm.models.text import TextCodec, TokenizedText

CODEC = TextCodec(byte_tokenizer())  # a token a byte
WORDS = st.lists(
    st.sampled_from(["a", "word", "Zürich", "x" * 40, "1.", "end.", "So!", "\n\n", "\f", "\n"]), max_size=60
)


def tokenised(*texts: str) -> TokenizedText:
    return CODEC.document([Document.from_text(text, name=f"d{i}") for i, text in enumerate(texts)])


def said(text: TokenizedText, start: int, end: int) -> str:
    return text.span(start, end).text


def test_a_range_is_widened_to_the_sentences_that_it_cuts() -> None:
    text = tokenised("It was late. The mill burned in 1903. Nobody came. Then it rained.")
    whole = WholeSentences(text)
    start = text.documents[0].text.index("mill")
    assert said(text, *whole.widen(start, start + 4)) == "The mill burned in 1903."
    assert said(text, *whole.widen(start, start + 30)) == "The mill burned in 1903. Nobody came."
    assert said(text, *whole.widen(12, 13)) == " "  # of white space nothing is a sentence
    assert whole.widen(0, len(text)) == (0, len(text))


def test_without_an_end_in_reach_nothing_is_widened() -> None:
    long = "word " * 40
    text = tokenised(f"{long}end. Short one. {long}end.")
    whole = WholeSentences(text)
    start = text.documents[0].text.index("Short")
    assert whole.widen(100, 110) == (100, 110)
    assert said(text, *whole.widen(start + 2, start + 16)).startswith("Short one. word")


def test_sentences_end_with_their_document_and_its_name_is_no_part_of_them() -> None:
    text = tokenised("One here", "two there", "three")
    whole = WholeSentences(text)
    second = int(text.first[1])
    begin = second + next(i for i, t in enumerate(range(second, int(text.first[2]))) if text.ends[t] > text.starts[t])
    assert whole.widen(begin + 2, begin + 3) == (begin, int(text.first[2]))
    assert whole.widen(second, second + 1) == (second, second + 1)  # its header stands for no characters


@settings(deadline=None, max_examples=150)
@given(WORDS, st.data())
def test_what_is_widened_is_a_little_more_and_ends_well(words: list[str], data: st.DataObject) -> None:
    written = " ".join(words)
    if not written.strip():
        written = "something"
    text = tokenised(written)
    document = text.documents[0]
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, min(len(text), start + 40)))
    a, b = WholeSentences(text).widen(start, end)
    assert start - MOST_MORE <= a <= start < end <= b <= end + MOST_MORE
    found = [s for page in document.pages for s in sentences(document.text, page.start, page.end)]
    if a < start:
        assert int(text.starts[a]) in {s for s, _ in found}
    if b > end:
        assert int(text.ends[b - 1]) in {e for _, e in found}


@pytest.mark.parametrize("budget", [10, 24, 60, 100, 300])
def test_the_best_spans_in_whole_sentences_fill_the_budget(budget: int) -> None:
    text = tokenised(" ".join(f"The mill of number {i} was sold in {1800 + i}." for i in range(40)))
    spans, whole = cut(text), WholeSentences(text)
    cuts = spans.starts
    scores = torch.zeros(len(spans))
    scores[[3, 4, 20, 11]] = torch.tensor([5.0, 4.0, 3.0, 2.0])
    passages = fill(spans, cuts, scores, budget, whole.widen)
    taken = [t for p in passages for t in range(p.start, p.end)]
    assert len(taken) == len(set(taken)) == min(budget, len(text))
    assert all(a.end < b.start for a, b in pairwise(passages))
    if budget == 100:
        first = next(p for p in passages if p.start <= spans.starts[3] < p.end)
        assert said(text, first.start, first.end).startswith("The mill")
        assert first.score == 5.0


def test_a_sentence_that_no_longer_fits_leaves_its_span() -> None:
    """Cut to fit, it might end before the words that were looked for."""
    text = tokenised("Short one. " + "long " * 8 + "sentence with the answer in its end here.")
    spans = cut(text)
    scores = torch.zeros(len(spans))
    scores[-1] = 1.0
    last = int(spans.starts[-2]), int(spans.starts[-1])
    whole = WholeSentences(text)
    assert whole.widen(*last)[0] < last[0]
    assert fill(spans, spans.starts, scores, last[1] - last[0], whole.widen) == [Passage(*last, 1.0)]
    assert np.diff(spans.starts).max() <= 32
