"""Reading into memory: nothing is read twice, nothing is left behind."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from engine_samples import ADA, CODEC, CONFIG, MILL, TEXT, answers, files, other
from engine_samples import llm as llm
from engine_samples import reads as reads
from engine_samples import store as store

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import MemoryFileError, QuestionError, QuestionTooLongError, StoreError
from infinipot_llm.memory.store import STORE_VARIABLE, MemoryStore
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.reader import Reader, ReadStats


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of shelves that no store keeps, of this test alone."""
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "own"))
    return tmp_path / "own"


# --- a store ---


def test_what_was_read_is_not_read_again(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    first = llm.read(MILL, store=store)
    assert reads == [(0, len(TEXT))]
    again = llm.read(MILL, store=store)
    assert len(reads) == 1
    assert again is not first
    assert answers(again)[:2] == answers(first)[:2]
    assert torch.equal(again.pot.origin, first.pot.origin)
    assert again.stats == first.stats
    (entry,) = store.list()
    assert entry.key == llm.key([MILL])
    assert entry.description["documents"] == ["mill"]
    assert entry.description["tokens"] == len(TEXT)
    assert first.nbytes == again.nbytes == entry.nbytes
    assert files(store.folder) == sorted([f"{entry.key}.infinipot", f"{entry.key}.json"])


def test_other_engines_of_the_same_model_find_it(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    first = llm.read(MILL, store=store)
    for engine in (other(llm), other(llm, chunk=32), InfiniPot(llm.adapter, TextCodec(byte_tokenizer()), CONFIG)):
        assert answers(engine.read(MILL, store=MemoryStore(store.folder)))[:2] == answers(first)[:2]
    with InfiniPot(Adapter(tiny_model("llama", num_hidden_layers=2)), CODEC, CONFIG) as twin:
        assert answers(twin.read(MILL, store=store))[:2] == answers(first)[:2]
    assert len(reads) == 1


def test_a_large_model_is_brought_more(llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InfiniPot(llm.adapter, llm.form.codec, PotConfig(budget=2048))
    memory = engine.read(Document.from_text("The mill burnt down in 1875. " * 60))
    assert llm.adapter.parameters == sum(weight.numel() for _, weight in llm.adapter.weights())
    assert memory.ask("When?", max_new_tokens=2).usage.recalled_tokens == 256
    monkeypatch.setattr(llm.adapter, "parameters", 10**9)
    assert memory.ask("When?", max_new_tokens=2).usage.recalled_tokens == 1024
    assert sum(len(span.text) for span, _ in memory.recall("When?")) == 1024  # a token is a byte here
    assert memory.ask("When?", max_new_tokens=2, recall=100).usage.recalled_tokens == 100


def test_how_to_ask_is_the_askers_business(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    llm.read(MILL, store=store)
    engine = other(llm, recall=33, followup="reuse")
    memory = engine.read(MILL, store=store)
    assert len(reads) == 1
    assert (memory.config.recall, memory.config.followup) == (33, "reuse")
    assert memory.ask("When?").usage.recalled_tokens == 0
    assert memory.ask("When?", followup="recall").usage.recalled_tokens == 33


def test_a_renamed_document_is_found_and_cited_by_its_new_name(
    llm: InfiniPot, store: MemoryStore, reads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from infinipot_llm.answering import citations

    monkeypatch.setattr(citations, "LEAST_DROP", -1e9)
    first = llm.read(MILL, store=store)
    renamed = Document.from_text(TEXT, name="moulin")
    again = llm.read(renamed, store=store)
    assert len(reads) == 1
    assert again.documents == (renamed,)
    before, after = first.ask("When?"), again.ask("When?")
    assert after.text == before.text
    assert {c.document for c in before.citations} == {"mill"}
    assert {c.document for c in after.citations} == {"moulin"}
    assert [c.quote for c in after.citations] == [c.quote for c in before.citations]
    assert {span.document for span, _ in again.recall("When?", 50)} == {"moulin"}
    assert "moulin" in repr(again)
    # In several documents the names are read, so they count.
    llm.read([MILL, ADA], store=store)
    llm.read([renamed, ADA], store=store)
    assert len(reads) == 3


def test_a_damaged_memory_is_read_again_with_a_warning(
    llm: InfiniPot, store: MemoryStore, reads: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    expected = answers(llm.read(MILL, store=store))
    path = store.get(llm.key([MILL]))
    assert path is not None
    whole = path.read_bytes()
    broken = [whole[: len(whole) // 2], b"", b"x" * len(whole), whole[:70_000] + b"\xff" + whole[70_001:]]
    assert broken[3] != whole
    for number, content in enumerate(broken, start=2):
        path.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert answers(llm.read(MILL, store=store)) == expected
        assert len(reads) == number
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert "read again" in record.getMessage()
        assert "mill burned" not in record.getMessage()
        llm.read(MILL, store=store)
        assert len(reads) == number  # mended


def test_fresh_reads_again_and_replaces(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    old = llm.read(MILL, store=store)
    fresh = llm.read(MILL, store=store, fresh=True)
    assert len(reads) == 2
    assert len(store.list()) == 1
    assert answers(old) == answers(fresh)  # what was open stays whole
    llm.read(MILL, store=store)
    assert len(reads) == 2


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be removed there")
def test_a_memory_evicted_the_moment_it_is_kept_still_answers(
    llm: InfiniPot, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may remove it between its coming into the store and its being opened by who read it."""
    true_put = MemoryStore.put

    def put(self: MemoryStore, key: str, *args: Any) -> Path:
        path = true_put(self, key, *args)
        self.remove(key)
        return path

    monkeypatch.setattr(MemoryStore, "put", put)
    memory = llm.read(MILL, store=store)
    assert store.list() == []
    assert answers(memory) == answers(llm.read(MILL))


def test_what_a_store_does_not_keep(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    """A reading for a known question, and a memory without a shelf."""
    for _ in range(2):
        llm.read(MILL, store=store, question="When?")
        other(llm, shelf="off").read(MILL, store=store)
    assert len(reads) == 4
    assert files(store.folder) == []


def test_ask_reads_once(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    first = llm.ask(MILL, "When?", store=store)
    assert llm.ask(MILL, "When?", store=store).text == first.text
    assert llm.ask(MILL, "Who?", store=store, recall=20).usage.recalled_tokens == 20
    assert len(reads) == 1
    llm.ask(MILL, "When?", store=store, fresh=True)
    assert len(reads) == 2


def test_a_reading_that_fails_leaves_nothing(llm: InfiniPot, store: MemoryStore, own: Path) -> None:
    def stop(stats: ReadStats) -> None:
        if stats.tokens_read > 200:
            raise KeyboardInterrupt

    for kept in (store, None):
        with pytest.raises(KeyboardInterrupt):
            llm.read(MILL, store=kept, progress=stop)
    small = MemoryStore(store.folder, max_bytes=1000)
    with pytest.raises(StoreError, match="max_bytes"):
        llm.read(MILL, store=small)
    assert files(store.folder) == files(own) == []
    assert llm.adapter.lock.acquire(timeout=1)
    llm.adapter.lock.release()


@pytest.mark.parametrize("knobs", [{}, {"shelf": "int4"}, {"shelf_bytes": 20_000}], ids=str)
def test_the_size_is_told_before(llm: InfiniPot, store: MemoryStore, knobs: dict[str, Any]) -> None:
    engine = other(llm, **knobs)
    tokens, expected = engine.shelf_size([MILL])
    memory = engine.read(MILL, store=store)
    assert tokens == len(memory.text)
    assert memory.nbytes <= expected * 1.05
    assert expected <= memory.nbytes * 1.5
    assert other(llm, shelf="off").shelf_size([MILL]) == (tokens, 0)


# --- saved, forked ---


def test_a_saved_memory_answers_alike(llm: InfiniPot, tmp_path: Path, reads: list[Any]) -> None:
    memory = llm.read(MILL)
    path = memory.save(tmp_path / "mill.infinipot")
    loaded = llm.load(path)
    assert len(reads) == 1
    assert answers(loaded)[:2] == answers(memory)[:2]
    with pytest.raises(MemoryFileError, match="other documents"):
        llm.load(path, documents=[ADA])


def test_a_fork_is_a_memory_of_its_own(llm: InfiniPot, reads: list[Any]) -> None:
    memory = llm.read(MILL)
    fork = memory.fork()
    assert fork is not memory
    assert answers(fork) == answers(memory)
    assert fork.shelved is memory.shelved
    assert fork.nbytes == memory.nbytes
    del memory
    gc.collect()
    assert fork.ask("When?").text
    assert len(reads) == 1


# --- what is left on the disk ---


def test_the_shelf_goes_when_the_memory_goes(llm: InfiniPot, own: Path) -> None:
    memory = llm.read(MILL)
    assert any(name.endswith(".part") for name in files(own))
    longer = llm.extend(memory, ADA)
    assert len([name for name in files(own) if name.endswith(".part")]) == 2
    del memory
    gc.collect()
    assert longer.ask("When?").text  # it holds on to what it shares
    assert len([name for name in files(own) if name.endswith(".part")]) == 2
    del longer
    gc.collect()
    assert files(own) == []


@pytest.mark.parametrize("shelf", ["int8", "off"])
def test_reading_and_asking_leave_nothing_behind(llm: InfiniPot, own: Path, shelf: str) -> None:
    engine = other(llm, shelf=shelf)
    engine.ask(MILL, "When?")
    engine.read(MILL, question="When?").fork().ask("When?")
    list(engine.read(MILL).chat().stream("When?"))
    gc.collect()
    assert files(own) == []


def test_the_shelf_goes_when_the_process_ends(tmp_path: Path) -> None:
    program = (
        "from engine_samples import *\n"
        "llm = InfiniPot(Adapter(tiny_model('llama', num_hidden_layers=1)), CODEC, CONFIG)\n"
        "memory = llm.extend(llm.read(MILL), ADA)\n"
        f"print(len([n for n in files(Path({str(tmp_path)!r})) if n.endswith('.part')]))\n"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program],
        env={**os.environ, STORE_VARIABLE: str(tmp_path), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
    assert files(tmp_path) == []


def test_the_tests_have_a_store_of_their_own() -> None:
    assert "pytest" in os.environ[STORE_VARIABLE]
    assert str(MemoryStore().folder) == os.environ[STORE_VARIABLE]


def test_a_reading_knows_whether_its_question_is_known(llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[bool] = []
    real = Reader.__init__

    def init(self: Reader, *given: Any, **named: Any) -> None:
        known.append(bool(named.get("known", False)))
        real(self, *given, **named)

    monkeypatch.setattr(Reader, "__init__", init)
    generic = llm.read(MILL)
    llm.read(MILL, question="When did it burn?")
    llm.extend(generic, ADA)
    generic.ask("When?", followup="reread")
    assert known == [False, True, False, True]


def test_without_a_shelf_the_question_is_the_catalyst(llm: InfiniPot) -> None:
    bare = other(llm, shelf="off", recalled="read")
    question = "Who is Ada Krol?"
    asked = bare.ask(MILL, question, citations=False)
    assert asked.text == bare.read(MILL, question=question).ask(question, citations=False).text
    told = bare.read(MILL, question=question).pot.origin
    assert not torch.equal(told, bare.read(MILL).pot.origin), "a reading without the question keeps other tokens"


def test_the_limit_of_answers_is_no_part_of_a_memory(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    pots = {other(llm, max_new_tokens=limit).read(MILL, store=store).pot.length for limit in (1, 16, 300)}
    assert len(reads) == len(pots) == 1
    assert pots.pop() <= CONFIG.budget - CONFIG.question_tokens - CONFIG.budget // 8


@pytest.mark.parametrize(
    ("question", "options", "error"),
    [
        ("  ", {}, QuestionError),
        ("When?", {"temperature": -1.0}, QuestionError),
        ("When?", {"max_new_tokens": 0}, QuestionError),
        ("When?", {"recall": 0}, QuestionError),
        ("When?", {"followup": "recal"}, QuestionError),
        ("When?", {"temprature": 0.5}, TypeError),
        ("When?" * CONFIG.budget, {}, QuestionTooLongError),
        ("When?", {"max_new_tokens": CONFIG.budget}, QuestionTooLongError),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_read(
    llm: InfiniPot, own: Path, reads: list[Any], question: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        llm.ask(MILL, question, **options)
    with pytest.raises(QuestionError, match="without a shelf nothing can be recalled"):
        other(llm, shelf="off", recalled="read").ask(MILL, "When?", followup="recall")
    assert reads == []


def test_without_a_shelf_a_longer_answer_finds_its_room(llm: InfiniPot) -> None:
    answer = other(llm, shelf="off", recalled="read").ask(MILL, "When did it burn?", max_new_tokens=120)
    assert answer.usage.answer_tokens <= 120
    assert answer.usage.read.slots <= CONFIG.budget - 120


def test_without_a_shelf_nothing_is_written(llm: InfiniPot, own: Path) -> None:
    engine = other(llm, shelf="off", recalled="read")
    memory = engine.read(MILL)
    engine.extend(memory, ADA)
    assert not own.exists()


def test_a_memory_that_the_store_cannot_take_is_refused_before_reading(
    llm: InfiniPot, tmp_path: Path, reads: list[Any]
) -> None:
    with pytest.raises(StoreError, match="raise the store's limit"):
        llm.read(MILL, store=MemoryStore(tmp_path / "small", max_bytes=50_000))
    assert reads == []


def test_others_get_the_model_while_a_memory_finds_its_place(
    llm: InfiniPot, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: list[bool] = []
    put = MemoryStore.put

    def slow(self: MemoryStore, *args: Any) -> Path:
        def look() -> None:
            free.append(llm.adapter.lock.acquire(timeout=5))
            llm.adapter.lock.release()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return put(self, *args)

    monkeypatch.setattr(MemoryStore, "put", slow)
    llm.read(MILL, store=store)
    assert free == [True]


def test_a_memory_scores_the_same_before_and_after_it_was_saved(llm: InfiniPot, tmp_path: Path) -> None:
    memory = llm.read(MILL)
    again = llm.load(memory.save(tmp_path / "mill.infinipot"))
    assert memory.shelved is not None
    assert again.shelved is not None
    assert torch.equal(memory.shelved.null, again.shelved.null)


def test_a_memory_made_in_another_dtype_says_so(llm: InfiniPot, tmp_path: Path) -> None:
    path = llm.read(MILL).save(tmp_path / "mill.infinipot")
    model = tiny_model("llama", num_hidden_layers=2).to(torch.bfloat16)
    said = r"load the model it was made with \(llama, with dtype='float32' or --dtype float32\)"
    with InfiniPot(Adapter(model), CODEC, CONFIG) as rounded, pytest.raises(MemoryFileError, match=said):
        rounded.load(path)
