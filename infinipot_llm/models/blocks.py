"""Attention in bf16 on CPUs, block by block: there torch's own kernel is no faster in bf16 than in float32.

Where a CPU multiplies matrices in bf16 several times as fast, two plain products and a softmax between them, over
blocks that stay in the cache, take less than half of that kernel's time. The products add up in float32 but hand their
sums over in bf16, and attention logits can be large (above a thousand in Qwen2.5's first layer, whose keys share a big
constant part): rounded like that they would be useless. Softmax does not see a constant that is added to a whole row.
So one that brings the row's largest logits near zero, where bf16 is fine-grained, is subtracted inside the product,
before rounding, as one more dimension. It need not be exact: the largest logit of a few sampled keys does. Measured on
real states, the result is off by 0.24 %, the kernel's own by 0.17 %, and unshifted blocks by up to 9 %.
Shapes: `H` query heads, `K` KV heads, `G` = H / K, `C` new tokens, `S` keys held (new ones included), `D` head dim.
"""

from __future__ import annotations

from functools import cache, lru_cache

import torch
from torch import Tensor

from infinipot_llm.models.device import WORTH_IT, bf16_speedup

BLOCK_BYTES = 4 * 2**20
"""The logits of a block take at most so much: 512 queries over 4,096 keys."""

SAMPLED = 64
"""Keys that a row's largest logit is guessed from."""


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attend causally from the last C of S tokens.

    Args:
        query: [1, H, C, D] in bf16.
        key: [1, K, S, D], more than `SAMPLED` of them held before the new tokens.
        value: [1, K, S, Dv].
        scaling: Softmax scaling.

    Returns:
        [1, H, C, Dv].
    """
    H, C, D = query.shape[1:]
    K, S = key.shape[1], key.shape[2]
    G = H // K
    most = max(1, BLOCK_BYTES // (S * query.element_size()))  # rows of a block
    heads, rows = max(1, most // C), min(most, C)  # whole heads, or some rows of one
    out = query.new_empty((K, G, C, value.shape[3]))
    ahead = _ahead(C, query.dtype)  # [C, C]
    sampled = torch.linspace(0, S - C - 1, SAMPLED).long()  # the first, which often draws most, and the latest before
    logits = query.new_empty((min(heads, G) * rows, S))
    weights = torch.empty_like(logits)
    for q, k, v, o in zip(query.view(K, G, C, D), key[0], value[0], out, strict=True):
        shift = (q.float() @ k[sampled].float().T).amax(dim=-1, keepdim=True)  # [G, C, 1]
        q = torch.cat([q, -shift.to(q.dtype)], dim=-1)  # [G, C, D + 1]
        k = torch.cat([k, k.new_ones((S, 1))], dim=-1).T  # [D + 1, S]
        for head in range(0, G, heads):
            for row in range(0, C, rows):
                part = q[head : head + heads, row : row + rows]
                n, c = part.shape[:2]
                into, shares = logits[: n * c], weights[: n * c]
                torch.addmm(into, part.reshape(n * c, D + 1), k, beta=0.0, alpha=scaling, out=into)
                into.view(n, c, S)[:, :, S - C :] += ahead[row : row + c]
                torch.softmax(into, dim=-1, out=shares)
                torch.mm(shares, v, out=o[head : head + heads, row : row + rows].view(n * c, -1))
    return out.view(1, H, C, -1)


def pays(query: Tensor, key: Tensor) -> bool:
    """Tell whether `attend_in_blocks` takes these, and is the faster way on this machine."""
    held = key.shape[2] - query.shape[2]  # before the new tokens
    fits = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[0] == 1 and held > SAMPLED
    return fits and faster_here()


@cache
def faster_here() -> bool:
    """Tell whether this CPU multiplies fast in bf16, and has no tiles (AMX), for which torch's kernel is made."""
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases of torch do not tell
    return bf16_speedup() >= WORTH_IT and not told.get("amx_bf16", False)


@lru_cache(maxsize=2)  # all layers of a forward ask for the same one; every length of a question is another
def _ahead(new: int, dtype: torch.dtype) -> Tensor:
    """Return the additive mask [C, C] among the new tokens: none sees those behind it. It is shared."""
    return torch.full((new, new), float("-inf"), dtype=dtype).triu_(1)
