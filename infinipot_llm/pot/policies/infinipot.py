"""InfiniPot: novelty first, the rest by the catalyst, both lifted to neighbours so that spans stay whole.

Kim, Shim, Choi, Chang, "InfiniPot: Infinite Context Processing on Memory-Constrained LLMs", EMNLP 2024, arXiv
2410.01518, section 3. The lift to neighbours is ours: a number is several tokens, and a number without its middle is
a wrong number.
Shapes: `L` layers, `K` KV heads, `S` slots held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores


@dataclass(frozen=True, slots=True)
class InfiniPotPolicy:
    """The knobs of the paper's combination of NuC and CaP; see PotConfig for their meaning."""

    novelty_share: float = 0.5
    neighbours: int = 8
    neighbour_weight: float = 0.9

    @property
    def needs(self) -> Needs:
        """Novelty costs a pass of the output head over every token: skip it when it has no share."""
        return Needs(catalyst=True, novelty=self.novelty_share > 0.0)

    @classmethod
    def from_config(cls, config: PotConfig) -> InfiniPotPolicy:
        """Take the three knobs that concern this policy."""
        return cls(config.novelty_share, config.neighbours, config.neighbour_weight)

    def score(self, evidence: Evidence) -> Scores:
        """Lift the T most novel slots of each head above all others, and rank the others by the catalyst.

        T = novelty_share x (keep - pinned), as in the paper: |C| = |C_NuC| + |C_CaP|, novelty chosen first.
        """
        if evidence.importance is None:
            raise ValueError("the infinipot policy needs the catalyst's attention")
        wanted, wanted_by_neighbour = spread(
            evidence.importance, evidence.origin, self.neighbours, self.neighbour_weight
        )
        reasons = torch.where(wanted_by_neighbour, Reason.NEIGHBOUR, Reason.CATALYST).to(torch.int8)
        values = wanted / wanted.amax(dim=-1, keepdim=True).clamp_min(1e-30)  # [L, K, S], in 0 .. 1
        T = round(self.novelty_share * (evidence.keep - evidence.pinned))
        if T == 0:
            return Scores(values, reasons)
        novel, novel_by_neighbour = spread(evidence.novelty, evidence.origin, self.neighbours, self.neighbour_weight)
        novel = novel / novel.amax(dim=-1, keepdim=True).clamp_min(1e-30)
        unpinned = novel.clone()
        unpinned[:, :, : evidence.pinned] = -1.0
        first = unpinned.topk(T, dim=-1).indices  # [L, K, T]
        values = values.scatter(-1, first, 2.0 + novel.gather(-1, first))
        why = torch.where(novel_by_neighbour, Reason.NEIGHBOUR, Reason.NOVELTY).to(torch.int8)
        return Scores(values, reasons.scatter(-1, first, why.gather(-1, first)))


def spread(scores: Tensor, origin: Tensor, radius: int, weight: float) -> tuple[Tensor, Tensor]:
    """Lend each score to the tokens that stood beside it in the document and are still held.

    Args:
        scores: [L, K, S] float32, not negative.
        origin: [L, K, S] int32, where each slot's token stood.
        radius: How many document tokens on each side.
        weight: What share of the score is lent.

    Returns:
        The larger of own and lent score, [L, K, S], and where the lent one won, [L, K, S] bool.
    """
    lifted = scores.clone()
    for step in range(1, min(radius, scores.shape[-1] - 1) + 1):
        adjacent = (origin[..., step:] - origin[..., :-step] == step) & (origin[..., :-step] >= 0)
        left = torch.where(adjacent, scores[..., :-step] * weight, 0.0)
        right = torch.where(adjacent, scores[..., step:] * weight, 0.0)
        lifted[..., step:] = torch.maximum(lifted[..., step:], left)
        lifted[..., :-step] = torch.maximum(lifted[..., :-step], right)
    return lifted, lifted > scores
