"""Catalyst Prompt (CaP): how much the prompt at the end of the pot attends to each slot.

Paper, section 3.1: the attention that all later tokens will pay to a token is approximated by the attention that a
prompt p_1 .. p_P placed at the end of the pot pays to it: u_t = sum over i of Attn(p_i -> x_t). The prompt is the
user's question when it is known, and otherwise a set of generic questions.
Shapes: `L` layers, `K` KV heads, `G` query heads per KV head, `P` catalyst tokens, `S` slots, `D` head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.slots import Attending
from infinipot_llm.pot.pot import Pot


def attention_received(query: Tensor, key: Tensor, scaling: float, reduce: Literal["sum", "max"]) -> Tensor:
    """Return what each slot receives from a block of queries.

    The softmax runs over the slots alone, the catalyst's own keys left out; query heads of a KV head are averaged.

    Args:
        query: [1, H, P, D], rotated.
        key: [1, K, S, D], rotated.
        scaling: Softmax scaling.
        reduce: How the P tokens become one number.

    Returns:
        [K, S] float32.
    """
    K, S, D = key.shape[1:]
    P = query.shape[2]
    grouped = query[0].reshape(K, -1, D)  # [K, G * P, D]
    received = []
    for q, k in zip(grouped, key[0], strict=True):  # head by head: all weights at once would be large
        weights = torch.softmax(q.to(torch.float32) @ k.to(torch.float32).T * scaling, dim=-1).reshape(-1, P, S)
        received.append((weights.sum(dim=1) if reduce == "sum" else weights.amax(dim=1)).mean(dim=0))  # [S]
    return torch.stack(received)


def importance(
    adapter: Adapter, pot: Pot, catalysts: Sequence[Tensor], reduce: Literal["sum", "max"] = "sum"
) -> Tensor:
    """Forward each catalyst over the pot, without trace, and score the slots by the attention they receive.

    Args:
        adapter: The model.
        pot: What was read so far.
        catalysts: Token ids [P] of one or several prompts; a slot counts by the one that needs it most.
        reduce: How the tokens of one catalyst become one number.

    Returns:
        [L, K, S] float32.
    """
    best: Tensor | None = None
    for ids in catalysts:
        found: list[Tensor | None] = [None] * adapter.layers

        def observe(seen: Attending, found: list[Tensor | None] = found) -> None:
            held = seen.key[:, :, : pot.length]
            found[seen.layer] = attention_received(seen.query, held, seen.scaling, reduce)

        with pot.scratch():
            pot.cache.observer = observe
            adapter.forward(ids, pot.cache)
        one = torch.stack([scores for scores in found if scores is not None])  # [L, K, S]
        one = one / len(ids) if reduce == "sum" else one  # a long catalyst must not outweigh a short one
        best = one if best is None else torch.maximum(best, one)
    if best is None:
        raise ValueError("importance needs at least one catalyst")
    return best
