"""Recall: the passages on the shelf that answer a question, placed into a pot of their own.

Question (one that follows others: behind them, and by itself) -> queries -> scores of every span by every retrieval
head (scoring.py) -> one score, together with the words
that question and span share (BM25) -> smoothed over neighbours -> the best spans, in whole sentences (whole.py), until
the budget of recalled tokens is full -> question pot: prefix, passages, re-indexed from 0 on. docs/recall.md measures
each step.
Shapes: `n` retrieval heads, `M` spans, `R` rows of the shelf.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infinipot_llm.documents.contents import tables_of_contents
from infinipot_llm.memory.answerable import BY_WORDS, Signs, attention_sign
from infinipot_llm.memory.scoring import queries, span_scores
from infinipot_llm.memory.setup import GAP, Setup
from infinipot_llm.memory.shelf import Shelf
from infinipot_llm.memory.spans import Spans, cut
from infinipot_llm.memory.whole import WholeSentences
from infinipot_llm.memory.words import Words
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.pot import PREFIX, Pot

NEIGHBOURS = (0.85, 0.55, 0.5, 0.5)
"""What share of its score a span lends to those one, two, ... spans away: the answer often stands beside the words that
match."""

BEYOND_PARAGRAPH = 0.2
"""What is left of that share when a paragraph ends in between."""

WORDS_SHARE = 0.3
"""Weight of shared words beside attention, both in standard deviations: for names, numbers and exact keys."""

WORDS_SHARE_UNCALIBRATED = 2.0
"""The same for a model whose retrieval heads nobody measured, which finds little by attention."""

CONTENTS_SHARE = 0.25
"""What is left of the score of a table of contents: it has the words of every section, and answers little."""

FITTING = 8
"""Spans on each side of the best one, in its paragraph, that are looked at for the question's words."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A run of tokens that was recalled.

    Attributes:
        start: Index of its first token in the text.
        end: One past its last.
        score: Of its best span; comparable within one question only.
    """

    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Found:
    """What is brought back for a question.

    Attributes:
        passages: In document order.
        answerable: How likely it is that the documents answer the question (answerable.py); None where everything is
            brought back, or the question's words do not tell: common words, too many, or not all that is asked.
    """

    passages: list[Passage]
    answerable: float | None = None


class Finder:
    """Finds passages on one memory's shelf."""

    def __init__(self, setup: Setup, text: TokenizedText, shelf: Shelf, null: Tensor) -> None:
        self.setup = setup
        self.text = text
        self.shelf = shelf
        self.null = null

    @cached_property
    def spans(self) -> Spans:
        """How the text is cut."""
        return cut(self.text)

    @cached_property
    def cuts(self) -> NDArray[np.int64]:
        """[M + 1] rows of the shelf at which spans begin."""
        return np.searchsorted(self.shelf.tokens, self.spans.starts)

    @cached_property
    def held(self) -> NDArray[np.bool_]:
        """[M] which spans the shelf holds something of: a bounded one has let go of some."""
        return np.diff(self.cuts) > 0

    @cached_property
    def tokens(self) -> int:
        """Tokens of the spans that can be brought back."""
        return int(np.diff(self.spans.starts)[self.held].sum())

    @property
    def everything(self) -> list[Passage]:
        """All that can be brought back, in document order."""
        return fill(self.spans, self.cuts, torch.zeros(len(self.spans)), self.tokens)

    @cached_property
    def sentences(self) -> WholeSentences:
        """What widens spans to whole sentences."""
        return WholeSentences(self.text)

    @cached_property
    def contents(self) -> NDArray[np.bool_]:
        """[M] which spans are of tables of contents."""
        found = np.zeros(len(self.spans), np.bool_)
        for number, document in enumerate(self.text.documents):
            for start, end in tables_of_contents(document):
                a, b = self.text.tokens_in(number, start, end)
                first = np.searchsorted(self.spans.starts, a, side="right") - 1
                found[first : np.searchsorted(self.spans.starts, b)] = True
        return found

    @cached_property
    def words(self) -> Words:
        """The words of every span."""
        return Words(self.text, self.spans)

    def find(
        self,
        asked: Sequence[int],
        question: str,
        budget: int,
        fits: Callable[[list[Passage]], bool] = lambda passages: True,
        *,
        alone: bool = True,
    ) -> Found:
        """Choose what to bring back for a question.

        Args:
            asked: Tokens of the question and of the prompt around it.
            question: Its words.
            budget: Most tokens to bring back.
            fits: Whether passages fit where they are to go; as many tokens are brought back as do, perhaps none.
            alone: Whether its words say all that is asked; where not, it is looked for twice and not judged (`look`).
        """
        if self.tokens <= budget and fits(everything := self.everything):
            return Found(everything)
        scores, answerable = self.look(asked, question, alone=alone)
        scores = scores.cpu()
        passages = self.best(scores, budget)
        if not fits(passages):  # what stands between passages takes room too, and more passages have more of it
            most = bisect_left(range(budget), True, key=lambda n: not fits(self.best(scores, n + 1)))
            passages = self.best(scores, most)
        return Found(passages, answerable)

    def best(self, scores: Tensor, budget: int) -> list[Passage]:
        """Return the spans of the best scores [M], in whole sentences, until the budget is full."""
        return fill(self.spans, self.cuts, scores, budget, self.sentences.widen)

    def scores(self, asked: Sequence[int], question: str, *, alone: bool = True) -> Tensor:
        """Score every span, [M] float32, higher = recall."""
        return self.look(asked, question, alone=alone)[0]

    def look(self, asked: Sequence[int], question: str, *, alone: bool = True) -> tuple[Tensor, float | None]:
        """Return the score of every span, [M] float32, and how likely it is that the question is answered (Found).

        A question that follows others is looked for behind them and by itself, and both count the same: behind them it
        says what "it" is, by itself it is not lost among their words.

        Args:
            asked: Tokens of the question, of what explains it, and of the prompt around them.
            question: Its words.
            alone: Whether these say all that is asked; where they do not, it is looked for twice and not judged.
        """
        heads = self.setup.heads
        by_head = self.attention(asked)
        if not alone and (itself := self.setup.form.looked_for((), question)) != list(asked):
            by_head = standard(by_head) + standard(self.attention(itself))
        scores = self.combined(by_head, heads.weights, question, calibrated=heads.calibrated)
        scores[~torch.from_numpy(self.held)] = -torch.inf  # what cannot come back is no sign of an answer
        signs = self.signs(by_head, heads.weights, scores, question) if alone else None
        return scores, None if signs is None else (heads.judge or BY_WORDS)(signs)

    def attention(self, asked: Sequence[int]) -> Tensor:
        """Score every span by every retrieval head, [n, M] float32."""
        setup = self.setup
        wanted = queries(setup.adapter, setup.prefix, asked, setup.heads)
        return span_scores(self.shelf, self.null, wanted, self.cuts)

    def combined(self, by_head: Tensor, weights: Sequence[float], question: str, *, calibrated: bool) -> Tensor:
        """Make one score of every span, [M] float32: heads and words in standard deviations, lent to neighbours.

        Args:
            by_head: [n, M] float32.
            weights: n, of the heads.
            question: Its words count as well.
            calibrated: Whether heads and weights were measured; words count more where they were not.
        """
        attended = standard(torch.tensor(weights, device=by_head.device) @ standard(by_head))
        words = standard(torch.from_numpy(self.words.scores(question)).to(attended))
        share = WORDS_SHARE if calibrated else WORDS_SHARE_UNCALIBRATED
        scores = attended + share * words
        scores[torch.from_numpy(self.contents & (scores > 0).cpu().numpy())] *= CONTENTS_SHARE
        return smooth(scores, self.spans.paragraph)

    def signs(self, by_head: Tensor, weights: Sequence[float], scores: Tensor, question: str) -> Signs | None:
        """Return how well the best passage fits a question; None where its words cannot tell.

        Args:
            by_head: [n, M] float32.
            weights: n, of the heads.
            scores: [M] float32, of every span.
            question: Its words.
        """
        best = int(scores.argmax())
        number = self.spans.paragraph[best]
        first, last = np.searchsorted(self.spans.paragraph, (number, number + 1))
        first, last = max(int(first), best - FITTING), min(int(last), best + FITTING + 1)
        span = self.text.span(int(self.spans.starts[first]), int(self.spans.starts[last]))  # of one document
        share = self.words.share(question, span.text)
        if share is None:
            return None
        attended = torch.tensor(weights, device=by_head.device) @ by_head
        return Signs(attention_sign(attended, len(self.shelf)), share)


