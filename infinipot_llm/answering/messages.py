"""A conversation as a prompt: the documents stand before it, behind the system message, wherever they came from.

system message, start of the turn | documents | first message of the user, ..., last one, assistant header
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import cycle, groupby
from typing import Any

from infinipot_llm.answering.prompt import BEFORE_DOCUMENT, Message, Prompt, PromptForm, leading_ids, rendered
from infinipot_llm.documents.clean import clean, describe
from infinipot_llm.errors import QuestionError

_DOCUMENT = "<<document 5f0c>>"
_PLACE = "<<message {} 5f0c>>"
_PLACES = re.compile(r"<<(document|message \d+) 5f0c>>")


def tidied(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation as chat templates want it: one system message first, then user and assistant in turn.

    Messages of one role that follow one another become one; system messages, wherever they stand, come first.

    Raises:
        QuestionError: The conversation does not end with something that a user says, or a role is unknown.
    """
    unknown = {m.role for m in messages} - {"system", "user", "assistant"}
    if unknown:
        raise QuestionError(f"the role {min(unknown)!r} is unknown: give system, user and assistant.")
    messages = [Message(m.role, clean(m.text)) for m in messages]  # as documents are, whose words they are to match
    system = "\n\n".join(m.text for m in messages if m.role == "system" and m.text.strip())
    turns: list[Message] = []
    for role, run in groupby((m for m in messages if m.role != "system"), key=lambda m: m.role):
        turns.append(Message(role, "\n\n".join(m.text for m in run if m.text.strip())))
    if not turns or turns[-1].role != "user" or not turns[-1].text.strip():
        raise QuestionError("there is no question: the last message must be the user's, with text in it.")
    if turns[0].role == "assistant":
        turns.insert(0, Message("user", ""))
    return [*([Message("system", system)] if system else []), *turns]


def turns_of(messages: Sequence[Message]) -> int:
    """Return how many questions with their answers stand before the last question of a tidied conversation."""
    return sum(m.role == "assistant" for m in messages)


def without_oldest(messages: Sequence[Message], count: int) -> list[Message]:
    """Return a tidied conversation without so many of its oldest questions and answers."""
    head = [m for m in messages if m.role == "system"]
    return [*head, *messages[len(head) + 2 * count :]]


def prompt_of(form: PromptForm, messages: Sequence[Message], *, document: bool, asked: str | None = None) -> Prompt:
    """Render a tidied conversation with the model's chat template, or the plain form where it has none.

    What messages say is never taken for control tokens. The system message is the caller's, or else what the template
    puts there itself.

    Args:
        form: The model's way of putting questions.
        messages: The conversation, tidied.
        document: Whether a document stands before it.
        asked: The question, where the last message holds more.

    Raises:
        QuestionError: The chat template does not take this conversation.
    """
    tokenizer = form.codec.tokenizer
    places = [Message(m.role, _PLACE.format(i)) for i, m in enumerate(messages)]
    first = next(i for i, m in enumerate(messages) if m.role == "user")
    if document:
        behind_it = f"\n\n{places[first].text}" if messages[first].text else ""
        places[first] = Message("user", f"{BEFORE_DOCUMENT}{_DOCUMENT}{behind_it}")
    whole = _rendered(tokenizer, places)
    pieces = _PLACES.split(whole)  # trusted text and names of places in turn
    border = "document" if document else f"message {first}"
    shown = {f"message {i}" for i, m in enumerate(places) if i != first or not document or messages[first].text}
    if sorted(pieces[1::2]) != sorted(shown | {border}):
        raise QuestionError("this model's chat template does not keep messages as they are: it cannot be used here.")
    before: list[int] = [] if _has_template(tokenizer) else leading_ids(tokenizer)
    behind: list[int] = []
    into = before
    for piece, is_place in zip(pieces, cycle((False, True)), strict=False):
        if is_place and piece == border:
            into = behind
        if not is_place:
            into += form.codec.trusted(piece) if piece else []
        elif piece != "document":
            into += form.codec.untrusted(messages[int(piece.split()[1])].text)
    question = messages[-1].text if asked is None else asked
    query = tuple(_query(form, messages[:-1], question))
    alone = all(m.role == "system" for m in messages[:-1])
    return Prompt(tuple(before), tuple(behind), query, question, alone)


def _query(form: PromptForm, earlier: Sequence[Message], question: str) -> list[int]:
    """Return a prompt's `query`: the question behind as many earlier turns as fit."""
    said = [m.text for m in earlier if m.role != "system"]
    return form.looked_for(list(zip(said[::2], said[1::2], strict=True)), question)


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _rendered(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return the conversation as text, up to the start of the answer."""
    if not _has_template(tokenizer):
        lines = []
        for m in messages:
            lines.append({"system": "{}\n\n", "user": "{}\nAnswer:", "assistant": " {}\n\n"}[m.role].format(m.text))
        return "".join(lines)
    said = [{"role": m.role, "content": m.text} for m in messages]
    try:
        whole = rendered(tokenizer, said)
        if all(m.text in whole for m in messages):
            return whole
    except Exception:  # templates raise whatever their author chose when a role is not supported
        whole = ""
    if said[0]["role"] == "system":  # where the template knows no system role, it opens the first turn
        system, said = said[0]["content"], said[1:]
        said[0]["content"] = f"{system}\n\n{said[0]['content']}"
    try:
        return rendered(tokenizer, said)
    except Exception as error:
        raise QuestionError(f"this model's chat template does not take these messages: {describe(error)}.") from error
