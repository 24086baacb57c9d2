"""Passages loaded from the shelf, of which some tokens are computed once more where they come to stand.

What is loaded was computed while the document was read: it has seen what stood in the pot then, and has not seen the
passages that now stand before it. Two ways of choosing the tokens that are computed again, over everything before them:

    first   the first 16 tokens of each passage, which would be looked at as the beginning of a text (EPIC, Hu et al.,
            ICML 2025, arXiv 2410.15332)
    asked   the fifth of the tokens that the question attends to most over the loaded passages (ProphetKV, 2026; which
            tokens, not by how much they differ, as CacheBlend, Yao et al., EuroSys 2025, arXiv 2405.16444, chooses)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from infinipot_llm.memory.recall import Passage, question_pot
from infinipot_llm.memory.setup import Setup
from infinipot_llm.memory.shelf import Shelf
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.catalyst import importance
from infinipot_llm.pot.policies.infinipot import in_document
from infinipot_llm.pot.pot import PREFIX, Pot

FIRST = 16
"""Tokens of each passage; EPIC takes up to 32 of chunks that are much longer."""
SHARE = 0.2
"""Of the loaded tokens; ProphetKV's, and about what CacheBlend takes."""


def loaded(
    setup: Setup, text: TokenizedText, shelf: Shelf, passages: Sequence[Passage], slots: int, again: frozenset[int]
) -> Pot:
    """Fill a pot with the prefix and passages from the shelf, with the usual mark where text was left out.

    Args:
        setup: The model.
        text: What the passages are of; all of them of one document.
        shelf: Holds every token of them.
        passages: In the order in which they are placed.
        slots: Slots of the pot.
        again: Tokens that are computed, not loaded.
    """
    pot = question_pot(setup, shelf, [], slots)
    for number, passage in enumerate(passages):
        if number:
            _forward(setup, pot, setup.gap, [PREFIX] * len(setup.gap))
        for computed, run in groupby(range(passage.start, passage.end), key=again.__contains__):
            tokens = list(run)
            if computed:
                _forward(setup, pot, text.ids[tokens].tolist(), tokens)
            else:
                a, b = shelf.rows_of(tokens[0], tokens[-1] + 1)
                pot.place(*shelf.load(a, b), torch.tensor(tokens))
    return pot


def first_tokens(passages: Sequence[Passage]) -> frozenset[int]:
    """Return the first tokens of each passage."""
    return frozenset(t for p in passages for t in range(p.start, min(p.end, p.start + FIRST)))


def most_asked(setup: Setup, pot: Pot, asked: Sequence[int]) -> frozenset[int]:
    """Return the tokens of a pot's passages that a question attends to most, in all layers and heads together."""
    received = importance(setup.adapter, pot, [torch.tensor(list(asked))])
    together = in_document(received, pot.origin)[0][0, 0]
    count = round(SHARE * len(pot.tokens))
    return frozenset(together.topk(count).indices.tolist())


def _forward(setup: Setup, pot: Pot, ids: Sequence[int], origin: Sequence[int]) -> None:
    setup.adapter.forward(torch.tensor(ids, dtype=torch.long), pot.cache)
    pot.record(torch.tensor(origin))
