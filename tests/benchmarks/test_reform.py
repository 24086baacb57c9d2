"""reform.py: tokens are gathered by how much their keys are like the question's, as a plain computation says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from infinipot_llm import Document, InfiniPot
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.pot.pot import PREFIX, Pot

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import reform

TEXT = "".join(f"Mill {number} was sold to {chr(97 + number)}{number * 37 % 89}. " for number in range(20))
QUESTION = "Who bought mill 13?"


@pytest.fixture
def memory(tiny_llm: InfiniPot) -> DocumentMemory:
    tiny_llm.config = replace(tiny_llm.config, shelf="int8")
    return tiny_llm.read(Document.from_text(TEXT))


def test_scores_are_the_best_cosine_within_the_window(memory: DocumentMemory) -> None:
    heads = [(0, 1), (2, 0)]
    setup, shelf = memory.setup, memory.finder.shelf
    ids = setup.form.codec.untrusted(QUESTION)
    pot = Pot(setup.adapter, len(setup.form.prefix) + len(ids))
    for part in (list(setup.form.prefix), ids):
        setup.adapter.forward(torch.tensor(part), pot.cache)
        pot.record(torch.full((len(part),), PREFIX))
    asked, held = pot.newest(len(ids))[0].double().numpy(), shelf.load(0, len(shelf))[0].double().numpy()
    wanted = np.zeros(len(shelf))
    for layer, head in heads:
        common = held[layer, head].mean(axis=0)
        keys, queries = held[layer, head] - common, asked[layer, head] - common
        cosines = (keys @ queries.T) / np.outer(np.linalg.norm(keys, axis=1), np.linalg.norm(queries, axis=1))
        best = cosines.max(axis=1)
        wanted += [best[max(0, t - 64) : t + 65].max() for t in range(len(best))]
    got = reform.Gathering(memory, heads).rank(QUESTION)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert wanted.std() > 0.01  # tokens do differ


def test_the_heads_are_those_that_rank_the_answers_first(
    memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six heads, one each ranks the answer 1st, 2nd, ...: the first four are taken."""
    answer = (TEXT.index("Mill 13"), TEXT.index("Mill 13") + 7)
    tokens = memory.text.tokens_in(0, *answer)
    places = [4, 1, 6, 2, 5, 3]  # rank of the answer by each head

    def by_head(self: reform.Gathering, question: str) -> torch.Tensor:
        assert question == QUESTION
        scores = torch.zeros(len(places), len(memory.text))
        for head, place in enumerate(places):
            scores[head, : place - 1] = 2.0
            scores[head, slice(*tokens)] = 1.0
        return scores

    monkeypatch.setattr(reform.Gathering, "by_head", by_head)
    asked = SimpleNamespace(question=QUESTION, gold=(answer,))
    assert reform.choose_heads(memory, [asked]) == [(0, 0), (0, 1), (1, 1), (2, 1)]
