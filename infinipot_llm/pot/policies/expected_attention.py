"""Expected Attention: what queries to come would attend to, were they drawn like those so far, times the value's size.

Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
2025, arXiv 2510.00636, section 3: queries are taken as Gaussian with the mean m and covariance C of those seen, rotated
by the average rotation of the positions to come; E[exp(q . k / sqrt(D))] = exp(m . k / sqrt(D) + k C k / (2 D)). The
first tokens (sinks) are left out of the moments and, since they stay anyway, of the softmax, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from infinipot_llm.config import PotConfig
from infinipot_llm.models.slots import SlotLayer
from infinipot_llm.pot.score import Evidence, Needs, Reason, Scores
from infinipot_llm.pot.watch import SINKS

AHEAD = 512
"""Positions to come, at most; the authors' choice. Beyond the slots of the pot there are none."""

EPSILON = 1e-2
"""Added to the attention before the value's norm is multiplied to it; the choice of the authors' best run."""


@dataclass(frozen=True, slots=True)
class ExpectedAttentionPolicy:
    """Score = (expected attention + epsilon) x norm of the value."""

    needs: ClassVar[Needs] = Needs(moments=True)

    @classmethod
    def from_config(cls, config: PotConfig) -> ExpectedAttentionPolicy:
        """Take nothing."""
        return cls()

    def score(self, evidence: Evidence) -> Scores:
        """Return the score of every slot, the query heads of a group averaged after their softmax."""
        if evidence.watch is None:
            raise ValueError("the expected-attention policy needs the moments of the queries")
        S = evidence.origin.shape[-1]
        found = []
        for layer, slots in enumerate(evidence.layers):
            key = slots.rotated_keys[0, :, :S].to(torch.float32)  # [K, S, D]
            K, _, D = key.shape
            moments, scaling = evidence.watch.moments[layer], evidence.watch.scaling[layer]
            turn = average_rotation(slots, S, D)
            mean = (moments.mean @ turn).reshape(K, -1, D)  # [K, G, D]
            covariance = (turn.T @ moments.covariance @ turn).reshape(K, -1, D, D)
            attention = torch.zeros((K, S), device=key.device)
            for m, c in zip(mean.unbind(1), covariance.unbind(1), strict=True):  # [K, D], [K, D, D]
                expected = (key @ m[:, :, None])[:, :, 0] * scaling
                expected = expected + ((key @ c) * key).sum(dim=-1) * scaling**2 / 2
                expected[:, : min(SINKS, evidence.pinned)] = -torch.inf
                attention += torch.softmax(expected, dim=-1) / mean.shape[1]
            size = slots.value_states[0, :, :S].to(torch.float32).norm(dim=-1)
            found.append((attention + EPSILON) * size)
        return Scores(torch.stack(found), torch.full_like(evidence.origin, Reason.ATTENDED, dtype=torch.int8))


def average_rotation(slots: SlotLayer, start: int, dim: int) -> Tensor:
    """Return the mean rotation of the AHEAD positions from start on, as a matrix for row vectors, [D, D]."""
    count = max(1, min(AHEAD, slots.slots - start))
    first = min(start, slots.slots - 1)
    basis = torch.eye(dim, device=slots.rotated_keys.device)[None, :, None, :].expand(1, dim, count, dim)
    return slots.rotation(basis, first).mean(dim=2)[0]
