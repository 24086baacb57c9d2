"""SirLLM: the sinks and the tokens that surprised the model most; its score is the novelty of the paper, alone.

Yao et al., "SirLLM: Streaming Infinite Retentive LLM", ACL 2024, arXiv 2405.12528, section 3: token entropy, -log P of
the token when it came, decides what a bounded cache keeps. Its decay over rounds of a dialogue is for chats, and left
out. InfiniPot's ablation ("100 % NuC") is this score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores


@dataclass(frozen=True, slots=True)
class SirLLMPolicy:
    """Score = surprise when the token was read."""

    needs: ClassVar[Needs] = Needs(novelty=True)

    @classmethod
    def from_config(cls, config: PotConfig) -> SirLLMPolicy:
        """Take nothing: the pinned slots are the sinks."""
        return cls()

    def score(self, evidence: Evidence) -> Scores:
        """Return novelty as score."""
        # A copy: the pot moves its own record when it drops slots.
        return Scores(evidence.novelty.clone(), torch.full_like(evidence.origin, Reason.NOVELTY, dtype=torch.int8))
