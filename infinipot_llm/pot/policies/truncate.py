"""Truncation inside the loop: the first half of the text and the last half stay, as LongBench cuts prompts.

Bai et al., "LongBench", ACL 2024, arXiv 2308.14508: a prompt longer than the limit loses its middle. There the text is
cut before it is read; here what stays was read in the company of what went, which is all that the loop can do without
knowing where the text ends (evaluation/arms.py has the cut itself, as own:truncate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores


@dataclass(frozen=True, slots=True)
class TruncatePolicy:
    """Score = nearness to the beginning for half of the slots, and lateness for the others."""

    needs: ClassVar[Needs] = Needs()

    @classmethod
    def from_config(cls, config: PotConfig) -> TruncatePolicy:
        """Take nothing."""
        return cls()

    def score(self, evidence: Evidence) -> Scores:
        """Rank what is left of the beginning first, up to keep / 2 slots, and the others by how late they stand."""
        S = evidence.origin.shape[-1]
        place = torch.arange(S, device=evidence.origin.device)
        prefix = (evidence.origin < 0).sum(dim=-1, keepdim=True)  # [L, K, 1]
        beginning = (evidence.origin == place - prefix) & (place < evidence.keep // 2)
        values = torch.where(beginning, 2.0 * S - place, place.to(torch.float32))
        reasons = torch.full_like(evidence.origin, Reason.RECENT, dtype=torch.int8)
        return Scores(values, reasons)
