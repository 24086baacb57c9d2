"""TOVA: what the last token attends to stays, by the mean over all heads of a layer.

Oren et al., "Transformers are Multi-State RNNs", EMNLP 2024, arXiv 2401.06104, section 4. The paper drops one token at
each step; its authors' code forwards a prompt whole and drops once, by the last token of the prompt, the question
included (own:tova in evaluation/arms.py). Inside the loop it is the last token before each distillation, the row
"neither" of InfiniPot's ablation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores
from infinipot_llm.pot.watch import attention_paid


@dataclass(frozen=True, slots=True)
class TovaPolicy:
    """Score = attention of the last query, the same for all heads of a layer."""

    needs: ClassVar[Needs] = Needs(last_queries=1)

    @classmethod
    def from_config(cls, config: PotConfig) -> TovaPolicy:
        """Take nothing."""
        return cls()

    def score(self, evidence: Evidence) -> Scores:
        """Return the attention of the last token; the token itself always stays, if it is one of the slots."""
        if evidence.watch is None:
            raise ValueError("the tova policy needs the last query")
        S, watch = evidence.origin.shape[-1], evidence.watch
        found = []
        for layer, slots in enumerate(evidence.layers):
            key, query = slots.rotated_keys[0, :, : S + watch.behind], watch.last[layer][:, -1:]
            paid = attention_paid(query, key, watch.scaling[layer])[:, :, :S]  # [K, G, S]
            found.append(paid.mean(dim=(0, 1)).expand(key.shape[0], S))
        values = torch.stack(found)
        if not watch.behind:
            values[:, :, -1] = torch.inf
        return Scores(values, torch.full_like(evidence.origin, Reason.ATTENDED, dtype=torch.int8))