def smooth(scores: Tensor, paragraph: NDArray[np.int64]) -> Tensor:
    """Let every span [M] lend a share of its score to its neighbours."""
    total = scores.clone()
    for distance, share in enumerate(NEIGHBOURS, start=1):
        if distance >= len(scores):
            break
        together = torch.from_numpy(paragraph[distance:] == paragraph[:-distance]).to(scores.device)
        lent = torch.where(together, share, share * BEYOND_PARAGRAPH)
        total[distance:] += lent * scores[:-distance]
        total[:-distance] += lent * scores[distance:]
    return total


def fill(
    spans: Spans,
    cuts: NDArray[np.int64],
    scores: Tensor,
    budget: int,
    widen: Callable[[int, int], tuple[int, int]] = lambda start, end: (start, end),
) -> list[Passage]:
    """Take the best spans until the budget is full, and join those that touch.

    Args:
        spans: How the text is cut.
        cuts: [M + 1] rows at which spans begin; a span without rows is not on the shelf.
        scores: [M] float32.
        budget: Most tokens to take; of the last span what fits is taken.
        widen: Gives the tokens [a, b) that are taken for a span's tokens; for the last one, these alone.

    Returns:
        Passages in document order.
    """
    taken: list[tuple[int, int, float]] = []  # disjoint, in order
    left = budget
    for i in scores.argsort(descending=True, stable=True).tolist():
        if left < 1:
            break
        if cuts[i] == cuts[i + 1]:
            continue
        own = int(spans.starts[i]), int(spans.starts[i + 1])
        missing = _missing(taken, *widen(*own))
        if sum(end - start for start, end in missing) > left:
            missing = _missing(taken, *own)
        for start, end in missing:
            end = min(end, start + left)
            if start < end:
                insort(taken, (start, end, float(scores[i])))
                left -= end - start
    passages: list[Passage] = []
    for start, end, score in taken:
        if passages and passages[-1].end == start:
            passages[-1] = Passage(passages[-1].start, end, max(passages[-1].score, score))
        else:
            passages.append(Passage(start, end, score))
    return passages


