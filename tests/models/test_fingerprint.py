"""Fingerprints: the same model and tokenizer are known again wherever they come from, any other is told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, byte_tokenizer, tiny_model
from tokenizers import normalizers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from infinipot_llm.models.text import TextCodec


def of(family: str = "llama", change: Callable[[Any], Any] | None = None, **sizes: Any) -> str:
    model = tiny_model(family, **sizes)
    if change is not None:
        with torch.no_grad():
            model = change(model) or model
    adapter = Adapter(model)
    try:
        return model_fingerprint(adapter)
    finally:
        adapter.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_is_known_again(family: str) -> None:
    assert of(family) == of(family)
    assert len(of(family)) == 64


def test_families_and_seeds_differ() -> None:
    assert len({*(of(f) for f in FAMILIES), of("llama", seed=1)}) == 4


@pytest.mark.parametrize("name", [n for n, _ in tiny_model("qwen2", num_hidden_layers=1).named_parameters()])
def test_one_changed_number_in_any_weight_is_another_model(name: str) -> None:
    def nudge(model: nn.Module) -> None:
        weight = model.get_parameter(name).view(-1)
        weight[len(weight) // 2] = torch.nextafter(weight[len(weight) // 2], torch.tensor(9.0))

    assert of("qwen2", nudge, num_hidden_layers=1) != of("qwen2", num_hidden_layers=1)


def test_two_weights_of_one_shape_that_changed_places_are_another_model() -> None:
    def swap(model: Any) -> None:
        a, b = (layer.self_attn.q_proj.weight for layer in model.model.layers[:2])
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)

    assert of("llama", swap) != of("llama")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_is_another_model(dtype: torch.dtype) -> None:
    assert of("llama", lambda model: model.to(dtype)) != of("llama")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10500.0},
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    ],
)
def test_other_positions_are_another_model(rope: dict[str, Any]) -> None:
    assert of("llama", rope_parameters=rope) != of("llama")


def test_which_layers_have_positions_counts() -> None:
    found = [of("smollm3", no_rope_layers=rotates) for rotates in ([1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0])]
    assert len(set(found)) == 4


def test_a_parameter_without_dimensions_is_counted_as_well() -> None:
    def scalar(value: float) -> Callable[[Any], None]:
        def change(model: Any) -> None:
            model.model.gain = nn.Parameter(torch.tensor(value))

        return change

    assert of("llama", scalar(1.0)) != of("llama", scalar(2.0))
    assert of("llama", scalar(1.0)) == of("llama", scalar(1.0))


def test_a_model_is_known_again_from_another_folder(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32)
    assert of("qwen3", lambda _: found) == of("qwen3")


def test_it_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(tiny_model("llama"))
    found = model_fingerprint(adapter)
    monkeypatch.setattr(adapter.model, "named_parameters", None)
    assert model_fingerprint(adapter) == found
    adapter.close()


def tokens(change: Callable[[PreTrainedTokenizerFast], object] | None = None) -> str:
    tokenizer = byte_tokenizer()
    if change is not None:
        change(tokenizer)
    return tokenizer_fingerprint(TextCodec(tokenizer))


def test_the_same_tokenizer_is_known_again_whatever_it_did(tmp_path: Path) -> None:
    assert tokens() == tokens()
    assert tokens(lambda t: t("x" * 50, truncation=True, max_length=4)) == tokens()
    assert tokens(lambda t: t(["x", "xyz"], padding=True)) == tokens()
    byte_tokenizer().save_pretrained(tmp_path)
    assert tokenizer_fingerprint(TextCodec(PreTrainedTokenizerFast.from_pretrained(tmp_path))) == tokens()


def test_another_tokenizer_is_told_apart() -> None:
    def lower(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()

    assert len({tokens(), tokens(lower), tokens(lambda t: t.add_tokens(["<new>"]))}) == 3
