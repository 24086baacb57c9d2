"""Reading into memory: nothing is read twice, what is read on shares what was read, nothing is left behind."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import DocumentError, InfiniPotError, MemoryFileError, StoreError
from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.store import STORE_VARIABLE, MemoryStore
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
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of shelves that no store keeps, of this test alone."""
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "own"))
    return tmp_path / "own"


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


def test_how_to_ask_is_the_askers_business(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    llm.read(MILL, store=store)
    engine = other(llm, recall=33, followup="reuse")
    memory = engine.read(MILL, store=store)
    assert len(reads) == 1
    assert (memory.config.recall, memory.config.followup) == (33, "reuse")
    assert memory.ask("When?").usage.recalled_tokens == 0
    assert memory.ask("When?", followup="recall").usage.recalled_tokens == 33


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


def test_other_contents_read_again(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    variants = [[MILL], [Document.from_text(TEXT + "x", name="mill")], [MILL, ADA], [ADA, MILL], [ADA]]
    for documents in variants:
        llm.read(documents, store=store)
    assert len(reads) == len(store.list()) == len({llm.key(d) for d in variants}) == 5
    for documents in variants:
        assert list(llm.read(documents, store=store).documents) == documents
    assert len(reads) == 5


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


# --- reading on ---


def state_of(memory: DocumentMemory) -> dict[str, bytes]:
    state = {name: value.numpy().tobytes() for name, value in memory.pot.state().items()}
    assert memory.shelved is not None
    state |= {str(i): s.file.path.read_bytes() for i, s in enumerate(memory.shelved.shelf.segments)}
    return state | {"ids": memory.text.ids.tobytes(), "null": memory.shelved.null.numpy().tobytes()}


def test_reading_on_reads_nothing_again_and_leaves_the_old_memory(llm: InfiniPot, reads: list[Any]) -> None:
    memory = llm.read(MILL)
    before, expected = state_of(memory), answers(memory)
    longer = llm.extend(memory, ADA)
    assert reads == [(0, len(TEXT)), (len(TEXT), len(longer.text))]
    assert longer.documents == (MILL, ADA)
    assert longer.text.ids[: len(TEXT)].tolist() == memory.text.ids.tolist()
    assert (longer.stats.tokens_read, longer.stats.cycles) == (len(longer.text), longer.stats.cycles)
    assert longer.stats.cycles > memory.stats.cycles
    assert longer.stats.seconds > memory.stats.seconds
    assert state_of(memory) == before
    assert answers(memory) == expected
    assert memory.shelved is not None
    assert longer.shelved is not None
    first, second = longer.shelved.shelf.segments
    assert first.file is memory.shelved.shelf.segments[0].file
    assert longer.shelved.shelf.tokens.tolist() == list(range(len(longer.text)))
    assert len(second) == len(longer.text) - len(TEXT)
    assert torch.equal(first.normal.mean, second.normal.mean)
    assert torch.equal(first.normal.spread, second.normal.spread)
    assert longer.shelved.null.shape[0] == len(longer.text)
    assert longer.pot.origin.max() >= len(TEXT)
    assert longer.pot.length <= CONFIG.budget
    answer = longer.ask("Who is Ada Krol?")
    assert answer.usage.recalled_tokens == 90


def test_a_text_read_on_with_is_the_text_read_at_once(llm: InfiniPot) -> None:
    """Where nothing is distilled: what the model saw is the same, but for the header of the first document."""
    engine = other(llm, budget=3000)
    longer = engine.extend(engine.read(MILL), ADA)
    assert longer.stats.cycles == 0
    keys, values = longer.pot.newest(len(longer.text))
    with longer.pot.scratch():
        pass
    ids = torch.from_numpy(np.concatenate([engine.form.prefix, longer.text.ids]).astype("int64"))
    cache = llm.adapter.new_cache(len(ids))
    llm.adapter.forward(ids, cache)
    prefix = len(engine.form.prefix)
    for layer, held in enumerate(cache.layers):
        assert (held.raw_keys[0, :, prefix:] - keys[layer]).abs().max() < 1e-4
        assert (held.value_states[0, :, prefix:] - values[layer]).abs().max() < 1e-4
    assert longer.shelved is not None
    packed = longer.shelved.shelf.load(0, len(longer.text))
    assert (packed[0] - keys).abs().max() < 0.05 * keys.abs().max()
    assert (packed[1] - values).abs().max() < 0.05 * values.abs().max()


def test_reading_on_again_and_again(llm: InfiniPot, reads: list[Any], tmp_path: Path) -> None:
    memory, kept = llm.read(MILL), []
    for number in range(3):
        kept.append((memory, answers(memory)))
        part = Document.from_text(f"Part {number}. {MORE}", name=f"part {number}")
        longer = llm.extend(memory, part)
        assert reads[-1] == (len(memory.text), len(longer.text))
        assert memory.shelved is not None
        assert longer.shelved is not None
        assert len(longer.shelved.shelf.segments) == number + 2
        assert longer.shelved.shelf.segments[: number + 1] == memory.shelved.shelf.segments
        assert [d.name for d in longer.documents] == ["mill", *(f"part {i}" for i in range(number + 1))]
        memory = longer
    for older, expected in kept:
        assert answers(older) == expected
    found = {span.document for span, _ in memory.recall("Part", len(memory.text))}
    assert found == {d.name for d in memory.documents}
    path = memory.save(tmp_path / "all.infinipot")
    loaded = llm.load(path)
    assert loaded.shelved is not None
    assert len(loaded.shelved.shelf.segments) == 1
    assert [a[0] for a in answers(loaded)[:2]] == [a[0] for a in answers(memory)[:2]]
    further = llm.extend(loaded, ADA)
    assert reads[-1] == (len(memory.text), len(further.text))
    assert further.documents == (*memory.documents, ADA)
    assert further.ask("Who is Ada Krol?").usage.recalled_tokens == 90


def test_several_are_read_on_at_once_and_into_no_store(llm: InfiniPot, store: MemoryStore, reads: list[Any]) -> None:
    memory = llm.read(MILL, store=store)
    longer = llm.extend(llm.read(MILL, store=store), [ADA, Document.from_text("Last. " * 9, name="last")])
    assert [d.name for d in longer.documents] == ["mill", "ada", "last"]
    assert len(reads) == 2
    assert len(store.list()) == 1
    assert answers(memory)


def test_a_memory_read_for_a_question_can_be_read_on(llm: InfiniPot) -> None:
    """Its pot is full but for that question and an answer, which may be less than generic questions take."""
    for question in ("?", "When did it burn and who was the owner then?"):
        longer = llm.extend(llm.read(MILL, question=question), ADA)
        assert longer.stats.tokens_read == len(longer.text)
        assert longer.ask("Who?").text


@pytest.mark.parametrize("knobs", [{"shelf": "off"}, {"shelf": "int4"}, {"shelf_bytes": 20_000}], ids=str)
def test_any_memory_can_be_read_on(llm: InfiniPot, knobs: dict[str, Any]) -> None:
    engine = other(llm, **knobs)
    memory = engine.read(MILL)
    longer = engine.extend(memory, ADA)
    assert longer.stats.tokens_read == len(longer.text) > len(TEXT)
    assert (longer.shelved is None) == (knobs.get("shelf") == "off")
    assert longer.ask("When?").text == longer.ask("When?").text


def test_whatever_is_read_on_is_bounded_by_itself(llm: InfiniPot) -> None:
    engine = other(llm, shelf_bytes=20_000)
    memory = engine.read(MILL)
    most = 20_000 // engine.setup.layout.token_bytes
    for number in range(4):
        assert memory.shelved is not None
        assert all(len(segment) <= most for segment in memory.shelved.shelf.segments)
        memory = engine.extend(memory, Document.from_text(MORE, name=str(number)))


def test_what_cannot_be_read_on(llm: InfiniPot) -> None:
    memory = llm.read(MILL)
    with pytest.raises(DocumentError):
        llm.extend(memory, [])
    with pytest.raises(DocumentError, match="from_file"):
        llm.extend(memory, "report.pdf")  # type: ignore[arg-type]
    with (
        InfiniPot(Adapter(tiny_model("llama", 1, num_hidden_layers=2)), CODEC, CONFIG) as stranger,
        pytest.raises(InfiniPotError, match="model"),
    ):
        stranger.extend(memory, ADA)


def test_a_document_without_text_is_refused(llm: InfiniPot) -> None:
    from infinipot_llm.documents import Page

    empty = Document("empty", "", (Page(1, None, 0, 0),))
    with pytest.raises(InfiniPotError):
        llm.read(empty)
    assert llm.read([empty, MILL]).ask("When?").text


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
        "from test_engine import *\n"
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


def test_without_a_shelf_the_question_is_the_catalyst(llm: InfiniPot) -> None:
    bare = other(llm, shelf="off", recalled="read")
    question = "Who is Ada Krol?"
    asked = bare.ask(MILL, question, citations=False)
    assert asked.text == bare.read(MILL, question=question).ask(question, citations=False).text
    told = bare.read(MILL, question=question).pot.origin
    assert not torch.equal(told, bare.read(MILL).pot.origin), "a reading without the question keeps other tokens"
