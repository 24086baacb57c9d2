"""Memories of every kind, saved to files, and what they say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, tiny_model
from numpy.typing import NDArray

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.documents.document import Turn
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import MemoryFileError
from infinipot_llm.memory.file import Draft, MemoryFile
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

CONFIG = PotConfig(budget=420, max_new_tokens=12, question_tokens=32, chunk=64, recall=96, shelf="int8")
KINDS: dict[str, dict[str, Any]] = {
    "int8": {},
    "keys": {"shelf": "keys"},
    "keys bounded": {"shelf": "keys", "shelf_bytes": 9_000},
    "int4": {"shelf": "int4"},
    "off": {"shelf": "off"},
    "bounded": {"shelf_bytes": 50_000},
    "extended": {},
    "extended bounded": {"shelf_bytes": 50_000},
}
SAID = "The mill burned in 1903. Élan naïve 東京. It was rebuilt in 1904 for 68,211 crowns. The owner moved.\n"
QUESTIONS = ("When did the mill burn?", "Who moved?")
TEXT = SAID * 6 + "\fA second page. " + SAID
SPOKEN = Document(
    "talk",
    "Ann: We met. Bob: At last.",
    Document.from_text("Ann: We met. Bob: At last.").pages,
    notes=("a note",),
    turns=(Turn(0, 12, "Ann", 0.5), Turn(13, 26, None, None)),
)


def made(kind: str, adapter: Adapter) -> tuple[InfiniPot, DocumentMemory]:
    llm = InfiniPot(adapter, TextCodec(byte_tokenizer()), replace(CONFIG, **KINDS[kind]), name="tiny")
    memory = llm.read([Document.from_text(TEXT, name="mill"), SPOKEN])
    if kind.startswith("extended"):
        memory = llm.extend(memory, Document.from_text("And the pump broke. " * 20, name="pump"))
    return llm, memory


@pytest.fixture(scope="module")
def adapter() -> Iterator[Adapter]:
    adapter = Adapter(tiny_model("llama"))
    yield adapter
    adapter.close()


Saved = dict[str, tuple[InfiniPot, DocumentMemory, Path]]


@pytest.fixture(scope="module")
def saved(adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """One memory of each kind, and its file."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINIPOT_STORE", str(folder / "store"))
        found: Saved = {}
        for kind in KINDS:
            llm, memory = made(kind, adapter)
            found[kind] = llm, memory, memory.save(folder / f"{kind}.infinipot")
        yield found


def said(memory: DocumentMemory) -> list[Any]:
    """Return everything that questions bring back, as plain JSON."""
    found: list[Any] = []
    for question in QUESTIONS:
        answer = memory.ask(question)
        found.append([answer.text, [[c.document, c.start, c.end, c.quote, c.score] for c in answer.citations]])
        found.append([answer.supported, answer.usage.recalled_tokens])
        if memory.shelved is not None:
            found.append([[s.document, s.start, s.end, s.page, s.speaker, s.time] for s, _ in memory.recall(question)])
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def python(script: str, *arguments: object) -> list[str]:
    paths = (Path(__file__).parent, Path(__file__).parent.parent)
    before = f"import sys; sys.path[:0] = {[str(p) for p in paths]!r}\n"
    return [sys.executable, "-c", before + script, str(paths[0]), *map(str, arguments)]


def refusal(llm: InfiniPot, path: Path) -> str:
    with pytest.raises(MemoryFileError) as caught:
        llm.load(path)
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 400
    assert told.endswith(".")
    return told


About = dict[str, Any]
Content = dict[str, NDArray[Any]]


def parts_of(path: Path) -> tuple[About, Content]:
    file = MemoryFile(path)
    tensors = {name: file.rows(name) for name in file._entries if name != "crc"}
    file.close()
    return {k: v for k, v in file.about.items() if k != "format"}, tensors


def forged(path: Path, about: About, tensors: Content) -> Path:
    draft = Draft(path)
    try:
        for name, data in tensors.items():
            draft.add(name, data)
        draft.finish(about)
    except BaseException:
        draft.discard()
        raise
    return path
