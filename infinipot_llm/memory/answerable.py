"""Whether documents answer a question at all, judged before anything is written by how well the best passage fits.

A small model hardly ever says that a document does not tell, and a wrong answer taken from some passage rests on that
passage as well as a right one does. What tells the two apart is how the passages were found:

    attention   how much more the retrieval heads look at the best spans than questions without content do
    words       which share of the question's words, rare ones counting more, stands in the best span's paragraph

    answerable = 1 / (1 + exp(-(a * attention + w * words + c)))

a, w and c are fitted per model with its retrieval heads (calibrate.py), on questions whose passages are there and on
the same questions with those passages hidden. docs/recall.md measures it on other documents and questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infinipot_llm.errors import ModelError

BEST_SPANS = 4
"""Spans that attention is summed over."""

USUAL_ROWS = 8192
"""Attention is a share of all that is looked at, and falls about as the root of the shelf's length: it is brought to
this length."""


@dataclass(frozen=True)
class Signs:
    """How well the best passage fits a question.

    Attributes:
        attention: Logarithm of the attention to the best spans, for a shelf of USUAL_ROWS tokens.
        words: Share of the question's words that stand in the best span's paragraph, 0 to 1.
    """

    attention: float
    words: float


@dataclass(frozen=True)
class Judge:
    """The weights of the signs, for one model and its list of retrieval heads."""

    attention: float
    words: float
    offset: float

    def __call__(self, signs: Signs) -> float:
        """Return how likely it is that the documents answer the question, 0 to 1."""
        told = self.attention * signs.attention + self.words * signs.words + self.offset
        return 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, told))))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Judge:
        """Read it from JSON values.

        Raises:
            ModelError: They are none.
        """
        try:
            judge = cls(float(values["attention"]), float(values["words"]), float(values["offset"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError("the weights of `answerable` cannot be read: calibrate the model again.") from error
        if not all(math.isfinite(x) and abs(x) < 1e6 for x in (judge.attention, judge.words, judge.offset)):
            raise ModelError("the weights of `answerable` are no numbers: calibrate the model again.")
        return judge


BY_WORDS = Judge(attention=0.0, words=7.62, offset=-3.031)
"""For a model that nobody measured: by the words alone, as `benchmarks/answerable.py report` fits them."""


def attention_sign(attended: Tensor, rows: int) -> float:
    """Return the first sign.

    Args:
        attended: [M] float32, weighted attention to each span, less that of questions without content.
        rows: Tokens that were looked at.
    """
    best = float(attended.topk(min(BEST_SPANS, len(attended))).values.sum())
    return math.log(max(best, 0.0) + 1e-4) + 0.5 * math.log(rows / USUAL_ROWS)


def fit(answered: Sequence[Signs], unanswered: Sequence[Signs]) -> Judge:
    """Fit the weights by logistic regression, both groups counting the same.

    Args:
        answered: Signs of questions that the documents answer.
        unanswered: Of such that they do not.
    """
    signs = torch.tensor([[s.attention, s.words, 1.0] for s in (*answered, *unanswered)], dtype=torch.float64)
    target = torch.tensor([1.0] * len(answered) + [0.0] * len(unanswered), dtype=torch.float64)
    counts = torch.where(target > 0, 0.5 / max(1, len(answered)), 0.5 / max(1, len(unanswered)))
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        told = signs @ weights
        each = torch.nn.functional.binary_cross_entropy_with_logits(told, target, reduction="none")
        found = (counts * each).sum() + 1e-3 * weights[:2].square().sum()
        found.backward()
        return found

    optimiser.step(loss)
    return Judge(*(round(float(w), 3) for w in weights.detach()))
