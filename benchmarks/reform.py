"""Choosing text as REFORM does: tokens whose keys are like the question's are gathered, and their text is read again.

REFORM (Song et al., "Compress, Gather, and Recompute", NeurIPS 2025, arXiv 2506.01215) keeps small vectors of a few
heads for every token, takes the tokens nearest to any token of the question, widened by a window, and runs the model on
them once more. Done here with what an int8 shelf holds: un-rotated keys of four KV heads, less what all keys of a head
have in common (Qwen2's have a bias, beside which cosines would see nothing else), read within the pot as everything
else is. The heads are those that rank the answer's tokens best for the questions of another document. Two things are
not taken over: the paper looks at queries and values as well, and keeps the first and last 256 tokens, of thousands.
Shapes: `n` KV heads that choose, `R` tokens on the shelf, `Q` tokens of a question, `D` head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.pot.pot import PREFIX, Pot

HEADS = 4
"""KV heads that choose; the paper takes as many."""

WINDOW = 129
"""Tokens over which a token's score is the best one; the paper's."""

BLOCK_ROWS = 4096


class Asked(Protocol):
    """A question whose answer is known to stand somewhere in a document."""

    question: str
    gold: tuple[tuple[int, int], ...]


class Gathering:
    """A memory's tokens, to be ranked for questions by how much their keys are like the question's."""

    def __init__(self, memory: DocumentMemory, heads: Sequence[tuple[int, int]]) -> None:
        """Read the keys of some (layer, KV head) pairs off the shelf; it must hold all keys (int8 or int4)."""
        self._memory = memory
        self._heads = list(heads)
        shelf = memory.finder.shelf
        parts = [
            self._chosen(shelf.load(a, min(a + BLOCK_ROWS, len(shelf)))[0]) for a in range(0, len(shelf), BLOCK_ROWS)
        ]
        keys = torch.cat(parts, dim=1)  # [n, R, D]
        self._common = keys.mean(dim=1, keepdim=True)
        self._keys = torch.nn.functional.normalize(keys - self._common, dim=2)

    def rank(self, question: str) -> NDArray[np.float64]:
        """Return [R] scores, higher = gather."""
        return self.by_head(question).sum(dim=0).double().numpy()

    def by_head(self, question: str) -> Tensor:
        """Return [n, R] scores: the cosine to the nearest token of the question, the best one within WINDOW."""
        asked = torch.nn.functional.normalize(self._chosen(self._question_keys(question)) - self._common, dim=2)
        near = torch.stack([(k @ q.T).amax(dim=1) for k, q in zip(self._keys, asked, strict=True)])
        return torch.nn.functional.max_pool1d(near, WINDOW, stride=1, padding=WINDOW // 2)

    def _chosen(self, keys: Tensor) -> Tensor:
        """Return [n, tokens, D] float32 of [L, K, tokens, D]."""
        return torch.stack([keys[layer, head] for layer, head in self._heads]).float()

    def _question_keys(self, question: str) -> Tensor:
        """Return un-rotated keys [L, K, Q, D] of a question behind the prompt's prefix alone."""
        setup = self._memory.setup
        ids = torch.tensor(setup.form.codec.untrusted(question), dtype=torch.long)
        length = setup.prefix[0].shape[2]
        pot = Pot(setup.adapter, length + len(ids))
        with setup.adapter.lock:
            pot.place(*setup.prefix, torch.full((length,), PREFIX))
            setup.adapter.forward(ids, pot.cache)
            pot.record(torch.full((len(ids),), PREFIX))
        return pot.newest(len(ids))[0].cpu()


def choose_heads(memory: DocumentMemory, questions: Sequence[Asked]) -> list[tuple[int, int]]:
    """Return the KV heads whose own ranking has the tokens of the answers first, by mean reciprocal rank.

    Args:
        memory: Of a document on which nothing else is measured.
        questions: About it.
    """
    layers, kv_heads = memory.pot.origin.shape[:2]
    everyone = [(layer, head) for layer in range(layers) for head in range(kv_heads)]
    gathering = Gathering(memory, everyone)
    reciprocal = torch.zeros(len(everyone))
    for asked in questions:
        scores = gathering.by_head(asked.question)
        gold = torch.zeros(scores.shape[1], dtype=torch.bool)
        for start, end in asked.gold:
            a, b = memory.text.tokens_in(0, start, end)
            gold[a:b] = True
        best = scores[:, gold].amax(dim=1, keepdim=True)
        reciprocal += 1.0 / (1.0 + (scores > best).sum(dim=1))
    return [everyone[i] for i in reciprocal.topk(HEADS).indices.sort().values.tolist()]
