"""How much each span of the shelf is what a question looks for, by the model's own attention.

    a[h, i](t) = softmax over t of (q[h, i] . k[g(h), t] * scaling)      un-rotated queries and keys
    s[h](t)    = mean over i of a[h, i](t)  -  the same for questions without content
    S[h](span) = sum of the best four s[h](t) in the span, those above 0

All tokens of the question and of the prompt around it count. The second term does not depend on the question: it is
computed once, after reading, and stored (ICR, Chen et al. 2025, calls it calibration).
Shapes: `n` heads that score, `Q` tokens of question and prompt, `D` head dim, `R` rows of the shelf, `M` spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.shelf import Shelf
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.slots import Attending
from infinipot_llm.pot.pot import PREFIX, Pot

NO_CONTENT = ("N/A", "?", "What is it?", "What does the document say?", "Tell me about this.", "Who?")
"""Questions that ask for nothing: what they attend to, every question attends to."""

BEST_TOKENS = 4
"""A span is as good as its best tokens together: a passage that answers is rarely relevant in every word."""

BLOCK_ROWS = 1024
"""Rows that are scored at once: four times as many are no faster on one CPU core, and take 70 MB more while they are
scored (of 10,240 and of 204,800 rows, default model)."""

BLOCK_BYTES = 32 * 2**20
"""Most bytes of the logits of those rows: a long question, or many heads, are scored some tokens at a time."""


@dataclass(frozen=True)
class Queries:
    """What a question looks for.

    Attributes:
        states: [n, Q, D] float32, un-rotated and scaled.
        keys: For each head the index of its key among the shelf's scoring keys, n numbers.
    """

    states: Tensor
    keys: tuple[int, ...]


class _SeenEnoughError(Exception):
    """Ends a forward pass of which nothing more is wanted; its cache is thrown away."""


def queries(adapter: Adapter, prefix: tuple[Tensor, Tensor], ids: Sequence[int], heads: Heads) -> Queries:
    """Forward a question behind the prompt's prefix alone, and keep the queries of the retrieval heads.

    Args:
        adapter: The model.
        prefix: Un-rotated keys and values [L, K, tokens, D] of the prefix.
        ids: Q tokens of the question and of the prompt around it.
        heads: The retrieval heads.
    """
    wanted: dict[int, list[int]] = {}
    for number, (layer, _) in enumerate(heads.heads):
        wanted.setdefault(layer, []).append(number)
    found: list[Tensor | None] = [None] * len(heads.heads)

    deepest = max(wanted)

    def observe(seen: Attending) -> None:
        for number in wanted.get(seen.layer, ()):
            found[number] = seen.raw_query[0, heads.heads[number][1]].to(torch.float32) * seen.scaling
        if seen.layer == deepest:
            raise _SeenEnoughError  # the layers above would be computed for nothing

    pot = Pot(adapter, prefix[0].shape[2] + len(ids))
    pot.place(*prefix, torch.full((prefix[0].shape[2],), PREFIX))
    pot.cache.observer = observe
    with suppress(_SeenEnoughError):
        adapter.forward(torch.tensor(list(ids), dtype=torch.long), pot.cache)
    query_heads, kv_heads = int(adapter.config.num_attention_heads), int(adapter.config.num_key_value_heads)
    scoring = heads.scoring_keys(query_heads, kv_heads)
    keys = tuple(scoring.index(layer * kv_heads + head // (query_heads // kv_heads)) for layer, head in heads.heads)
    return Queries(torch.stack([f for f in found if f is not None]), keys)


def attention(shelf: Shelf, asked: Queries, cuts: NDArray[np.int64] | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, mean over the question's tokens of their attention to each row, [n, rows] float32), in blocks.

    Two passes over the scoring keys: the softmax's denominators, then the weights. Memory does not grow with the shelf.

    Args:
        shelf: What is looked at.
        asked: By what.
        cuts: Rows at which blocks may end, increasing, 0 and R among them; None: anywhere.
    """
    keys = list(asked.keys)
    n, Q = asked.states.shape[:2]
    parts = asked.states.split(max(1, BLOCK_BYTES // (n * BLOCK_ROWS * 4)), dim=1)  # of q tokens each
    denominators = [part.new_full(part.shape[:2], -torch.inf) for part in parts]  # [n, q]
    blocks = list(_blocks(len(shelf), cuts))
    for start, stop in blocks:
        held = shelf.scoring_keys(start, stop)[:, keys].permute(1, 2, 0)  # [n, D, rows]
        for part, denominator in zip(parts, denominators, strict=True):
            torch.logaddexp(denominator, (part @ held).logsumexp(dim=2), out=denominator)
    for start, stop in blocks:
        held = shelf.scoring_keys(start, stop)[:, keys].permute(1, 2, 0)
        total = held.new_zeros(n, held.shape[2])
        for part, denominator in zip(parts, denominators, strict=True):
            total += (part @ held).sub_(denominator[..., None]).exp_().sum(dim=1)
        yield start, total / Q


def span_scores(shelf: Shelf, null: Tensor, asked: Queries, cuts: NDArray[np.int64]) -> Tensor:
    """Score every span by every head.

    Args:
        shelf: What is looked at.
        null: [R, n] float32, the attention of questions without content.
        asked: By what.
        cuts: [M + 1] rows at which spans begin, and R. A span may hold no row, where the shelf is bounded.

    Returns:
        [n, M] float32.
    """
    M = len(cuts) - 1
    longest = int(np.diff(cuts).max())
    found = torch.zeros(len(asked.keys), M, device=null.device)
    for start, shares in attention(shelf, asked, cuts):
        stop = start + shares.shape[1]
        first, last = (int(i) for i in np.searchsorted(cuts, (start, stop)))  # the spans of this block
        scores = (shares - null[start:stop].T).clamp_(min=0)  # [n, rows]; as the padding below
        table = scores.new_zeros(scores.shape[0], last - first, longest)
        lengths = np.diff(cuts[first : last + 1])
        span = np.repeat(np.arange(last - first), lengths)
        place = np.arange(stop - start) - np.repeat(cuts[first:last] - start, lengths)
        table[:, torch.from_numpy(span), torch.from_numpy(place)] = scores
        found[:, first:last] = table.topk(min(BEST_TOKENS, longest), dim=2).values.sum(dim=2)
    return found


def null_scores(
    adapter: Adapter, prefix: tuple[Tensor, Tensor], questions: Sequence[Sequence[int]], shelf: Shelf, heads: Heads
) -> Tensor:
    """Return what every question attends to, [R, n] float32: the mean over questions without content.

    Args:
        adapter: The model.
        prefix: Un-rotated keys and values of the prompt's prefix.
        questions: Tokens of each question without content.
        shelf: What was read.
        heads: The retrieval heads.
    """
    total = torch.zeros(len(shelf), len(heads.heads), device=adapter.device)
    for ids in questions:
        for start, shares in attention(shelf, queries(adapter, prefix, ids, heads)):
            total[start : start + shares.shape[1]] += shares.T
    return total / len(questions)


def _blocks(rows: int, cuts: NDArray[np.int64] | None) -> Iterator[tuple[int, int]]:
    """Yield row ranges of at most BLOCK_ROWS rows that end at cuts (or of one span, if that is longer)."""
    start = 0
    while start < rows:
        stop = min(start + BLOCK_ROWS, rows)
        if cuts is not None:
            reached = cuts[np.searchsorted(cuts, stop, side="right") - 1]
            stop = int(reached if reached > start else cuts[np.searchsorted(cuts, start, side="right")])
        yield start, stop
        start = stop
