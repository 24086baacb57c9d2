"""Chat: questions that follow one another about the same documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from infinipot_llm.answering.answer import Answer
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.waiting import overheard, pieces_and_value

Turns = Sequence[tuple[str, str]]
"""Questions and answers, oldest first."""


class Chat:
    """A conversation over a memory; the memory stays as it is, the turns are kept here.

    Earlier turns go into the prompt, so that "since when has she been there?" is understood. Passages are looked for
    with the question by itself and behind the turns before it (recall.py). Turns that no longer fit beside recalled
    passages, question and answer are left out, oldest first, and the answer's notes say so.

    Attributes:
        memory: What is asked.
        turns: Questions and answers so far.
    """

    def __init__(self, memory: DocumentMemory, turns: Turns = ()) -> None:
        self.memory = memory
        self.turns = list(turns)

    def ask(self, question: str, **options: Any) -> Answer:
        """Answer a question in the light of the turns so far; takes the options of DocumentMemory.ask."""
        return self._said(question, self.memory.ask(question, history=self.turns, **options))

    async def aask(self, question: str, **options: Any) -> Answer:
        """Answer without blocking the event loop."""
        return self._said(question, await self.memory.aask(question, history=self.turns, **options))

    def stream(self, question: str, **options: Any) -> Iterator[str]:
        """Yield the answer piece by piece; a turn counts once its answer was read to the end."""
        asking = overheard(partial(self.memory.ask, question, history=list(self.turns), citations=False), options)
        with closing(pieces_and_value(asking)) as both:  # type: ignore[type-var]
            for piece in both:
                if isinstance(piece, str):
                    yield piece
                else:
                    self._said(question, piece)

    def _said(self, question: str, answer: Answer) -> Answer:
        """Keep a turn, unless nobody waited for the end of its answer."""
        if answer.finish_reason != "cancelled":
            self.turns.append((question, answer.text))
        return answer

    def reset(self) -> None:
        """Forget the turns."""
        self.turns.clear()
