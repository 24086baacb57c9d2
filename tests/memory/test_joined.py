"""Several memories as one: found together, told apart, and none of them changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import MemoryFileError, QuestionError, QuestionTooLongError
from infinipot_llm.memory.joined import joined
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import Passage, pot_of_text, text_slots
from infinipot_llm.memory.scoring import attention, queries
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import PREFIX

CODEC = TextCodec(byte_tokenizer())
CONFIG = PotConfig(budget=600, max_new_tokens=16, question_tokens=40, chunk=64, recall=200)
MILLS = "\n\n".join(f"Mill {i} was sold in {1800 + i} by its owner, who moved away." for i in range(30))
SHIPS = "\n\n".join(f"Ship {i} was launched in {1900 + i} with a crew of {i + 20}." for i in range(30))


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    with InfiniPot(Adapter(tiny_model("qwen2")), CODEC, CONFIG) as made:
        yield made


@pytest.fixture(scope="module")
def apart(llm: InfiniPot) -> list[DocumentMemory]:
    texts = {"mills": MILLS, "ships": SHIPS, "note": "The zeppelin Aurora burned at Oxley."}
    return [llm.read(Document.from_text(text, name=name)) for name, text in texts.items()]


def test_tokens_and_rows_are_those_of_each_in_order(apart: list[DocumentMemory]) -> None:
    both = joined(apart)
    assert [d.name for d in both.documents] == ["mills", "ships", "note"]
    begin = 0
    for number, memory in enumerate(apart):
        size = len(memory.text)
        assert both.text.ids[begin : begin + size].tolist() == memory.text.ids.tolist()
        assert int(both.text.first[number]) == begin
        assert both.text.span(begin + 5).text == memory.text.span(5).text
        shelf = memory.finder.shelf
        a, b = both.finder.shelf.rows_of(begin, begin + size)
        assert (both.finder.shelf.tokens[a:b] - begin).tolist() == shelf.tokens.tolist()
        torch.testing.assert_close(both.finder.shelf.scoring_keys(a, b), shelf.scoring_keys(0, len(shelf)))
        begin += size
    assert len(both.text) == begin == both.stats.tokens_read


def test_attention_is_shared_by_all_that_was_read(llm: InfiniPot, apart: list[DocumentMemory]) -> None:
    both = joined(apart)
    asked = queries(llm.adapter, llm.setup.prefix, llm.form.question("Which zeppelin burned?"), llm.heads)
    total = sum(shares.sum(dim=1) for _, shares in attention(both.finder.shelf, asked))
    torch.testing.assert_close(total, torch.ones(len(llm.heads.heads)))
    assert both.shelved is not None
    torch.testing.assert_close(both.shelved.null.sum(dim=0), torch.ones(len(llm.heads.heads)))


@pytest.mark.parametrize(("question", "name"), [("zeppelin Aurora Oxley", "note"), ("Mill 12 sold 1812", "mills"),
                                               ("Ship 9 launched 1909", "ships")])  # fmt: skip
def test_passages_come_from_the_document_that_has_them(apart: list[DocumentMemory], question: str, name: str) -> None:
    span, _ = joined(apart).recall(question, 60)[0]
    assert span.document == name
    assert all(span.text in d.text for d in joined(apart).documents if d.name == span.document)


def test_documents_are_told_apart_by_their_names(llm: InfiniPot, apart: list[DocumentMemory]) -> None:
    both = joined(apart)
    second = int(both.text.first[1])
    passages = [Passage(10, 20, 1.0), Passage(30, 40, 1.0), Passage(second - 5, second + 5, 1.0)]
    pot = pot_of_text(llm.setup, both.text, passages, 500)
    said: list[int] = []
    expected = [
        CODEC.untrusted("mills:\n"), both.text.ids[10:20], CODEC.untrusted("\n...\n"), both.text.ids[30:40],
        CODEC.untrusted("\n...\n"), both.text.ids[second - 5 : second], CODEC.untrusted("\n...\nships:\n"),
        both.text.ids[second : second + 5],
    ]  # fmt: skip
    for part in expected:
        said += [int(i) for i in part]
    assert text_slots(llm.setup, both.text, passages) == len(said)
    assert pot.length == len(llm.form.prefix) + len(said)
    plain = [*llm.form.prefix, *said]
    llm.adapter.forward(torch.tensor(plain), (other := pot_of_text(llm.setup, both.text, [], 500, ())).cache)
    for ours, theirs in zip(pot.cache.layers, other.cache.layers, strict=True):
        torch.testing.assert_close(
            ours.raw_keys[:, :, : pot.length], theirs.raw_keys[:, :, : pot.length], rtol=1e-4, atol=1e-4
        )
    assert pot.origin[0, 0, -5:].tolist() == list(range(second, second + 5))
    assert pot.origin[0, 0, -6].item() == PREFIX


def test_answers_come_and_the_parts_stay_as_they_are(apart: list[DocumentMemory]) -> None:
    before = [m.ask("Who moved away?", citations=False).text for m in apart]
    both = joined(apart)
    first = both.ask("Who moved away?")
    assert first.usage.recalled_tokens <= CONFIG.recall
    assert both.ask("Who moved away?").text == first.text
    assert both.ask("Who moved away?", followup="reread").text is not None
    assert list(both.stream("Who moved away?"))
    assert [m.ask("Who moved away?", citations=False).text for m in apart] == before


def test_what_was_found_can_be_read_in_part(apart: list[DocumentMemory]) -> None:
    both = joined(apart)
    found = both.passages("Who moved away?")
    assert both.ask("Who moved away?", passages=found).text == both.ask("Who moved away?").text
    answer = both.ask("Who moved away?", passages=found[:1])
    assert answer.usage.recalled_tokens == found[0].end - found[0].start
    with pytest.raises(QuestionTooLongError, match="fewer"):
        both.ask("Who moved away?", passages=[Passage(0, len(both.text), 1.0)])


@pytest.mark.parametrize(
    ("passages", "how", "words"),
    [
        ([], None, "no passage"),
        ([Passage(3, 3, 0.0)], None, "is no passage of this text"),
        ([Passage(-1, 3, 0.0)], None, "is no passage of this text"),
        ([Passage(0, 10**6, 0.0)], None, "is no passage of this text"),
        ([Passage(0, 9, 0.0)], "reuse", "leave passages out"),
        ([Passage(0, 9, 0.0)], "reread", "leave passages out"),
    ],
)
def test_passages_that_cannot_be_answered_from_are_refused(
    apart: list[DocumentMemory], passages: list[Passage], how: str | None, words: str
) -> None:
    with pytest.raises(QuestionError, match=words):
        apart[0].ask("Who moved away?", passages=passages, followup=how)


def test_there_is_no_pot_of_all(apart: list[DocumentMemory], tmp_path: Path) -> None:
    both = joined(apart)
    with pytest.raises(QuestionError, match="no one pot"):
        both.ask("Who?", followup="reuse")
    with pytest.raises(QuestionError, match="one by one"):
        both.save(tmp_path / "x.infinipot")
    assert not list(tmp_path.iterdir())


def test_one_is_itself_and_none_is_refused(apart: list[DocumentMemory]) -> None:
    assert joined(apart[:1]) is apart[0]
    with pytest.raises(QuestionError, match="at least one"):
        joined([])


def test_other_models_and_memories_without_a_shelf_are_refused(llm: InfiniPot, apart: list[DocumentMemory]) -> None:
    document = Document.from_text(SHIPS, name="ships")
    with InfiniPot(Adapter(tiny_model("qwen2", seed=1)), CODEC, CONFIG) as stranger:
        with pytest.raises(MemoryFileError, match="different models"):
            joined([apart[0], stranger.read(document)])
        bare = InfiniPot(llm.adapter, CODEC, PotConfig(budget=600, max_new_tokens=16, question_tokens=40, shelf="off"))
        memory = bare.read(document)
        with pytest.raises(QuestionError, match="without a shelf"):
            joined([memory, memory])
