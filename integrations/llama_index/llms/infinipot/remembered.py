"""Asking a memory with the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infinipot_llm.answering.prompt import Message

if TYPE_CHECKING:
    from infinipot_llm.answering.prompt import Prompt
    from infinipot_llm.assistant import Reply
    from infinipot_llm.memory.memory import DocumentMemory
    from infinipot_llm.memory.recall import Passage

_ANSWERING = ("recall", "schema", "citations", "on_text", "cancelled")


def how_of(memory: DocumentMemory, followup: str | None) -> str:
    """Return how a memory answers: as asked, or else as configured; from the pot where there is no shelf."""
    how = followup or memory.config.followup
    return "reuse" if followup is None and how == "recall" and memory.shelved is None else how


def passages_of(memory: DocumentMemory, messages: Sequence[Message], options: Mapping[str, Any]) -> list[Passage]:
    """Return the passages that the last message of a conversation is answered from, in the order of the documents.

    Args:
        memory: What is asked.
        messages: The conversation.
        options: recall, max_new_tokens, cancelled.

    Raises:
        QuestionError: There is no question, it is too long, or the memory has no shelf.
    """
    system, turns, question = _taken_apart(messages)
    limit = options.get("max_new_tokens")
    if system is not None:  # it takes room that the usual prompt does not
        asked, form = _own_prompt(memory, system, (), question), memory.setup.form
        longer = len(asked.before) + len(asked.behind) - len(form.prefix) - len(form.question(question))
        limit = (limit or memory.config.max_new_tokens) + max(0, longer)
    return memory.passages(
        question,
        history=turns,
        recall=options.get("recall"),
        max_new_tokens=limit,
        cancelled=options.get("cancelled"),
    )


def from_memory(memory: DocumentMemory, messages: Sequence[Message], options: Mapping[str, Any]) -> Reply:
    """Answer the last message of a conversation from a memory.

    Args:
        memory: What is asked.
        messages: The conversation. A system message takes the place of the usual prompt.
        options: Options of DocumentMemory.ask; `schema`: a JSON schema that the answer follows; `catalyst`: what is
            looked for. None: what a template announces as the question in the last message, or else that message.

    Raises:
        QuestionError: There is no question, or it does not fit.
    """
    from infinipot_llm.answering.decode import Sampling
    from infinipot_llm.assistant import Reply
    from infinipot_llm.memory.asking import slots_read, usual_prompt
    from infinipot_llm.stuffed import question_in

    system, turns, question = _taken_apart(messages)
    looked_for = options.get("catalyst") or question_in(question)
    how = how_of(memory, options.get("followup"))
    passages = options.get("passages") if how == "recall" else None
    told = {k: options[k] for k in _ANSWERING if k in options}
    limit = options.get("max_new_tokens")
    if system is None or how == "reuse":  # the pot was read with the usual prompt
        prompt, limit, told["notes"] = usual_prompt(memory, how, question, turns, limit, told.get("recall"))
        before = len(memory.setup.form.prefix)
    else:
        if passages is None and how == "recall" and looked_for is None:
            passages = passages_of(memory, messages, options)
        limit = limit or memory.config.max_new_tokens
        prompt, kept = _own_prompt(memory, system, turns, question), list(turns)
        room = memory.config.budget - limit
        kept_free = min(told.get("recall") or memory.setup.recall, room // 2)  # as DocumentMemory.ask has it
        if passages is not None:  # what stands between them takes room as well
            kept_free = max(kept_free, slots_read(memory, passages))
        room -= kept_free
        while kept and len(prompt.before) + len(prompt.behind) > room:
            kept = kept[1:]
            prompt = _own_prompt(memory, system, kept, question)
        if dropped := len(turns) - len(kept):
            were = "turn no longer fits and was" if dropped == 1 else "turns no longer fit and were"
            told["notes"] = [f"{dropped} earlier {were} left out."]
            prompt = replace(prompt, alone=False)  # what it is about stood in them
        before = len(prompt.before)
    if looked_for is not None:
        whole = options.get("catalyst") is not None  # says all that is looked for
        query = memory.setup.form.looked_for(() if whole else turns, looked_for)
        prompt = replace(prompt, query=tuple(query), question=looked_for, alone=whole or prompt.alone)
    stop = options.get("stop", ())
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    sampling = Sampling(limit, options.get("temperature", 0.0), options.get("top_p", 1.0), stops, options.get("seed"))
    answer = memory.answer(prompt, sampling, followup=how, passages=passages, **told)
    read = len(memory.text) if how == "reread" else 0
    seen = read or answer.usage.recalled_tokens or (memory.pot.length if how == "reuse" else 0)
    given = before + answer.usage.question_tokens + seen
    return Reply(answer, how, memory.documents, given, read, len(memory.text) - read)  # type: ignore[arg-type]


def _taken_apart(messages: Sequence[Message]) -> tuple[str | None, list[tuple[str, str]], str]:
    """Return the system message, the turns before, and the question."""
    from infinipot_llm.answering.messages import tidied

    said = tidied(messages)
    system = said.pop(0).text if said[0].role == "system" else None
    turns = [(q.text, a.text) for q, a in zip(said[:-1:2], said[1::2], strict=True)]
    return system, turns, said[-1].text


def _own_prompt(memory: DocumentMemory, system: str, turns: Sequence[tuple[str, str]], question: str) -> Prompt:
    """Return the prompt of a conversation with its own system message."""
    from infinipot_llm.answering.messages import prompt_of

    said = [Message("system", system)]
    for asked, answered in turns:
        said += [Message("user", asked), Message("assistant", answered)]
    return prompt_of(memory.setup.form, [*said, Message("user", question)], document=True)
