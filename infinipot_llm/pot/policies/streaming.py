"""StreamingLLM inside the distillation loop: the sinks and the most recent tokens stay, the middle goes.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, arXiv 2309.17453. Here it is a
baseline: it shows what a bounded cache loses that does not look at what it drops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores


@dataclass(frozen=True, slots=True)
class StreamingPolicy:
    """Score = how late the token stands in the document."""

    needs: ClassVar[Needs] = Needs()

    @classmethod
    def from_config(cls, config: PotConfig) -> StreamingPolicy:
        """Take nothing: the pinned slots are the sinks."""
        return cls()

    def score(self, evidence: Evidence) -> Scores:
        """Return origin as score."""
        reasons = torch.full_like(evidence.origin, Reason.RECENT, dtype=torch.int8)
        return Scores(evidence.origin.to(torch.float32), reasons)
