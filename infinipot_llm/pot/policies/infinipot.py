"""InfiniPot: novelty first, the rest by the catalyst, both lifted to neighbours so that spans stay whole.

Kim, Shim, Choi, Chang, "InfiniPot: Infinite Context Processing on Memory-Constrained LLMs", EMNLP 2024, arXiv
2410.01518, section 3. Two steps are ours. The lift to neighbours: a number is several tokens, and a number without its
middle is a wrong number. Agreement: what the catalyst looks for is often seen by a few heads alone, and a fact that the
others have dropped is answered wrongly, so a share of the slots goes to the same tokens in every head.
Shapes: `L` layers, `K` KV heads, `S` slots held, `N` document tokens read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores


@dataclass(frozen=True, slots=True)
class InfiniPotPolicy:
    """The knobs of the paper's combination of NuC and CaP, and ours; see PotConfig for their meaning."""

    novelty_share: float = 0.5
    neighbours: int = 8
    neighbour_weight: float = 0.9
    agreement: float = 0.0

    @property
    def needs(self) -> Needs:
        """Novelty costs a pass of the output head over every token, the catalyst a pass: none without a share."""
        return Needs(catalyst=self.novelty_share < 1.0 or self.agreement > 0.0, novelty=self.novelty_share > 0.0)

    @classmethod
    def from_config(cls, config: PotConfig) -> InfiniPotPolicy:
        """Take the knobs that concern this policy; what is left open is for a question that is not known."""
        agreement = config.agreed(known=False)
        return cls(config.novelty_share, config.neighbours, config.neighbour_weight, agreement)

    def score(self, evidence: Evidence) -> Scores:
        """Lift what all heads agree on above all others, then the most novel slots; rank the rest by the catalyst.

        T = novelty_share x (keep - pinned) slots are chosen by novelty, before the catalyst, as in the paper: |C| =
        |C_NuC| + |C_CaP|. What is agreed on comes out of the catalyst's part, and out of T where that is not enough.
        """
        received = evidence.importance
        if received is None and self.needs.catalyst:
            raise ValueError("the infinipot policy needs the catalyst's attention")
        if received is None:
            received = torch.zeros_like(evidence.novelty)
        free = evidence.keep - evidence.pinned
        G = round(self.agreement * free)
        T = min(round(self.novelty_share * free), free - G)
        wanted, by_neighbour = self._lifted(received, evidence.origin)
        values = wanted / wanted.amax(dim=-1, keepdim=True).clamp_min(1e-30)  # [L, K, S], in 0 .. 1
        scores = Scores(values, torch.where(by_neighbour, Reason.NEIGHBOUR, Reason.CATALYST).to(torch.int8))
        taken = torch.zeros_like(evidence.origin, dtype=torch.bool)
        taken[:, :, : evidence.pinned] = True
        if G:
            together, by_neighbour = self._lifted(*in_document(received, evidence.origin))
            together, by_neighbour = (at_slots(x, evidence.origin) for x in (together, by_neighbour))
            first(scores, taken, together, by_neighbour, G, Reason.AGREEMENT, above=4.0)
        if T:
            novel, by_neighbour = self._lifted(evidence.novelty, evidence.origin)
            first(scores, taken, novel, by_neighbour, T, Reason.NOVELTY, above=2.0)
        return scores

    def _lifted(self, scores: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        return spread(scores, origin, self.neighbours, self.neighbour_weight)


def first(
    scores: Scores, taken: Tensor, merit: Tensor, by_neighbour: Tensor, count: int, reason: Reason, *, above: float
) -> None:
    """Lift the slots of most merit above all others, in place.

    Args:
        scores: Changed.
        taken: [L, K, S] bool, slots that are not to be chosen; those that are lifted are added.
        merit: [L, K, S] float32, not negative.
        by_neighbour: [L, K, S] bool, where a slot owes its merit to a neighbour.
        count: Slots to lift per head.
        reason: Why, of those that owe it to themselves.
        above: What their scores begin at; they span 1.
    """
    merit = merit / merit.amax(dim=-1, keepdim=True).clamp_min(1e-30)
    chosen = merit.masked_fill(taken, -1.0).topk(count, dim=-1).indices  # [L, K, count]
    why = torch.where(by_neighbour, Reason.NEIGHBOUR, reason).to(torch.int8)
    scores.values.scatter_(-1, chosen, above + merit.gather(-1, chosen))
    scores.reasons.scatter_(-1, chosen, why.gather(-1, chosen))
    taken.scatter_(-1, chosen, True)


def in_document(scores: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Sum scores over all heads, per document token: [1, 1, N] float32, and the tokens' own numbers [1, 1, N] int32."""
    N = max(1, int(origin.max()) + 1)
    total = scores.new_zeros(N + 1)  # the last place is for the prompt's tokens
    places = origin.masked_fill(origin < 0, N).to(torch.int64)
    for of_layer, where in zip(scores, places, strict=True):  # a head holds a token once: the sum's order is fixed
        total += scores.new_zeros(len(of_layer), N + 1).scatter_(1, where, of_layer).sum(dim=0)
    total = total[:N]
    return total[None, None], torch.arange(N, dtype=origin.dtype, device=origin.device)[None, None]


def at_slots(values: Tensor, origin: Tensor) -> Tensor:
    """Look up the values of document tokens [1, 1, N] for every slot [L, K, S]; 0 for those of the prompt."""
    found = values[0, 0][origin.clamp_min(0).to(torch.int64)]
    return found.masked_fill(origin < 0, 0)


def spread(scores: Tensor, origin: Tensor, radius: int, weight: float) -> tuple[Tensor, Tensor]:
    """Lend each score to the tokens that stood beside it in the document, as far as all between are still held.

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
