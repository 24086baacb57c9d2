"""What an assistant takes for the question, out of templates, schemas and conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_assistant import ASK, CODEC, LONG, made
from test_assistant import adapter as adapter
from test_assistant import assistant as assistant

from infinipot_llm.answering.answer import Answer
from infinipot_llm.answering.prompt import Message, Prompt
from infinipot_llm.assistant import Assistant
from infinipot_llm.memory.memory import DocumentMemory


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
