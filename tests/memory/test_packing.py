"""Packing: what comes back differs by rounding alone, and never is anything but a number."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infinipot_llm.memory.layout import Layout
from infinipot_llm.memory.packing import Normal, Packing

BITS: tuple[Literal[8, 4], ...] = (8, 4)
TOP = {8: 127, 4: 7}


def bound(packing: Packing, states: Tensor) -> Tensor:
    """Return the largest error that rounding may make of each number: half a step, and the scale's own rounding."""
    groups = states.reshape(states.shape[0], packing.groups, packing.group).abs().amax(dim=2, keepdim=True)
    top = TOP[packing.bits]
    step = 0.5 * groups / top + groups * 2**-11 + (top + 1) * 6e-8
    return step.expand(-1, -1, packing.group).reshape(states.shape)


@st.composite
def packed(draw: st.DrawFn) -> tuple[Packing, Tensor]:
    bits = draw(st.sampled_from(BITS))
    n, D = draw(st.integers(1, 5)), draw(st.sampled_from([2, 6, 16, 32, 48, 64, 96, 128]))
    R, kind = draw(st.integers(0, 5)), draw(st.sampled_from(["normal", "zeros", "constant", "outlier", "mixed"]))
    scale = draw(st.sampled_from([1e-30, 1e-8, 1e-4, 1.0, 300.0, 4e5]))
    states = torch.randn(R, n, D, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    if kind == "zeros":
        states = torch.zeros(R, n, D)
    elif kind == "constant":
        states = torch.full((R, n, D), draw(st.sampled_from([-1.0, 1.0])))
    elif kind == "outlier" and R:
        states[..., draw(st.integers(0, D - 1))] *= 1000.0
        scale = min(scale, 300.0)
    elif kind == "mixed":
        states[:, : n // 2] = 0.0
    states = states.clamp(-1000, 1000)
    return Packing(bits, n, D), states * min(scale, 4e5 / max(1.0, float(states.abs().max()) if R else 1.0))


@settings(max_examples=300, deadline=None)
@given(packed())
def test_what_comes_back_differs_by_rounding_alone(case: tuple[Packing, Tensor]) -> None:
    packing, states = case
    before = states.clone()
    rows = packing.encode(states)
    assert rows.shape == (len(states), packing.row_bytes)
    assert rows.dtype == torch.uint8
    assert torch.equal(states, before)  # neither changes what it is given
    copy = rows.clone()
    back = packing.decode(rows)
    assert torch.equal(rows, copy)
    assert back.shape == states.shape
    assert back.dtype == torch.float32
    assert bool(((back - states).abs() <= bound(packing, states)).all())
    assert torch.equal(packing.encode(states), rows)
    for i in range(len(states)):  # rows stand alone
        assert torch.equal(packing.encode(states[i : i + 1])[0], rows[i])
        assert torch.equal(packing.decode(rows[i : i + 1])[0], back[i])


@pytest.mark.parametrize("bits", BITS)
def test_the_bound_above_is_met_closely(bits: Literal[8, 4]) -> None:
    packing, states = Packing(bits, 3, 64), torch.randn(50, 3, 64, generator=torch.Generator().manual_seed(0))
    share = (packing.decode(packing.encode(states)) - states).abs() / bound(packing, states)
    assert share.max() > 0.85


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [1e6, 1e9, 1e30, 3e38, float("inf")])
def test_numbers_beyond_what_a_scale_can_hold_are_cut_and_stay_numbers(bits: Literal[8, 4], size: float) -> None:
    packing = Packing(bits, 1, 32)
    states = torch.full((2, 1, 32), size)
    states[1, 0, 1::2] *= -1
    back = packing.decode(packing.encode(states))
    assert bool(back.isfinite().all())
    assert bool((back.sign() == states.sign()).all())
    assert bool((back.abs() >= min(size, TOP[bits] * 65504.0) * 0.99).all())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("byte", [0, 0x7C, 0x7E, 0xFC, 0xFF])
def test_any_bytes_become_numbers(bits: Literal[8, 4], byte: int) -> None:
    packing = Packing(bits, 3, 32)
    assert bool(packing.decode(torch.full((2, packing.row_bytes), byte, dtype=torch.uint8)).isfinite().all())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_floating_dtype_packs_alike(bits: Literal[8, 4], dtype: torch.dtype) -> None:
    packing, states = Packing(bits, 2, 32), torch.randn(4, 2, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(packing.encode(states), packing.encode(states.to(torch.float32)))


@pytest.mark.parametrize("bits", BITS)
def test_every_integer_has_a_code_of_its_own(bits: Literal[8, 4]) -> None:
    top = TOP[bits]
    numbers = torch.arange(-top, top + 1, dtype=torch.float32)
    states = torch.cat([numbers, numbers.new_zeros(1)])[None, None]  # an even number of them
    packing = Packing(bits, 1, states.shape[2])
    assert torch.equal(packing.decode(packing.encode(states)), states)


def test_four_bits_scale_by_groups_so_that_an_outlier_spoils_its_own_only() -> None:
    states = torch.ones(1, 2, 64)
    states[0, 0, 3] = 700.0
    back = Packing(4, 2, 64).decode(Packing(4, 2, 64).encode(states))
    assert back[0, 0, 0] == 0.0  # lost beside the outlier
    assert torch.allclose(back[0, 0, 32:], states[0, 0, 32:], rtol=1e-3)
    assert torch.allclose(back[0, 1], states[0, 1], rtol=1e-3)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.55), (4, 0.30)])
