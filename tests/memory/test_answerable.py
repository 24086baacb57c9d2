"""Whether a document answers at all: the signs, the judge that weighs them, and what an answer says of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from asked_memory import CODEC
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from infinipot_llm.answering import compose
from infinipot_llm.answering.messages import Message, prompt_of
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.memory import recall
from infinipot_llm.memory.answerable import BY_WORDS, USUAL_ROWS, Judge, Signs, attention_sign, fit
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import Passage
from infinipot_llm.models.adapter import Adapter

NAMES = ["Ada", "Ben", "Cyd", "Dan", "Eve", "Fay", "Gus", "Hal"]
TEXT = "\n\n".join(
    f"In {1900 + i} the mill of {name} burned down, and {i * 37} crowns were paid to the owner."
    for i, name in enumerate(NAMES)
)
KNOWN, UNKNOWN = (
    "How many crowns were paid when the mill of Dan burned?",
    "Which comets did Tycho observe in Uraniborg?",
)
finite = st.floats(-20, 20)


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    config = PotConfig(budget=900, max_new_tokens=12, question_tokens=40, recall=100, chunk=64)
    with InfiniPot(Adapter(tiny_model("llama")), CODEC, config) as made:
        yield made


@pytest.fixture(scope="module")
def memory(llm: InfiniPot) -> DocumentMemory:
    return llm.read(Document.from_text(TEXT, name="mills"))


def judged(memory: DocumentMemory, question: str, budget: int = 100) -> float | None:
    return memory.finder.find(memory.setup.form.question(question), question, budget).answerable


# --- the judge ---


@settings(max_examples=40, deadline=None, derandomize=True)
@given(finite, finite, finite, finite, finite)
def test_a_judge_says_a_share_that_grows_with_both_signs(a: float, w: float, c: float, x: float, y: float) -> None:
    judge = Judge(abs(a), abs(w), c)
    found = judge(Signs(x, y))
    assert 0.0 <= found <= 1.0
    assert judge(Signs(x + 1, y)) >= found
    assert judge(Signs(x, y + 1)) >= found
    assert Judge(0.0, 0.0, 0.0)(Signs(x, y)) == 0.5


def test_attention_is_that_of_the_best_four_spans_brought_to_one_length() -> None:
    attended = torch.tensor([0.1, 0.3, 0.0, 0.2, 0.05, 0.4])
    assert attention_sign(attended, USUAL_ROWS) == pytest.approx(math.log(1.0 + 1e-4), abs=1e-6)
    assert attention_sign(attended, 4 * USUAL_ROWS) == pytest.approx(math.log(2.0), abs=1e-3)
    assert attention_sign(attended[:2], USUAL_ROWS) == pytest.approx(math.log(0.4), abs=1e-3)
    assert math.isfinite(attention_sign(-attended, USUAL_ROWS)), "less than what no question at all gets"


def test_a_fit_tells_two_groups_apart_whatever_their_sizes() -> None:
    generator = torch.Generator().manual_seed(0)

    def group(count: int, attention: float, words: float) -> list[Signs]:
        noise = 0.2 * torch.randn(count, 2, generator=generator)
        return [Signs(attention + a, words + b) for a, b in noise.tolist()]

    yes, no = group(40, -1.0, 0.6), group(400, -2.0, 0.1)
    judge = fit(yes, no)
    assert judge.attention > 0
    assert judge.words > 0
    assert sum(judge(s) > 0.5 for s in yes) >= 38
    assert sum(judge(s) < 0.5 for s in no) >= 380
    middle = Signs(-1.5, 0.35)
    assert 0.3 < judge(middle) < 0.7, "ten times as many of one group do not move the border"


# --- the finder ---


def test_a_question_in_the_texts_words_is_told_from_one_about_something_else(memory: DocumentMemory) -> None:
    """A model that was not measured judges by words alone."""
    assert memory.setup.heads.judge is None
    known, unknown = judged(memory, KNOWN), judged(memory, UNKNOWN)
    assert known is not None
    assert known > 0.9
    assert unknown == pytest.approx(BY_WORDS(Signs(0.0, 0.0)))


def test_a_measured_model_judges_by_both_signs(llm: InfiniPot, memory: DocumentMemory) -> None:
    seen: list[Signs] = []

    class Spy(Judge):
        def __call__(self, signs: Signs) -> float:
            seen.append(signs)
            return super().__call__(signs)

    setup = replace(memory.setup, heads=replace(memory.setup.heads, judge=Spy(2.0, 1.0, 0.5)))
    finder = recall.Finder(setup, memory.text, memory.finder.shelf, memory.finder.null)
    asked = llm.form.question(KNOWN)
    found = finder.find(asked, KNOWN, 100)
    (signs,) = seen
    attended = torch.tensor(setup.heads.weights) @ finder.attention(asked)
    assert signs.attention == pytest.approx(attention_sign(attended, len(finder.shelf)))
    best = int(finder.scores(asked, KNOWN).argmax())
    number = int(finder.spans.paragraph[best])
    assert signs.words == finder.words.share(KNOWN, TEXT.split("\n\n")[number])
    assert found.answerable == Judge(2.0, 1.0, 0.5)(signs)


def test_only_what_stands_near_the_best_span_counts(
    llm: InfiniPot, memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text without paragraphs holds every word somewhere."""
    flat = llm.read(Document.from_text(TEXT.replace("\n\n", " ") * 3, name="flat"))
    assert len(set(flat.finder.spans.paragraph.tolist())) == 1
    question = " ".join(f"Did {name} pay?" for name in NAMES)
    monkeypatch.setattr(recall, "FITTING", 1)
    near = judged(flat, question)
    monkeypatch.setattr(recall, "FITTING", 1000)
    everywhere = judged(flat, question)
    assert near is not None
    assert everywhere is not None
    assert near < everywhere


