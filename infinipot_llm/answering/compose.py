"""From a pot to an answer: wait for the model, decode, look for the passages behind the answer, count what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from infinipot_llm.answering.answer import Answer, Usage
from infinipot_llm.answering.citations import Traced, trace
from infinipot_llm.answering.decode import Decoded, OnText, Sampling, decode, end_ids
from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.answering.resources import peak_memory_bytes
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec, TokenizedText
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import ReadStats


def compose(
    adapter: Adapter,
    codec: TextCodec,
    text: TokenizedText,
    stats: ReadStats,
    prompt: Prompt,
    state: Callable[[], tuple[Pot, int]],
    sampling: Sampling,
    *,
    notes: Sequence[str] = (),
    citations: bool = True,
    schema: dict[str, Any] | None = None,
    on_text: OnText | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Answer:
    """Answer a prompt.

    Args:
        adapter: The model.
        codec: Its tokenizer.
        text: What the pot holds tokens of.
        stats: What reading it cost.
        prompt: What is asked.
        state: Makes the pot that holds everything before `prompt.behind`, and says how many tokens were recalled for
            it; called when the model is free.
        sampling: How to decode.
        notes: What the answer could not take into account.
        citations: Whether to look for the passages that the answer rests on.
        schema: A JSON schema that the answer is to follow.
        on_text: Given the answer piece by piece.
        cancelled: Asked while waiting for the model and after every token; True ends the answer, with finish_reason
            "cancelled".

    Raises:
        QuestionError: Question and answer do not fit, or the schema cannot be followed.
    """
    started = time.perf_counter()
    processors = []
    if schema is not None:
        from infinipot_llm.answering.constrain import json_schema

        processors.append(json_schema(codec, schema, end_ids(adapter, codec)))
    said = Decoded((), "", "cancelled")
    traced = Traced((), None)
    first: list[float] = []
    recalled = pot_bytes = 0

    def going() -> bool:
        first.append(time.perf_counter()) if not first else None
        return cancelled is not None and cancelled()

    seconds = 0.0
    with _turn(adapter, cancelled) as mine:
        if mine:
            pot, recalled = state()
            said = decode(
                adapter, codec, pot, prompt.behind, sampling, processors=processors, on_text=on_text, cancelled=going
            )
            seconds = time.perf_counter() - started
            pot_bytes = pot.cache.nbytes()
            if citations and said.finish_reason != "cancelled" and len(text):
                visible = _visible(codec, said)
                traced = trace(adapter, pot, text, prompt.behind, visible, said.text, question_text=prompt.question)
    usage = Usage(
        read=stats,
        question_tokens=len(prompt.behind),
        recalled_tokens=recalled,
        answer_tokens=len(said.ids),
        first_token_seconds=first[0] - started if first else seconds,
        answer_seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(adapter.device),
        pot_bytes=pot_bytes,
    )
    return Answer(said.text, traced.citations, said.finish_reason, usage, traced.supported, tuple(notes))


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
