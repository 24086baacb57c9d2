"""From pots to answers: wait for the model, decode, look for the passages behind each answer, count what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from infinipot_llm.answering.answer import Answer, Usage
from infinipot_llm.answering.citations import Traced, says_nothing_found, trace
from infinipot_llm.answering.decode import Decoded, OnText, Sampling, decode, end_ids
from infinipot_llm.answering.figures import shown_to, unfounded
from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.answering.together import decode_together
from infinipot_llm.errors import GoneError, QuestionError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.resources import peak_memory_bytes
from infinipot_llm.models.text import TextCodec, TokenizedText
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import ReadStats

DOUBTFUL = 0.2
"""Below this `answerable`, an answer says that the documents may not tell (docs/recall.md: how often it is wrong)."""

DOUBT = "No passage of the document matches the question well: it may not tell."
"""What it says then."""

UNFOUNDED = "{} not in the text that was answered from: worked out, or made up."
"""What an answer says of figures that are not in front of it (figures.py)."""


@dataclass(frozen=True)
class Ready:
    """What an answer is decoded from.

    Attributes:
        pot: Holds everything before `Prompt.behind`.
        recalled: Tokens that were brought back for it.
        answerable: As in Answer.
    """

    pot: Pot
    recalled: int = 0
    answerable: float | None = None


@dataclass(frozen=True)
class Asked:
    """A prompt to be answered.

    Attributes:
        prompt: What is asked.
        state: Makes what it is answered from; called when the model is free. It may raise GoneError.
        notes: What the answer could not take into account.
    """

    prompt: Prompt
    state: Callable[[], Ready]
    notes: Sequence[str] = ()


def compose(
    adapter: Adapter,
    codec: TextCodec,
    text: TokenizedText,
    stats: ReadStats,
    prompt: Prompt,
    state: Callable[[], Ready],
    sampling: Sampling,
    *,
    notes: Sequence[str] = (),
    **options: Any,
) -> Answer:
    """Answer one prompt: `compose_several` of a single `Asked`."""
    return compose_several(adapter, codec, text, stats, [Asked(prompt, state, notes)], sampling, **options)[0]


def compose_several(
    adapter: Adapter,
    codec: TextCodec,
    text: TokenizedText,
    stats: ReadStats,
    asked: Sequence[Asked],
    sampling: Sampling,
    *,
    citations: bool = True,
    schema: dict[str, Any] | None = None,
    on_text: OnText | None = None,
    on_doubt: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Answer]:
    """Answer prompts: one, or several side by side (together.py), which then share the seconds in their usage.

    Args:
        adapter: The model.
        codec: Its tokenizer.
        text: What the pots hold tokens of.
        stats: What reading it cost.
        asked: The prompts, each with a pot of its own.
        sampling: How to decode.
        citations: Whether to look for the passages that the answers rest on.
        schema: A JSON schema that the answer, a single one, is to follow; stop strings, which would cut its JSON into
            something else that parses, are left out of account then.
        on_text: Given the answer, a single one, piece by piece.
        on_doubt: Given the note that the documents may not answer a single prompt, before the answer's first piece;
            the same stands in the answer's notes, unless the answer says so itself.
        cancelled: Asked while waiting for the model and after every token; True ends the answers, with finish_reason
            "cancelled".

    Raises:
        QuestionError: Question and answer do not fit, the schema cannot be followed, or several answers are to be
            streamed, follow a schema, or come from a model with sliding layers.
    """
    alone = len(asked) == 1
    if not alone and (schema is not None or on_text is not None or on_doubt is not None):
        raise QuestionError("several answers at once cannot be streamed or follow a schema: ask one by one.")
    if schema is not None:
        sampling = replace(sampling, stop=())
    started = time.perf_counter()
    said = [Decoded((), "", "cancelled")] * len(asked)
    prompts = [one.prompt for one in asked]
    traced = [Traced((), None)] * len(asked)
    notes: list[list[str]] = [[]] * len(asked)
    ready: list[Ready] = []
    pot_bytes = [0] * len(asked)
    first: list[float] = []

    def going() -> bool:
        first.append(time.perf_counter()) if not first else None
        return cancelled is not None and cancelled()

    seconds = 0.0
    with _turn(adapter, cancelled) as mine, suppress(GoneError):  # then the answer stays the cancelled one
        if mine:
            processors = []
            if schema is not None:
                from infinipot_llm.answering.constrain import json_schema

                processors.append(json_schema(codec, schema, end_ids(adapter, codec)))
            ready += [one.state() for one in asked]
            pots = [one.pot for one in ready]
            behind = [prompt.behind for prompt in prompts]
            if on_doubt is not None and _is_doubtful(ready[0].answerable):
                on_doubt(DOUBT)
            if alone:
                options: dict[str, Any] = {"processors": processors, "on_text": on_text, "cancelled": going}
                said = [decode(adapter, codec, pots[0], behind[0], sampling, **options)]
            else:
                said = decode_together(adapter, codec, pots, behind, sampling, cancelled=going)
            seconds = time.perf_counter() - started
            pot_bytes = [pot.cache.nbytes() for pot in pots]
            notes = [_unfounded(codec, text, *each) for each in zip(pots, prompts, said, strict=True)]
            if citations and len(text):
                traced = [_traced(adapter, codec, text, *each) for each in zip(pots, prompts, said, strict=True)]
    usages = [
        Usage(
            read=stats,
            question_tokens=len(one.prompt.behind),
            recalled_tokens=ready[number].recalled if ready else 0,
            answer_tokens=len(said[number].ids),
            first_token_seconds=first[0] - started if first else seconds,
            answer_seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(adapter.device),
            pot_bytes=pot_bytes[number],
        )
        for number, one in enumerate(asked)
    ]
    judged = [one.answerable for one in ready] or [None] * len(asked)
    return [
        Answer(
            told.text, found.citations, told.finish_reason, usage, found.supported,
            (*one.notes, *_doubt(told, answerable), *more), answerable,
        )
        for told, found, usage, one, answerable, more in zip(said, traced, usages, asked, judged, notes, strict=True)
    ]  # fmt: skip


def _doubt(said: Decoded, answerable: float | None) -> list[str]:
    """Return the note on an answer that the documents may not hold; none where it says so itself."""
    doubtful = _is_doubtful(answerable) and said.finish_reason != "cancelled"
    return [DOUBT] if doubtful and not says_nothing_found(said.text) else []


def _is_doubtful(answerable: float | None) -> bool:
    return answerable is not None and answerable < DOUBTFUL


def _unfounded(codec: TextCodec, text: TokenizedText, pot: Pot, prompt: Prompt, said: Decoded) -> list[str]:
    """Return the note on figures that the answer cannot have from the text, where it has one to look into."""
    if not len(text) or not any(c.isdecimal() for c in said.text):
        return []
    found = unfounded(said.text, shown_to(codec, pot, text, prompt), ended=said.finish_reason == "stop")
    return [UNFOUNDED.format(f"{', '.join(found)} {'is' if len(found) == 1 else 'are'}")] if found else []


def _traced(adapter: Adapter, codec: TextCodec, text: TokenizedText, pot: Pot, prompt: Prompt, said: Decoded) -> Traced:
    """Find what an answer rests on; nothing of one that was cancelled."""
    if said.finish_reason == "cancelled":
        return Traced((), None)
    return trace(adapter, pot, text, prompt.behind, _visible(codec, said), said.text, question_text=prompt.question)


@contextmanager
def _turn(adapter: Adapter, cancelled: Callable[[], bool] | None) -> Iterator[bool]:
    """Wait for the model; yields False when the caller went away before it was free."""
    while True:
        if cancelled is not None and cancelled():
            yield False
            return
        if adapter.lock.acquire(timeout=0.1):
            break
    try:
        yield True
    finally:
        adapter.lock.release()


def _visible(codec: TextCodec, said: Decoded) -> list[int]:
    """Return the answer's tokens without control tokens, which rest on nothing."""
    special = set(codec.tokenizer.all_special_ids)
    return [i for i in said.ids if i not in special]
