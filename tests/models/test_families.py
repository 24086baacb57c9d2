"""Further families: through slots they are what they are without, and a wrong seam is noticed in each of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from conftest import OTHERS, SLIDING, tiny_model
from torch import Tensor

from infinipot_llm.errors import BudgetError, ModelError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.rotation import Rotation
from infinipot_llm.models.window import WindowLayer

IDS = torch.randint(0, 256, (150,), generator=torch.Generator().manual_seed(1))
TRUE_CALL, TRUE_UPDATE = Rotation.__call__, WindowLayer.update


@cache
def made(family: str) -> tuple[Adapter, Tensor]:
    """An adapter, and the logits [150, V] of its model as it is."""
    model = tiny_model(family)
    with torch.no_grad():
        plain = model(input_ids=IDS[None], use_cache=False).logits[0]
    return Adapter(model), plain


@pytest.mark.parametrize("chunk", [11, 150])
@pytest.mark.parametrize("family", OTHERS)
def test_logits_are_the_plain_models_at_any_chunk_size(family: str, chunk: int) -> None:
    adapter, plain = made(family)
    cache = adapter.new_cache(150)
    ours = adapter.logits(torch.cat([adapter.forward(part, cache) for part in IDS.split(chunk)]))
    assert (ours - plain).abs().max() <= 5e-5 * plain.abs().max()


@pytest.mark.parametrize("family", OTHERS)
def test_self_check_passes_and_leaves_everything_as_it_was(family: str) -> None:
    adapter, _ = made(family)
    before = adapter.windows, getattr(adapter.config, "sliding_window", None)
    assert 0.0 <= adapter.self_check() < 3e-5
    assert (adapter.windows, getattr(adapter.config, "sliding_window", None)) == before


def no_rotation(rotation: Rotation, states: Tensor, start: int) -> Tensor:
    return states


def queries_off_by_one(rotation: Rotation, states: Tensor, start: int) -> Tensor:
    shifted = start + 1 if states.shape[1] == 6 and start + states.shape[2] < rotation.cos.shape[1] else start
    return TRUE_CALL(rotation, states, shifted)


def wrong_theta(rotation: Rotation, states: Tensor, start: int) -> Tensor:
    angles = torch.atan2(rotation.sin, rotation.cos) * 0.9
    return TRUE_CALL(Rotation(angles.cos(), angles.sin(), rotation.apply), states, start)


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("mutant", [no_rotation, queries_off_by_one, wrong_theta])
def test_self_check_catches_a_wrong_rotation(
    family: str, mutant: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = Adapter(tiny_model(family))
    monkeypatch.setattr(Rotation, "__call__", mutant)
    with pytest.raises(ModelError, match=r"not supported.*docs/models\.md"):
        adapter.self_check()


# --- sliding layers ---


@pytest.mark.parametrize("family", SLIDING)
@pytest.mark.parametrize("window", [20, 40, 1000])  # shorter and longer than what the check narrows windows to
def test_self_check_knows_every_window(family: str, window: int) -> None:
    adapter = Adapter(tiny_model(family, sliding_window=window))
    assert adapter.windows == (window, None, window, None)
    assert adapter.layers == 2
    assert adapter.self_check() < 3e-5


@pytest.mark.parametrize("family", SLIDING)
@pytest.mark.parametrize("by", [-1, 1, None])
def test_self_check_catches_a_wrong_window(family: str, by: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """None: a layer that slides and is taken for one that does not."""
    adapter = Adapter(tiny_model(family, sliding_window=400))
    true_new = Adapter.new_cache

    def wrong(adapter: Adapter, slots: int) -> object:
        windows = adapter.windows
        adapter.windows = tuple(w and (w + by if by else None) for w in windows)
        try:
            return true_new(adapter, slots)
        finally:
            adapter.windows = windows

    monkeypatch.setattr(Adapter, "new_cache", wrong)
    with pytest.raises(ModelError, match="not supported"):
        adapter.self_check()


def test_a_window_that_is_never_reached_is_none() -> None:
    adapter = Adapter(tiny_model("gemma3", sliding_window=4096))
    assert adapter.windows == (None,) * 4
    assert adapter.layers == 4
    assert adapter.window == 4096


def test_the_budget_leaves_the_windows_their_positions() -> None:
    adapter, _ = made("gemma3")
    assert adapter.window == 4096 - 19
    cache = adapter.new_cache(4096 - 19)
    assert cache.sliding[0].rotation.cos.shape[1] == 4096
    with pytest.raises(BudgetError, match=r"4096 positions.*19 of them.*at most 4077"):
        adapter.new_cache(4078)


def test_where_all_layers_slide_the_budget_ends_at_the_window() -> None:
    adapter, _ = made("mistral-window")
    assert adapter.layers == 3
    assert not any(adapter.windows)
    assert adapter.new_cache(300).sliding == []
    with pytest.raises(BudgetError, match=r"all layers .* only 300 tokens back.*at most 300"):
        adapter.new_cache(301)


def test_a_window_holds_no_more_tokens_than_a_pot() -> None:
    adapter, _ = made("gemma3")
    cache = adapter.new_cache(8)
    assert [layer.window for layer in cache.sliding] == [8, 8]


def test_buffers_of_a_window_do_not_grow_with_the_text() -> None:
    adapter, _ = made("gemma3")
    cache = adapter.new_cache(150)
    sizes = []
    for part in IDS.split(10):
        adapter.forward(part, cache)
        sizes.append([layer.raw_keys.shape[2] for layer in cache.sliding])
    assert sizes == [[19 + 20] * 2] * 15


def test_layers_of_other_kinds_are_refused_by_name() -> None:
    model = tiny_model("gemma3")
    model.config.layer_types = ["chunked_attention", "full_attention"] * 2
    with pytest.raises(ModelError, match="chunked_attention"):
        Adapter(model)


def test_windows_of_several_sizes_are_refused() -> None:
    model = tiny_model("gemma3")
    model.model.layers[0].self_attn.sliding_window = 21
    with pytest.raises(ModelError, match="several sizes"):
        Adapter(model)


def test_a_refused_model_is_given_back_as_it_was() -> None:
    model = tiny_model("gemma2", sliding_window=4096, attn_logit_softcapping=5.0, query_pre_attn_scalar=16)
    before = model.config._attn_implementation
    with pytest.raises(ModelError, match="softcap"):
        Adapter(model)
    assert model.config._attn_implementation == before
    assert not any(m._forward_pre_hooks for m in model.modules())
