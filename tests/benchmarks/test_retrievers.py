"""Choosing text for a question without the language model."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infinipot_llm import Document
from infinipot_llm.models.text import TokenizedText

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import retrievers
from followup_data import Question, Sample
from retrievers import BM25, Embeddings, Fused, MiniLM, Shuffled, WithNeighbours, chunks, fill, fixed, fuse, spread

MINILM = Path.home() / ".cache" / "infinipot-dev-models" / "minilm-l6-v2"


def character_tokens(*texts: str, header: int = 0) -> TokenizedText:
    """Every character a token; `header` tokens without characters before each document."""
    spans = [[(0, 0)] * header + [(i, i + 1) for i in range(len(text))] for text in texts]
    flat = np.asarray([span for one in spans for span in one], dtype=np.int32).reshape(-1, 2)
    first = np.cumsum([0, *(len(one) for one in spans)])
    documents = tuple(Document.from_text(text) for text in texts)
    assert [document.text for document in documents] == list(texts)
    return TokenizedText(documents, np.zeros(len(flat), np.int32), flat[:, 0], flat[:, 1], first)


def order(scores: np.ndarray) -> list[int]:
    return np.argsort(-scores, kind="stable").tolist()


def bm25(*texts: str) -> BM25:
    pytest.importorskip("bm25s", reason="bm25s is not installed: pip install bm25s")
    return BM25(texts)


def test_bm25_scores_are_those_worked_by_hand() -> None:
    index = bm25("Cat, dog!", "cat bird fish", "the fish")
    # Words without stop words: 2, 3, 1, so 2 on average. cat is in two of three texts, dog in one.
    rare, common = np.log(1 + 2.5 / 1.5), np.log(1 + 1.5 / 2.5)
    length = [0.9 * (1 - 0.4 + 0.4 * words / 2) for words in (2, 3, 1)]
    expected = [(rare + common) / (1 + length[0]), common / (1 + length[1]), 0.0]
    np.testing.assert_allclose(index.rank("Is the CAT a dog?"), expected, rtol=1e-5)
    np.testing.assert_allclose(index.rank("cat: cat?"), 2 * index.rank("cat"), rtol=1e-6)


def test_bm25_prefers_rare_words_repeated_words_and_short_texts() -> None:
    index = bm25("pump one two three", "pump", "pump pump", "valve one two three", "one 7 three four five")
    assert order(index.rank("pump"))[:3] == [2, 1, 0]
    assert order(index.rank("pump valve"))[0] == 3
    assert order(index.rank("number 7"))[0] == 4  # words of one character count


@pytest.mark.parametrize("question", ["", "the of", "unheard", "?"])
def test_bm25_knows_no_word_of_the_question(question: str) -> None:
    scores = bm25("cat dog", "", "the", "bird").rank(question)
    assert scores.shape == (4,)
    assert not scores.any()


def test_fuse_adds_reciprocal_ranks() -> None:
    fused = fuse([np.array([3.0, 2.0, 1.0]), np.array([0.1, 0.3, 0.2])])
    np.testing.assert_allclose(fused, [1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62])
    np.testing.assert_allclose(fuse([np.array([0.0, 5.0, 0.0, 0.0])]), [1 / 62, 1 / 61, 1 / 62, 1 / 62])
    with pytest.raises(ValueError, match="same units"):
        fuse([np.zeros(2), np.zeros(3)])


class Said:
    def __init__(self, *scores: float) -> None:
        self.scores = np.array(scores)

    def rank(self, question: str) -> np.ndarray:
        return self.scores


def test_retrievers_compose() -> None:
    one, other = Said(4.0, 1.0, 0.0), Said(0.0, 0.0, 8.0)
    np.testing.assert_allclose(Fused(one, other).rank("?"), fuse([one.scores, other.scores]))
    np.testing.assert_allclose(WithNeighbours(other).rank("?"), [0.0, 4.0, 8.0])


def test_spread_raises_neighbours_to_half() -> None:
    np.testing.assert_allclose(spread(np.array([0.0, 8.0, 0.0, 0.0, 1.0, 6.0])), [4.0, 8.0, 4.0, 0.5, 3.0, 6.0])
    np.testing.assert_allclose(spread(np.array([-1.0])), [-1.0])
    assert len(spread(np.zeros(0))) == 0


def test_shuffled_is_a_function_of_the_question() -> None:
    ranker = Shuffled(50)
    assert order(ranker.rank("one")) == order(Shuffled(50).rank("one"))
    assert order(ranker.rank("one")) != order(ranker.rank("two"))
    assert order(ranker.rank("one")) != order(Shuffled(50, seed=1).rank("one"))


def test_fill_takes_the_best_cuts_the_last_and_merges() -> None:
    units = [(0, 4), (4, 8), (8, 12), (20, 24)]
    scores = np.array([1.0, 3.0, 0.5, 2.0])
    assert fill(units, scores, 4) == [(4, 8)]
    assert fill(units, scores, 6) == [(4, 8), (20, 22)]
    assert fill(units, scores, 9) == [(0, 1), (4, 8), (20, 24)]
    assert fill(units, scores, 12) == [(0, 8), (20, 24)]
    assert fill(units, scores, 99) == [(0, 12), (20, 24)]
    assert fill(units, scores, 0) == []
    assert fill(units, scores, 8, neighbours=True) == [(4, 8), (20, 24)]
    assert fill(units, np.array([0.5, 4.0, 0.0, 1.0]), 12, neighbours=True) == [(0, 12)]
    many = [(i, i + 1) for i in range(1000)]
    assert fill(many, np.arange(1000.0) // 500, 600) == [(0, 100), (500, 1000)]  # ties in reading order


def test_fill_refuses_units_that_it_would_count_twice() -> None:
    with pytest.raises(ValueError, match="disjoint"):
        fill([(0, 4), (3, 8)], np.zeros(2), 4)
    with pytest.raises(ValueError, match="1 scores for 2 units"):
        fill([(0, 4), (4, 8)], np.zeros(1), 4)


@st.composite
def scored_units(draw: st.DrawFn) -> tuple[list[tuple[int, int]], np.ndarray]:
    borders = sorted(draw(st.sets(st.integers(0, 120), min_size=2, max_size=20)))
    units = [unit for unit in pairwise(borders) if draw(st.integers(0, 4))]
    scores = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0, 7.5]), min_size=len(units), max_size=len(units)))
    return units, np.asarray(scores, dtype=np.float64)


@given(scored_units(), st.integers(0, 130), st.booleans())
def test_fill_meets_the_budget_exactly(
    scored: tuple[list[tuple[int, int]], np.ndarray], budget: int, neighbours: bool
) -> None:
    units, scores = scored
    chosen = fill(units, scores, budget, neighbours)
    everything = {token for a, b in units for token in range(a, b)}
    taken = [token for a, b in chosen for token in range(a, b)]
    assert len(taken) == len(set(taken)) == min(budget, len(everything))
    assert set(taken) <= everything
    assert all(a < b for a, b in chosen)
    assert all(left[1] < right[0] for left, right in pairwise(chosen))
    # Nothing left out, not even in part, is better than something taken.
    counted = spread(scores) if neighbours else scores
    inside = [counted[i] for i, (a, b) in enumerate(units) if set(range(a, b)) & set(taken)]
    left_out = [counted[i] for i, (a, b) in enumerate(units) if not set(range(a, b)) <= set(taken)]
    assert not inside or not left_out or max(left_out) <= min(inside)


@pytest.mark.parametrize(
    ("tokens", "budget", "wanted"),
    [
        (10, 4, [(0, 2), (8, 10)]),
        (10, 5, [(0, 3), (8, 10)]),
        (10, 1, [(0, 1)]),
        (10, 10, [(0, 10)]),
        (10, 99, [(0, 10)]),
        (10, 0, []),
        (0, 5, []),
    ],
)
def test_truncate_keeps_both_ends(tokens: int, budget: int, wanted: list[tuple[int, int]]) -> None:
    assert retrievers.truncate(tokens, budget) == wanted


def test_fixed_units_end_with_their_document() -> None:
    assert fixed(character_tokens("x" * 70)) == [(0, 32), (32, 64), (64, 70)]
    assert fixed(character_tokens("x" * 10, "y" * 9), 4) == [(0, 4), (4, 8), (8, 10), (10, 14), (14, 18), (18, 19)]


def test_chunks_end_with_sentences_where_possible() -> None:
    text = "One is short. Two is too. " + "Three goes on and on and on and on. Four."
    tokens = character_tokens(text)
    pieces = [text[a:b] for a, b in chunks(tokens, 30)]
    assert pieces == ["One is short. Two is too.", " Three goes on and on and on a", "nd on. Four."]
    assert "".join(pieces) == text
    assert chunks(tokens, 25)[0] == (0, 25)  # a sentence that just fits
    assert chunks(tokens, 24)[0] == (0, 13)
    assert [b - a for a, b in chunks(character_tokens("x" * 50), 20)] == [20, 20, 10]


def test_chunks_do_not_join_documents() -> None:
    tokens = character_tokens("Aa bb. Cc dd.", "Ee fg. Gg hh.", header=3)
    assert chunks(tokens, 12) == [(0, 9), (9, 16), (16, 25), (25, 32)]
    assert retrievers.unit_texts(tokens, chunks(tokens, 12)) == ["Aa bb.", " Cc dd.", "Ee fg.", " Gg hh."]


@given(st.text("ab .\n!?", max_size=120), st.integers(1, 40))
def test_chunks_hold_every_token_once(text: str, size: int) -> None:
    if not text.strip() or Document.from_text(text).text != text:
        return
    units = chunks(character_tokens(text), size)
    assert [token for a, b in units for token in range(a, b)] == list(range(len(text)))
    assert all(0 < b - a <= size for a, b in units)


def test_unit_texts_hold_whole_words() -> None:
    tokens = character_tokens("alpha beta, gamma")
    assert retrievers.unit_texts(tokens, [(0, 7), (7, 10), (10, 17)]) == ["alpha beta", "beta", ", gamma"]
    assert retrievers.unit_texts(tokens, [(2, 3)]) == ["alpha"]


def test_characters_of_token_ranges() -> None:
    tokens = character_tokens("alpha beta")
    assert retrievers.characters(tokens, [(0, 2), (6, 10)]) == [(0, 2), (6, 10)]
    with pytest.raises(ValueError, match="several documents"):
        retrievers.characters(character_tokens("a", "b"), [(0, 1)])


class BagOfLetters(MiniLM):
    """Stands for the encoder: the share of each letter."""

    def __init__(self) -> None:
        self._questions = {}

    def encode(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        counts = np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], dtype=np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-6)


def test_measuring_finds_what_is_chosen_and_prints_it() -> None:
    pytest.importorskip("bm25s", reason="bm25s is not installed: pip install bm25s")
    words = ["aa bb.", "cc dd.", "ee ff.", "gg hh."]
    text = "\n\n".join(word * 20 for word in words)
    at = text.index("ee ff")
    asked = Question("nq", "n0", "ee?", ("ee",), ((at + 3, at + 5),))
    sample = Sample("small", text, (asked, Question("nq", "n1", "ee?", ("zz",), ((0, 1), (at, at + 2)))))
    found = retrievers.hits(character_tokens(text), sample, BagOfLetters(), [8, 32, len(text)])
    assert all(hit.shape == (2, 3) and hit[:, 2].all() for hit in found.values())
    assert not found["BM25 32"][1, :2].any()
    assert found["BM25 128"][0, 1]
    assert found["MiniLM 128"][0, 1]
    assert found["first and last half"].tolist() == [[False, False, True]] * 2
    lines = retrievers.table(sample, len(text), found, [8, 32, len(text)]).splitlines()
    assert lines[0] == f"small: {len(text)} tokens, nq n = 2"
    assert lines[2] == f"| chosen by | nq R@8 | nq R@32 | nq R@{len(text)} |"
    assert len(lines) == 4 + len(found)


def test_recall_is_compared_on_the_questions_that_both_were_asked() -> None:
    asked = [Question("nq", f"n{i}", "?", ("a",), ((0, 1),)) for i in range(8)]
    found = {"chance": np.array([[i % 2 == 0, True] for i in range(8)])}
    recalled = {i * 5: {"256": True, "512": i > 0} for i in range(8)} | {3: {"256": False, "512": False}}
    del recalled[35]  # not asked of recall
    lines = retrievers.beside(Sample("s", "a", tuple(asked)), 5, found, [256, 512], recalled).splitlines()
    assert lines[2] == "| chosen by | kind | n | R@256 | R@512 |"
    assert lines[4].startswith("| chance | nq | 7 | +0.429 [+")  # 3 of 7
    assert " | -0.143 [" in lines[4]


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    if not (MINILM / "model.safetensors").exists():
        pytest.skip("all-MiniLM-L6-v2 is not here: run get_models.py minilm-l6-v2")
    return MiniLM(MINILM)


def test_embeddings_find_a_text_that_shares_no_word(encoder: MiniLM) -> None:
    texts = ["Interest rates rose sharply.", "The kitten slept on the sofa.", "Trains were late again."]
    scores = Embeddings(encoder, texts).rank("Where did the cat nap?")
    assert order(scores)[0] == 1
    assert (np.abs(scores) <= 1 + 1e-6).all()


def test_embeddings_do_not_depend_on_the_batch(encoder: MiniLM) -> None:
    texts = ["Short.", "A somewhat longer sentence about pumps and valves.", "", "word " * 400]
    together = encoder.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-5)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(["word " * 600])[0], together[3], atol=1e-5)  # cut at 256 tokens


def test_embeddings_are_the_mean_of_token_vectors(encoder: MiniLM) -> None:
    tokens = encoder._tokenizer("Pumps and valves.", return_tensors="pt")
    with torch.inference_mode():
        mean = encoder._model(**tokens).last_hidden_state[0].mean(dim=0)
    np.testing.assert_allclose(encoder.encode(["Pumps and valves."])[0], (mean / mean.norm()).numpy(), atol=1e-5)
