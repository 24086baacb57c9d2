"""What an assistant takes for the question, out of templates, schemas and conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_assistant import ASK, CODEC, LONG, made
from test_assistant import adapter as adapter
from test_assistant import assistant as assistant

from infinipot_llm.answering.answer import Answer
from infinipot_llm.answering.prompt import QUERY_TOKENS, Message, Prompt
from infinipot_llm.assistant import Assistant
from infinipot_llm.engine import InfiniPot
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.models.adapter import Adapter


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """The prompts that memories are asked."""
    asked: list[Prompt] = []
    real = DocumentMemory.answer

    def noted(memory: DocumentMemory, prompt: Prompt, *rest: Any, **options: Any) -> Answer:
        asked.append(prompt)
        return real(memory, prompt, *rest, **options)

    monkeypatch.setattr(DocumentMemory, "answer", noted)
    return asked


@pytest.mark.parametrize(
    ("frame", "question"),
    [
        ("Answer from this, and do not make anything up.\n\n{}\n\nQuestion: Who moved?\nHelpful Answer:", "Who moved?"),
        ("Answer from this, and do not make anything up.\n\n{}\n\nWho moved?", None),
    ],
)
def test_a_templates_words_are_not_the_question(
    assistant: Assistant, prompts: list[Prompt], frame: str, question: str | None
) -> None:
    reply = assistant.respond([Message("user", frame.format(LONG.text))])
    (prompt,) = prompts
    assert prompt.alone is (question is not None)
    if question is not None:
        assert prompt.question == question
        assert list(prompt.query) == assistant.llm.form.question(question)
    assert (reply.answer.answerable is None) is (question is None)
    assert "make anything up" in CODEC.tokenizer.decode(prompt.behind), "it is what the model is told all the same"


@pytest.mark.parametrize("fields", [1, 30])
def test_a_schema_does_not_hide_the_question(assistant: Assistant, prompts: list[Prompt], fields: int) -> None:
    """It is told behind the question, and takes its room, but is no part of what is looked for."""
    schema = {"type": "object", "properties": {f"f{i}": {"type": "boolean"} for i in range(fields)}}
    larger = made(assistant.llm.adapter, budget=1800)
    larger.respond([Message("user", f"{LONG.text}\n\nQuestion: Who moved?\nAnswer:")], schema=schema)
    assert prompts[0].question == "Who moved?"
    assert json.dumps(schema) in CODEC.tokenizer.decode(prompts[0].behind, clean_up_tokenization_spaces=False)
    larger.respond([Message("user", "Who moved?")], [LONG], schema=schema)
    assert prompts[1].question == "Who moved?"
    assert list(prompts[1].query) == larger.llm.form.question("Who moved?")


def test_a_question_whose_earlier_turn_was_left_out_is_not_judged_by_its_own_words(assistant: Assistant) -> None:
    assert assistant.respond(ASK, [LONG]).answer.answerable is not None
    turns = [Message("user", "Tell me of ships. " * 22), Message("assistant", "No.")]
    reply = assistant.respond([*turns, Message("user", "Since when do they moor?")], [LONG])
    assert "1 earlier turn" in reply.answer.notes[0]
    assert reply.answer.answerable is None


@pytest.mark.parametrize("question", ["\n\nQuestion: Who moved?\nAnswer:", "\n\nWho moved?"])
def test_what_was_taken_out_of_the_question_is_not_looked_for(
    assistant: Assistant, prompts: list[Prompt], question: str
) -> None:
    """Whoever calls gives the whole message as the question, where another one of the user's stands beside it."""
    stuffed = f"Answer from this.\n\n{LONG.text}{question}"
    for messages in ([Message("user", stuffed)], [Message("user", "Be kind."), Message("user", stuffed)]):
        assistant.respond(messages, asked=stuffed if len(messages) > 1 else None)
    alone, beside = prompts
    assert LONG.text not in beside.question
    assert len(beside.query) < QUERY_TOKENS
    if "Question" in question:
        assert alone.question == beside.question == "Who moved?"


def test_a_very_long_question_is_looked_for_by_its_end(tiny_llm: InfiniPot) -> None:
    form = tiny_llm.form
    long = "A word. " * 200 + "Who moved?"
    query = form.looked_for([], long)
    assert len(query) == QUERY_TOKENS
    assert query[: len(form.before_question)] == list(form.before_question)
    assert query[-16:] == form.question("Who moved?")[-16:]
    assert form.looked_for([], "Who moved?") == form.question("Who moved?")


def test_what_stayed_of_one_conversation_is_told_in_no_other(adapter: Adapter, tmp_path: Path) -> None:
    """Two requests over one context, as a server gets them."""
    store = MemoryStore(tmp_path / "store")
    for fresh in (made(adapter, store), made(adapter, store, shelf="off")):
        for asked in ("Is Alice's salary 90,000?", "How high is it?"):
            reply = fresh.respond([Message("user", f"Answer from this.\n\n{LONG.text}\n\nQuestion: {asked}\nAnswer:")])
            (document,) = reply.documents
            assert f"Question: {asked}" in document.notes[-1]
            assert ("Alice" in str(document.notes)) is ("Alice" in asked)
    for file in (tmp_path / "store").rglob("*"):
        assert not file.is_file() or b"Alice" not in file.read_bytes()


def test_a_stop_string_does_not_cut_json(assistant: Assistant) -> None:
    """What is left would be mended, or parse by itself, into another value."""
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"enum": ["x.y"]}, "b": {"enum": [1.5]}}, "required": ["a", "b"]}
    for documents in ([], [LONG]):
        reply = assistant.respond(ASK, documents, schema=schema, stop=[".", ","], max_new_tokens=60)
        assert json.loads(reply.answer.text) == {"a": "x.y", "b": 1.5}
        assert reply.answer.finish_reason == "stop"
