"""The seam of all policies: evidence about the slots in, one score per slot out; higher = keep.

Shapes: `L` layers, `H` query heads, `K` KV heads, `S` slots held, `D` head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, Self

from torch import Tensor

from infinipot_llm.config import PotConfig
from infinipot_llm.models.slots import SlotLayer
from infinipot_llm.pot.watch import Watch


class Reason(IntEnum):
    """Why a slot is worth keeping, as shown by `infinipot trace`."""

    PINNED = 0
    NOVELTY = 1
    CATALYST = 2
    NEIGHBOUR = 3
    RECENT = 4
    ATTENDED = 5
    UNLIKE = 6
    CHANCE = 7
    AGREEMENT = 8


@dataclass(frozen=True, slots=True)
class Needs:
    """What a policy wants to be told. Everything costs time while reading, so nothing is collected unasked.

    Attributes:
        catalyst: The catalyst's attention (Evidence.importance).
        novelty: Each token's surprise when it was read (Evidence.novelty).
        last_queries: So many of the last queries before a distillation (Watch.last).
        received: The attention that each slot was paid by all tokens read behind it (Watch.received).
        moments: Mean and covariance of all queries so far (Watch.moments).
    """

    catalyst: bool = False
    novelty: bool = False
    last_queries: int = 0
    received: bool = False
    moments: bool = False

    @property
    def watching(self) -> bool:
        """Whether attention has to be observed while reading."""
        return bool(self.last_queries) or self.received or self.moments


@dataclass(frozen=True)
class Evidence:
    """What a policy may look at when the pot is full.

    Attributes:
        importance: [L, K, S] float32, attention that the catalyst pays to each slot; None if the policy wants none.
        novelty: [L, K, S] float32, surprise in nats when the token was read (0 if the policy wants none).
        origin: [L, K, S] int32, index of the token in the document (PREFIX for the prompt's prefix).
        pinned: The first slots, which are kept whatever their score.
        keep: Slots to be kept per head, the pinned ones included.
        layers: [L] the slots themselves, to be read only: keys, values, rotation. Of each the first S slots are held.
        watch: What was observed while reading; None if the policy wants nothing of it.
    """

    importance: Tensor | None
    novelty: Tensor
    origin: Tensor
    pinned: int
    keep: int
    layers: Sequence[SlotLayer] = ()
    watch: Watch | None = None


@dataclass(frozen=True)
class Scores:
    """What a policy makes of it.

    Attributes:
        values: [L, K, S] float32, higher = keep.
        reasons: [L, K, S] int8, a Reason for each slot, should it be kept.
    """

    values: Tensor
    reasons: Tensor


class Policy(Protocol):
    """A scoring rule. Selection, gathering and re-indexing are shared by all of them (distill.py)."""

    @property
    def needs(self) -> Needs:
        """What it wants to be told."""
        ...

    @classmethod
    def from_config(cls, config: PotConfig) -> Self:
        """Take the knobs that concern this policy."""
        ...

    def score(self, evidence: Evidence) -> Scores:
        """Score every slot; pinned slots may get anything."""
        ...