def test_nothing_is_judged_where_nothing_was_looked_for(memory: DocumentMemory) -> None:
    assert judged(memory, KNOWN, len(memory.text)) is None
    assert judged(memory, "What is it?") is None
    assert memory.ask(KNOWN, followup="reuse").answerable is None
    assert memory.ask(KNOWN, followup="reread").answerable is None
    whole = Passage(0, len(memory.text), 0.0)
    assert memory.ask(KNOWN, passages=[whole], max_new_tokens=1).answerable is None


def test_passages_that_somebody_chose_are_of_documents_that_answer_or_not(memory: DocumentMemory) -> None:
    """A query engine looks for passages first, and answers from them then."""
    for question in (KNOWN, UNKNOWN):
        found = memory.ask(question, passages=memory.passages(question)[:1])
        assert found.answerable == judged(memory, question)


# --- the answer ---


def test_an_answer_that_the_text_may_not_hold_says_so(memory: DocumentMemory) -> None:
    known, unknown = memory.ask(KNOWN), memory.ask(UNKNOWN)
    assert known.answerable == judged(memory, KNOWN)
    assert unknown.answerable == judged(memory, UNKNOWN)
    assert known.notes == ()
    assert unknown.notes == (compose.DOUBT,)
    assert [a.notes for a in memory.ask_many([KNOWN, UNKNOWN])] == [(), (compose.DOUBT,)]
    assert [a.answerable for a in memory.ask_many([KNOWN, UNKNOWN])] == [known.answerable, unknown.answerable]
    assert asyncio.run(memory.aask(UNKNOWN)).to_dict()["answerable"] == unknown.answerable


def test_doubt_comes_before_the_first_piece(memory: DocumentMemory) -> None:
    for question, doubts in ((KNOWN, []), (UNKNOWN, [compose.DOUBT])):
        heard: list[tuple[str, str]] = []
        answer = memory.ask(
            question,
            on_doubt=lambda note, heard=heard: heard.append(("doubt", note)),
            on_text=lambda piece, heard=heard: heard.append(("text", piece)),
        )
        assert [said for what, said in heard[: len(doubts)] if what == "doubt"] == doubts
        assert [what for what, _ in heard].count("doubt") == len(doubts)
        assert answer.notes == tuple(doubts), "who reads the answer later is told as well"
    heard = []
    pieces = list(memory.stream(UNKNOWN, on_doubt=lambda note: heard.append(("doubt", note))))
    assert pieces
    assert heard == [("doubt", compose.DOUBT)]


def test_an_answer_that_says_so_itself_is_not_told_twice(
    memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "says_nothing_found", lambda text: True)
    assert memory.ask(UNKNOWN).notes == ()


def test_a_cancelled_answer_is_not_doubted(memory: DocumentMemory) -> None:
    asked: list[bool] = []

    def later(least: float = math.inf) -> bool:
        asked.append(True)
        return len(asked) >= least

    memory.ask(UNKNOWN, citations=False, cancelled=later)
    last = len(asked) - 1
    asked.clear()
    answer = memory.ask(UNKNOWN, citations=False, cancelled=lambda: later(last))
    assert answer.finish_reason == "cancelled"
    assert answer.answerable == judged(memory, UNKNOWN)
    assert answer.notes == ()


def test_a_question_that_earlier_turns_explain_is_not_judged_by_its_own_words(
    llm: InfiniPot, memory: DocumentMemory
) -> None:
    talk = memory.chat()
    assert talk.ask(UNKNOWN).notes == (compose.DOUBT,)
    later = talk.ask("Since when?")
    assert later.answerable is None
    assert compose.DOUBT not in later.notes
    system, first, said = Message("system", "Be brief."), Message("user", "Who?"), Message("assistant", "Ada.")
    assert prompt_of(llm.form, [system, first], document=True).alone
    assert not prompt_of(llm.form, [first, said, Message("user", "Since when?")], document=True).alone
