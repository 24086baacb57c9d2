"""What a memory in the store depends on: what makes an engine read again, and what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import byte_tokenizer, tiny_model
from engine_samples import ADA, CODEC, CONFIG, MILL, TEXT, other
from engine_samples import llm as llm
from engine_samples import reads as reads
from engine_samples import store as store

from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import MemoryFileError
from infinipot_llm.memory.answerable import Judge
from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.joined import joined
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

KNOBS: list[dict[str, Any]] = [
    {"budget": 401},
    {"kept": 0.4},
    {"novelty_share": 0.4},
    {"neighbours": 3},
    {"neighbour_weight": 0.8},
    {"sink_tokens": 100},
    {"catalyst_reduce": "max"},
    {"catalysts": ("Who?",)},
    {"question_tokens": 39},
    {"shelf": "int4"},
    {"shelf_bytes": 10**9},
    {"policy": "streaming"},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_another_configuration_reads_again(
    llm: InfiniPot, store: MemoryStore, reads: list[Any], knobs: dict[str, Any]
) -> None:
    llm.read(MILL, store=store)
    engine = other(llm, **knobs)
    memory = engine.read(MILL, store=store)
    assert len(reads) == 2
    assert memory.config == engine.config
    assert len(store.list()) == 2


def test_another_model_heads_or_prompt_reads_again(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    llm.read(MILL, store=store)
    InfiniPot(llm.adapter, CODEC, CONFIG, Heads(((0, 1), (1, 3)), (1.0, 1.0), True)).read(MILL, store=store)
    assert len(reads) == 2
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("\n{% endfor %}", "\n\n{% endfor %}")
    InfiniPot(llm.adapter, TextCodec(tokenizer), CONFIG).read(MILL, store=store)
    assert len(reads) == 3
    for number, (family, seed) in enumerate((("llama", 1), ("qwen3", 0)), start=4):
        with InfiniPot(Adapter(tiny_model(family, seed, num_hidden_layers=2)), CODEC, CONFIG) as engine:
            engine.read(MILL, store=store)
            assert len(reads) == number
            with pytest.raises(MemoryFileError, match="another model"):
                engine.load(store.get(llm.key([MILL])) or "")
    assert len(store.list()) == 5


def test_what_heads_count_is_of_asking(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    """A model that is calibrated again by the same heads reads nothing again, and its memories are judged anew."""
    llm.read(MILL, store=store)
    heads = replace(llm.heads, weights=(0.5,) * len(llm.heads.weights), calibrated=True, judge=Judge(1.0, 2.0, 3.0))
    engine = InfiniPot(llm.adapter, CODEC, CONFIG, heads)
    found = engine.read(MILL, store=store)
    assert len(reads) == 1
    assert found.setup.heads == heads
    assert joined([found, engine.read(ADA)]).setup.heads == heads
    assert llm.load(store.get(llm.key([MILL])) or "").setup.heads == llm.heads
    both = joined([found, llm.read(ADA)])  # read before and after
    assert both.ask("Who?", citations=False).usage.recalled_tokens > 0


def test_other_contents_read_again(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    variants = [[MILL], [Document.from_text(TEXT + "x", name="mill")], [MILL, ADA], [ADA, MILL], [ADA]]
    for documents in variants:
        llm.read(documents, store=store)
    assert len(reads) == len(store.list()) == len({llm.key(d) for d in variants}) == 5
    for documents in variants:
        assert list(llm.read(documents, store=store).documents) == documents
    assert len(reads) == 5
