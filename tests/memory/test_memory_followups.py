"""How a question about a memory is answered: followups, how much is recalled, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from asked_memory import CODEC, LIMIT, TEXT
from asked_memory import llm as llm
from asked_memory import memory as memory
from conftest import tiny_model

from infinipot_llm.answering import compose as compose_module
from infinipot_llm.answering.answer import Answer
from infinipot_llm.answering.decode import Decoded
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import BudgetError, DocumentError, InfiniPotError, ModelError, QuestionError
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot


def pot_of(
    memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch, question: str, **options: Any
) -> tuple[Pot, Answer]:
    """The pot that a question was decoded over."""
    pots: list[Pot] = []
    true_decode = compose_module.decode

    def spy(adapter: Adapter, codec: TextCodec, pot: Pot, *args: Any, **kwargs: Any) -> Decoded:
        pots.append(pot)
        return true_decode(adapter, codec, pot, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(compose_module, "decode", spy)
        answer = memory.ask(question, citations=False, **options)
    assert len(pots) == 1
    return pots[0], answer


def test_the_followups(llm: InfiniPot, memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    pot, reused = pot_of(memory, monkeypatch, "When?", followup="reuse")
    assert pot is memory.pot
    assert reused.usage.recalled_tokens == 0
    pot, recalled = pot_of(memory, monkeypatch, "When?", followup="recall")
    assert pot.length == len(llm.form.prefix) + recalled.usage.recalled_tokens > len(llm.form.prefix)
    assert (pot.origin == pot.origin[0, 0]).all()
    assert (pot.origin[0, 0].diff() >= 0).all()
    own, reread = pot_of(memory, monkeypatch, "When?", followup="reread")
    assert reread.usage.recalled_tokens == 0
    expected = llm.read(Document.from_text(TEXT), question="When?").pot.state()
    assert all(torch.equal(value, expected[name]) for name, value in own.state().items())
    by_default, answer = pot_of(memory, monkeypatch, "When?")
    assert (by_default is memory.pot) == (llm.config.followup == "reuse")
    assert answer.text == (reused if llm.config.followup == "reuse" else recalled).text
    assert len({reused.text, recalled.text, reread.text}) == 3


def test_an_unknown_followup_is_refused(memory: DocumentMemory) -> None:
    with pytest.raises(QuestionError, match=r"'rewind'.*recall, reuse, reread\.$"):
        memory.ask("When?", followup="rewind")


def test_as_much_is_recalled_as_asked_for(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = memory.setup.prefix[0].shape[2]
    for tokens in (1, 5, 32, 33, 60):
        pot, answer = pot_of(memory, monkeypatch, "When?", followup="recall", recall=tokens)
        assert answer.usage.recalled_tokens == pot.length - prefix == tokens
        assert pot.budget == prefix + tokens + answer.usage.question_tokens + LIMIT
    most = 330 - prefix - len(memory._form.question("When?")) - LIMIT
    assert pot_of(memory, monkeypatch, "When?", followup="recall", recall=10**6)[1].usage.recalled_tokens == most
    longer = memory.ask("Why? " * 8, followup="recall", recall=10**6, citations=False).usage
    assert longer.recalled_tokens == 330 - prefix - longer.question_tokens - LIMIT < most


@pytest.mark.parametrize("tokens", [-1, -100])
def test_no_less_than_a_token_can_be_recalled(memory: DocumentMemory, tokens: int) -> None:
    with pytest.raises(QuestionError, match="recall"):
        memory.ask("When?", followup="recall", recall=tokens)
    with pytest.raises(QuestionError, match=r"recall|tokens"):
        memory.recall("When?", tokens)


@pytest.mark.parametrize("followup", ["recall", "reuse", "reread"])
def test_too_little_room_is_said_in_a_sentence(memory: DocumentMemory, followup: str) -> None:
    for options in ({"max_new_tokens": 300}, {"max_new_tokens": 10**6}):
        with pytest.raises(InfiniPotError, match=r"answer.*\.$") as refused:
            memory.ask("When?", followup=followup, **options)
        assert "\n" not in str(refused.value)
    with pytest.raises(InfiniPotError, match=r"question.*\.$"):
        memory.ask("Why? " * 70, followup=followup)


def test_a_long_question_shortens_the_answer_rather_than_being_refused(memory: DocumentMemory) -> None:
    room = 330 - memory.setup.prefix[0].shape[2] - len(memory._form.question("x"))
    answer = memory.ask("x" * (room - 40), followup="recall", citations=False)
    assert answer.usage.answer_tokens == 9 < LIMIT
    assert answer.usage.recalled_tokens >= 30


def test_without_a_shelf_the_pot_answers(llm: InfiniPot, memory: DocumentMemory) -> None:
    bare = InfiniPot(llm.adapter, CODEC, replace(llm.config, shelf="off")).read(Document.from_text(TEXT, name="mill"))
    assert bare.shelved is None
    answer = bare.ask("When?")
    assert answer.usage.recalled_tokens == 0
    assert answer.text == memory.ask("When?", followup="reuse").text
    for run in (lambda: bare.ask("When?", followup="recall"), lambda: bare.recall("When?")):
        with pytest.raises(QuestionError, match=r"without a shelf.*\.$"):
            run()
    assert bare.ask("When?", followup="reread").text == memory.ask("When?", followup="reread").text


def test_a_shelf_of_four_bits_and_a_bounded_one_answer_too(llm: InfiniPot) -> None:
    for knobs in ({"shelf": "int4"}, {"shelf_bytes": 60_000}):
        memory = InfiniPot(llm.adapter, CODEC, replace(llm.config, **knobs)).read(Document.from_text(TEXT))  # type: ignore[arg-type]
        answer = memory.ask("When?", followup="recall")
        assert 0 < answer.usage.recalled_tokens <= len(memory.finder.shelf)
        assert memory.ask("When?", followup="recall").text == answer.text


def test_what_is_counted_as_recalled_was_recalled(llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded shelf holds parts of spans."""
    memory = InfiniPot(llm.adapter, CODEC, replace(llm.config, shelf_bytes=20_000)).read(Document.from_text(TEXT))
    assert len(memory.finder.shelf) < 172  # which is what a question leaves
    for tokens in (20, 50, 100, 10**6):
        pot, answer = pot_of(memory, monkeypatch, "When?", followup="recall", recall=tokens)
        assert answer.usage.recalled_tokens == pot.length - len(llm.form.prefix)
        assert pot.budget == pot.length + answer.usage.question_tokens + LIMIT <= 330


