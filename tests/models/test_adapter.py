"""The seam: a model reading through slots is the plain model, for every family, and a wrong seam is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import FAMILIES, tiny_model

from infinipot_llm.errors import BudgetError, ModelError
from infinipot_llm.models import adapter as adapter_module
from infinipot_llm.models import attention
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.rotation import Rotation
from infinipot_llm.models.slots import SlotLayer

IDS = torch.randint(0, 256, (150,), generator=torch.Generator().manual_seed(1))


def plain_logits(adapter: Adapter, ids: torch.Tensor) -> torch.Tensor:
    adapter.close()
    with torch.no_grad():
        logits = adapter.model(input_ids=ids[None], use_cache=False).logits[0]
    adapter.open()
    return logits


def slot_logits(adapter: Adapter, ids: torch.Tensor, chunk: int) -> torch.Tensor:
    cache = adapter.new_cache(len(ids))
    return adapter.logits(torch.cat([adapter.forward(part, cache) for part in ids.split(chunk)]))


@pytest.mark.parametrize("chunk", [1, 7, 64, 150])
def test_logits_are_the_plain_models_at_any_chunk_size(adapter: Adapter, chunk: int) -> None:
    plain = plain_logits(adapter, IDS)
    ours = slot_logits(adapter, IDS, chunk)
    assert (ours - plain).abs().max() <= 2e-5 * plain.abs().max()


@pytest.mark.parametrize(
    "rope",
    [
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    ],
)
def test_scaled_rotary_forms(rope: dict[str, object]) -> None:
    adapter = Adapter(tiny_model("llama", rope_parameters=rope))
    plain = plain_logits(adapter, IDS)
    assert (slot_logits(adapter, IDS, 32) - plain).abs().max() <= 2e-5 * plain.abs().max()


def test_self_check_passes_and_says_how_close(adapter: Adapter) -> None:
    assert 0.0 <= adapter.self_check() < 2e-5


def no_rotation(rotation: Rotation, states: torch.Tensor, start: int) -> torch.Tensor:
    return states


def off_by_one_for_queries(rotation: Rotation, states: torch.Tensor, start: int) -> torch.Tensor:
    shifted = start + 1 if states.shape[1] == 6 and start + states.shape[2] < rotation.cos.shape[1] else start
    return TRUE_CALL(rotation, states, shifted)


def wrong_theta(rotation: Rotation, states: torch.Tensor, start: int) -> torch.Tensor:
    angles = torch.atan2(rotation.sin, rotation.cos) * 0.9
    return TRUE_CALL(Rotation(angles.cos(), angles.sin(), rotation.apply), states, start)


TRUE_CALL = Rotation.__call__


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mutant", [no_rotation, off_by_one_for_queries, wrong_theta])
def test_self_check_catches_a_wrong_rotation(
    family: str, mutant: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = Adapter(tiny_model(family))
    monkeypatch.setattr(Rotation, "__call__", mutant)
    with pytest.raises(ModelError, match="not supported"):
        adapter.self_check()


def test_self_check_catches_a_mask_that_is_not_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(tiny_model("qwen2"))
    monkeypatch.setattr(adapter_module.attention, "causal_bias", lambda new, held, **kw: torch.zeros(new, held))
    with pytest.raises(ModelError):
        adapter.self_check()


def test_self_check_catches_a_cache_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(tiny_model("qwen3"))
    true_update = SlotLayer.update

    def forgetful(layer: SlotLayer, key: torch.Tensor, value: torch.Tensor, *args: object, **kw: object) -> object:
        keys, values = true_update(layer, key, value)
        layer.value_states[:, :, 0] = 0.0
        return keys, values

    monkeypatch.setattr(SlotLayer, "update", forgetful)
    with pytest.raises(ModelError):
        adapter.self_check()


def test_closed_model_is_bit_identical_to_the_one_given() -> None:
    model = tiny_model("qwen2")
    with torch.no_grad():
        before = model(input_ids=IDS[None]).logits
    adapter = Adapter(model)
    slot_logits(adapter, IDS, 32)
    adapter.close()
    with torch.no_grad():
        after = model(input_ids=IDS[None]).logits
    assert torch.equal(before, after)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_two_models_do_not_disturb_each_other() -> None:
    first, second = Adapter(tiny_model("llama")), Adapter(tiny_model("qwen3", seed=5))
    expected = plain_logits(first, IDS)
    plain_logits(second, IDS)  # switches the second one off and on again
    assert (slot_logits(first, IDS, 50) - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_a_plain_call_while_switched_on_is_refused_not_answered_wrongly() -> None:
    adapter = Adapter(tiny_model("llama"))
    with pytest.raises(ModelError, match="through a pot"), torch.no_grad():
        adapter.model(input_ids=IDS[None], use_cache=False)


def test_position_ids_are_irrelevant() -> None:
    adapter = Adapter(tiny_model("llama"))
    expected = slot_logits(adapter, IDS[:40], 40)
    cache = adapter.new_cache(40)
    with torch.no_grad():
        out = adapter.backbone(
            input_ids=IDS[None, :40], position_ids=torch.full((1, 40), 7), past_key_values=cache, use_cache=True
        )
    assert torch.equal(adapter.logits(out.last_hidden_state[0]), expected)


def test_architectures_without_rotary_layers_are_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=64))
    with pytest.raises(ModelError, match="gpt2"):
        Adapter(model)


def test_budget_beyond_the_trained_window() -> None:
    with pytest.raises(BudgetError, match="4096 positions"):
        Adapter(tiny_model("llama")).new_cache(5000)


def test_keys_are_kept_unrotated_and_rotated_to_their_slots_bit_for_bit(adapter: Adapter) -> None:
    cache = adapter.new_cache(100)
    for part in IDS[:90].split(13):
        adapter.forward(part, cache)
    generator = torch.Generator().manual_seed(3)
    for cycle in range(4):
        for layer in cache.layers:
            held = layer.length
            slots = torch.stack(
                [torch.randperm(held, generator=generator)[: held - 11].sort().values for _ in range(2)]
            )
            expected = layer.raw_keys[:, :, :held].gather(2, slots[None, ..., None].expand(-1, -1, -1, 16))
            layer.keep(slots[None])
            assert torch.equal(layer.raw_keys[:, :, : layer.length], expected), cycle
            once = layer.rotation(expected, 0)
            assert torch.equal(layer.rotated_keys[:, :, : layer.length], once), cycle
        adapter.forward(IDS[90 + cycle : 91 + cycle], cache)


def test_a_closed_model_refuses_to_read_on() -> None:
    adapter = Adapter(tiny_model("llama"))
    cache = adapter.new_cache(20)
    adapter.close()
    with pytest.raises(ModelError, match="closed"):
        adapter.forward(IDS[:4], cache)


def test_one_model_cannot_be_switched_on_twice() -> None:
    model = tiny_model("llama")
    first = Adapter(model)
    with pytest.raises(ModelError, match="already"):
        Adapter(model)
    first.close()
    Adapter(model).close()


def test_weights_that_overflow_are_refused_by_name_of_the_dtype() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.inf
    with pytest.raises(ModelError, match="float32"):
        Adapter(model).self_check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_the_self_check(dtype: torch.dtype) -> None:
    assert Adapter(tiny_model("qwen2").to(dtype)).self_check() < 0.1


def test_folded_heads_attend_as_separate_ones() -> None:
    """What GPUs run and what CPUs run are the same attention."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 6, 5, 16, generator=generator), torch.randn(1, 2, 9, 16, generator=generator)
    value = torch.randn(1, 2, 9, 16, generator=generator)
    bias = attention.causal_bias(5, 9, dtype=torch.float32, device=torch.device("cpu"))
    folded = attention.attend_folded(query, key, value, bias, 0.25)
    plain = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, scale=0.25, enable_gqa=True
    )
    assert torch.allclose(folded, plain, atol=1e-6)