def _missing(taken: Sequence[tuple[int, int, float]], start: int, end: int) -> list[tuple[int, int]]:
    """Return what disjoint ranges, in order, leave of [start, end)."""
    missing = []
    for a, b, _ in taken[max(0, bisect_right(taken, start, key=lambda one: one[0]) - 1) :]:
        if a >= end:
            break
        if b > start:
            if a > start:
                missing.append((start, a))
            start = b
    return [*missing, (start, end)] if start < end else missing


def in_order(text: TokenizedText, passages: Sequence[Passage], order: str) -> list[Passage]:
    """Return passages in the order in which they are read: as in the "text", or the "best" first.

    Those of one document stay together, behind its name: best first is the document that holds the best passage.
    """
    if order == "text":
        return sorted(passages, key=lambda p: p.start)
    best: dict[int, float] = {}
    for passage in passages:
        document = text.document_of(passage.start)
        best[document] = max(passage.score, best.get(document, passage.score))

    def rank(passage: Passage) -> tuple[float, int, float, int]:
        document = text.document_of(passage.start)
        return -best[document], document, -passage.score, passage.start

    return sorted(passages, key=rank)


def pot_of_text(
    setup: Setup,
    text: TokenizedText,
    passages: Sequence[Passage],
    slots: int,
    before: Sequence[int] | None = None,
    told: Callable[[], None] | None = None,
) -> Pot:
    """Fill a pot with a prompt's prefix and the text of passages, read as if they were the whole document.

    Args:
        setup: The model.
        text: What the passages are of.
        passages: What to read, in this order.
        slots: Slots of the pot; `text_slots` says what the passages take.
        before: Tokens of the prompt before the document; None: those of the model's usual prompt.
        told: Called after every forward pass.
    """
    ids = list(setup.form.prefix if before is None else before)
    origin = [PREFIX] * len(ids)
    pot = Pot(setup.adapter, slots)
    pot.pinned = len(ids)
    for between, start, end in _pieces(setup, text, passages):
        ids += [*between, *text.ids[start:end].tolist()]
        origin += [*[PREFIX] * len(between), *range(start, end)]
    _forward(setup, pot, ids, origin, told)
    return pot


