"""A tiny model for LlamaIndex, documents to ask it about, and ears for what LlamaIndex tells."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import llama_index.core.instrumentation as instrument
import pytest
from conftest import byte_tokenizer, tiny_model
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import Document
from llama_index.llms.infinipot import InfiniPotLLM
from reportlab.pdfgen.canvas import Canvas

from infinipot_llm.assistant import Assistant
from infinipot_llm.config import PotConfig
from infinipot_llm.engine import InfiniPot
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCUMENTS = EXAMPLES / "documents"
LONG = "The mill burned in 1903. It was rebuilt in 1904, of stone this time.\n\n" * 20
SETTINGS: dict[str, Any] = {"max_new_tokens": 12, "question_tokens": 32, "chunk": 128, "recall": 300}


@cache
def codec() -> TextCodec:
    return TextCodec(byte_tokenizer())


@cache
def adapter(seed: int = 0) -> Adapter:
    return Adapter(tiny_model("llama", seed=seed))


def tiny_engine(seed: int = 0, budget: int = 640, **settings: Any) -> InfiniPot:
    return InfiniPot(adapter(seed), codec(), PotConfig(budget=budget, **{**SETTINGS, **settings}))


def tiny_llm(seed: int = 0, budget: int = 640, options: dict[str, Any] | None = None, **settings: Any) -> InfiniPotLLM:
    return InfiniPotLLM(assistant=Assistant(tiny_engine(seed, budget, **settings)), **(options or {}))


def page(number: int, text: str, name: str = "mill.pdf", label: str | None = None, **more: Any) -> Document:
    told = {"file_name": name, "file_path": f"/nowhere/{name}", "page": number, "page_label": label or f"A-{number}"}
    return Document(text=text, metadata={**told, **more})


def mill_pages() -> list[Document]:
    return [
        page(i, f"Page {i} says that mill number {i} burned in 190{i}. The owner moved to town {i}.")
        for i in range(1, 7)
    ]


def river() -> Document:
    return Document(text="The river rose by 3 metres in May. Nobody slept that night.\n\n" * 8, id_="river")


def write_pdf(path: Path, *texts: str) -> Path:
    canvas = Canvas(str(path), invariant=1)
    for text in texts:
        canvas.drawString(72, 700, text)
        canvas.showPage()
    canvas.save()
    return path


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the names of documents that a model reads from now on."""
    read: list[str] = []
    real = InfiniPot.read

    def spy(self: InfiniPot, documents: Any, **options: Any) -> Any:
        several = documents if isinstance(documents, (list, tuple)) else [documents]
        read.extend(d.name for d in several)
        return real(self, documents, **options)

    monkeypatch.setattr(InfiniPot, "read", spy)
    return read


def slow_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with every forward pass of reading, each of which takes a while from now on."""
    passes: list[int] = []
    real = InfiniPot.read

    def slow(self: InfiniPot, documents: Any, *, progress: Any, **options: Any) -> Any:
        def told(stats: Any) -> None:
            passes.append(stats.tokens_read)
            time.sleep(0.05)
            progress(stats)

        return real(self, documents, progress=told, **options)

    monkeypatch.setattr(InfiniPot, "read", slow)
    return passes


def shown(nodes: list[Any]) -> list[tuple[Any, ...]]:
    """Return what a caller sees of source nodes."""
    return [(n.node.node_id, n.node.text, n.score, n.node.metadata) for n in nodes]


class _Ears(BaseEventHandler):
    heard: list[Any] = []  # noqa: RUF012 - a pydantic field, copied for each

    @classmethod
    def class_name(cls) -> str:
        return "Ears"

    def handle(self, event: Any, **_: Any) -> None:
        self.heard.append(event)


@contextmanager
def listening() -> Iterator[list[Any]]:
    """Collect the events of LlamaIndex."""
    root = instrument.get_dispatcher()
    ears = _Ears(heard=[])
    root.add_event_handler(ears)
    try:
        yield ears.heard
    finally:
        root.event_handlers.remove(ears)
