"""Laid-out weights: the same numbers, the same fingerprint, and the plain model back when it is closed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, byte_tokenizer, tiny_model

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.models import load, packed
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.fingerprint import model_fingerprint
from infinipot_llm.models.text import TextCodec

IDS = torch.randint(0, 250, (40,), generator=torch.Generator().manual_seed(0))
CAN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
pytestmark = pytest.mark.skipif(not CAN, reason="this build of torch has no oneDNN")


def hidden(adapter: Adapter) -> torch.Tensor:
    cache = adapter.new_cache(64)
    return torch.cat([adapter.forward(IDS[:30], cache), adapter.forward(IDS[30:31], cache)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_the_same(family: str, dtype: torch.dtype) -> None:
    try:
        packed._lay_out(torch.zeros(32, 32, dtype=dtype))
    except RuntimeError as error:  # in bf16, on older CPUs: there `pays` says no, and nothing is laid out
        assert not packed.pays(dtype)
        pytest.skip(f"this CPU lays out no weights in {dtype}: {error}")
    model = tiny_model(family).to(dtype)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    adapter = Adapter(model)
    before, mark = hidden(adapter), model_fingerprint(adapter)
    logits = adapter.logits(before)
    adapter.pack()
    most = 1e-5 if dtype == torch.float32 else 0.05
    assert (hidden(adapter) - before).abs().max() <= most * before.abs().max()
    assert (adapter.logits(before) - logits).abs().max() <= most * logits.abs().max()
    assert model.model.layers[0].mlp.up_proj.weight.numel() == 0  # held once
    assert model.dtype == dtype
    assert adapter.vocabulary == len(model.get_input_embeddings().weight)
    adapter._fingerprint = None  # type: ignore[attr-defined]
    assert model_fingerprint(adapter) == mark
    adapter.close()
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())
    plain = model(input_ids=IDS[None], use_cache=False).logits
    assert torch.equal(plain, tiny_model(family).to(dtype)(input_ids=IDS[None], use_cache=False).logits)
    adapter.open()
    assert model.model.layers[0].mlp.up_proj.weight.numel() == 0
    adapter.unpack()
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())
    assert torch.equal(hidden(adapter), before)
    adapter.close()


def test_a_tied_head_stays_as_it_is() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    adapter = Adapter(model)
    before = adapter.logits(hidden(adapter))
    adapter.pack()
    assert adapter.head.weight is model.get_input_embeddings().weight
    assert adapter.head.weight.numel() > 0
    assert torch.allclose(adapter.logits(hidden(adapter)), before, atol=1e-4)
    adapter.close()


def test_answers_are_the_same_from_a_packed_model() -> None:
    document = Document.from_text("The mill burned in 1903. It was rebuilt in 1904 for 68,211 crowns.\n" * 9)
    config = PotConfig(budget=500, max_new_tokens=12, question_tokens=40, chunk=64, recall=90)
    said = []
    for pack in (False, True):
        with InfiniPot(Adapter(tiny_model("llama")), TextCodec(byte_tokenizer()), config) as llm:
            if pack:
                llm.adapter.pack()
            memory = llm.read(document)
            said.append([memory.ask(q).text for q in ("When?", "How much?")])
    assert said[0] == said[1]


@pytest.mark.parametrize("worth", [True, False])
def test_a_model_is_packed_where_it_pays(worth: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(packed, "pays", lambda dtype: worth)
    adapter, _ = load.load_model(str(tmp_path), dtype="float32")
    assert (adapter._packed is not None) == worth
    adapter.close()


def test_another_build_of_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    assert not packed.pays.__wrapped__(torch.float16)
    for name in ("_lay_out", "_multiply"):
        with monkeypatch.context() as patched:
            patched.setattr(packed, name, missing)
            assert not packed.pays.__wrapped__(torch.float32)
    with monkeypatch.context() as patched:  # one that computes something else
        patched.setattr(packed, "_multiply", lambda weight, bias, tokens: torch.zeros(8, 1024))
        assert not packed.pays.__wrapped__(torch.float32)
    assert isinstance(packed.pays.__wrapped__(torch.float32), bool)
