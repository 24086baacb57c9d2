"""H2O: half of the slots for the tokens that were attended to most so far (heavy hitters), half for the latest.

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", NeurIPS 2023,
arXiv 2306.14048, section 4. Attention is summed over all tokens read, which favours early ones; that is the method. Its
authors' code sums it over a whole prompt, the question included, and drops once (own:h2o in evaluation/arms.py). It is
computed a second time while reading, since fast attention does not tell its weights: slow, as it is elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores


@dataclass(frozen=True, slots=True)
class H2OPolicy:
    """Score = attention received since the token was read; the latest slots stay anyway."""

    needs: ClassVar[Needs] = Needs(received=True)

    @classmethod
    def from_config(cls, config: PotConfig) -> H2OPolicy:
        """Take nothing."""
        return cls()

    def score(self, evidence: Evidence) -> Scores:
        """Return the attention received, with the last (keep - pinned) / 2 slots above everything."""
        if evidence.watch is None:
            raise ValueError("the h2o policy needs the attention received")
        S = evidence.origin.shape[-1]
        late = S - (evidence.keep - evidence.pinned) // 2
        values = torch.stack([evidence.watch.received[layer][:, :S] for layer in range(len(evidence.layers))])
        values[:, :, late:] = torch.inf
        reasons = torch.full_like(evidence.origin, Reason.ATTENDED, dtype=torch.int8)
        reasons[:, :, late:] = Reason.RECENT
        return Scores(values, reasons)
