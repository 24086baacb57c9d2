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

SINKS = 4
"""First tokens of a sequence whose queries are left out of the moments: they are unlike all others (Devoto et al.)."""


@dataclass
class Moments:
    """Mean and scatter of the un-rotated queries of one layer.

    Attributes:
        count: Queries seen.
        mean: [H, D] float32.
        scatter: [H, D, D] float32, the sum of the outer products of their distances from the mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, queries: Tensor) -> Moments:
        """Return those of queries [H, C, D]."""
        mean = queries.mean(dim=1)
        centred = queries - mean[:, None]
        return cls(queries.shape[1], mean, centred.transpose(1, 2) @ centred)

    def joined(self, other: Moments) -> Moments:
        """Return those of both (Chan et al., 1979): sums of squares lose a small variance beside a large mean."""
        count = self.count + other.count
        step = other.mean - self.mean  # [H, D]
        between = step[:, :, None] * step[:, None, :] * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """[H, D, D]."""
        return self.scatter / self.count


@dataclass
class Watch:
    """Observes queries and keys of every layer with slots while the reader forwards text.

    Attributes:
        window: How many of the last queries are remembered; 0: none.
        wants_received: Whether attention is summed up per slot.
        wants_moments: Whether the queries' moments are summed up.
        last: Layer to [H, n, D], the last n <= window queries before the next distillation, rotated to their slots.
        behind: How many of the tokens seen last are of a question. They stand behind the S slots that are scored, and
            nothing chooses among them; while they are scored, the layers hold them.
        received: Layer to [K, S + behind] float32, the attention each slot was paid, summed over tokens, mean over the
            group.
        moments: Layer to the moments of all its queries so far, but for those of the first SINKS tokens.
        scaling: Layer to its softmax scaling.
    """

    window: int = 0
    wants_received: bool = False
    wants_moments: bool = False
    last: dict[int, Tensor] = field(default_factory=dict)
    behind: int = 0
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
            start = seen.key.shape[2] - seen.raw_query.shape[2]  # the sinks come first; later chunks never start there
            queries = seen.raw_query[0, :, max(0, SINKS - start) :].to(torch.float32)  # [H, C, D]
            if queries.shape[1]:
                new, known = Moments.of(queries), self.moments.get(seen.layer)
                self.moments[seen.layer] = new if known is None else known.joined(new)

    def keep(self, slots: Tensor) -> None:
        """Follow a distillation; slots [L, K, kept] int64 are those that stay."""
        self.last = {}  # the slots that they were rotated to are others now
        self.behind = 0
        self.received = {layer: paid.gather(1, slots[layer]) for layer, paid in self.received.items()}


def attention_paid(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return the attention that each slot is paid, summed over the queries.

    Args:
        query: [H, C, D], rotated; those of the last C slots: they see none behind their own.
        key: [K, S, D], rotated.
        scaling: Softmax scaling.

    Returns:
        [K, G, S] float32.
    """
    H, C, D = query.shape
    K, S = key.shape[:2]
    hidden = torch.ones((C, S), dtype=torch.bool, device=key.device).triu_(S - C + 1)
    paid = []
    for q, k in zip(query.reshape(K, H // K, C, D), key, strict=True):  # head by head: all at once would be large
        logits = q.to(torch.float32) @ k.to(torch.float32).T * scaling  # [G, C, S]
        paid.append(torch.softmax(logits.masked_fill(hidden, float("-inf")), dim=-1).sum(dim=1))
    return torch.stack(paid)
