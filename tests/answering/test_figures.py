"""Figures of an answer that stand nowhere in what it was answered from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import byte_tokenizer, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from scripted import dictated

from infinipot_llm import Document, InfiniPot, PotConfig
from infinipot_llm.answering.figures import unfounded
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

FILLER = "The weir held, and nobody wrote down why.\n\n" * 40
TEXT = f"The pump cost 412,650 crowns.\n\n{FILLER}The well is 1903 feet deep, they said."


@pytest.mark.parametrize(
    ("answer", "shown", "found"),
    [
        ("It cost 412,650 crowns.", "a price of 412,650 crowns", []),
        ("It cost 412650 crowns.", "a price of 412,650 crowns", []),
        ("412 650", "a price of 412,650 crowns", []),
        ("412,650", "a price of 412 650 crowns", []),
        ("412'650", "a price of 412.650 crowns", []),
        ("It cost 412,651 crowns.", "a price of 412,650 crowns", ["412,651"]),
        ("412 651", "a price of 412,650 crowns", ["412", "651"]),
        ("It cost 650 crowns.", "a price of 412,650 crowns", ["650"]),
        ("40%, or 40 in 100", "the 12th of 100", ["40"]),
        ("07 May", "on the 7th of May, 2007", []),
        ("In the 1990s.", "since 1990", []),
        ("from 1985-86", "in 1985 and 86 others", []),
        ("Three, or 3.", "three", []),  # texts write small numbers as words
        ("٤٠", "40 and 50", []),
        ("٤١", "40 and 50", ["٤١"]),
        ("²³ and x²", "", []),  # no decimal digits
        ("none", "1 2 3", []),
        ("", "12", []),
    ],
)
def test_figures_are_compared_by_their_digits(answer: str, shown: str, found: list[str]) -> None:
    assert unfounded(answer, shown) == found


@given(st.text(), st.text(alphabet="0123456789.,' \u202f٣²x\n"))
def test_what_was_shown_is_never_unfounded(words: str, figures: str) -> None:
    answer = words + figures
    assert unfounded(answer, f"So: {answer}.") == []


@given(st.integers(10, 10**12), st.integers(10, 10**12))
def test_another_figure_is(said: int, there: int) -> None:
    assert unfounded(f"It is {said:,}.", f"There are {there:,}, at most.") == ([f"{said:,}"] if said != there else [])


@pytest.mark.parametrize(("answer", "found"), [("It cost 412,6", []), ("88 of 41", ["88"]), ("of 88 crowns", ["88"])])
def test_the_figure_that_a_limit_cuts_is_not_judged(answer: str, found: list[str]) -> None:
    shown = "a price of 412,650 crowns"
    assert unfounded(answer, shown, ended=False) == found
    assert set(found) <= set(unfounded(answer, shown))


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    adapter = Adapter(tiny_model("llama", num_hidden_layers=2))
    yield InfiniPot(adapter, TextCodec(byte_tokenizer()), PotConfig(budget=900, recall=64, max_new_tokens=40))
    adapter.close()


@pytest.fixture(scope="module")
def memory(llm: InfiniPot) -> DocumentMemory:
    return llm.read(Document.from_text(TEXT))


def notes(memory: DocumentMemory, says: str, question: str = "What did the pump cost?", **options: object) -> list[str]:
    codec = memory.setup.form.codec
    with dictated(memory.setup.adapter, [*codec.untrusted(says), codec.tokenizer.eos_token_id]):
        answer = memory.ask(question, citations=False, **options)
    assert answer.text == says
    return [note for note in answer.notes if "worked out" in note]


def test_an_answer_says_which_of_its_figures_it_did_not_read(memory: DocumentMemory) -> None:
    recalled = memory.recall("What did the pump cost?", 64)
    assert any("412,650" in span.text for span, _ in recalled)
    assert not any("1903" in span.text for span, _ in recalled)
    assert notes(memory, "412,650 crowns") == []
    assert notes(memory, "1903 crowns") == [
        "1903 is not in the text that was answered from: worked out, or made up."
    ]  # of the document, but not among what was recalled
    assert notes(memory, "from 1903 to 88 crowns") == [
        "1903, 88 are not in the text that was answered from: worked out, or made up."
    ]
    assert notes(memory, "88 crowns", "Did the pump cost 88 crowns?") == []  # the question told


def test_earlier_turns_tell_figures_too(memory: DocumentMemory) -> None:
    talk = memory.chat()
    codec = memory.setup.form.codec
    for question in ("Is it 88?", "How much again?"):
        with dictated(memory.setup.adapter, [*codec.untrusted("88 it is"), codec.tokenizer.eos_token_id]):
            assert [note for note in talk.ask(question).notes if "worked out" in note] == []


def test_the_pot_is_looked_into_where_it_answers(llm: InfiniPot) -> None:
    memory = llm.read(Document.from_text("The well is 1903 feet deep."))
    assert notes(memory, "1903 feet", followup="reuse") == []
    assert notes(memory, "1904 feet", followup="reuse") != []
