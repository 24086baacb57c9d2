"""Documents that were read, each once: held open, found again in the store, told apart, shared among threads."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from test_assistant import ASK, LONG, OTHER, made
from test_assistant import adapter as adapter
from test_assistant import assistant as assistant

from infinipot_llm import collection as collection_module
from infinipot_llm.assistant import Assistant, Reply
from infinipot_llm.documents import Document
from infinipot_llm.errors import DocumentError, GoneError
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.memory.waiting import held
from infinipot_llm.models.adapter import Adapter


def test_memories_are_shared_by_way_of_the_store(adapter: Adapter, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    assert made(adapter, store).respond(ASK, [LONG]).read_tokens == len(LONG.text)
    later = made(adapter, store)
    assert later.respond(ASK, [Document.from_text(LONG.text, name="renamed")]).remembered_tokens == len(LONG.text)
    assert len(store.list()) == 1


def test_a_document_is_recognised_by_its_id(adapter: Adapter, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    first = made(adapter, store)
    first.respond(ASK, [LONG])
    assert first.recognised(LONG.id).text == LONG.text
    assert made(adapter, store).recognised(LONG.id).text == LONG.text
    with pytest.raises(DocumentError, match="give the document itself"):
        made(adapter).recognised(LONG.id)
    for wrong in ("", LONG.id.upper(), LONG.id + "0", "../" + LONG.id, LONG.id + "\n"):
        with pytest.raises(DocumentError, match="64 hex digits"):
            first.recognised(wrong)


def test_several_documents_are_recalled_together_and_each_is_read_once(assistant: Assistant) -> None:
    assistant.respond(ASK, [LONG])
    reply = assistant.respond(ASK, [LONG, OTHER, LONG])
    assert [d.name for d in reply.documents] == ["long", "other"]
    assert (reply.read_tokens, reply.remembered_tokens) == (len(OTHER.text), len(LONG.text))
    assert assistant.respond(ASK, [OTHER, LONG]).read_tokens == 0
    both = assistant.remember([LONG, OTHER])
    assert assistant.remember([LONG, OTHER]) is both
    found = [both.recall(question, 60)[0][0].document for question in ("Ship 30 launched", "Mill 30 sold")]
    assert found == ["long", "other"]


def test_whoever_has_gone_away_waits_for_no_lock() -> None:
    lock = threading.Lock()
    with held(lock, None):
        assert lock.locked()
        with pytest.raises(GoneError), held(lock, lambda: True):
            pass
    assert not lock.locked()


def test_documents_of_one_name_are_told_apart(assistant: Assistant, tmp_path: Path) -> None:
    paths = [tmp_path / year / "report.txt" for year in ("2021", "2022")]
    for path, document in zip(paths, (LONG, OTHER), strict=True):
        path.parent.mkdir()
        path.write_text(document.text)
    memory = assistant.remember([Document.from_file(path) for path in [*paths, paths[0]]])
    assert [d.name for d in memory.documents] == ["2021/report.txt", "2022/report.txt"]


def test_an_open_document_does_not_wait_for_the_reading_of_another(assistant: Assistant) -> None:
    known, tokens = assistant.collection.memory([LONG])
    assert tokens > 0
    done = threading.Event()

    def ask() -> None:
        again, tokens = assistant.collection.memory([LONG])
        assert (again, tokens) == (known, 0)
        done.set()

    with assistant.collection._reading:  # somebody is reading something else
        threading.Thread(target=ask, daemon=True).start()
        assert done.wait(20)
    renamed = assistant.collection.memory([replace(LONG, name="of another name")])[0]
    assert renamed.documents[0].name == "of another name"


def test_two_threads_that_want_a_document_read_it_once(assistant: Assistant) -> None:
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(assistant.respond(ASK, [OTHER]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(r.read_tokens for r in replies) == [0, 0, len(OTHER.text)]
    assert len({r.answer.text for r in replies}) == 1


def test_only_so_many_memories_are_held(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection_module, "MOST_MEMORIES", 1)
    assert assistant.respond(ASK, [LONG]).read_tokens
    assert assistant.respond(ASK, [OTHER]).read_tokens
    assert assistant.respond(ASK, [LONG]).read_tokens


def test_more_documents_than_are_held_open_are_read_once(adapter: Adapter) -> None:
    several = [Document.from_text(f"Note {i}. " + "Ship was seen at sea. " * 4, name=f"d{i}") for i in range(16)]
    assistant = made(adapter)
    assert assistant.respond(ASK, several).read_tokens > 0
    assert assistant.respond(ASK, several).read_tokens == 0


def test_a_damaged_memory_is_unknown_and_read_again(adapter: Adapter, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    made(adapter, store).respond(ASK, [LONG])
    (file,) = tmp_path.glob("*.infinipot")
    file.write_bytes(b"\0" * file.stat().st_size)
    later = made(adapter, store)
    with pytest.raises(DocumentError, match="give the document itself"):
        later.recognised(LONG.id)
    assert later.respond(ASK, [LONG]).read_tokens == len(LONG.text)


def test_a_renamed_pot_is_rebuilt_once(adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(tmp_path)
    made(adapter, store).respond(ASK, [LONG])
    built = []
    later = made(adapter, store, followup="reuse")
    memory = later.remember([Document.from_text(LONG.text, name="new name")])
    true = memory._pot
    monkeypatch.setattr(memory, "_pot", lambda: built.append(1) or true())  # type: ignore[operator, func-returns-value]
    for _ in range(3):
        later.respond(ASK, [Document.from_text(LONG.text, name="new name")])
    assert len(built) == 1
