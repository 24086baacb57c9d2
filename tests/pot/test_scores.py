"""Scores: catalyst and neighbours against plain references; alpha 0 and 1 are the single scores."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from spies import D, H, K, random_ids, random_text, rotate, shared_adapter, unrotated
from torch import Tensor

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.catalyst import importance
from infinipot_llm.pot.distill import Cycle, select
from infinipot_llm.pot.policies import make_policy
from infinipot_llm.pot.policies.infinipot import InfiniPotPolicy, spread
from infinipot_llm.pot.pot import PREFIX, Pot
from infinipot_llm.pot.reader import Reader
from infinipot_llm.pot.score import Evidence, Reason

FEW = settings(max_examples=30, deadline=None, derandomize=True)


# --- the catalyst ---


def one_catalyst(queries: dict[int, Tensor], keys: dict[int, Tensor], reduce: str) -> Tensor:
    """Attention of rotated queries [H, P, D] over rotated keys [K, S, D], per layer; [L, K, S]."""
    layers = []
    for layer in range(len(queries)):
        per_kv_head: list[list[Tensor]] = [[] for _ in range(K)]
        for head in range(H):
            kv = head // (H // K)
            weights = torch.softmax(queries[layer][head] @ keys[layer][kv].T / D**0.5, dim=-1)  # [P, S]
            per_kv_head[kv].append(weights.sum(0) / len(weights) if reduce == "sum" else weights.amax(0))
        layers.append(torch.stack([torch.stack(found).mean(0) for found in per_kv_head]))
    return torch.stack(layers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("lengths", [[7], [1], [11, 3, 6]])
def test_importance_is_the_plain_models_attention(family: str, reduce: str, lengths: list[int]) -> None:
    adapter = shared_adapter(family)
    prefix, text = random_ids(4, 1), random_text(33, 2)
    pot, stats = Reader(adapter, PotConfig(budget=64, chunk=10)).read(text, prefix, [[1]], reserve=12)
    assert stats.cycles == 0
    prompts = [random_ids(n, n) for n in lengths]
    expected = []
    adapter.close()
    for prompt in prompts:
        ids = torch.tensor([*prefix, *text.ids.tolist(), *prompt])
        with unrotated(adapter, "q") as queries, unrotated(adapter, "k") as keys, torch.no_grad():
            adapter.model(input_ids=ids[None], use_cache=False)
        rotated_queries = {layer: rotate(q, 0)[:, 37:] for layer, q in queries.items()}
        rotated_keys = {layer: rotate(k, 0)[:, :37] for layer, k in keys.items()}
        expected.append(one_catalyst(rotated_queries, rotated_keys, reduce))
    adapter.open()
    found = importance(adapter, pot, [torch.tensor(p) for p in prompts], reduce)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    assert found.shape == (3, K, 37)
    assert (found - torch.stack(expected).amax(0)).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_importance_over_a_distilled_pot(family: str) -> None:
    """Heads hold different tokens now; the keys are those of the pot, the queries come behind its last slot."""
    adapter = shared_adapter(family)
    prompts = [random_ids(9, 7), random_ids(4, 8)]
    pot, stats = Reader(adapter, PotConfig(budget=60)).read(random_text(200, 2), random_ids(4, 1), prompts, reserve=12)
    assert stats.cycles > 2
    keys = dict(enumerate(pot.state()["rotated_keys"].double().unbind(0)))
    expected = []
    for prompt in prompts:
        with unrotated(adapter, "q") as queries, pot.scratch():
            adapter.forward(torch.tensor(prompt), pot.cache)
        expected.append(one_catalyst({n: rotate(q, pot.length) for n, q in queries.items()}, keys, "sum"))
    found = importance(adapter, pot, [torch.tensor(p) for p in prompts])
    assert (found - torch.stack(expected).amax(0)).abs().max() < 1e-5
    total = found.sum(-1)
    assert (total >= 1.0 - 1e-4).all()  # each catalyst's attention sums to 1 over the slots; a maximum to no less
    assert (importance(adapter, pot, [torch.tensor(prompts[0])]).sum(-1) - 1.0).abs().max() < 1e-4


def test_importance_without_a_catalyst_is_an_error() -> None:
    adapter = shared_adapter("llama")
    with pytest.raises(ValueError, match="at least one catalyst"):
        importance(adapter, Pot(adapter, 16), [])


# --- the policy ---


def evidence(seed: int, held: int, pinned: int, keep: int) -> Evidence:
    """Random evidence without ties; novelty is the same in every head here, as when nothing was dropped yet."""
    generator = torch.Generator().manual_seed(seed)
    received = torch.rand((3, K, held), generator=generator)
    novelty = (torch.rand(held, generator=generator) * 9).expand(3, K, held).contiguous()
    origin = torch.arange(held, dtype=torch.int32) - pinned
    return Evidence(received, novelty, origin.clamp_min(PREFIX).expand(3, K, held).contiguous(), pinned, keep)


def top(scores: Tensor, pinned: int, keep: int) -> list[int]:
    """The slots of one head that are to stay: the pinned ones and the highest of the others."""
    ranked = sorted(range(pinned, len(scores)), key=lambda slot: -float(scores[slot]))
    return [*range(pinned), *sorted(ranked[: keep - pinned])]


@FEW
@given(seed=st.integers(0, 2**31), held=st.integers(2, 60), data=st.data())
def test_alpha_0_and_1_are_the_single_scores(seed: int, held: int, data: st.DataObject) -> None:
    pinned = data.draw(st.integers(0, held - 1))
    keep = data.draw(st.integers(pinned, held))
    given_evidence = evidence(seed, held, pinned, keep)
    assert given_evidence.importance is not None
    by_catalyst = select(InfiniPotPolicy(0.0, 0, 0.9, 0.0).score(given_evidence), pinned, keep)
    by_novelty = select(InfiniPotPolicy(1.0, 0, 0.9, 0.0).score(given_evidence), pinned, keep)
    for layer in range(3):
        for head in range(K):
            assert by_catalyst[layer, head].tolist() == top(given_evidence.importance[layer, head], pinned, keep)
            assert by_novelty[layer, head].tolist() == top(given_evidence.novelty[layer, head], pinned, keep)
    assert (by_novelty == by_novelty[0, 0]).all()


@FEW
@given(seed=st.integers(0, 2**31), held=st.integers(8, 60), alpha=st.floats(0.3, 0.7))
def test_in_between_both_have_a_say(seed: int, held: int, alpha: float) -> None:
    given_evidence = evidence(seed, held, 2, keep=max(6, held // 2))
    assert given_evidence.importance is not None
    scores = InfiniPotPolicy(alpha, 0, 0.9, 0.0).score(given_evidence)
    slots = select(scores, 2, given_evidence.keep)
    for layer in range(3):
        for head in range(K):
            kept = slots[layer, head].tolist()
            assert int(given_evidence.importance[layer, head, 2:].argmax()) + 2 in kept
            assert int(given_evidence.novelty[layer, head, 2:].argmax()) + 2 in kept
    assert scores.values.shape == scores.reasons.shape == given_evidence.novelty.shape
    assert set(scores.reasons[:, :, 2:].flatten().tolist()) == {Reason.NOVELTY, Reason.CATALYST}


def test_what_has_no_share_costs_nothing() -> None:
    assert InfiniPotPolicy(0.1).needs.novelty
    assert not InfiniPotPolicy(0.0).needs.novelty
    assert InfiniPotPolicy(1.0, agreement=0.1).needs.catalyst, "agreement is the catalyst's"
    assert not InfiniPotPolicy(1.0).needs.catalyst


def test_heads_are_to_agree_where_the_question_is_known() -> None:
    """What all heads make of a generic question is worth less."""
    known, unknown = make_policy(PotConfig(), known=True), make_policy(PotConfig())
    assert known == InfiniPotPolicy(0.5, agreement=0.25)
    assert unknown == InfiniPotPolicy(0.5, agreement=0.0)
    assert InfiniPotPolicy.from_config(PotConfig()) == unknown
    assert make_policy(PotConfig(agreement=0.0), known=True) == unknown


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_whole_readings_with_a_single_score(alpha: float) -> None:
    """By novelty alone all heads hold the same tokens, those that surprised most; by the catalyst alone they do not."""
    cycles: list[Cycle] = []
    config = PotConfig(budget=64, novelty_share=alpha, agreement=0, neighbours=0)
    pot, _ = Reader(shared_adapter("qwen2"), config).read(
        random_text(150, 2), random_ids(4, 1), [random_ids(9, 7)], 12, tracer=cycles.append
    )
    assert len(cycles) > 2
    assert (pot.origin == pot.origin[0, 0]).all() == (alpha == 1.0)
    assert pot.novelty.any() == (alpha == 1.0)
    reasons = {int(r) for c in cycles for r in c.reasons[:, :, pot.pinned :].flatten()}
    assert reasons == {Reason.NOVELTY if alpha else Reason.CATALYST}


# --- agreement ---


def scattered(seed: int, held: int, pinned: int, keep: int, read: int = 80) -> Evidence:
    """Random evidence as after some distillations: heads hold different tokens of a document."""
    generator = torch.Generator().manual_seed(seed)
    origin = torch.full((3, K, held), PREFIX, dtype=torch.int32)
    for layer in range(3):
        for head in range(K):
            there = torch.randperm(read, generator=generator)[: held - pinned]
            origin[layer, head, pinned:] = there.sort().values.to(torch.int32)
    received = torch.rand((3, K, held), generator=generator)
    return Evidence(received, torch.rand((3, K, held), generator=generator), origin, pinned, keep)


@FEW
@given(seed=st.integers(0, 2**31), held=st.integers(4, 60), data=st.data())
def test_what_all_heads_look_at_most_stays_in_every_head_that_holds_it(
    seed: int, held: int, data: st.DataObject
) -> None:
    pinned = data.draw(st.integers(0, held - 2))
    keep = data.draw(st.integers(pinned + 1, held))
    given_evidence = scattered(seed, held, pinned, keep)
    assert given_evidence.importance is not None
    agreement = data.draw(st.sampled_from([0.25, 0.5, 1.0]))
    alpha = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    scores = InfiniPotPolicy(alpha, 0, 0.9, agreement).score(given_evidence)
    slots = select(scores, pinned, keep)
    total: dict[int, float] = {}
    for token, received in zip(
        given_evidence.origin.flatten().tolist(), given_evidence.importance.flatten().tolist(), strict=True
    ):
        total[token] = total.get(token, 0.0) + received
    count = round(agreement * (keep - pinned))
    for layer in range(3):
        for head in range(K):
            there = given_evidence.origin[layer, head, pinned:].tolist()
            agreed = sorted(there, key=lambda token: -total[token])[:count]
            kept = given_evidence.origin[layer, head, slots[layer, head]].tolist()
            assert set(agreed) <= set(kept)
            why = scores.reasons[layer, head, slots[layer, head]].tolist()
            assert why[pinned:].count(Reason.AGREEMENT) == count
            by_novelty = min(round(alpha * (keep - pinned)), keep - pinned - count)
            assert why[pinned:].count(Reason.NOVELTY) == by_novelty


def test_agreement_lifts_neighbours_in_the_document_though_a_head_has_dropped_what_is_between() -> None:
    """Both heads hold token 5, one of them has lost it: its neighbours stay there for the sake of the other."""
    origin = torch.tensor([[[3, 4, 5, 30], [3, 4, 6, 30]]], dtype=torch.int32)
    received = torch.tensor([[[0.0, 0.0, 9.0, 1.0], [0.0, 0.0, 0.0, 1.0]]])
    policy = InfiniPotPolicy(0.0, 1, 0.9, 1.0)
    kept = select(policy.score(Evidence(received, torch.zeros_like(received), origin, 0, 2)), 0, 2)
    assert origin.gather(-1, kept.to(torch.int64)).tolist() == [[[4, 5], [4, 6]]]


def test_without_agreement_nothing_is_chosen_by_it() -> None:
    given_evidence = scattered(0, 40, 4, 20)
    reasons = InfiniPotPolicy(0.5, 8, 0.9, 0.0).score(given_evidence).reasons
    assert Reason.AGREEMENT not in reasons.unique().tolist()


# --- the neighbours ---


def reference(scores: list[float], origin: list[int], radius: int, weight: float) -> tuple[list[float], list[bool]]:
    """Each slot gets the largest of its own score and `weight` times that of any slot within `radius` document tokens
    of it, all the tokens between the two being held."""
    lifted = []
    for i, own in enumerate(scores):
        lent = [
            weight * score
            for j, score in enumerate(scores)
            if 1 <= abs(origin[i] - origin[j]) <= radius and abs(origin[i] - origin[j]) == abs(i - j)
        ]
        lifted.append(max([own, *lent]))
    return lifted, [after > own for own, after in zip(scores, lifted, strict=True)]


@FEW
@given(
    heads=st.lists(
        st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0.0, 0.25, 1.0, 2.0, 64.0])), min_size=9, max_size=9),
        min_size=2,
        max_size=2,
    ),
    held=st.integers(1, 9),
    radius=st.integers(0, 12),
    weight=st.sampled_from([0.0, 0.5, 0.75, 1.0]),
)
def test_neighbours_are_lifted_as_in_plain_python(
    heads: list[list[tuple[int, float]]], held: int, radius: int, weight: float
) -> None:
    scores = [[score for _, score in head[:held]] for head in heads]
    origin = [torch.tensor([step for step, _ in head[:held]]).cumsum(0).tolist() for head in heads]
    given_scores = torch.tensor([scores])
    lifted, by_neighbour = spread(given_scores, torch.tensor([origin], dtype=torch.int32), radius, weight)
    for head in range(2):
        expected, why = reference(scores[head], origin[head], radius, weight)
        assert lifted[0, head].tolist() == expected
        assert by_neighbour[0, head].tolist() == why
    assert given_scores.tolist() == [scores]  # not changed in place


def test_only_what_stood_beside_it_is_lifted() -> None:
    scores = torch.tensor([[[0.0, 8.0, 0.0, 0.0, 0.0]]])
    origin = torch.tensor([[[3, 4, 5, 9, 10]]], dtype=torch.int32)
    lifted, by_neighbour = spread(scores, origin, 2, 0.5)
    assert lifted.tolist() == [[[4.0, 8.0, 4.0, 0.0, 0.0]]]
    assert by_neighbour.tolist() == [[[True, False, True, False, False]]]


def test_the_prompts_prefix_lends_nothing_to_the_document() -> None:
    """It does not stand in the document, and as an attention sink it would always win the first tokens their place."""
    scores = torch.tensor([[[1.0, 9.0, 0.5, 0.5, 0.5]]])
    origin = torch.tensor([[[PREFIX, PREFIX, 0, 1, 2]]], dtype=torch.int32)
    assert spread(scores, origin, 2, 0.9)[0][0, 0, 2:].tolist() == pytest.approx([0.5, 0.5, 0.5])
