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

_ARITHMETIC = (
    "rms_norm_eps", "layer_norm_eps", "hidden_act", "attention_multiplier", "embedding_multiplier",
    "residual_multiplier", "logits_scaling", "logit_scale",
)  # fmt: skip
"""Settings that change what a model computes and stand in no weight."""


def model_fingerprint(adapter: Adapter) -> str:
    """Return a digest of weights, shapes, dtype and rotary positions, 64 hex digits; computed once per adapter."""
    known = getattr(adapter, "_fingerprint", None)
    if isinstance(known, str):
        return known
    digest = hashlib.sha256(f"{adapter.family} {adapter.dtype}".encode())
    for name in _ARITHMETIC:
        digest.update(f"{name} {getattr(adapter.config, name, None)}\n".encode())
    told: dict[str, str] = {}
    for name, weight in adapter.weights():
        data = weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        told[name] = f"{name} {tuple(weight.shape)} {zlib.crc32(data.data)}\n"
    digest.update("".join(told[name] for name in sorted(told)).encode())
    for rotation in adapter.rotations(2):
        if rotation.apply is None:
            digest.update(b"none")  # which layers have no positions counts
        else:  # the angles of one step, in three digits: devices and releases differ in the last bits
            angles = torch.atan2(rotation.sin[0, 1], rotation.cos[0, 1]).tolist()
            digest.update(" ".join(f"{angle:.2e}" for angle in angles).encode())
    if any(adapter.windows):
        digest.update(f"windows {adapter.windows}".encode())
    found = digest.hexdigest()
    adapter._fingerprint = found  # type: ignore[attr-defined]
    return found


def tokenizer_fingerprint(codec: TextCodec) -> str:
    """Return a digest of everything that decides how text becomes tokens, 64 hex digits."""
    known = getattr(codec, "_fingerprint", None)
    if isinstance(known, str):
        return known
    tokenizer = codec.tokenizer
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {k: rules.get(k) for k in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    found = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    codec._fingerprint = found  # type: ignore[attr-defined]
    return found