def test_what_a_question_brings_back_can_be_looked_at(llm: InfiniPot, memory: DocumentMemory) -> None:
    found = memory.recall("When did it burn?", 64)
    document = memory.documents[0]
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert sum(span.end - span.start for span, _ in found) == 64  # a byte is a token
    for span, _ in found:
        assert span.text == document.text[span.start : span.end] != ""
        assert (span.document, span.page) == ("mill", document.page_at(span.start).number)
    with_pages = Document.from_text("\f".join([TEXT[:89]] * 4), name="paged")
    both = llm.read([with_pages, Document.from_text("Other. " * 20, name="other")])
    found = both.recall("When did it burn?", len(both.text) + 1)
    assert [span.document for span, _ in found] == ["paged", "other"]
    assert [span.text for span, _ in found] == [d.text for d in both.documents]
    pages = {span.page for span, _ in both.recall("When did it burn?", 100)}
    assert pages <= {1, 2, 3, 4}
    with pytest.raises(QuestionError, match="empty"):
        memory.recall(" ")


def test_a_closed_model_says_so() -> None:
    config = PotConfig(budget=330, max_new_tokens=LIMIT, question_tokens=40, shelf="int8", recalled="load")
    with InfiniPot(Adapter(tiny_model("llama", num_hidden_layers=2)), CODEC, config) as llm:
        memory = llm.read(Document.from_text(TEXT))
        short = llm.read(Document.from_text(TEXT[:20]))
    for run in (
        lambda: memory.ask("When?"),
        lambda: short.ask("When?"),
        lambda: memory.ask("When?", followup="reuse"),
        lambda: memory.ask("When?", followup="reread"),
        lambda: memory.recall("When?", 20),
        lambda: list(memory.stream("When?")),
        lambda: memory.chat().ask("When?"),
        lambda: llm.read(Document.from_text(TEXT)),
        lambda: llm.extend(memory, Document.from_text(TEXT)),
    ):
        with pytest.raises(ModelError, match="was closed"):
            run()


def test_two_memories_of_one_model_are_apart(llm: InfiniPot, memory: DocumentMemory) -> None:
    before, expected = memory.pot.state(), memory.ask("When?").text
    other = llm.read(Document.from_text("Quite another text. " * 30))
    other.ask("What?")
    assert all(torch.equal(before[name], value) for name, value in memory.pot.state().items())
    assert memory.ask("When?").text == expected


def test_a_single_stop_text_is_one_stop_text() -> None:
    config = PotConfig(budget=330, max_new_tokens=LIMIT, question_tokens=40, shelf="int8", recalled="load")
    with InfiniPot(Adapter(tiny_model("llama", num_hidden_layers=2)), CODEC, config) as llm:
        memory = llm.read(Document.from_text(TEXT[:60]))
        free = memory.ask("When?", citations=False).text
        assert memory.ask("When?", citations=False, stop=free[0] + "\0never").text == free


def test_wrong_arguments_are_sentences() -> None:
    llm = InfiniPot(Adapter(tiny_model("llama", num_hidden_layers=2)), CODEC)
    with pytest.raises(DocumentError, match="from_file"):
        llm.read("report.pdf")  # type: ignore[arg-type]
    llm.close()
    with pytest.raises(BudgetError, match="novelty"):
        InfiniPot.from_pretrained("nowhere", novelty=0.5)
