"""Attention in blocks: as exact as bf16 allows, however large the logits, and only where it was made for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infinipot_llm.models import attention, blocks
from infinipot_llm.models.adapter import Adapter


def states(
    K: int, G: int, C: int, held: int, D: int = 16, Dv: int = 16, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of C tokens and views of larger buffers of keys and values, as slots are."""
    generator = torch.Generator().manual_seed(seed)
    S = held + C
    query = torch.randn((1, C, K * G, D), generator=generator).transpose(1, 2)  # as projections leave them
    key = torch.randn((1, K, S + 9, D), generator=generator)[:, :, :S]
    value = torch.randn((1, K, S + 9, Dv), generator=generator)[:, :, :S]
    return query.bfloat16(), key.bfloat16(), value.bfloat16()


def exact(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    C, S = query.shape[2], key.shape[2]
    mask = torch.full((C, S), float("-inf")).triu_(S - C + 1)
    q, k, v = query.float(), key.float(), value.float()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True)


def off(found: Tensor, true: Tensor) -> float:
    return float((found.float() - true).norm() / true.norm())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 90), st.integers(65, 200), st.sampled_from([16, 24]),
    st.sampled_from([8, 16]), st.sampled_from([8, 32, 512]), st.integers(0, 9),
)  # fmt: skip
def test_any_shape(K: int, G: int, C: int, held: int, D: int, Dv: int, rows: int, seed: int) -> None:
    given = states(K, G, C, held, D, Dv, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 2 * (held + C) * rows + 1)
        found = blocks.attend_in_blocks(*given, scaling=D**-0.5)
    assert found.shape == (1, K * G, C, Dv)
    assert found.dtype == torch.bfloat16
    assert off(found, exact(*given, D**-0.5)) < 0.01


def test_logits_above_a_thousand_cost_no_accuracy() -> None:
    """Keys that share a large part, as Qwen2.5's do: rounded to bf16 such logits are worthless, shifted not."""
    query, key, value = states(2, 3, 40, 300)
    query, key = query + 8.0, key + 16.0
    true = exact(query, key, value, 0.25)
    logits = query.reshape(2, 120, 16) @ key[0].transpose(1, 2) * 0.25
    assert logits.abs().max() > 500
    seen = torch.full((40, 340), float("-inf"), dtype=torch.bfloat16).triu_(301).repeat(3, 1)
    unshifted = (torch.softmax(logits + seen, dim=-1) @ value[0]).reshape(1, 6, 40, 16)
    assert off(unshifted, true) > 0.2
    assert off(blocks.attend_in_blocks(query, key, value, 0.25), true) < 0.01


def test_no_query_sees_a_token_behind_it() -> None:
    query, key, value = states(2, 2, 30, 100)
    before = blocks.attend_in_blocks(query, key, value, 0.25)
    key[:, :, 110:], value[:, :, 110:] = 50.0, 1000.0
    after = blocks.attend_in_blocks(query, key, value, 0.25)
    assert torch.equal(after[:, :, :10], before[:, :, :10])
    assert (after[:, :, 10:] != before[:, :, 10:]).any(dim=3).any(dim=1).all(), "and those before it, it sees"


def test_what_was_given_stays_as_it_is() -> None:
    given = states(2, 2, 30, 100)
    copies = [x.clone() for x in given]
    blocks.attend_in_blocks(*given, scaling=0.25)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU on which blocks are the faster way."""
    blocks.faster_here.cache_clear()
    monkeypatch.setattr(blocks, "bf16_speedup", lambda: 5.0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False}, raising=False)
    yield
    blocks.faster_here.cache_clear()


@pytest.mark.usefixtures("fast")
def test_where_blocks_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, _ = states(1, 2, 10, 65)
    assert blocks.pays(query, key)
    assert not blocks.pays(query.float(), key.float())
    assert not blocks.pays(query.expand(2, -1, -1, -1), key.expand(2, -1, -1, -1))
    assert not blocks.pays(query, key[:, :, :74]), "too few keys to guess from"
    assert not blocks.pays(query.to("meta"), key.to("meta"))
    for speed, tiles in ((1.2, False), (5.0, True)):
        blocks.faster_here.cache_clear()
        monkeypatch.setattr(blocks, "bf16_speedup", lambda speed=speed: speed)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda tiles=tiles: {"amx_bf16": tiles}, raising=False)
        assert not blocks.pays(query, key)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
def test_a_model_reads_with_blocks_as_with_the_kernel(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(tiny_model(family).to(torch.bfloat16))
    ids = torch.randint(0, 256, (400,), generator=torch.Generator().manual_seed(1))
    used: list[int] = []
    real = blocks.attend_in_blocks

    def counted(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        used.append(query.shape[2])
        return real(query, key, value, scaling)

    def read() -> Tensor:
        cache = adapter.new_cache(512)
        return torch.cat([adapter.forward(part, cache) for part in ids.split(90)]).float()

    monkeypatch.setattr(attention.blocks, "attend_in_blocks", counted)
    in_blocks = read()
    assert used.count(90) == 3 * adapter.layers  # the first chunk has nothing before it
    assert used.count(40) == adapter.layers
    monkeypatch.setattr(attention.blocks, "pays", lambda query, key: False)
    by_kernel = read()
    true = Adapter(tiny_model(family))
    cache = true.new_cache(512)
    exactly = torch.cat([true.forward(part, cache) for part in ids.split(90)])
    assert off(in_blocks, exactly) < 1.3 * off(by_kernel, exactly), "no farther from float32 than the kernel in bf16"
    adapter.close()
    true.close()
