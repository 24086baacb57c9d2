"""KeyDiff: the slots whose keys are least like all others stay; no attention, no question.

Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained
Environments", NeurIPS 2025, arXiv 2504.15364, section 4: score = minus the cosine between a key and the mean direction
of all keys of its head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores


@dataclass(frozen=True, slots=True)
class KeyDiffPolicy:
    """Score = unlikeness to the other keys of the head, rotated as attention sees them."""

    needs: ClassVar[Needs] = Needs()

    @classmethod
    def from_config(cls, config: PotConfig) -> KeyDiffPolicy:
        """Take nothing."""
        return cls()

    def score(self, evidence: Evidence) -> Scores:
        """Return minus the cosine to the mean direction."""
        S = evidence.origin.shape[-1]
        found = []
        for slots in evidence.layers:
            direction = F.normalize(slots.rotated_keys[0, :, :S].to(torch.float32), dim=-1)  # [K, S, D]
            found.append(-F.cosine_similarity(direction, direction.mean(dim=1, keepdim=True), dim=-1))
        return Scores(torch.stack(found), torch.full_like(evidence.origin, Reason.UNLIKE, dtype=torch.int8))
