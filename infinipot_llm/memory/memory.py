"""DocumentMemory: documents that were read once; a value that no question changes.

Three tiers: the pot (what distillation kept, in memory), the shelf (what every token looked like, on disk), and the
documents (the text, for citations). A question is answered from the shelf by recall, from the pot as it is, or by
reading again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from infinipot_llm.answering.answer import Answer, Usage
from infinipot_llm.answering.citations import Traced, trace
from infinipot_llm.answering.decode import Decoded, OnText, Sampling, decode
from infinipot_llm.config import FOLLOWUPS, PotConfig
from infinipot_llm.documents import Document, Span
from infinipot_llm.errors import MemoryFileError, QuestionError
from infinipot_llm.memory import saved
from infinipot_llm.memory.file import MemoryFile
from infinipot_llm.memory.recall import Finder, Passage, pot_of_text, question_pot, text_slots
from infinipot_llm.memory.resources import peak_memory_bytes
from infinipot_llm.memory.setup import Setup
from infinipot_llm.memory.shelf import SPAN, Shelf
from infinipot_llm.memory.waiting import awaited, awaited_pieces, pieces
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader, ReadStats

if TYPE_CHECKING:
    from infinipot_llm.memory.chat import Chat, Turns


@dataclass(frozen=True)
class Shelved:
    """What recall needs.

    Attributes:
        shelf: Rows of every token.
        null: [R, n] float32, how far questions without content attend to each row, by retrieval head.
    """

    shelf: Shelf
    null: Tensor


class DocumentMemory:
    """One or several documents that were read.

    Attributes:
        text: The tokens that were read, each traceable to document, page and characters.
        stats: What reading cost.
        setup: The model, and how it reads and answers.
        shelved: The shelf and what belongs to it; None where it is off.
    """

    def __init__(
        self,
        setup: Setup,
        text: TokenizedText,
        stats: ReadStats,
        *,
        pot: Pot | Callable[[], Pot],
        shelved: Shelved | None = None,
        file: MemoryFile | None = None,
    ) -> None:
        """Put a memory together; `InfiniPot.read` and `InfiniPot.load` do.

        Args:
            setup: The model, and how it reads and answers.
            text: What was read.
            stats: What it cost.
            pot: The document state, or what rebuilds it when it is first needed.
            shelved: The shelf.
            file: Where all this stands on disk, whole; None where it does not (yet).
        """
        self.setup = setup
        self.text = text
        self.stats = stats
        self.shelved = shelved
        self.file = file
        self._pot = pot
        self._adapter, self._form = setup.adapter, setup.form

    @property
    def config(self) -> PotConfig:
        """How the documents were read, and how they are asked."""
        return self.setup.config

    @cached_property
    def finder(self) -> Finder:
        """What finds passages on the shelf.

        Raises:
            QuestionError: There is no shelf.
        """
        if self.shelved is None:
            raise QuestionError("this memory was read without a shelf: ask with followup='reuse' or 'reread'.")
        return Finder(self.setup, self.text, self.shelved.shelf, self.shelved.null)

    @property
    def documents(self) -> tuple[Document, ...]:
        """The documents that were read, in order."""
        return self.text.documents

    @property
    def pot(self) -> Pot:
        """The document state that distillation left; that of a loaded memory is rebuilt when first asked for."""
        if not isinstance(self._pot, Pot):
            with self._adapter.lock:
                if not isinstance(self._pot, Pot):
                    self._pot = self._pot()
        return self._pot

    @property
    def nbytes(self) -> int:
        """Bytes on disk; 0 for a memory without a shelf that was not saved."""
        if self.file is not None:
            return self.file.nbytes
        return sum(s.file.nbytes for s in self.shelved.shelf.segments) if self.shelved else 0

    def __repr__(self) -> str:
        names = ", ".join(d.name for d in self.documents)
        s = self.stats
        shelf = f"{len(self.shelved.shelf)} on the shelf" if self.shelved else "no shelf"
        return f"DocumentMemory({names}: {s.tokens_read} tokens, {s.slots} of {s.budget} slots, {shelf})"

    def ask(
        self,
        question: str,
        *,
        followup: str | None = None,
        history: Turns = (),
        recall: int | None = None,
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
            followup: "recall" answers from the shelf, "reuse" from the pot as it is, "reread" reads the documents again
                with this question as catalyst. None: as the configuration says; without a shelf, from the pot.
            history: Questions and answers that came before, oldest first (`chat` keeps them for you).
            recall: Tokens to bring back from the shelf; None: as the configuration says.
            max_new_tokens: Limit of the answer; None: as the configuration says, or what a long question leaves.
            temperature: 0 decodes greedily.
            top_p: Nucleus, when the temperature is above 0.
            stop: A text, or texts, that end the answer.
            seed: Of the sampling.
            citations: Whether to look for the passages that the answer rests on (some forward passes more).
            on_text: Given the answer piece by piece.
            cancelled: Asked while waiting for the model and after every token; True ends the answer, with
                finish_reason "cancelled".

        Raises:
            QuestionError: The question is empty, an option is unknown, or question and answer do not fit.
        """
        started = time.perf_counter()
        how = self._how(followup)
        _check_recall(recall)
        asked, notes = self._asked(how, question, history, max_new_tokens or self.config.max_new_tokens, recall)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        limit = self._limit(how, asked, max_new_tokens)
        sampling = Sampling(limit, temperature, top_p, stops, seed)
        said = Decoded((), "", "cancelled")
        traced = Traced((), None)
        first: list[float] = []
        recalled = pot_bytes = 0

        def going() -> bool:
            first.append(time.perf_counter()) if not first else None
            return cancelled is not None and cancelled()

        seconds = 0.0
        with self._turn(cancelled) as mine:
            if mine:
                pot, passages = self._state(how, question, asked, limit, recall)
                recalled = sum(p.end - p.start for p in passages)
                if passages and self.config.recalled == "load":
                    recalled = pot.length - self.setup.prefix[0].shape[2]
                codec = self._form.codec
                said = decode(
                    self._adapter, codec, pot, asked, sampling,
                    on_text=on_text, cancelled=going,
                )  # fmt: skip
                seconds = time.perf_counter() - started
                pot_bytes = pot.cache.nbytes()
                if citations and said.finish_reason != "cancelled":
                    traced = trace(
                        self._adapter, pot, self.text, asked, self._visible(said), said.text, question_text=question
                    )
        usage = Usage(
            read=self.stats,
            question_tokens=len(asked),
            recalled_tokens=recalled,
            answer_tokens=len(said.ids),
            first_token_seconds=first[0] - started if first else seconds,
            answer_seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(self._adapter.device),
            pot_bytes=pot_bytes,
        )
        return Answer(said.text, traced.citations, said.finish_reason, usage, traced.supported, tuple(notes))

    def stream(self, question: str, **options: Any) -> Iterator[str]:
        """Yield the answer piece by piece, without citations; takes the options of `ask`.

        An error is raised here, and leaving the loop ends the decoding.
        """
        return pieces(partial(self.ask, question, citations=False, **options))

    async def aask(self, question: str, **options: Any) -> Answer:
        """Answer a question without blocking the event loop; cancelling the task ends the decoding."""
        return await awaited(partial(self.ask, question, **options))

    def astream(self, question: str, **options: Any) -> AsyncIterator[str]:
        """Yield the answer piece by piece without blocking the event loop; takes the options of `ask`."""
        return awaited_pieces(partial(self.ask, question, citations=False, **options))

    def chat(self) -> Chat:
        """Start a conversation about the documents: earlier questions and answers are kept."""
        from infinipot_llm.memory.chat import Chat

        return Chat(self)

    def recall(self, question: str, tokens: int | None = None) -> list[tuple[Span, float]]:
        """Return the passages that a question brings back, best first, without answering it.

        Args:
            question: What to look for.
            tokens: How much to bring back; None: as the configuration says.

        Raises:
            QuestionError: The question is empty, or the memory has no shelf.
        """
        self._how("recall")
        _check_recall(tokens)
        with self._adapter.lock:
            passages = self.finder.find(self._form.question(question), question, tokens or self.config.recall)
        found = []
        for passage in passages:
            for start, end in self.text.per_document(passage.start, passage.end):
                found.append((self.text.span(start, end), passage.score))
        return sorted(found, key=lambda f: -f[1])

    def fork(self) -> DocumentMemory:
        """Return a memory of its own that shares everything that was read."""
        return self._with(self.text)

    def save(self, path: str | Path) -> Path:
        """Write the memory to one file, atomically; `InfiniPot.load` opens it in another process.

        Raises:
            StoreError: The file cannot be written.
        """
        target = Path(path).expanduser()
        if self.file is not None:
            self.file.copy_to(target)
        else:
            saved.write_whole(self, target)
        return target

    def renamed(self, documents: tuple[Document, ...]) -> DocumentMemory:
        """Return the same memory with these documents in the place of its own, of the same contents.

        Raises:
            MemoryFileError: Their contents differ.
        """
        if [d.content_hash for d in documents] != [d.content_hash for d in self.documents]:
            raise MemoryFileError("this memory holds other documents: read these.")
        return self._with(replace(self.text, documents=documents))

    def _with(self, text: TokenizedText) -> DocumentMemory:
        same = [d.name for d in text.documents] == [d.name for d in self.documents]
        file = self.file if same else None
        return DocumentMemory(self.setup, text, self.stats, pot=self._pot, shelved=self.shelved, file=file)

    def _how(self, followup: str | None) -> str:
        how = followup or self.config.followup
        if how not in FOLLOWUPS:
            raise QuestionError(f"followup is {how!r}: give one of {', '.join(FOLLOWUPS)}.")
        if how == "recall" and self.shelved is None:
            if followup is not None:
                raise QuestionError("this memory was read without a shelf: ask with followup='reuse' or 'reread'.")
            return "reuse"
        return how

    def _asked(
        self, how: str, question: str, history: Turns, limit: int, recall: int | None
    ) -> tuple[list[int], list[str]]:
        """Return the tokens behind the document, and what the answer has to say about the turns left out."""
        turns = list(history)
        if how == "reuse":
            room = self.pot.budget - self.pot.length - limit
        else:
            room = self.config.budget - self.setup.prefix[0].shape[2] - limit
            room -= min(recall or self.config.recall, room // 2)
        asked = self._form.conversation(turns, question)
        while turns and len(asked) > room:
            turns = turns[1:]
            asked = self._form.conversation(turns, question)
        dropped = len(history) - len(turns)
        if not dropped:
            return asked, []
        left_out = "turn no longer fits and was" if dropped == 1 else "turns no longer fit and were"
        return asked, [f"{dropped} earlier {left_out} left out."]

    def _limit(self, how: str, asked: Sequence[int], max_new_tokens: int | None) -> int:
        """Return how long the answer may get: a question longer than expected leaves less."""
        if max_new_tokens is not None:
            return max_new_tokens
        free = self.config.budget - len(asked)
        free -= self.pot.length if how == "reuse" else self.setup.prefix[0].shape[2] + SPAN
        return max(1, min(self.config.max_new_tokens, free))

    def _state(
        self, how: str, question: str, asked: list[int], limit: int, recall: int | None
    ) -> tuple[Pot, list[Passage]]:
        """Return the pot to decode over."""
        if how == "reuse":
            return self.pot, []
        if how == "reread":
            reader = Reader(self._adapter, self.config)
            return reader.read(self.text, self._form.prefix, [asked], len(asked) + limit)[0], []
        prefix = self.setup.prefix[0].shape[2]
        room = self.config.budget - prefix - len(asked) - limit
        if room < 1:
            raise QuestionError(
                f"question ({len(asked)} tokens) and answer ({limit}) leave no room for the document in a budget of "
                f"{self.config.budget}: ask more briefly, lower max_new_tokens, or raise the budget."
            )
        passages = self.finder.find(asked, question, min(recall or self.config.recall, room))
        if self.config.recalled == "read":
            while text_slots(self.setup, passages) > room:  # what stands between passages may not fit any more
                passages = sorted(passages, key=lambda p: -p.score)[:-1]
                passages.sort(key=lambda p: p.start)
            slots = prefix + text_slots(self.setup, passages) + len(asked) + limit
            return pot_of_text(self.setup, self.text, passages, slots), passages
        rows = (self.finder.shelf.rows_of(p.start, p.end) for p in passages)  # a bounded shelf holds parts of spans
        tokens = sum(b - a for a, b in rows)
        slots = prefix + tokens + len(asked) + limit
        return question_pot(self._adapter, self.setup.prefix, self.finder.shelf, passages, slots), passages

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


def _check_recall(tokens: int | None) -> None:
    """Refuse to recall less than a token."""
    if tokens is not None and tokens < 1:
        raise QuestionError(f"{tokens} tokens cannot be recalled: give recall a whole number of at least 1.")
