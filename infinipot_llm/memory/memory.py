"""DocumentMemory: a document that was read once; a value that no question changes.

This first form holds the pot's state in memory, and later questions are answered from the pot as it is. What a pot
that was read without their question has dropped, they cannot find: the README says so, and `read(question=...)` is
the remedy.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from infinipot_llm.answering.answer import Answer, Citation, Usage
from infinipot_llm.answering.citations import cite
from infinipot_llm.answering.decode import Decoded, OnText, Sampling, decode
from infinipot_llm.answering.prompt import PromptForm
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.memory.resources import peak_memory_bytes
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import ReadStats


class DocumentMemory:
    """One or several documents, read through a pot.

    Attributes:
        text: The tokens that were read, each traceable to document, page and characters.
        pot: The document state.
        stats: What reading cost.
        config: How it was read.
    """

    def __init__(
        self, adapter: Adapter, form: PromptForm, text: TokenizedText, pot: Pot, stats: ReadStats, config: PotConfig
    ) -> None:
        self._adapter = adapter
        self._form = form
        self.text = text
        self.pot = pot
        self.stats = stats
        self.config = config

    @property
    def documents(self) -> tuple[Document, ...]:
        """The documents that were read, in order."""
        return self.text.documents

    def __repr__(self) -> str:
        names = ", ".join(d.name for d in self.documents)
        s = self.stats
        return f"DocumentMemory({names}: {s.tokens_read} tokens in {s.slots} of {s.budget} slots, {s.cycles} cycles)"

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        citations: bool = True,
        on_text: OnText | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer a question; the memory is the same afterwards, bit for bit.

        Args:
            question: What to ask.
            max_new_tokens: Limit of the answer; None: the one reserved when reading, or what a longer question leaves.
            temperature: 0 decodes greedily.
            top_p: Nucleus, when the temperature is above 0.
            stop: A text, or texts, that end the answer.
            seed: Of the sampling.
            citations: Whether to look for the passages that the answer rests on (some forward passes more).
            on_text: Given the answer piece by piece.
            cancelled: Asked while waiting for the model and after every token; True ends the answer, with
                finish_reason "cancelled".

        Raises:
            QuestionError: The question is empty, or does not fit into the free slots with its answer.
        """
        started = time.perf_counter()
        asked = self._form.question(question)
        limit = max_new_tokens
        if limit is None:  # a follow-up longer than the question read with leaves less room for its answer
            limit = max(1, min(self.config.max_new_tokens, self.pot.budget - self.pot.length - len(asked)))
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        sampling = Sampling(limit, temperature, top_p, stops, seed)
        said = Decoded((), "", "cancelled")
        found: tuple[Citation, ...] = ()
        with self._turn(cancelled) as mine:
            if mine:
                said = decode(
                    self._adapter, self._form.codec, self.pot, asked, sampling, on_text=on_text, cancelled=cancelled
                )
            seconds = time.perf_counter() - started
            if citations and said.finish_reason != "cancelled":
                visible = self._visible(said)
                found = cite(self._adapter, self.pot, self.text, asked, visible, said.text, question_text=question)
        usage = Usage(
            read=self.stats,
            question_tokens=len(asked),
            answer_tokens=len(said.ids),
            answer_seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(self._adapter.device),
            pot_bytes=self.pot.cache.nbytes(),
        )
        return Answer(said.text, found, said.finish_reason, usage)

    def stream(self, question: str, **options: Any) -> Iterator[str]:
        """Yield the answer piece by piece, without citations; takes the sampling options of `ask`.

        The decoding runs in a thread: an error there is raised here, and leaving the loop ends the decoding.
        """
        pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        gone = threading.Event()

        def work() -> None:
            try:
                self.ask(question, citations=False, on_text=pieces.put, cancelled=gone.is_set, **options)
                pieces.put(None)
            except BaseException as error:  # it must reach the caller, whatever it is
                pieces.put(error)

        worker = threading.Thread(target=work, name="infinipot-answer", daemon=True)
        worker.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            gone.set()
            worker.join()

    @contextmanager
    def _turn(self, cancelled: Callable[[], bool] | None) -> Iterator[bool]:
        """Wait for the model; yields False when the caller went away before it was free."""
        while not self._adapter.lock.acquire(timeout=0.1):
            if cancelled is not None and cancelled():
                yield False
                return
        try:
            yield True
        finally:
            self._adapter.lock.release()

    def _visible(self, said: Decoded) -> list[int]:
        """Return the answer's tokens without control tokens, which rest on nothing."""
        special = set(self._form.codec.tokenizer.all_special_ids)
        return [i for i in said.ids if i not in special]
