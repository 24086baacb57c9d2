"""The seam of all policies: evidence about the slots in, one score per slot out; higher = keep.

Shapes: `L` layers, `K` KV heads, `S` slots held.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, Self

from torch import Tensor

from infinipot_llm.config import PotConfig


class Reason(IntEnum):
    """Why a slot is worth keeping, as shown by `infinipot trace`."""

    PINNED = 0
    NOVELTY = 1
    CATALYST = 2
    NEIGHBOUR = 3
    RECENT = 4


@dataclass(frozen=True)
class Evidence:
    """What a policy may look at when the pot is full.

    Attributes:
        importance: [L, K, S] float32, attention that the catalyst pays to each slot; None if the policy wants none.
        novelty: [L, K, S] float32, surprise in nats when the token was read (0 if the policy wants none).
        origin: [L, K, S] int32, index of the token in the document (PREFIX for the prompt's prefix).
        pinned: The first slots, which are kept whatever their score.
        keep: Slots to be kept per head, the pinned ones included.
    """

    importance: Tensor | None
    novelty: Tensor
    origin: Tensor
    pinned: int
    keep: int


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
    def wants_importance(self) -> bool:
        """Whether the catalyst is to be forwarded."""
        ...

    @property
    def wants_novelty(self) -> bool:
        """Whether surprise is to be computed while reading."""
        ...

    @classmethod
    def from_config(cls, config: PotConfig) -> Self:
        """Take the knobs that concern this policy."""
        ...

    def score(self, evidence: Evidence) -> Scores:
        """Score every slot; pinned slots may get anything."""
        ...
