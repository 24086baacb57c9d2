"""Policies besides the paper's: each score against a plain reference, and what the pot sees while it is read into."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES
from spies import D, H, K, random_ids, random_text, rotate, shared_adapter, unrotated
from torch import Tensor

from infinipot_llm.config import POLICIES as NAMES
from infinipot_llm.config import PotConfig
from infinipot_llm.errors import BudgetError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.slots import Attending
from infinipot_llm.pot.distill import Cycle, select
from infinipot_llm.pot.policies import POLICIES, make_policy
from infinipot_llm.pot.policies.expected_attention import AHEAD, EPSILON
from infinipot_llm.pot.policies.snapkv import KERNEL, WINDOW
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader
from infinipot_llm.pot.score import Evidence, Reason
from infinipot_llm.pot.watch import Watch

G = H // K


def read(adapter: Adapter, policy: str, length: int = 60, budget: int = 200, chunk: int = 13) -> Pot:
    """Read without a distillation, as far as the policy wants to watch."""
    config = PotConfig(budget=budget, chunk=chunk, policy=policy)
    pot, stats = Reader(adapter, config).read(random_text(length, 2), random_ids(5, 1), [random_ids(6, 3)], 20)
    assert stats.cycles == 0
    return pot


def evidence(pot: Pot, keep: int = 30) -> Evidence:
    return Evidence(None, pot.novelty, pot.origin, 5, keep, pot.cache.pots, pot.watch)


def plain_attention(adapter: Adapter, ids: list[int]) -> list[Tensor]:
    """The plain model's attention weights per layer, [H, C, C], in float64."""
    adapter.close()
    with unrotated(adapter, "q") as queries, unrotated(adapter, "k") as keys, torch.no_grad():
        adapter.model(input_ids=torch.tensor([ids]), use_cache=False)
    adapter.open()
    found = []
    for layer in range(len(queries)):
        q, k = rotate(queries[layer], 0), rotate(keys[layer], 0).repeat_interleave(G, dim=0)
        future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
        found.append(torch.softmax((q @ k.transpose(1, 2) / D**0.5).masked_fill(future, float("-inf")), dim=-1))
    return found


def all_ids(length: int = 60) -> list[int]:
    return [*random_ids(5, 1), *random_text(length, 2).ids.tolist()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 13, 512])
def test_received_is_the_plain_models_attention_summed_over_all_tokens(family: str, chunk: int) -> None:
    adapter = shared_adapter(family)
    pot = read(adapter, "h2o", chunk=chunk)
    assert pot.watch is not None
    for layer, weights in enumerate(plain_attention(adapter, all_ids())):
        expected = weights.sum(1).reshape(K, G, -1).mean(1)  # [K, S]
        assert (pot.watch.received[layer] - expected).abs().max() < 1e-4


def test_received_follows_the_slots_through_a_distillation() -> None:
    """Against a slow account of every forward: what each token was paid goes with the token, in each head."""
    adapter = shared_adapter("qwen2")
    paid: dict[tuple[int, int, int], float] = {}
    true_call = Watch.__call__
    pots: list[Pot] = []

    def account(watch: Watch, seen: object) -> None:
        before = {layer: value.clone() for layer, value in watch.received.items()}
        true_call(watch, seen)  # type: ignore[arg-type]
        layer = seen.layer  # type: ignore[attr-defined]
        new = watch.received[layer].clone()
        if layer in before:
            new[:, : before[layer].shape[1]] -= before[layer]
        waiting.append((layer, new))

    waiting: list[tuple[int, Tensor]] = []
    true_record = Pot.record

    def record(pot: Pot, origin: Tensor) -> None:
        true_record(pot, origin)
        for layer, new in waiting:
            for head in range(K):
                for slot in range(new.shape[1]):
                    key = layer, head, int(pot.origin[layer, head, slot]) if slot >= 5 else -slot - 1
                    paid[key] = paid.get(key, 0.0) + float(new[head, slot])
        waiting.clear()
        pots.append(pot)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "__call__", account)
        patch.setattr(Pot, "record", record)
        config = PotConfig(budget=60, chunk=16, policy="h2o")
        pot, stats = Reader(adapter, config).read(random_text(150, 2), random_ids(5, 1), [], 12)
    assert stats.cycles > 2
    assert pot.watch is not None
    for layer in range(pot.origin.shape[0]):
        for head in range(K):
            for slot in range(pot.length):
                key = layer, head, int(pot.origin[layer, head, slot]) if slot >= 5 else -slot - 1
                assert float(pot.watch.received[layer][head, slot]) == pytest.approx(paid[key], abs=1e-4)


def test_h2o_keeps_the_latest_half_and_the_most_attended() -> None:
    pot = read(shared_adapter("llama"), "h2o")
    scores = make_policy(PotConfig(policy="h2o")).score(evidence(pot))
    slots = select(scores, 5, 30)
    assert pot.watch is not None
    for layer in range(3):
        for head in range(K):
            received = pot.watch.received[layer][head]
            late = set(range(pot.length - 12, pot.length))  # (30 - 5) // 2
            others = sorted(set(range(5, pot.length)) - late, key=lambda s: -float(received[s]))[:13]
            assert slots[layer, head].tolist() == sorted({*range(5), *late, *others})
    assert set(scores.reasons.unique().tolist()) == {Reason.ATTENDED, Reason.RECENT}