def test_a_token_takes_little_beside_a_cache_of_16_bits(bits: Literal[8, 4], most: float) -> None:
    layout = Layout(24, 2, 64, bits, tuple(range(16, 29)), whole=True)
    beside = 4 + 16 * 2  # which token it is, and the null scores of 16 heads
    assert layout.token_bytes + beside <= most * (24 * 2 * 64 * 2 * 2)


def test_a_layout_holds_every_vector_once() -> None:
    layout = Layout(3, 2, 4, 8, (1, 4), whole=True)
    assert sorted((*layout.rest, *layout.scoring)) == list(range(12))
    keys, values = torch.randn(3, 2, 7, 4), torch.randn(3, 2, 7, 4)
    flat = layout.flatten(keys, values)
    assert flat.shape == (7, 12, 4)
    assert torch.equal(flat[:, 4], keys[2, 0])
    assert torch.equal(flat[:, 6 + 5], values[2, 1])
    assert all(torch.equal(a, b) for a, b in zip(layout.unflatten(flat), (keys, values), strict=True))


def test_mean_and_spread_come_out_and_go_back() -> None:
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(200, 3, 16, generator=generator) * torch.rand(3, 16, generator=generator) + 5.0
    normal = Normal.of(states)
    out = normal.take_out(states)
    assert torch.allclose(out.mean(dim=0), torch.zeros(3, 16), atol=1e-3)
    assert torch.allclose(normal.put_back(out), states, atol=1e-4)
    assert bool((normal.spread > 0).all())


@pytest.mark.parametrize("bits", BITS)
def test_a_constant_that_dwarfs_the_rest_costs_no_precision(bits: Literal[8, 4]) -> None:
    states = torch.randn(300, 2, 64, generator=torch.Generator().manual_seed(3))
    states[:, :, 5] += 300.0  # the key bias of Qwen2
    packing, normal = Packing(bits, 2, 64), Normal.of(states)
    error = (normal.put_back(packing.decode(packing.encode(normal.take_out(states)))) - states).abs()
    assert error.max() < (0.03 if bits == 8 else 0.5)
    assert (packing.decode(packing.encode(states)) - states).abs().max() > (
        0.5 if bits == 8 else 2.0
    )  # the test can fail


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_channels_that_did_not_move_while_they_were_measured_may_move_later(bits: Literal[8, 4], rows: int) -> None:
    generator = torch.Generator().manual_seed(4)
    same = torch.randn(1, 2, 32, generator=generator).expand(rows, 2, 32)  # one token over and over, "....."
    later = torch.randn(50, 2, 32, generator=generator)
    packing, normal = Packing(bits, 2, 32), Normal.of(same)
    for states in (same, later):
        back = normal.put_back(packing.decode(packing.encode(normal.take_out(states))))
        assert (back - states).abs().max() < (0.05 if bits == 8 else 0.8)


@pytest.mark.parametrize("value", [0.0, 1e-20, 1.0, 300.0])
def test_constant_channels_come_back(value: float) -> None:
    states = torch.full((40, 2, 16), value)
    normal = Normal.of(states)
    back = normal.put_back(Packing(8, 2, 16).decode(Packing(8, 2, 16).encode(normal.take_out(states))))
    assert bool(back.isfinite().all())
    assert torch.allclose(back, states, atol=1e-6, rtol=1e-5)
