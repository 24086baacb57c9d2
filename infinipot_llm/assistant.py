"""Assistant: messages and documents in, an answer out: what chat-model interfaces of other libraries stand on.

    messages, documents --> do they fit into the budget together?   yes: "whole", the model reads them as they are
                                                                    no:  "recall", the documents are read once into
                                                                         memories, and the messages asked of these

The documents stand before the conversation, behind the system message. Text that was stuffed into a message and does
not fit is taken for a document too (`stuffed.py`).
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from infinipot_llm.answering.answer import Answer
from infinipot_llm.answering.compose import compose
from infinipot_llm.answering.decode import Sampling
from infinipot_llm.answering.messages import last_turns_dropped, prompt_of, tidied
from infinipot_llm.answering.prompt import Message, Prompt
from infinipot_llm.documents import Document
from infinipot_llm.documents.document import ID_PREFIX
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import DocumentError, QuestionTooLongError
from infinipot_llm.memory.joined import joined
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import Passage, pot_of_text
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.memory.waiting import awaited, awaited_pieces_and_value, pieces_and_value
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader, ReadStats
from infinipot_llm.progress import reading_bar
from infinipot_llm.stuffed import unstuffed

MOST_MEMORIES = 16
"""Memories that are held open; without a store, the documents of others must be read again."""

_K = TypeVar("_K")

How = Literal["plain", "whole", "recall", "reuse", "reread"]


@dataclass(frozen=True, slots=True)
class Reply:
    """What an assistant gives back.

    Attributes:
        answer: Text, citations, finish reason, usage, notes.
        how: "plain": there was no document; "whole": documents and messages fit into the budget and were read as they
            are; "recall", "reuse", "reread": as in PotConfig.followup.
        documents: What was answered from, in order; those found in messages among them.
        prompt_tokens: Everything that was given: documents and messages with the template around them.
        read_tokens: Tokens of the documents that were read for this reply.
        remembered_tokens: Tokens of the documents that were not read, since a memory of them was there.
    """

    answer: Answer
    how: How
    documents: tuple[Document, ...]
    prompt_tokens: int
    read_tokens: int
    remembered_tokens: int


class _GoneError(Exception):
    """Whoever asked went away while documents were read."""


class Assistant:
    """A model that answers messages, from documents where there are some.

    Safe to use from several threads: the model works for one at a time.

    Attributes:
        llm: The model, its budget and settings.
        store: Where memories of documents are kept; None keeps them in this process alone.
    """

    def __init__(self, llm: InfiniPot, store: MemoryStore | None = None) -> None:
        """Put an assistant together; `Assistant.shared` shares the weights with all others of the process."""
        self.llm = llm
        self.store = store
        self._reading = threading.Lock()  # a document that two threads want is read once
        self._memories: OrderedDict[str, DocumentMemory] = OrderedDict()  # by content hash
        self._joined: OrderedDict[tuple[str, ...], DocumentMemory] = OrderedDict()
        self._whole: tuple[object, Pot] | None = None  # the prompt last read as it is, up to the documents' end

    @classmethod
    def shared(cls, model: str, *, store: MemoryStore | None = None, **settings: Any) -> Assistant:
        """Make an assistant whose weights are loaded once per process for the same model, device and dtype.

        Args:
            model: A name of the catalogue, a folder, or a hub id.
            store: Where memories are kept.
            **settings: Those of InfiniPot.from_pretrained (budget, device, dtype, download, fields of PotConfig).

        Raises:
            ModelError: The model cannot be used.
            BudgetError: A setting is unknown or out of range.
        """
        return cls(InfiniPot.from_pretrained(model, shared=True, **settings), store)

    def respond(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document] = (),
        *,
        catalyst: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        progress: Any = None,
        cancelled: Callable[[], bool] | None = None,
        **options: Any,
    ) -> Reply:
        """Answer the last message of the user.

        Args:
            messages: The conversation, oldest first. Turns that no longer fit are left out, oldest first, and the
                answer's notes say so.
            documents: What it is about; the same content counts once.
            catalyst: What is looked for in the documents; None: the last message of the user, behind earlier turns.
            max_new_tokens: Limit of the answer; None: as the configuration says, or what a long question leaves.
            temperature: 0 decodes greedily.
            top_p: Nucleus, when the temperature is above 0.
            stop: A text, or texts, that end the answer.
            seed: Of the sampling.
            progress: As in InfiniPot.read.
            cancelled: Asked while reading and waiting, and after every token; True ends the answer, with finish_reason
                "cancelled".
            **options: `citations` (True; whether to look for the passages that the answer rests on), `schema` (a JSON
                schema that the answer follows, unless it ends with "length"), `on_text` (given the answer piece by
                piece).

        Raises:
            QuestionError: There is no question, it does not fit into the budget, or an option is out of range.
            DocumentError: A document holds no text.
            StoreError: The store cannot be used.
        """
        config, form = self.llm.config, self.llm.form
        talk = tidied(messages)
        limit = config.max_new_tokens if max_new_tokens is None else max_new_tokens
        room = config.budget - limit - len(form.prefix) - len(form.before_question) - len(form.after_question)
        talk, stuffed = unstuffed(talk, self.count_tokens, room)
        several = tuple({d.content_hash: d for d in (*documents, *stuffed)}.values())
        with self.llm.adapter.lock:
            text = form.codec.document(several)
        if several and not len(text):
            raise DocumentError("the document has no text: there is nothing to read.")

        def fits(prompt: Prompt, beside: int) -> bool:
            return len(prompt.before) + len(prompt.behind) + limit + beside <= config.budget

        prompt = prompt_of(form, talk, document=bool(several))
        whole = fits(prompt, len(text)) and config.followup != "reread"
        beside = 0 if whole or not several else min(config.recall, (config.budget - limit) // 2)
        notes = []
        dropped = 0
        while not fits(prompt, beside) and (shorter := last_turns_dropped(talk)) is not None:
            talk, dropped = shorter, dropped + 1
            prompt = prompt_of(form, talk, document=bool(several))
        if dropped:
            notes.append(f"{dropped} earlier turn{'' if dropped == 1 else 's'} no longer fit and left out.")
        if max_new_tokens is None and not fits(prompt, beside):
            limit = max(1, config.budget - len(prompt.before) - len(prompt.behind) - beside)
        if not fits(prompt, 1 if beside else 0):
            raise QuestionTooLongError(
                f"the question has {len(prompt.before) + len(prompt.behind)} tokens with the prompt around it, which "
                f"with an answer of {limit} do not fit into a budget of {config.budget}: ask more briefly, lower "
                "max_new_tokens, or raise the budget."
            )
        if catalyst is not None:
            prompt = replace(prompt, query=tuple(form.question(catalyst)), question=catalyst)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        sampling = Sampling(limit, temperature, top_p, stops, seed)
        options |= {"notes": notes, "cancelled": cancelled}
        if whole or not several:
            return self._from_whole(text, prompt, sampling, options)
        if config.shelf == "off":
            return self._from_one_reading(text, prompt, sampling, options, progress)
        try:
            memory, read = self._remembered(several, progress, cancelled)
        except _GoneError:
            memory, read, options["cancelled"] = None, 0, lambda: True
        if memory is None:
            answer = compose(
                self.llm.adapter, form.codec, text, ReadStats(len(text)), prompt, self._nothing, sampling, **options
            )
            return Reply(answer, "recall", several, len(text) + len(prompt.before) + len(prompt.behind), 0, 0)
        if config.followup == "reuse" and talk[0].role == "system":
            notes.append("the system message took no part: with followup='reuse' the pot was read with its own.")
        answer = memory.answer(prompt, sampling, **options)
        again = len(memory.text) if config.followup == "reread" else 0
        total = len(memory.text)
        size = total + len(prompt.before) + len(prompt.behind)
        return Reply(answer, config.followup, memory.documents, size, max(read, again), total - max(read, again))

    def stream(
        self, messages: Sequence[Message], documents: Sequence[Document] = (), **options: Any
    ) -> Iterator[str | Reply]:
        """Yield the answer piece by piece, and last the whole reply; takes the options of `respond`.

        Leaving the loop ends the reading or decoding, and frees the model.
        """
        return pieces_and_value(partial(self.respond, messages, documents, **options))

    async def arespond(self, messages: Sequence[Message], documents: Sequence[Document] = (), **options: Any) -> Reply:
        """Answer without blocking the event loop; cancelling the task ends the decoding."""
        return await awaited(partial(self.respond, messages, documents, **options))

    def astream(
        self, messages: Sequence[Message], documents: Sequence[Document] = (), **options: Any
    ) -> AsyncIterator[str | Reply]:
        """Yield as `stream` does, without blocking the event loop."""
        return awaited_pieces_and_value(partial(self.respond, messages, documents, **options))

    def remember(self, documents: Sequence[Document], *, progress: Any = None) -> DocumentMemory:
        """Return a memory of documents: each is read at most once, several are joined under one budget of recall.

        Raises:
            DocumentError: There is nothing to read.
            StoreError: The store cannot be used.
        """
        return self._remembered(tuple(documents), progress, None)[0]

    def recognised(self, document_id: str) -> Document:
        """Return the document with this id (`Document.id`), when a memory of it is here or in the store.

        Raises:
            DocumentError: The id is malformed, or no memory of that document is known.
        """
        if not re.fullmatch(rf"{ID_PREFIX}[0-9a-f]{{64}}", document_id):
            raise DocumentError(f"a document's id is {ID_PREFIX} and 64 hex digits: give the id of one that was read.")
        content = document_id.removeprefix(ID_PREFIX)
        memory = self._memories.get(content)
        if memory is None and self.store is not None and (path := self.store.get(self.llm.key_of(content))):
            memory = self.llm.load(path)
            self._keep(self._memories, content, memory)
        if memory is None:
            raise DocumentError(f"no memory of {document_id[:12]}... is known here: give the document itself once.")
        return memory.documents[0]

    def count_tokens(self, text: str) -> int:
        """Return how many tokens of this model a text is."""
        return len(self.llm.form.codec.untrusted(text))

    def _from_whole(self, text: TokenizedText, prompt: Prompt, sampling: Sampling, options: dict[str, Any]) -> Reply:
        """Answer from documents (or none) read as they are; what was read last is kept for the next question."""
        llm, total = self.llm, len(text)
        key = (prompt.before, tuple((d.content_hash, d.name) for d in text.documents))
        found = self._whole if self._whole is not None and self._whole[0] == key else None

        def state() -> tuple[Pot, int]:
            if found is not None:
                return found[1], 0
            passages = [Passage(0, total, 0.0)] if total else []
            pot = pot_of_text(llm.setup, text, passages, llm.config.budget, prompt.before)
            if total:
                self._whole = (key, pot)
            return pot, 0

        stats = ReadStats(total, total, slots=len(prompt.before) + total, budget=llm.config.budget)
        answer = compose(llm.adapter, llm.form.codec, text, stats, prompt, state, sampling, **options)
        size = total + len(prompt.before) + len(prompt.behind)
        read = 0 if found is not None else total
        return Reply(answer, "whole" if total else "plain", text.documents, size, read, total - read)

    def _from_one_reading(
        self, text: TokenizedText, prompt: Prompt, sampling: Sampling, options: dict[str, Any], progress: Any
    ) -> Reply:
        """Answer with the question as catalyst, and keep nothing: what is left where there is no shelf."""
        llm = self.llm
        done = ReadStats(len(text))

        def state() -> tuple[Pot, int]:
            nonlocal done
            with _telling(len(text), progress, options["cancelled"]) as told:
                reserve = len(prompt.behind) + sampling.max_new_tokens
                pot, done = Reader(llm.adapter, llm.config).read(
                    text, prompt.before, [prompt.behind], reserve, progress=told
                )
            return pot, 0

        try:
            answer = compose(llm.adapter, llm.form.codec, text, done, prompt, state, sampling, **options)
        except _GoneError:
            options["cancelled"] = lambda: True
            answer = compose(llm.adapter, llm.form.codec, text, done, prompt, self._nothing, sampling, **options)
        answer = replace(answer, usage=replace(answer.usage, read=done))
        return Reply(
            answer, "reread", text.documents, len(text) + len(prompt.before) + len(prompt.behind), len(text), 0
        )

    def _remembered(
        self, documents: Sequence[Document], progress: Any, cancelled: Callable[[], bool] | None
    ) -> tuple[DocumentMemory, int]:
        """Return a memory of documents, and how many of its tokens were read for it now."""
        if not documents:
            raise DocumentError("no document was given: name at least one.")
        read = 0
        memories = []
        with self._mine(cancelled):
            for document in documents:
                memory = self._memories.get(document.content_hash)
                if memory is None:
                    found = self.store is not None and self.store.get(self.llm.key([document])) is not None
                    with _telling(len(document.text) // 4, progress, cancelled) as told:
                        memory = self.llm.read(document, store=self.store, progress=told)
                    read += 0 if found else len(memory.text)
                self._keep(self._memories, document.content_hash, memory)
                same_name = memory.documents[0].name == document.name
                memories.append(memory if same_name else memory.renamed((document,)))
            if len(memories) == 1:
                return memories[0], read
            key = tuple(f"{d.content_hash} {d.name}" for d in documents)
            both = self._joined.get(key) or joined(memories)
            self._keep(self._joined, key, both)
        return both, read

    @contextmanager
    def _mine(self, cancelled: Callable[[], bool] | None) -> Iterator[None]:
        """Wait until no other thread reads."""
        while not self._reading.acquire(timeout=0.1):
            if cancelled is not None and cancelled():
                raise _GoneError
        try:
            yield
        finally:
            self._reading.release()

    @staticmethod
    def _keep(kept: OrderedDict[_K, DocumentMemory], key: _K, memory: DocumentMemory) -> None:
        """Put a memory last among those kept, and let the first go where there are too many."""
        kept[key] = memory
        kept.move_to_end(key)
        while len(kept) > MOST_MEMORIES:
            kept.popitem(last=False)

    @staticmethod
    def _nothing() -> tuple[Pot, int]:
        raise AssertionError("a cancelled answer needs no pot")


@contextmanager
def _telling(tokens: int, progress: Any, cancelled: Callable[[], bool] | None) -> Iterator[Callable[[ReadStats], None]]:
    """Yield what is told after every forward pass: it passes that on, and ends the reading when nobody waits for it."""
    with reading_bar(tokens, progress) as bar:

        def told(stats: ReadStats) -> None:
            if cancelled is not None and cancelled():
                raise _GoneError
            if bar is not None:
                bar(stats)

        yield told
