"""LangChain's and LlamaIndex's classes in one process: one set of weights, and nobody notices the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, tiny_model
from langchain_core.messages import HumanMessage
from langchain_infinipot import ChatInfiniPot
from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, TextBlock
from llama_index.llms.infinipot import InfiniPotLLM

from infinipot_llm.assistant import Assistant
from infinipot_llm.engine import InfiniPot
from infinipot_llm.models import load
from infinipot_llm.models.adapter import Adapter

pytestmark = pytest.mark.usefixtures("closed_loop")

SETTINGS: dict[str, Any] = {"budget": 512, "device": "cpu", "dtype": "float32", "store": False, "citations": False}
KNOBS: dict[str, Any] = {"question_tokens": 32, "chunk": 64, "recall": 200}
MILL = "The mill burned in 1903. It was rebuilt in 1904 for 68,211 crowns. The owner moved away.\n" * 12
LAMPS = "The lamp of room 7 is lit at dusk. Nobody puts out the lamp of room 9 before dawn.\n" * 12
WHEN, WHO = "When did the mill burn?", "Who lights the lamps?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model that no other test has loaded."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of models that are loaded from now on; what is shared goes when the test ends."""
    names: list[str] = []
    real = load.load_model

    def spy(name: str, **options: Any) -> Any:
        names.append(name)
        return real(name, **options)

    monkeypatch.setattr(load, "load_model", spy)
    monkeypatch.setattr(load, "_loaded", {})
    return names


def langchain(folder: Path, **changes: Any) -> ChatInfiniPot:
    return ChatInfiniPot(model=str(folder), max_tokens=12, **{**SETTINGS, "knobs": KNOBS, **changes})


def llama_index(folder: Path, **changes: Any) -> InfiniPotLLM:
    return InfiniPotLLM(model=str(folder), max_new_tokens=12, settings=KNOBS, **{**SETTINGS, **changes})


def to_langchain(text: str, question: str) -> list[HumanMessage]:
    block = {"type": "text-plain", "text": text, "mime_type": "text/plain", "title": "notes.txt"}
    return [HumanMessage([block, {"type": "text", "text": question}])]


def to_llama_index(text: str, question: str) -> list[ChatMessage]:
    document = DocumentBlock(data=text.encode(), title="notes.txt", document_mimetype="text/plain")
    return [ChatMessage(blocks=[document, TextBlock(text=question)])]


def storages(adapter: Adapter) -> set[int]:
    """Where weights are: of plain ones the address, of those that are laid out the object."""
    plain = {p.data_ptr() for p in adapter.model.parameters() if p.numel()}
    held = adapter._packed._held.values() if adapter._packed is not None else ()
    return plain | {id(laid_out) for _, laid_out in held}


def adapter_of(llm: ChatInfiniPot | InfiniPotLLM) -> Adapter:
    assistant = llm.assistant if isinstance(llm, InfiniPotLLM) else llm.engine()
    return assistant.llm.adapter


def test_both_libraries_hold_the_same_storage_which_was_loaded_once(folder: Path, loaded: list[str]) -> None:
    chat, llm = langchain(folder), llama_index(folder)
    others = [langchain(folder, budget=640), llama_index(folder, budget=640)]
    chat.invoke(to_langchain(MILL, WHEN))
    llm.chat(to_llama_index(MILL, WHEN))
    held = storages(adapter_of(chat))
    assert len(held) > 10
    assert all(storages(adapter_of(one)) == held for one in (llm, *others))
    assert loaded == [str(folder)]
    with InfiniPot.from_pretrained(str(folder), budget=512, device="cpu", dtype="float32") as alone:
        assert not storages(alone.adapter) & held  # who does not ask for shared weights has their own


def test_other_weights_are_not_shared(folder: Path, loaded: list[str]) -> None:
    half = adapter_of(langchain(folder, dtype="bfloat16"))
    whole = adapter_of(llama_index(folder, dtype="float32"))
    assert not storages(half) & storages(whole)
    assert len(loaded) == 2


def alone(folder: Path) -> dict[str, str]:
    """The answers of weights that nobody else uses, each of a model that was asked nothing before."""

    def said(ask: Callable[[Assistant], Any]) -> str:
        with InfiniPot.from_pretrained(str(folder), budget=512, device="cpu", dtype="float32", **KNOBS) as llm:
            return str(ask(Assistant(llm)))

    def of_langchain(text: str, question: str) -> str:
        return said(lambda a: langchain(folder, assistant=a, knobs={}).invoke(to_langchain(text, question)).content)

    def of_llama_index(text: str, question: str) -> str:
        asked = to_llama_index(text, question)
        return said(lambda a: InfiniPotLLM(assistant=a, max_new_tokens=12, citations=False).chat(asked).message.content)

    return {
        "lc mill": of_langchain(MILL, WHEN), "lc lamps": of_langchain(LAMPS, WHO),
        "li mill": of_llama_index(MILL, WHEN), "li lamps": of_llama_index(LAMPS, WHO),
    }  # fmt: skip


def test_answers_are_the_same_however_questions_are_interleaved(folder: Path, loaded: list[str]) -> None:
    wanted = alone(folder)
    assert len(set(wanted.values())) > 1  # the model does not say one thing whatever it is asked
    loaded.clear()
    chat, llm = langchain(folder), llama_index(folder)
    asks: dict[str, Callable[[], Any]] = {
        "lc mill": lambda: chat.invoke(to_langchain(MILL, WHEN)).content,
        "li lamps": lambda: llm.chat(to_llama_index(LAMPS, WHO)).message.content,
        "lc lamps": lambda: chat.invoke(to_langchain(LAMPS, WHO)).content,
        "li mill": lambda: llm.chat(to_llama_index(MILL, WHEN)).message.content,
    }
    for order in (asks, reversed(asks)):  # first read, then remembered
        assert {name: asks[name]() for name in order} == wanted

    stream = chat.stream(to_langchain(MILL, WHEN))
    pieces = [next(stream).content]
    between = asks["li lamps"]()  # while the other library's answer is not over
    assert between == wanted["li lamps"]
    assert "".join([*map(str, pieces), *(str(chunk.content) for chunk in stream)]) == wanted["lc mill"]

    said: list[tuple[str, str]] = []
    threads = [
        threading.Thread(target=lambda name=name: said.append((name, asks[name]()))) for name in asks for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == sorted(2 * list(wanted.items()))
    assert loaded == [str(folder)]
