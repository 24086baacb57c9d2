"""Calibration: which of a model's attention heads find the passage that answers a question, measured on a document.

Every head scores every span for every question. The heads that rank the passage with the answer best on average are
taken (QRHead, Zhang et al. 2025, takes those with the most attention mass on it; ranks are not swayed by the size of a
head's attention), and their weights are fitted so that the passage stands out among all spans (a listwise softmax).
The same questions, their passages there and hidden, tell how much the heads attend to what answers (answerable.py).
Shapes: `n` heads, `M` spans, `Q` questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infinipot_llm.documents import Document
from infinipot_llm.errors import DocumentError
from infinipot_llm.memory.answerable import Signs, fit
from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import Finder, smooth, standard
from infinipot_llm.memory.spans import Spans

HEADS = 16
"""Heads to choose: 8 to 32 do about as well, and each costs bytes and time."""

FOUND_WITHIN = 512
"""Recalled tokens within which the report looks for the answer."""

STEPS, RATE, SHRINK = 300, 0.05, 0.01
"""Of the fit of the weights: steps of Adam, its rate, and how much large weights cost."""


@dataclass(frozen=True)
class Labelled:
    """A question and where its answer stands.

    Attributes:
        question: The question.
        start: First character of the answer in the document.
        end: One past its last.
    """

    question: str
    start: int
    end: int


@dataclass(frozen=True)
class Calibration:
    """What calibration found.

    Attributes:
        heads: The list, fitted on all questions.
        questions: Q, how many.
        found_before: Share of questions whose answer came back within 512 tokens with the model's uncalibrated list.
        found_after: The same with lists fitted on the other half of the questions each.
    """

    heads: Heads
    questions: int
    found_before: float
    found_after: float


def labelled(document: Document, lines: Sequence[str]) -> list[Labelled]:
    """Find the answers of questions in a document.

    Args:
        document: Where they stand.
        lines: One JSON object each: question, answers (texts that stand in the document), and page (from 1) if known.

    Raises:
        DocumentError: A line cannot be read, or no answer stands in the document.
    """
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            question, answers, page = row["question"], row["answers"], row.get("page")
            texts = [question, *answers] if isinstance(answers, list) else []
            good = len(texts) > 1 and all(isinstance(text, str) and text.strip() for text in texts)
            good = good and (page is None or (type(page) is int and 1 <= page <= len(document.pages)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            good = False
        if not good:
            raise DocumentError(
                f"line {number} of the questions is no JSON object with a question, a list of answers, and a page of "
                "the document (from 1) or none."
            )
        where = None if page is None else document.pages[page - 1]
        low, high = (where.start, where.end) if where else (0, len(document.text))
        places = [(at, at + len(a)) for a in answers if (at := document.text.find(a, low, high)) >= 0]
        if places:
            found.append(Labelled(question, *min(places)))
    if len(found) < 2:
        raise DocumentError("fewer than two of the answers stand in the document: give questions about this document.")
    return found


def builtin() -> tuple[Document, list[Labelled]]:
    """Return the report that comes with this package, and questions about it."""
    packed = resources.files("infinipot_llm.memory") / "calibration"
    folder = Path(str(packed)) if packed.is_dir() else Path(__file__).parents[2] / "examples" / "documents"
    document = Document.from_file(folder / "hollin_valley.md")
    lines = (folder / "hollin_valley.questions.jsonl").read_text(encoding="utf-8").splitlines()
    without_pages = [json.dumps({**json.loads(line), "page": None}) for line in lines]  # the text has none
    return document, labelled(document, without_pages)


def all_heads(layers: int, query_heads: int) -> Heads:
    """Return a list of every head, for a memory that calibration can look at."""
    heads = tuple((layer, head) for layer in range(layers) for head in range(query_heads))
    return Heads(heads, (1.0,) * len(heads), calibrated=False)


def calibrate(
    memory: DocumentMemory, questions: Sequence[Labelled], told: Callable[[int], None] | None = None
) -> Calibration:
    """Choose a model's retrieval heads.

    Args:
        memory: Of the document, read with `all_heads`.
        questions: About it.
        told: Told after every question how many are done.
    """
    finder = memory.finder
    setup = memory.setup
    raw, gold = [], []
    for number, one in enumerate(questions, start=1):
        raw.append(finder.attention(setup.form.question(one.question)).cpu())
        a, b = memory.text.tokens_in(0, one.start, one.end)
        first, last = np.searchsorted(finder.spans.starts, (a, b - 1), side="right") - 1
        gold.append((int(first), int(last)))
        if told is not None:
            told(number)
    by_head = standard(torch.stack(raw))  # [Q, n, M]
    everything = torch.arange(len(questions))
    chosen, weights = _fit(by_head, gold, finder.spans, everything)
    halves: list[bool] = []
    answered, unanswered = [], []
    for half in (everything[::2], everything[1::2]):
        fitted = _fit(by_head, gold, finder.spans, everything[~torch.isin(everything, half)])
        halves += _found(by_head, gold, finder, *fitted, half)
        for j in half.tolist():
            seen, hidden = signs_of(finder, raw[j][fitted[0]], _rounded(fitted[1]), questions[j].question, gold[j])
            answered += [seen] if seen is not None else []
            unanswered += [hidden] if hidden is not None else []
    uncalibrated = Heads.default(setup.adapter.layers, setup.query_heads)
    index = torch.tensor([layer * setup.query_heads + head for layer, head in uncalibrated.heads])
    before = _found(by_head, gold, finder, index, torch.ones(len(index)), everything)
    order = chosen.argsort()
    names = [setup.heads.heads[i] for i in chosen[order].tolist()]
    judge = fit(answered, unanswered) if answered and unanswered else None
    found = Heads(tuple(names), tuple(_rounded(weights[order])), calibrated=True, judge=judge)
    return Calibration(found, len(questions), float(np.mean(before)), float(np.mean(halves)))


def signs_of(
    finder: Finder, by_head: Tensor, weights: Sequence[float], question: str, gold: tuple[int, int]
) -> tuple[Signs | None, Signs | None]:
    """Return how well the best passage fits a question: as it is, and with the answer's paragraphs hidden.

    Args:
        finder: Of the document.
        by_head: [n, M] float32, the question's attention to each span, by the heads that count.
        weights: n, of these heads.
        question: The question.
        gold: First and last span of the answer.
    """
    scores = finder.combined(by_head, weights, question, calibrated=True)
    paragraph = torch.from_numpy(finder.spans.paragraph)
    hidden = (paragraph >= paragraph[gold[0]]) & (paragraph <= paragraph[gold[1]])
    less = scores.masked_fill(hidden.to(scores.device), -torch.inf)
    unseen = by_head.masked_fill(hidden.to(by_head.device), 0.0)
    there = finder.signs(by_head, weights, scores, question)
    return there, None if bool(hidden.all()) else finder.signs(unseen, weights, less, question)


def _rounded(weights: Tensor) -> list[float]:
    """Return weights as they are written, the largest being 1."""
    return [max(0.001, round(w, 3)) for w in (weights / weights.max()).tolist()]


def _fit(by_head: Tensor, gold: Sequence[tuple[int, int]], spans: Spans, which: Tensor) -> tuple[Tensor, Tensor]:
    """Choose heads [HEADS] and their weights on some questions."""
    some = by_head[which]  # [Q, n, M]
    best = torch.stack([some[i, :, a : b + 1].amax(dim=1) for i, (a, b) in enumerate(gold[j] for j in which)])  # [Q, n]
    ranks = (some > best[..., None]).sum(dim=2) + 1.0
    chosen = (1.0 / ranks).mean(dim=0).topk(min(HEADS, some.shape[1])).indices
    near = torch.stack([torch.stack([smooth(head, spans.paragraph) for head in one[chosen]]) for one in some])
    target = torch.zeros(len(which), some.shape[2])
    for i, j in enumerate(which.tolist()):
        a, b = gold[j]
        target[i, a : b + 1] = 1.0 / (b + 1 - a)
    raw = torch.zeros(len(chosen), requires_grad=True)
    scale = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.Adam([raw, scale], lr=RATE)
    for _ in range(STEPS):
        weights = torch.nn.functional.softplus(raw)
        told = (weights @ near) * scale.exp() * 0.1  # [Q, M]
        loss = -(target * told.log_softmax(dim=1)).sum(dim=1).mean() + SHRINK * weights.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return chosen, torch.nn.functional.softplus(raw).detach()


def _found(
    by_head: Tensor, gold: Sequence[tuple[int, int]], finder: Finder, chosen: Tensor, weights: Tensor, which: Tensor
) -> list[bool]:
    """Say for some questions whether the spans of the answer are among the first FOUND_WITHIN tokens."""
    found = []
    for j in which.tolist():
        scores = smooth(standard(weights @ by_head[j][chosen]), finder.spans.paragraph)
        passages = finder.best(scores, FOUND_WITHIN)
        a, b = (int(finder.spans.starts[i]) for i in (gold[j][0], gold[j][1] + 1))
        found.append(any(p.start <= a and b <= p.end for p in passages))
    return found
