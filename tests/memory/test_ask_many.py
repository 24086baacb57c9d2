"""Questions asked at once: the answers of one by one, whatever their number, and nothing lost when one is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from asked_memory import CODEC, LIMIT, TEXT
from conftest import tiny_model

from infinipot_llm.answering import compose as composing
from infinipot_llm.answering.answer import Answer
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import QuestionError
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter

QUESTIONS = ["When did the mill burn?", "Who?", "What did it cost to build it again in 1904?", "Where to?", "Why?"]


def reading(family: str, **changes: Any) -> Iterator[DocumentMemory]:
    config = PotConfig(**{"budget": 330, "max_new_tokens": LIMIT, "question_tokens": 40, "recall": 128, **changes})
    with InfiniPot(Adapter(tiny_model(family)), CODEC, config) as llm:
        yield llm.read(Document.from_text(TEXT, name="mill"))


@pytest.fixture(scope="module")
def memory() -> Iterator[DocumentMemory]:
    yield from reading("qwen3")


def told(answers: list[Answer]) -> list[Answer]:
    """Answers without what their time and memory was."""
    same = {"first_token_seconds": 0.0, "answer_seconds": 0.0, "peak_memory_bytes": 0, "pot_bytes": 0}
    return [replace(a, usage=replace(a.usage, **same), supported=None, citations=()) for a in answers]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers were written at a time."""
    seen: list[int] = []
    real = composing.decode_together

    def counted(adapter: Any, codec: Any, pots: Any, *rest: Any, **options: Any) -> Any:
        seen.append(len(pots))
        return real(adapter, codec, pots, *rest, **options)

    monkeypatch.setattr(composing, "decode_together", counted)
    return seen


def test_answers_are_those_of_ask(memory: DocumentMemory, sizes: list[int]) -> None:
    alone = [memory.ask(question) for question in QUESTIONS]
    found = memory.ask_many(QUESTIONS, together=2)
    assert told(found) == told(alone)
    assert sizes == [2, 2]  # and one by itself
    for one, other in zip(found, alone, strict=True):
        assert [(c.start, c.end) for c in one.citations] == [(c.start, c.end) for c in other.citations]
        assert one.supported == pytest.approx(other.supported, abs=1e-3)
    assert len({a.text for a in alone}) > 1


def test_no_question_and_one(memory: DocumentMemory, sizes: list[int]) -> None:
    assert memory.ask_many([]) == []
    assert told(memory.ask_many(QUESTIONS[:1])) == told([memory.ask(QUESTIONS[0])])
    assert sizes == []


def test_a_long_question_shortens_its_own_answer_alone(memory: DocumentMemory, sizes: list[int]) -> None:
    long = "Who was it that " + "really " * 20 + "burned it?"
    asked = [QUESTIONS[0], long, QUESTIONS[1]]
    found = memory.ask_many(asked)
    assert told(found) == told([memory.ask(question) for question in asked])
    assert found[1].usage.answer_tokens < LIMIT
    assert sizes == [2]


def test_options_are_those_of_ask(memory: DocumentMemory) -> None:
    options: dict[str, Any] = {"recall": 64, "max_new_tokens": 7, "stop": "e", "citations": False}
    found = memory.ask_many(QUESTIONS[:3], **options)
    assert told(found) == told([memory.ask(question, **options) for question in QUESTIONS[:3]])
    assert all(a.citations == () and a.supported is None for a in found)
    assert all(a.usage.recalled_tokens <= 64 for a in found)


def test_the_shelf_answers_whatever_the_configuration_says(sizes: list[int]) -> None:
    for memory in reading("llama", followup="reuse"):
        found = memory.ask_many(QUESTIONS[:2])
        assert told(found) == told([memory.ask(q, followup="recall") for q in QUESTIONS[:2]])
    assert sizes == [2]


def test_sampling_depends_on_the_seed_alone(memory: DocumentMemory) -> None:
    def texts(seed: int) -> list[str]:
        return [a.text for a in memory.ask_many(QUESTIONS[:3], temperature=1.5, seed=seed, citations=False)]

    assert texts(1) == texts(1)
    assert len({tuple(texts(seed)) for seed in range(3)}) > 1


def test_one_refused_question_is_told_before_any_is_answered(
    memory: DocumentMemory, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards: list[object] = []
    monkeypatch.setattr(Adapter, "forward", lambda *given: forwards.append(given))
    for questions, sentence in ((["Who?", " "], "empty"), (["Who?", "who " * 400], "no room|free slots")):
        with pytest.raises(QuestionError, match=sentence):
            memory.ask_many(questions)
    assert sizes == forwards == []
    with pytest.raises(QuestionError, match="together is 0"):
        memory.ask_many(QUESTIONS, together=0)


def test_cancelled_answers_are_empty(memory: DocumentMemory) -> None:
    found = memory.ask_many(QUESTIONS, together=2, cancelled=lambda: True)
    assert [(a.text, a.finish_reason, a.citations) for a in found] == [("", "cancelled", ())] * len(QUESTIONS)


def test_without_a_shelf_it_says_what_to_do() -> None:
    for memory in reading("llama", shelf="off"):
        with pytest.raises(QuestionError, match="without a shelf"):
            memory.ask_many(QUESTIONS)


def test_a_model_with_sliding_layers_answers_one_by_one(sizes: list[int]) -> None:
    for memory in reading("gemma3"):
        assert told(memory.ask_many(QUESTIONS[:3])) == told([memory.ask(question) for question in QUESTIONS[:3]])
    assert sizes == []


def test_one_text_is_no_list_of_questions(memory: DocumentMemory) -> None:
    """Its letters were answered one by one."""
    with pytest.raises(QuestionError, match="give a list of questions"):
        memory.ask_many("Who?")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": "10"}, "max_new_tokens is '10'"),
        ({"recall": "10"}, "'10' tokens cannot be recalled"),
        ({"recall": 10.5}, "10.5 tokens cannot be recalled"),
        ({"seed": 2**70, "temperature": 1.0}, "seed is"),
        ({"temperature": 1e-40}, "the temperature is 1e-40"),
    ],
)
def test_odd_options_are_a_sentence(memory: DocumentMemory, options: dict[str, Any], says: str) -> None:
    with pytest.raises(QuestionError, match=says):
        memory.ask("Who?", **options)
    with pytest.raises(QuestionError, match=says):
        memory.ask_many(["Who?"], **options)


def test_no_stop_may_be_said_with_none(memory: DocumentMemory) -> None:
    assert memory.ask("Who?", stop=None).text == memory.ask("Who?").text  # type: ignore[arg-type]
