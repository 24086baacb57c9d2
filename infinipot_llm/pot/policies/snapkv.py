"""SnapKV: what an observation window at the end of the text attends to stays, pooled so that neighbours stay together.

Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv 2404.14469, section 4.
Its authors look once, after the whole prompt was read, from the prompt's end, where the question stands (own:snapkv in
evaluation/arms.py); inside the loop the window is the end of what was read so far. Window, kernel and pooling are those
of the authors' configuration for LongBench; their code's default pools by the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores
from infinipot_llm.pot.watch import attention_paid

WINDOW = 32
"""Tokens of the observation window; the authors take 32 for LongBench, and up to 64 elsewhere."""

KERNEL = 7
"""Slots of which the most attended one counts; the authors' choice for LongBench."""


@dataclass(frozen=True, slots=True)
class SnapKVPolicy:
    """Score = pooled attention of the window; the window itself stays."""

    needs: ClassVar[Needs] = Needs(last_queries=WINDOW)

    @classmethod
    def from_config(cls, config: PotConfig) -> SnapKVPolicy:
        """Take nothing."""
        return cls()

    def score(self, evidence: Evidence) -> Scores:
        """Return the window's attention: mean over its tokens, max-pooled over slots, mean over a group's heads."""
        if evidence.watch is None:
            raise ValueError("the snapkv policy needs the last queries")
        S, watch = evidence.origin.shape[-1], evidence.watch
        inside = max(0, watch.last[0].shape[1] - watch.behind)  # slots in the window
        stay = min(inside, evidence.keep - evidence.pinned)  # the latest of them, where there is no room for all
        found = []
        for layer, slots in enumerate(evidence.layers):
            key, query = slots.rotated_keys[0, :, : S + watch.behind], watch.last[layer]
            paid = attention_paid(query, key, watch.scaling[layer]) / query.shape[1]  # [K, G, S + behind]
            before = paid[:, :, : S - inside]
            if before.shape[2]:
                before = F.max_pool1d(before, KERNEL, stride=1, padding=KERNEL // 2)
            found.append(F.pad(F.pad(before.mean(dim=1), (0, inside - stay)), (0, stay), value=torch.inf))
        reasons = torch.full_like(evidence.origin, Reason.ATTENDED, dtype=torch.int8)
        reasons[:, :, S - inside :] = Reason.RECENT
        return Scores(torch.stack(found), reasons)
