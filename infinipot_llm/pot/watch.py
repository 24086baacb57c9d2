"""What a pot sees of the attention while text is read into it, for policies that judge slots by it.

Only baselines ask for it: the paper's own scores need nothing but the catalyst's pass. Part of the pot's state, since
policies have none: it is dropped, gathered and re-indexed with the slots.
Shapes: `L` layers, `H` query heads, `K` KV heads, `G` = H / K, `C` new tokens, `S` slots held, `D` head dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from infinipot_llm.models.slots import Attending


@dataclass
class Moments:
    """Sums over the un-rotated queries of one layer.

    Attributes:
        count: Queries seen.
        total: [H, D] float32, their sum.
        products: [H, D, D] float32, the sum of their outer products.
    """

    count: int
    total: Tensor
    products: Tensor

    @property
    def mean(self) -> Tensor:
        """[H, D]."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """[H, D, D]."""
        mean = self.mean
        return self.products / self.count - mean[:, :, None] * mean[:, None, :]


@dataclass
class Watch:
    """Observes queries and keys of every layer with slots while the reader forwards text.

    Attributes:
        window: How many of the last queries are remembered; 0: none.
        wants_received: Whether attention is summed up per slot.
        wants_moments: Whether the queries' moments are summed up.
        last: Layer to [H, n, D], the last n <= window queries before the next distillation, rotated to their slots.
        held: Whether those queries are of tokens that are in the slots (the last n of them), and not of a question.
        received: Layer to [K, S] float32, the attention each slot was paid, summed over tokens, mean over the group.
        moments: Layer to the moments of all its queries so far.
        scaling: Layer to its softmax scaling.
    """

    window: int = 0
    wants_received: bool = False
    wants_moments: bool = False
    last: dict[int, Tensor] = field(default_factory=dict)
    held: bool = True
    received: dict[int, Tensor] = field(default_factory=dict)
    moments: dict[int, Moments] = field(default_factory=dict)
    scaling: dict[int, float] = field(default_factory=dict)

    def __call__(self, seen: Attending) -> None:
        """Take note of one layer's forward."""
        self.scaling[seen.layer] = seen.scaling
        if self.window:
            queries = seen.query[0].to(torch.float32)
            before = self.last.get(seen.layer)
            queries = queries if before is None else torch.cat([before, queries], dim=1)
            self.last[seen.layer] = queries[:, -self.window :].clone()
        if self.wants_received:
            paid = attention_paid(seen.query[0], seen.key[0], seen.scaling)  # [K, G, S]
            paid = paid.mean(dim=1)
            before = self.received.get(seen.layer)
            if before is not None:
                paid[:, : before.shape[1]] += before
            self.received[seen.layer] = paid
        if self.wants_moments:
            queries = seen.raw_query[0].to(torch.float32)  # [H, C, D]
            total, products = queries.sum(dim=1), queries.transpose(1, 2) @ queries
            known = self.moments.get(seen.layer)
            if known is not None:
                total, products = total + known.total, products + known.products
            count = queries.shape[1] + (known.count if known is not None else 0)
            self.moments[seen.layer] = Moments(count, total, products)

    def keep(self, slots: Tensor) -> None:
        """Follow a distillation; slots [L, K, kept] int64 are those that stay."""
        self.last = {}  # the slots that they were rotated to are others now
        self.received = {layer: paid.gather(1, slots[layer]) for layer, paid in self.received.items()}


def attention_paid(query: Tensor, key: Tensor, scaling: float, *, causal: bool = True) -> Tensor:
    """Return the attention that each slot is paid, summed over the queries.

    Args:
        query: [H, C, D], rotated.
        key: [K, S, D], rotated.
        scaling: Softmax scaling.
        causal: The queries are those of the last C slots, and see none behind their own; otherwise they see all.

    Returns:
        [K, G, S] float32.
    """
    H, C, D = query.shape
    K, S = key.shape[:2]
    hidden = torch.ones((C, S), dtype=torch.bool, device=key.device).triu_(S - C + 1) if causal else None
    paid = []
    for q, k in zip(query.reshape(K, H // K, C, D), key, strict=True):  # head by head: all at once would be large
        logits = q.to(torch.float32) @ k.to(torch.float32).T * scaling  # [G, C, S]
        if hidden is not None:
            logits = logits.masked_fill(hidden, float("-inf"))
        paid.append(torch.softmax(logits, dim=-1).sum(dim=1))
    return torch.stack(paid)
