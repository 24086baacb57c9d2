"""A tiny engine, a store, two documents, and what an engine reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, tiny_model

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader, ReadStats

CODEC = TextCodec(byte_tokenizer())
TEXT = "The mill burned in 1903. It was rebuilt in 1904 for 68,211 crowns. The owner moved away.\n" * 5
MORE = "Ada Krol bought the mill in 1911. She paid 90 crowns a year for it.\n" * 4
CONFIG = PotConfig(
    budget=400, max_new_tokens=16, question_tokens=40, chunk=64, recall=90, shelf="int8", recalled="load"
)
MILL = Document.from_text(TEXT, name="mill")
ADA = Document.from_text(MORE, name="ada")


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    with InfiniPot(Adapter(tiny_model("llama", num_hidden_layers=2)), CODEC, CONFIG) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "memories")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(first token, tokens of the text) of every reading."""
    seen: list[tuple[int, int]] = []
    true_read = Reader.read

    def read(reader: Reader, text: Any, *args: Any, **kwargs: Any) -> tuple[Pot, ReadStats]:
        seen.append((kwargs.get("start", 0), len(text)))
        return true_read(reader, text, *args, **kwargs)

    monkeypatch.setattr(Reader, "read", read)
    return seen


def other(llm: InfiniPot, **knobs: Any) -> InfiniPot:
    return InfiniPot(llm.adapter, CODEC, replace(CONFIG, **knobs))


def answers(memory: DocumentMemory) -> list[tuple[Any, ...]]:
    """What does not depend on the clock."""
    found = []
    for question, followup in (("When?", "recall"), ("Who moved away?", "recall"), ("When?", "reuse")):
        answer = memory.ask(question, followup=followup)
        found.append((answer.text, answer.citations, answer.finish_reason, answer.usage.recalled_tokens))
    return found


def files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.name != ".lock") if folder.is_dir() else []
