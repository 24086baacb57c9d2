"""Causal attention over slots: the one function that transformers calls for a model that reads through a pot.

It rotates the queries to their slots, lets an observer look at (rotated) queries and keys, and attends, in sliding
layers to the keys within reach. It builds its own mask, because the library would make one mask for all layers and,
given none, would use only the first keys.
Shapes: `B` batch (1, or answers side by side), `H` query heads, `K` KV heads, `G` = H / K, `C` new tokens, `S` slots
held (new ones included).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinipot_llm.errors import ModelError
from infinipot_llm.models import blocks
from infinipot_llm.models.slots import Attending, SlotCache, SlotLayer
from infinipot_llm.models.window import WindowLayer

NAME = "infinipot"
"""Under this name the function stands in transformers' attention registry."""


@lru_cache(maxsize=2)  # all layers of a forward ask for the same one, those with slots and those with a window
def causal_bias(new: int, held: int, window: int | None = None, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the additive mask [C, S]. It is shared: do not write to it.

    Args:
        new: C.
        held: S, the new ones included: new token i is key S - C + i, and sees none behind it.
        window: How many keys it sees at most, its own included; None: all.
        dtype: Of the mask.
        device: Of the mask.
    """
    bias = torch.full((new, held), float("-inf"), dtype=dtype, device=device).triu_(held - new + 1)
    if window is None or window >= held:
        return bias
    beyond = torch.ones((new, held), dtype=torch.bool, device=device).tril_(held - new - window)
    return bias.masked_fill_(beyond, float("-inf"))


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    pot: SlotCache | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from C new tokens to S slots.

    Args:
        module: The attention module; its `layer_idx` says which layer's slots (or window) these are.
        query: [B, H, C, D], un-rotated.
        key: [B, K, S, D], rotated to their slots by the cache; of a sliding layer the keys within reach.
        value: [B, K, S, Dv].
        attention_mask: Ignored: position and mask follow from the slots.
        scaling: Softmax scaling; None means D ** -0.5.
        pot: The cache that `key` and `value` come from, put here by the adapter's hook.
        softcap: Refused: logits capped inside attention are not supported.
        **kwargs: What else the library passes (dropout, position ids, ...), unused.

    Returns:
        [B, C, H, Dv] and None (no attention weights).

    Raises:
        ModelError: The model was called without a pot, or caps its attention logits.
    """
    if not isinstance(pot, SlotCache):
        raise ModelError("this model is set up to read through a pot: call it through InfiniPot, or close() it first.")
    if softcap is not None:
        raise ModelError("models that cap attention logits (softcap) are not supported: choose another model.")
    B, H, C, D = query.shape
    K, S = key.shape[1], key.shape[2]
    scaling = D**-0.5 if scaling is None else scaling
    raw_query = query
    layer: SlotLayer | WindowLayer = pot.layers[module.layer_idx]
    query = layer.rotation(raw_query, layer.length - C)
    hidden = pot.hidden_recent
    if isinstance(layer, SlotLayer):
        hidden = None if pot.hidden is None else pot.hidden[layer.number]  # [K, slots held before]
        if pot.observer is not None:
            pot.observer(Attending(layer.number, raw_query, query, key, scaling))
    if hidden is not None:
        return _attend_but_hidden(query, key, value, hidden, scaling, layer.window), None
    if C == 1:  # decoding: the G query heads of a KV head become G rows, so that keys are not repeated
        held = None if pot.vacant is None else _occupied(pot.vacant, S)  # [B, 1, 1, S]
        folded = query.reshape(B, K, H // K, D)
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=held, scale=scaling)
        return out.reshape(B, H, 1, -1).transpose(1, 2), None
    if pot.vacant is not None:
        raise ModelError("answers that are decoded side by side take one token at a time.")
    if layer.window is None and blocks.pays(query, key):
        return blocks.attend_in_blocks(query, key, value, scaling).transpose(1, 2), None
    bias = causal_bias(C, S, layer.window, dtype=query.dtype, device=query.device)  # [C, S]
    if query.device.type == "cpu":
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling, enable_gqa=H != K)
    else:
        out = attend_folded(query, key, value, bias, scaling)
    return out.transpose(1, 2), None  # [B, C, H, Dv]


def _occupied(vacant: Tensor, held: int) -> Tensor:
    """Return which of S slots hold something, [B, 1, 1, S] bool, where the first `vacant` [B] of a row do not."""
    return (torch.arange(held, device=vacant.device) >= vacant[:, None])[:, None, None]


def attend_folded(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """Attend with the G query heads of a KV head as rows: GPU kernels take a mask only where heads agree in number.

    Args:
        query: [B, H, C, D].
        key: [B, K, S, D].
        value: [B, K, S, Dv].
        bias: [C, S].
        scaling: Softmax scaling.

    Returns:
        [B, H, C, Dv].
    """
    B, H, C, D = query.shape
    K, S = key.shape[1], key.shape[2]
    rows = bias.expand(H // K, C, S).reshape(H // K * C, S)
    folded = query.reshape(B, K, H // K * C, D)
    return F.scaled_dot_product_attention(folded, key, value, attn_mask=rows, scale=scaling).reshape(B, H, C, -1)


def _attend_but_hidden(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scaling: float, window: int | None
) -> Tensor:
    """Attend as above, but to no key that `hidden` [K or 1, keys held before] marks; returns [B, C, H, Dv]."""
    _, H, C, _ = query.shape
    K, S = key.shape[1], key.shape[2]
    bias = causal_bias(C, S, window, dtype=query.dtype, device=query.device).repeat(K, 1, 1)  # [K, C, S]
    bias[:, :, : hidden.shape[1]].masked_fill_(hidden[:, None], float("-inf"))
    rows = bias.repeat_interleave(H // K, dim=0)[None]  # [1, H, C, S]
    key, value = (x.repeat_interleave(H // K, dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=rows, scale=scaling).transpose(1, 2)
