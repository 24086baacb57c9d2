"""The self-check: a model reading through slots, compared with itself as it was, before it may read anything.

A family whose attention does something that the seam does not know (capped logits, normalisation after rotation,
sinks, another mask, ...) is refused here and never answers wrongly.
Shapes: `C` tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from infinipot_llm.errors import ModelError

if TYPE_CHECKING:
    from infinipot_llm.models.adapter import Adapter

TOKENS = 64
NARROW = 24
"""The window of sliding layers while they are checked: the real one is longer than what is read for the check."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest accepted difference of logits, as a share of the largest logit; no rotation at all differs by far more."""


def self_check(adapter: Adapter) -> float:
    """Compare the seam, in uneven chunks, with the plain model on the same tokens.

    Args:
        adapter: The model; closed when it is refused.

    Returns:
        Largest difference of logits, as a share of the largest logit.

    Raises:
        ModelError: The difference is beyond the tolerance of the model's dtype.
    """
    tokens = min(TOKENS, adapter.window)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, adapter.vocabulary, (tokens,), generator=generator)
    bounds = [0, tokens // 2, tokens // 2 + 1, tokens]
    with adapter.lock, torch.no_grad(), _narrow_windows(adapter):
        adapter.close()
        plain = adapter.model(input_ids=ids[None].to(adapter.device), use_cache=False).logits[0].to(torch.float32)
        adapter.open()
        if not bool(plain.isfinite().all()):
            adapter.close()
            raise ModelError(
                f"this model's logits are not finite in {adapter.dtype} on {adapter.device}: choose another --dtype, "
                "float32 for example, or fetch the model again."
            )
        try:
            cache = adapter.new_cache(tokens)
            ours = adapter.logits(torch.cat([adapter.forward(ids[a:b], cache) for a, b in pairwise(bounds) if b > a]))
        except ModelError:
            adapter.close()
            raise
        except (RuntimeError, TypeError, AttributeError, KeyError, ValueError) as error:
            adapter.close()  # a family with shapes or calls of its own
            raise ModelError(
                f"the architecture {adapter.family!r} is not supported: its attention cannot be read through slots "
                f"({type(error).__name__}); docs/models.md lists those that can."
            ) from error
    difference = float((ours - plain).abs().max() / plain.abs().max())
    if not difference <= TOLERANCE.get(adapter.dtype, 1e-1):
        adapter.close()
        raise ModelError(
            f"the architecture {adapter.family!r} is not supported: read through slots, its logits differ from the "
            f"plain model's by {difference:.1e} of the largest; docs/models.md lists those that can be read so."
        )
    return difference


@contextmanager
def _narrow_windows(adapter: Adapter) -> Iterator[None]:
    """Let sliding layers slide within the tokens of the check, in the plain model (its mask) and in the seam alike.

    So a layer that slides and is not known to is noticed too. Where all layers slide, budgets end at the window.
    """
    config, windows = adapter.config, adapter.windows
    before = getattr(config, "sliding_window", None)
    if adapter.all_slide or not isinstance(before, int) or not NARROW < before < adapter.trained:
        yield
        return
    try:
        config.sliding_window = NARROW
        adapter.windows = tuple(None if w is None else NARROW for w in windows)
        yield
    finally:
        config.sliding_window = before
        adapter.windows = windows
