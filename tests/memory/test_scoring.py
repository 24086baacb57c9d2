"""Scores of spans are those of the plain softmax over all un-rotated keys; queries are the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import FAMILIES, byte_tokenizer, tiny_model
from torch import Tensor, nn

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.memory import scoring
from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import standard
from infinipot_llm.memory.scoring import Queries, attention, null_scores, queries, span_scores
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

CODEC = TextCodec(byte_tokenizer())
TEXT = "".join(f"In {1900 + i} mill number {i} burned down.\n\nThen {i * 37} crowns were paid.\n" for i in range(12))
HEADS = Heads(((2, 5), (0, 1), (0, 2), (1, 3)), (1.0, 0.5, 2.0, 1.0), True)
"""Out of order, two that share a key, not every key."""
CONFIG = PotConfig(budget=512, max_new_tokens=16, question_tokens=32, chunk=64, shelf="int8", recalled="load")


def engine(family: str, **knobs: object) -> InfiniPot:
    return InfiniPot(Adapter(tiny_model(family)), CODEC, replace(CONFIG, **knobs), HEADS)  # type: ignore[arg-type]


def read(kind: str) -> DocumentMemory:
    """A memory whose shelf is whole, coarse, bounded, or in two segments."""
    document = Document.from_text(TEXT, name="a")
    if kind == "bounded":
        return engine("llama", shelf_bytes=60_000).read(document)
    memory = engine("llama", shelf="int4" if kind == "int4" else "int8").read(document)
    if kind != "extended":
        return memory
    llm = InfiniPot(memory.setup.adapter, CODEC, memory.config, HEADS)
    return llm.extend(memory, Document.from_text(TEXT[:200], name="b"))


@pytest.fixture(scope="module", params=["whole", "int4", "bounded", "extended"])
def memory(request: pytest.FixtureRequest) -> Iterator[DocumentMemory]:
    made = read(request.param)
    assert (len(made.finder.shelf) < len(made.text)) == (request.param == "bounded")
    assert len(made.finder.shelf.segments) == (2 if request.param == "extended" else 1)
    yield made
    made.setup.adapter.close()


def asked(memory: DocumentMemory, question: str) -> Queries:
    setup = memory.setup
    return queries(setup.adapter, setup.prefix, setup.form.question(question), setup.heads)


def naive(memory: DocumentMemory, wanted: Queries) -> Tensor:
    """[n, R]: softmax over all keys as they are unpacked, mean over the question."""
    keys, _ = memory.finder.shelf.load(0, len(memory.finder.shelf))  # [L, K, R, D]
    rows = []
    for states, (layer, head) in zip(wanted.states, memory.setup.heads.heads, strict=True):
        logits = states.double() @ keys[layer, head // 3].double().T
        rows.append(logits.softmax(dim=1).mean(dim=0))
    return torch.stack(rows)


def whole(blocks: Iterator[tuple[int, Tensor]]) -> tuple[Tensor, list[int]]:
    """Put blocks together; also their lengths."""
    parts, reached = [], 0
    for start, shares in blocks:
        assert start == reached
        reached += shares.shape[1]
        parts.append(shares)
    return torch.cat(parts, dim=1), [p.shape[1] for p in parts]


@pytest.mark.parametrize("rows", [1, 7, 64, 4096])
@pytest.mark.parametrize("along_cuts", [False, True])
def test_attention_is_the_plain_softmax_over_all_keys(
    memory: DocumentMemory, rows: int, along_cuts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BLOCK_ROWS", rows)
    wanted = asked(memory, "When did mill number 7 burn?")
    cuts = memory.finder.cuts
    found, lengths = whole(attention(memory.finder.shelf, wanted, cuts if along_cuts else None))
    expected = naive(memory, wanted)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape == (4, len(memory.finder.shelf))
    assert (found - expected).abs().max() <= 1e-5 * expected.max()
    assert found.sum(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-4)
    assert expected.max() > 3 / expected.shape[1]  # far from even, or nothing would be compared
    if along_cuts:
        assert set(np.cumsum(lengths).tolist()) <= set(cuts.tolist())
        assert max(lengths) <= max(rows, int(np.diff(cuts).max()))
    else:
        assert max(lengths) <= rows


def plainly_scored(expected: Tensor, null: Tensor, cuts: list[int]) -> Tensor:
    """Best four of each span, those above 0, added up in plain Python."""
    scores = (expected - null.T.double()).tolist()
    return torch.tensor(
        [[sum(sorted((max(s, 0.0) for s in row[a:b]), reverse=True)[:4]) for a, b in pairwise(cuts)] for row in scores]
    )


@pytest.mark.parametrize("rows", [7, 50, 4096])
def test_span_scores_are_the_best_tokens_of_each_span(
    memory: DocumentMemory, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BLOCK_ROWS", rows)
    wanted, finder = asked(memory, "How many crowns were paid?"), memory.finder
    expected = plainly_scored(naive(memory, wanted), finder.null, finder.cuts.tolist())
    found = span_scores(finder.shelf, finder.null, wanted, finder.cuts)
    assert found.shape == (4, len(finder.spans))
    assert (found - expected).abs().max() <= 1e-5 * expected.max()
    without = span_scores(finder.shelf, torch.zeros_like(finder.null), wanted, finder.cuts)
    assert (without - plainly_scored(naive(memory, wanted), 0 * finder.null, finder.cuts.tolist())).abs().max() <= 1e-5
    assert (found - without).abs().max() > 1e-2 * expected.max()
    missing = torch.from_numpy(np.diff(finder.cuts) == 0)
    assert not found[:, missing].any()
    assert bool(missing.any()) == (len(finder.shelf) < len(memory.text))


@pytest.mark.parametrize("sizes", [[1, 1, 1], [3, 0, 5, 0, 0, 2, 0], [0, 9, 1], [40]])
def test_spans_shorter_than_four_tokens_and_spans_without_rows(memory: DocumentMemory, sizes: list[int]) -> None:
    """By cuts that nobody would make."""
    wanted, shelf = asked(memory, "Who?"), memory.finder.shelf
    begin = np.cumsum([0, *sizes])
    cuts = np.append(begin, len(shelf)).astype(np.int64)
    expected = plainly_scored(naive(memory, wanted), memory.finder.null, cuts.tolist())
    found = span_scores(shelf, memory.finder.null, wanted, cuts)
    assert (found - expected).abs().max() <= 1e-5 * expected.max()


def test_a_spans_score_does_not_depend_on_how_long_others_are(memory: DocumentMemory) -> None:
    wanted, finder = asked(memory, "How much?"), memory.finder
    null = finder.null + 0.01  # so that most tokens are below it
    one = span_scores(finder.shelf, null, wanted, np.asarray([0, 10, len(finder.shelf)]))
    other = span_scores(finder.shelf, null, wanted, np.asarray([0, 10, 20, len(finder.shelf)]))
    even = span_scores(finder.shelf, null, wanted, np.append(np.arange(0, len(finder.shelf), 10), len(finder.shelf)))
    assert torch.equal(one[:, 0], other[:, 0])
    assert (one[:, 0] - even[:, 0]).abs().max() < 1e-6


def test_null_scores_are_the_mean_over_questions(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BLOCK_ROWS", 13)
    setup, shelf = memory.setup, memory.finder.shelf
    texts = ("N/A", "Who?", "Tell me about this.")
    found = null_scores(setup.adapter, setup.prefix, [setup.form.question(q) for q in texts], shelf, setup.heads)
    expected = torch.stack([naive(memory, asked(memory, q)) for q in texts]).mean(dim=0).T
    assert found.shape == (len(shelf), 4)
    assert (found - expected).abs().max() <= 1e-5 * expected.max()


def test_the_memorys_own_null_scores(memory: DocumentMemory) -> None:
    expected = torch.stack([naive(memory, asked(memory, q)) for q in scoring.NO_CONTENT]).mean(dim=0).T
    assert memory.finder.null.dtype == torch.float32
    assert (memory.finder.null - expected).abs().max() <= 1e-3 * expected.max()  # rounded as in a file
    assert len(set(scoring.NO_CONTENT)) == len(scoring.NO_CONTENT) >= 3


# --- queries ---


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_are_the_plain_models_before_rotation(family: str) -> None:
    """Hooked behind q_proj, and q_norm where there is one, in a plain forward of prefix and question."""
    adapter = Adapter(tiny_model(family))
    llm = InfiniPot(adapter, CODEC, CONFIG, HEADS)
    ids = llm.form.question("When did it burn?")
    found = queries(adapter, llm.setup.prefix, ids, HEADS)
    assert found.states.shape == (4, len(ids), 16)
    assert found.states.dtype == torch.float32

    seen: dict[int, Tensor] = {}
    handles = []
    for layer, module in enumerate(adapter.attentions):
        last: nn.Module = getattr(module, "q_norm", module.q_proj)
        assert hasattr(module, "q_norm") == (family == "qwen3")
        handles.append(
            last.register_forward_hook(lambda m, given, out, layer=layer: seen.update({layer: out.reshape(-1, 6, 16)}))
        )
    adapter.close()
    with torch.no_grad():
        adapter.model(input_ids=torch.tensor([[*llm.form.prefix, *ids]]), use_cache=False)
    for handle in handles:
        handle.remove()
    for states, (layer, head) in zip(found.states, HEADS.heads, strict=True):
        expected = seen[layer][-len(ids) :, head] * 16**-0.5
        assert (states - expected).abs().max() <= 2e-5 * expected.abs().max()
    # keys: heads 5, 1, 2, 3 in groups of three, of the scoring keys (0, 0), (1, 1), (2, 1)
    assert HEADS.scoring_keys(6, 2) == (0, 3, 5)
    assert found.keys == (2, 0, 0, 1)


@pytest.mark.parametrize("heads", [((0, 0),), ((2, 0), (2, 5)), ((1, 2), (0, 0), (2, 1))])
def test_no_more_layers_run_than_have_heads(heads: tuple[tuple[int, int], ...]) -> None:
    with InfiniPot(Adapter(tiny_model("llama")), CODEC, CONFIG, Heads(heads, (1.0,) * len(heads), True)) as llm:
        prefix, ids = llm.setup.prefix, llm.form.question("Who?")
        runs: list[int] = []
        handles = [
            module.register_forward_pre_hook(lambda m, given: runs.append(m.layer_idx))
            for module in llm.adapter.attentions
        ]
        found = queries(llm.adapter, prefix, ids, llm.heads)
        for handle in handles:
            handle.remove()
        assert runs == list(range(1 + max(layer for layer, _ in heads)))
        assert len(found.states) == len(heads)


def test_a_question_leaves_no_trace_in_the_prefix(memory: DocumentMemory) -> None:
    before = [t.clone() for t in memory.setup.prefix]
    first = asked(memory, "Who?")
    again = asked(memory, "Who?")
    assert torch.equal(first.states, again.states)
    assert all(torch.equal(a, b) for a, b in zip(before, memory.setup.prefix, strict=True))


def test_standard_deviations() -> None:
    scores = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    assert standard(scores).tolist() == [[-1.0, 1.0], [0.0, 0.0]]  # what tells nothing apart counts nothing


def test_many_queries_are_scored_some_at_a_time(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = asked(memory, "When did mill number 7 burn down, and who paid for it?")
    whole = list(attention(memory.finder.shelf, wanted, memory.finder.cuts))
    n, Q = wanted.states.shape[:2]
    for at_once in (1, 7, Q):
        monkeypatch.setattr(scoring, "BLOCK_BYTES", at_once * n * scoring.BLOCK_ROWS * 4)
        for (start, shares), (same, parts) in zip(
            whole, attention(memory.finder.shelf, wanted, memory.finder.cuts), strict=True
        ):
            assert start == same
            assert torch.allclose(shares, parts, atol=1e-6)
