"""Fingerprints: what tells one model, or one tokenizer, from another when a saved memory is opened.

They are computed from what is in memory, not from names or paths: the same weights under another name are the same
model. They guard against mistakes, not against forgery.
"""

from __future__ import annotations

import hashlib
import json
import zlib

import torch

from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

CHECKED_POSITIONS = 64
"""Rotary positions whose tables go into the fingerprint."""


def model_fingerprint(adapter: Adapter) -> str:
    """Return a digest of weights, shapes, dtype and rotary positions, 64 hex digits; computed once per adapter."""
    known = getattr(adapter, "_fingerprint", None)
    if isinstance(known, str):
        return known
    digest = hashlib.sha256(f"{adapter.family} {adapter.dtype}".encode())
    for name, weight in sorted(adapter.model.named_parameters()):
        data = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"{name} {tuple(weight.shape)} {zlib.crc32(data.data)}\n".encode())
    for rotation in adapter.rotations(min(CHECKED_POSITIONS, adapter.window)):
        table = torch.cat([rotation.cos, rotation.sin]).cpu()
        if rotation.apply is not None:  # rounded: two releases of a library may differ in the last bit
            digest.update((table * 1e4).round().to(torch.int32).numpy().tobytes())
        else:
            digest.update(b"none")  # which layers have no positions counts
    found = digest.hexdigest()
    adapter._fingerprint = found  # type: ignore[attr-defined]
    return found


def tokenizer_fingerprint(codec: TextCodec) -> str:
    """Return a digest of everything that decides how text becomes tokens, 64 hex digits."""
    tokenizer = codec.tokenizer
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {k: rules.get(k) for k in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
