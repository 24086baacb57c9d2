"""Memories of models that mix sliding layers with others: what is on disk, and what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from torch import Tensor

from infinipot_llm.answering.decode import Sampling, decode
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import BudgetError, MemoryFileError
from infinipot_llm.memory.file import Draft, MemoryFile
from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.scoring import queries
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import PREFIX, Pot

CODEC = TextCodec(byte_tokenizer())
TEXT = "\n\n".join(f"In {1900 + i} the mill number {i} burned. Its owner, Ada Krol {i}, moved away." for i in range(24))
CONFIG = PotConfig(budget=600, max_new_tokens=16, question_tokens=40, chunk=64, recall=200)
QUESTION = "Who moved away?"


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    with InfiniPot(Adapter(tiny_model("gemma3")), CODEC, CONFIG) as made:
        yield made


@pytest.fixture(scope="module")
def memory(llm: InfiniPot) -> DocumentMemory:
    made = llm.read(Document.from_text(TEXT, name="mills"))
    assert made.stats.cycles > 1
    return made


def closely(ours: dict[str, Tensor], theirs: dict[str, Tensor], share: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if "origin" in name:
            assert torch.equal(value, theirs[name]), name
        elif name != "novelty":
            assert (value - theirs[name]).abs().max() <= share * theirs[name].abs().max(), name


def test_only_layers_with_slots_are_on_the_shelf_and_score(llm: InfiniPot) -> None:
    assert llm.setup.layout.layers == 2
    assert {layer for layer, _ in llm.heads.heads} == {layer for layer, _ in Heads.default(2, 6).heads} <= {0, 1}


def test_queries_are_those_of_the_question_behind_the_prefix(llm: InfiniPot) -> None:
    """The prefix is put in place, for the windows too, rather than forwarded each time."""
    ids = llm.form.question(QUESTION)
    heads = Heads(((0, 1), (1, 4)), (1.0, 1.0), calibrated=True)
    placed = queries(llm.adapter, llm.setup.prefix, ids, heads).states
    pot = Pot(llm.adapter, len(llm.form.prefix) + len(ids))
    seen: dict[int, Tensor] = {}
    llm.adapter.forward(torch.tensor(llm.form.prefix), pot.cache)
    pot.cache.observer = lambda attending: seen.__setitem__(attending.layer, attending.raw_query * attending.scaling)
    llm.adapter.forward(torch.tensor(ids), pot.cache)
    for found, (layer, head) in zip(placed, heads.heads, strict=True):
        expected = seen[layer][0, head, -len(found) :]
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_document_that_fits_is_answered_as_by_the_plain_model(llm: InfiniPot) -> None:
    read = llm.read(Document.from_text(TEXT[:150]))
    question = llm.form.question(QUESTION)
    ids = torch.tensor([[*llm.form.prefix, *CODEC.untrusted(TEXT[:150]), *question]])
    llm.adapter.close()
    with torch.no_grad():
        out = llm.adapter.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    llm.adapter.open()
    expected = CODEC.decode(out[0, ids.shape[1] :].tolist()).strip()
    for followup in ("recall", "reuse", "reread"):
        assert read.ask(QUESTION, followup=followup, max_new_tokens=12, citations=False).text == expected


@pytest.mark.parametrize("shelf", ["keys", "int8", "off"])
def test_a_memory_saved_is_the_memory_loaded(shelf: str, tmp_path: Path) -> None:
    with InfiniPot(Adapter(tiny_model("gemma3")), CODEC, replace(CONFIG, shelf=shelf)) as llm:  # type: ignore[arg-type]
        memory = llm.read(Document.from_text(TEXT, name="mills"))
        path = memory.save(tmp_path / "mills.pot")
        loaded = llm.load(path)
        closely(loaded.pot.state(), memory.pot.state(), 0.05)
        recent = loaded.pot.recent()
        assert recent is not None
        assert recent.origin.tolist() == list(range(len(memory.text) - 19, len(memory.text)))
        asked = llm.form.question(QUESTION)
        first, second = (llm.adapter.logits(_over(llm.adapter, m.pot, asked)) for m in (memory, loaded))
        assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1] > 0.99
        loaded.pot.hold_recent(recent._replace(keys=recent.keys.flip(2)))  # what is compared does depend on it
        third = llm.adapter.logits(_over(llm.adapter, loaded.pot, asked))
        assert (third - first).abs().max() > 3 * (second - first).abs().max()


def _over(adapter: Adapter, pot: Pot, ids: list[int]) -> Tensor:
    with pot.scratch():
        return adapter.forward(torch.tensor(ids), pot.cache)


def test_another_window_is_another_model(memory: DocumentMemory, tmp_path: Path) -> None:
    path = memory.save(tmp_path / "mills.pot")
    with (
        InfiniPot(Adapter(tiny_model("gemma3", sliding_window=21)), CODEC, CONFIG) as other,
        pytest.raises(MemoryFileError, match="another model"),
    ):
        other.load(path)


PARTS = ("recent.origin", "recent.rows", "recent.mean", "recent.spread")
ANY_BYTES = ("recent.rows", "beyond")  # any bytes are a row


@pytest.mark.parametrize(
    ("name", "how"),
    [(n, h) for n in PARTS for h in ("gone", "short", "folded", "other dtype", "beyond") if (n, h) != ANY_BYTES],
)
def test_a_forged_window_is_refused(
    name: str, how: str, llm: InfiniPot, memory: DocumentMemory, tmp_path: Path
) -> None:
    file = MemoryFile(memory.save(tmp_path / "mills.pot"))
    tensors = {n: file.rows(n).copy() for n in file._entries if n != "crc"}
    about = {k: v for k, v in file.about.items() if k != "format"}
    file.close()
    if how == "gone":
        del tensors[name]
    elif how == "beyond":
        tensors[name].reshape(-1)[0] = 10**7
    else:
        change = {"short": lambda d: d[:-1], "folded": lambda d: d[None], "other dtype": lambda d: d.astype("f8")}
        tensors[name] = np.ascontiguousarray(change[how](tensors[name]))
    draft = Draft(tmp_path / "forged.pot")
    for n, data in tensors.items():
        draft.add(n, data if data.dtype != np.float64 else data.astype("i8"))
    draft.finish(about)
    with pytest.raises(MemoryFileError):
        llm.load(tmp_path / "forged.pot")


def test_reading_on_is_reading_at_once(llm: InfiniPot) -> None:
    documents = [Document.from_text(TEXT[:100], name="a"), Document.from_text(TEXT[100:220], name="b")]
    first = llm.read(documents[0])
    before = first.pot.state()
    longer = llm.extend(first, documents[1])
    closely(first.pot.state(), before, 0.0)
    closely(longer.pot.state(), _forwarded(llm, longer).state(), 1e-3)


def _forwarded(llm: InfiniPot, memory: DocumentMemory) -> Pot:
    pot = Pot(llm.adapter, llm.config.budget)
    prefix = llm.form.prefix
    for ids, origin in (
        (torch.tensor(prefix), torch.full((len(prefix),), PREFIX)),
        (torch.from_numpy(memory.text.ids.astype("int64")), torch.arange(len(memory.text))),
    ):
        llm.adapter.forward(ids, pot.cache)
        pot.record(origin)
    return pot


@pytest.mark.parametrize("followup", ["recall", "reuse", "reread"])
def test_questions_leave_the_memory_as_it_was(llm: InfiniPot, memory: DocumentMemory, followup: str) -> None:
    before = memory.pot.state()
    answers = {memory.ask(QUESTION, followup=followup, max_new_tokens=8).text for _ in range(2)}
    assert len(answers) == 1
    closely(memory.pot.state(), before, 0.0)


def test_passages_cannot_be_loaded() -> None:
    config = replace(CONFIG, shelf="int8", recalled="load")
    with (
        InfiniPot(Adapter(tiny_model("gemma3")), CODEC, config) as llm,
        pytest.raises(BudgetError, match=r"sliding layers.*recalled='read'"),
    ):
        llm.read(Document.from_text(TEXT))


def test_an_answer_may_be_longer_than_the_window(llm: InfiniPot, memory: DocumentMemory) -> None:
    question = llm.form.question(QUESTION)
    before = memory.pot.state()
    free = memory.pot.budget - memory.pot.length - len(question)
    assert free > 25
    twice = [decode(llm.adapter, CODEC, memory.pot, question, Sampling(max_new_tokens=free)) for _ in range(2)]
    assert twice[0].ids == twice[1].ids
    closely(memory.pot.state(), before, 0.0)