def text_slots(setup: Setup, text: TokenizedText, passages: Sequence[Passage]) -> int:
    """Return the slots that passages and what stands between them take when they are read as text."""
    return sum(len(between) + end - start for between, start, end in _pieces(setup, text, passages))


def _pieces(setup: Setup, text: TokenizedText, passages: Sequence[Passage]) -> Iterator[tuple[list[int], int, int]]:
    """Yield the token ranges of passages, none across a border of documents, and what stands before each.

    That is a gap where text was left out, and the name of the document where there are several and another one begins.
    """
    behind = shown = -1
    for passage in passages:
        borders = (int(f) for f in text.first if passage.start < f < passage.end)
        for start, end in pairwise((passage.start, *borders, passage.end)):
            number = text.document_of(start)
            tells_name = start == text.first[number] and text.starts[start] == text.ends[start]  # a header's token
            if len(text.documents) > 1 and number != shown and not tells_name:
                between = setup.form.codec.untrusted(f"{'' if behind < 0 else GAP}{text.documents[number].name}:\n")
            else:
                between = [] if behind in (-1, start) else setup.gap
            yield between, start, end
            behind, shown = end, number


def question_pot(
    setup: Setup, shelf: Shelf, passages: Sequence[Passage], slots: int, before: Sequence[int] | None = None
) -> Pot:
    """Fill a pot with a prompt's prefix and passages from the shelf, in document order.

    Args:
        setup: The model.
        shelf: Where the passages are.
        passages: What to place, in document order.
        slots: Slots of the pot; question and answer must fit into what the passages leave.
        before: Tokens of the prompt before the document; None: those of the model's usual prompt.
    """
    ids = list(setup.form.prefix if before is None else before)
    pot = Pot(setup.adapter, slots)
    pot.pinned = len(ids)
    _forward(setup, pot, ids, [PREFIX] * len(ids))
    for passage in passages:
        a, b = shelf.rows_of(passage.start, passage.end)
        if a < b:
            pot.place(*shelf.load(a, b), torch.from_numpy(shelf.tokens[a:b]))
    return pot


def _forward(
    setup: Setup, pot: Pot, ids: Sequence[int], origin: Sequence[int], told: Callable[[], None] | None = None
) -> None:
    """Forward tokens over a pot, and note where each comes from."""
    for start in range(0, len(ids), setup.config.chunk):
        part = slice(start, start + setup.config.chunk)
        setup.adapter.forward(torch.tensor(ids[part], dtype=torch.long), pot.cache)
        pot.record(torch.tensor(origin[part]))
        if told is not None:
            told()


def standard(scores: Tensor) -> Tensor:
    """Express scores in standard deviations from their mean, along the last axis."""
    centred = scores - scores.mean(dim=-1, keepdim=True)
    return centred / scores.std(dim=-1, keepdim=True, correction=0).clamp_min(1e-12)
