"""A tiny model and a memory of a short document, to be asked in any way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from torch import Tensor, nn

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

CODEC = TextCodec(byte_tokenizer())
TEXT = "The mill burned in 1903. It was rebuilt in 1904 for 68,211 crowns. The owner moved away.\n" * 6
LIMIT = 20


@pytest.fixture(scope="module", params=["recall", "reuse"])
def llm(request: pytest.FixtureRequest) -> Iterator[InfiniPot]:
    """Everything here must hold whether the shelf answers or the pot."""
    config = PotConfig(
        budget=330,
        max_new_tokens=LIMIT,
        question_tokens=40,
        chunk=128,
        followup=request.param,
        shelf="int8",
        recalled="load",
    )
    with InfiniPot(Adapter(tiny_model("qwen3", num_hidden_layers=2)), CODEC, config) as made:
        yield made


@pytest.fixture(scope="module")
def memory(llm: InfiniPot) -> DocumentMemory:
    read = llm.read(Document.from_text(TEXT, name="mill"))
    assert read.stats.cycles > 2
    assert 0 < read.ask("When?").usage.recalled_tokens < len(read.text) or read.config.followup == "reuse"
    return read


class Words:
    """An output head that says "word word word ..." for ever; `said` counts its tokens."""

    def __init__(self, adapter: Adapter) -> None:
        self.said = 0
        self._ids = CODEC.untrusted("word ")
        self._handle = adapter.head.register_forward_hook(self._dictate)

    def _dictate(self, module: nn.Module, given: object, out: Tensor) -> Tensor:
        forced = torch.zeros_like(out)
        forced[..., self._ids[self.said % len(self._ids)]] = 50.0
        self.said += 1
        return forced

    def __enter__(self) -> Words:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()


class OopsError(Exception):
    """What a caller's own code raises."""


def fail(*anything: object, **named: object) -> bool:
    raise OopsError
