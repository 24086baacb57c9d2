"""One cycle of Continual Context Distillation (CCD): score, choose per head, gather, re-index.

Paper, section 3: when the pot is full, old survivors and new tokens compete in one ranking per layer and head.
Shapes: `L` layers, `K` KV heads, `S` slots held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infinipot_llm.config import PotConfig
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.pot.catalyst import importance
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.score import Evidence, Policy, Reason, Scores


@dataclass(frozen=True)
class Cycle:
    """What one distillation did; handed to a tracer, on the CPU.

    Attributes:
        number: 1-based.
        tokens_read: Document tokens read when it happened.
        before: [L, K, S] int32, origin of every slot before it.
        kept: [L, K, kept] int64, slots that stayed, in order.
        reasons: [L, K, kept] int8, a Reason for each.
        scores: [L, K, S] float32, the policy's scores.
    """

    number: int
    tokens_read: int
    before: Tensor
    kept: Tensor
    reasons: Tensor
    scores: Tensor


Tracer = Callable[[Cycle], None]


def select(scores: Scores, pinned: int, keep: int) -> Tensor:
    """Return the slots of the highest scores per head, pinned ones always among them, in slot order.

    Args:
        scores: Values [L, K, S].
        pinned: The first slots, kept whatever their score.
        keep: Slots to keep per head, pinned <= keep <= S.

    Returns:
        [L, K, keep] int64, increasing along the last axis.
    """
    values = scores.values.clone()
    values[:, :, :pinned] = torch.inf
    return values.topk(keep, dim=-1).indices.sort(dim=-1).values


def distill(
    adapter: Adapter,
    pot: Pot,
    policy: Policy,
    config: PotConfig,
    catalysts: Sequence[Tensor],
    keep: int,
    *,
    number: int,
    tokens_read: int,
    tracer: Tracer | None = None,
) -> None:
    """Shrink the pot to `keep` slots per head.

    Args:
        adapter: The model.
        pot: Changed in place.
        policy: The scoring rule.
        config: Knobs of the catalyst's reduction.
        catalysts: Token ids [P] of each catalyst; the pot must have room for the longest.
        keep: Slots to keep per head, pinned ones included.
        number: Of this cycle, for the tracer.
        tokens_read: Document tokens read so far, for the tracer.
        tracer: Told what was kept, and why.
    """
    received = importance(adapter, pot, catalysts, config.catalyst_reduce) if policy.needs.catalyst else None
    scores = policy.score(Evidence(received, pot.novelty, pot.origin, pot.pinned, keep, pot.cache.pots, pot.watch))
    slots = select(scores, pot.pinned, keep)
    if tracer is not None:
        reasons = scores.reasons.clone()
        reasons[:, :, : pot.pinned] = Reason.PINNED
        tracer(
            Cycle(
                number,
                tokens_read,
                pot.origin.cpu().clone(),
                slots.cpu(),
                reasons.gather(-1, slots).cpu(),
                scores.values.cpu(),
            )
        )
    pot.keep(slots)
