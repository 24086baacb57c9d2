"""Random: every slot has the same chance, in every head anew. What a policy must beat to be worth anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores


@dataclass(frozen=True, slots=True)
class RandomPolicy:
    """Score = a random number, the same in every run."""

    needs: ClassVar[Needs] = Needs()

    @classmethod
    def from_config(cls, config: PotConfig) -> RandomPolicy:
        """Take nothing."""
        return cls()

    def score(self, evidence: Evidence) -> Scores:
        """Draw; how far the text was read is the seed, so that cycles differ and runs do not."""
        generator = torch.Generator().manual_seed(int(evidence.origin.max()) + 1)
        values = torch.rand(evidence.origin.shape, generator=generator).to(evidence.origin.device)
        return Scores(values, torch.full_like(evidence.origin, Reason.CHANCE, dtype=torch.int8))