@pytest.mark.parametrize("family", FAMILIES)
def test_tova_is_the_last_tokens_attention_averaged_over_heads(family: str) -> None:
    adapter = shared_adapter(family)
    values = make_policy(PotConfig(policy="tova")).score(evidence(read(adapter, "tova"))).values
    for layer, weights in enumerate(plain_attention(adapter, all_ids())):
        expected = weights[:, -1].mean(0)
        for head in range(K):
            assert (values[layer, head, :-1] - expected[:-1]).abs().max() < 1e-5
            assert values[layer, head, -1] == torch.inf  # the token itself


def pooled(weights: Tensor, before: int) -> Tensor:
    """SnapKV's score of the slots before its window: the window's attention [H, S], pooled by hand; [K, before]."""
    most = [weights[:, max(0, s - KERNEL // 2) : min(before, s + KERNEL // 2 + 1)].amax(1) for s in range(before)]
    return torch.stack(most, 1).reshape(K, G, before).mean(1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [5, 512])  # a window of several chunks, and a part of one
def test_snapkv_pools_the_windows_attention(family: str, chunk: int) -> None:
    adapter = shared_adapter(family)
    pot = read(adapter, "snapkv", chunk=chunk)
    values = make_policy(PotConfig(policy="snapkv")).score(evidence(pot, keep=50)).values
    for layer, weights in enumerate(plain_attention(adapter, all_ids())):
        expected = pooled(weights[:, -WINDOW:].mean(1), pot.length - WINDOW)
        assert (values[layer, :, :-WINDOW] - expected).abs().max() < 1e-5
        assert (values[layer, :, -WINDOW:] == torch.inf).all()


def test_snapkv_drops_no_pinned_slot_for_its_window() -> None:
    scores = make_policy(PotConfig(policy="snapkv")).score(evidence(pot := read(shared_adapter("llama"), "snapkv")))
    expected = [*range(5), *range(pot.length - 25, pot.length)]  # 30 slots have room for no more of the window
    assert (select(scores, 5, 30) == torch.tensor(expected)).all()


@pytest.mark.parametrize("length", [9, 40])  # shorter than SnapKV's window, and longer
@pytest.mark.parametrize("policy", ["snapkv", "tova", "h2o"])
def test_a_question_behind_the_slots_belongs_to_the_prompt(policy: str, length: int) -> None:
    """As the plain model attends to it, read with the text before it; nothing chooses among its own tokens."""
    adapter, question = shared_adapter("qwen2"), random_ids(length, 8)
    pot = read(adapter, policy)
    S, keep = pot.length, 50
    assert pot.watch is not None
    with pot.scratch():
        pot.cache.observer = pot.watch
        adapter.forward(torch.tensor(question), pot.cache)
        pot.watch.behind = length
        values = make_policy(PotConfig(policy=policy)).score(evidence(pot, keep)).values
    first = {"snapkv": S - max(0, WINDOW - length), "tova": S, "h2o": S - (keep - 5) // 2}[policy]
    for layer, weights in enumerate(plain_attention(adapter, [*all_ids(), *question])):
        expected = {
            "snapkv": pooled(weights[:, -WINDOW:].mean(1), first),
            "tova": weights[:, -1, :S].mean(0).expand(K, S),
            "h2o": weights.sum(1).reshape(K, G, -1).mean(1),
        }[policy]
        assert (values[layer, :, :first] - expected[:, :first]).abs().max() < 1e-4
    assert values.shape[-1] == S
    assert (values[:, :, first:] == torch.inf).all()
    pot.keep(torch.arange(keep).expand(*values.shape[:2], keep))
    assert pot.watch.behind == 0


def test_keydiff_is_minus_the_cosine_to_the_mean_direction() -> None:
    pot = read(shared_adapter("llama"), "keydiff")
    values = make_policy(PotConfig(policy="keydiff")).score(evidence(pot)).values
    keys = pot.state()["rotated_keys"].double()
    for layer in range(3):
        for head in range(K):
            directions = [k / k.norm() for k in keys[layer, head]]
            mean = sum(directions[1:], directions[0]) / len(directions)
            expected = [-float(d @ mean / mean.norm()) for d in directions]
            assert values[layer, head].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("family", "chunk"), [("llama", 13), ("qwen3", 13), ("llama", 1)])
def test_expected_attention_is_the_closed_form_of_its_paper(family: str, chunk: int) -> None:
    """With rotations made position by position, and sums over query after query; the first four tokens left out."""
    adapter = shared_adapter(family)
    pot = read(adapter, "expected-attention", chunk=chunk)
    values = make_policy(PotConfig(policy="expected-attention")).score(evidence(pot)).values
    adapter.close()
    with unrotated(adapter, "q") as queries, torch.no_grad():
        adapter.model(input_ids=torch.tensor([all_ids()]), use_cache=False)
    adapter.open()
    basis = torch.eye(D, dtype=torch.float64)
    ahead = range(pot.length, min(pot.length + AHEAD, pot.budget))
    turn = torch.stack([rotate(basis[:, None, :], p)[:, 0] for p in ahead]).mean(0)  # [D, D], for row vectors
    for layer in range(3):
        keys, values_of = (pot.state()[n][layer].double() for n in ("rotated_keys", "values"))
        for head in range(K):
            total = torch.zeros(pot.length, dtype=torch.float64)
            for query in queries[layer][head * G : (head + 1) * G, 4:]:
                mean, covariance = query.mean(0), torch.cov(query.T, correction=0)
                m, c = mean @ turn, turn.T @ covariance @ turn
                log = torch.stack([k @ m / D**0.5 + k @ c @ k / (2 * D) for k in keys[head]])
                total[4:] += torch.softmax(log[4:], 0) / G
            expected = (total + EPSILON) * values_of[head].norm(dim=-1)
            assert values[layer, head].tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)


def test_moments_of_a_long_text_keep_a_small_variance_beside_a_large_mean() -> None:
    """In float32, of 32K queries around 120: a sum of squares has steps of 32 there, 1e-3 after the division."""
    queries = torch.randn(1, 2, 32768, 4, generator=torch.Generator().manual_seed(5)) * 0.5 + 120.0
    watch = Watch(wants_moments=True)
    for at in range(0, queries.shape[2], 512):
        new = queries[:, :, at : at + 512]
        watch(Attending(0, new, new, torch.zeros(1, 1, at + 512, 4), 1.0))
    found, known = watch.moments[0], queries[0, :, 4:].double()
    assert found.count == 32764
    assert (found.mean - known.mean(1)).abs().max() < 1e-4
    for head in range(2):
        assert (found.covariance[head] - torch.cov(known[head].T, correction=0)).abs().max() < 1e-4


def test_sirllm_is_novelty_alone_and_truncate_the_two_ends() -> None:
    adapter = shared_adapter("llama")
    cycles: list[Cycle] = []
    config = PotConfig(budget=60, policy="sirllm")
    pot, _ = Reader(adapter, config).read(random_text(150, 2), random_ids(5, 1), [], 12, tracer=cycles.append)
    assert len(cycles) > 2
    assert (pot.origin == pot.origin[0, 0]).all()
    assert all(torch.equal(c.scores.isfinite(), torch.ones_like(c.scores, dtype=torch.bool)) for c in cycles)
    config = replace(config, policy="truncate")
    pot, _ = Reader(adapter, config).read(random_text(150, 2), random_ids(5, 1), [], 12)
    held = pot.origin[0, 0, 5:].tolist()
    gap = next(i for i in range(1, len(held)) if held[i] != held[i - 1] + 1)
    assert held == [*range(gap), *range(150 - (len(held) - gap), 150)]  # one piece from the start, one to the end
    assert gap > 5


def test_random_draws_anew_in_every_cycle_and_alike_in_every_run() -> None:
    runs = []
    for _ in range(2):
        cycles: list[Cycle] = []
        config = PotConfig(budget=60, policy="random")
        Reader(shared_adapter("llama"), config).read(
            random_text(150, 2), random_ids(5, 1), [], 12, tracer=cycles.append
        )
        runs.append(cycles)
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(*runs, strict=True))
    assert not torch.equal(runs[0][1].kept, runs[0][2].kept)
    assert not torch.equal(runs[0][1].kept[0, 0], runs[0][1].kept[0, 1])


def test_full_refuses_to_drop_and_reads_what_fits() -> None:
    reader = Reader(shared_adapter("llama"), PotConfig(budget=60, policy="full"))
    pot, stats = reader.read(random_text(40, 2), random_ids(5, 1), [], 12)
    assert (pot.length, stats.cycles) == (45, 0)
    with pytest.raises(BudgetError, match=r"'full' keeps everything.*raise the budget"):
        reader.read(random_text(100, 2), random_ids(5, 1), [], 12)


def test_what_is_seen_while_reading_is_seen_only_for_those_who_ask() -> None:
    adapter = shared_adapter("llama")
    watched = set()
    for name in NAMES:
        pot = read(adapter, name)
        assert pot.cache.observer is None
        if pot.watch is not None:
            watched.add(name)
    assert watched == {"tova", "snapkv", "h2o", "expected-attention"}


def test_a_policy_that_watches_cannot_read_on() -> None:
    adapter = shared_adapter("llama")
    pot = read(adapter, "h2o")
    with pytest.raises(BudgetError, match="'h2o' judges by what it saw"):
        Reader(adapter, PotConfig(budget=200, policy="h2o")).read(random_text(90, 2), [], [], 20, pot=pot, start=60)


def test_the_names_the_command_line_knows_are_those_there_are() -> None:
    assert tuple(POLICIES) == NAMES
