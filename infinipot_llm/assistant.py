"""Assistant: messages and documents in, an answer out: what chat-model interfaces of other libraries stand on.

    messages, documents --> do they fit into the budget together?   yes: "whole", the model reads them as they are
                                                                    no:  "recall", the documents are read once into
                                                                         memories, and the messages asked of these

The documents stand before the conversation, behind the system message. Text that was stuffed into a message and does
not fit is taken for a document too (`stuffed.py`).
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from infinipot_llm.answering.answer import Answer
from infinipot_llm.answering.compose import Ready, compose
from infinipot_llm.answering.decode import Sampling
from infinipot_llm.answering.messages import prompt_of, tidied, turns_of, without_oldest
from infinipot_llm.answering.prompt import Message, Prompt
from infinipot_llm.collection import Collection, telling
from infinipot_llm.documents import Document
from infinipot_llm.documents.document import each_once
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import DocumentError, GoneError, QuestionError, QuestionTooLongError
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import Passage, pot_of_text
from infinipot_llm.memory.shelf import SPAN
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.memory.waiting import awaited, awaited_pieces_and_value, overheard, pieces_and_value
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader, ReadStats
from infinipot_llm.stuffed import question_in, unstuffed

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


class Assistant:
    """A model that answers messages, from documents where there are some.

    Safe to use from several threads: the model works for one at a time.

    Attributes:
        llm: The model, its budget and settings.
        store: Where memories of documents are kept; None keeps them in this process alone.
        collection: The documents that were read.
    """

    def __init__(self, llm: InfiniPot, store: MemoryStore | None = None) -> None:
        """Put an assistant together; `Assistant.shared` shares the weights with all others of the process."""
        self.llm = llm
        self.store = store
        self.collection = Collection(llm, store)
        self._text: tuple[object, TokenizedText] | None = None  # the documents last tokenised
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
        asked: str | None = None,
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
            catalyst: What is looked for in the documents; None: the question, behind earlier turns and by itself.
            asked: The question, where the last message of the user holds more (a schema, results of tools). None: the
                message, or what a template announces in it ("Question: ...") where its text was taken for a document.
            max_new_tokens: Limit of the answer; None: as the configuration says, or what a long question leaves.
            temperature: 0 decodes greedily.
            top_p: Nucleus, when the temperature is above 0.
            stop: A text, or texts, that end the answer; none ends one that follows a schema.
            seed: Of the sampling.
            progress: As in InfiniPot.read.
            cancelled: Asked while reading and waiting, and after every token; True ends the answer, with finish_reason
                "cancelled".
            **options: `citations` (True; whether to look for the passages that the answer rests on), `schema` (a JSON
                schema that the model is told, and that the answer follows, unless it ends with "length"), `on_text`
                (given the answer piece by piece).

        Raises:
            QuestionError: There is no question, it does not fit into the budget, or an option is out of range.
            DocumentError: A document holds no text.
            StoreError: The store cannot be used.
        """
        if unknown := sorted(set(options) - {"citations", "schema", "on_text"}):
            raise TypeError(f"respond() has no option {unknown[0]!r}")
        llm, form = self.llm, self.llm.form
        limit = max_new_tokens or llm.config.max_new_tokens
        frame = len(form.prefix) + len(form.before_question) + len(form.after_question)
        said, schema = tidied(messages), options.get("schema")
        told = "" if schema is None else f"\n\nAnswer with JSON that follows this schema: {json.dumps(schema)}"
        room = llm.config.budget - limit - frame - self.count_tokens(told)
        talk, stuffed = unstuffed(said, self.count_tokens, room)
        # A template's words stand around the question, and what was given as the question may hold what was taken out.
        framed = talk[-1] != said[-1] and (asked is None or asked not in talk[-1].text)
        if framed:
            asked = question_in(talk[-1].text)
        unclear = framed and asked is None
        if told:  # decoding follows it anyway, but a model that does not see what is wanted fills its first string
            asked = talk[-1].text if asked is None else asked
            talk[-1] = replace(talk[-1], text=talk[-1].text + told)
        several = _each_once((*documents, *stuffed))
        taken = {d.content_hash for d in stuffed}  # their notes quote this conversation, and no other shall see them
        bare = tuple(replace(d, notes=()) if d.content_hash in taken else d for d in several)
        text = self._tokenised(bare)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        options |= {"cancelled": cancelled}

        def fitted(held: int | None = None) -> tuple[Prompt, Sampling, bool]:
            prompt, limit, whole, options["notes"] = self._fitted(talk, len(text), max_new_tokens, held, asked)
            if catalyst is not None:
                prompt = replace(prompt, query=tuple(form.looked_for((), catalyst)), question=catalyst, alone=True)
            elif unclear:
                prompt = replace(prompt, alone=False)  # what is asked cannot be told from the words around it
            return prompt, Sampling(limit, temperature, top_p, stops, seed), whole

        prompt, sampling, whole = fitted()
        how: How = "reread" if llm.config.shelf == "off" else llm.config.followup
        if not whole and how == "reuse" and len(several) > 1:
            raise QuestionError("followup='reuse' answers from one document's pot: ask several with 'recall'.")
        try:
            if whole:
                return replace(self._from_whole(text, prompt, sampling, options), documents=several)
            if how == "reread":
                looked_for = prompt.behind if catalyst is None and asked is None else prompt.query
                reply = self._from_one_reading(text, prompt, looked_for, sampling, options, progress)
                return replace(reply, documents=several)
            memory, read = self.collection.memory(bare, progress=progress, cancelled=cancelled)
            if how == "reuse":
                prompt, sampling, _ = fitted(memory.pot.length)
                if talk[0].role == "system":
                    options["notes"].append(
                        "the system message took no part: with followup='reuse' the pot was read with its own."
                    )
            answer = memory.answer(prompt, sampling, followup=how, **options)
            return Reply(answer, how, several, _size(text, prompt), read, len(memory.text) - read)
        except GoneError:  # nobody waits any more
            options |= {"cancelled": lambda: True}
            stats = ReadStats(len(text))
            answer = compose(llm.adapter, form.codec, text, stats, prompt, self._nothing, sampling, **options)
            return Reply(answer, "whole" if whole else how, several, _size(text, prompt), 0, 0)

    def stream(
        self, messages: Sequence[Message], documents: Sequence[Document] = (), **options: Any
    ) -> Iterator[str | Reply]:
        """Yield the answer piece by piece, and last the whole reply; takes the options of `respond`.

        Leaving the loop ends the reading or decoding, and frees the model.
        """
        return pieces_and_value(self._asking(messages, documents, options))

    async def arespond(self, messages: Sequence[Message], documents: Sequence[Document] = (), **options: Any) -> Reply:
        """Answer without blocking the event loop; cancelling the task ends the decoding."""
        return await awaited(self._asking(messages, documents, options))

    def astream(
        self, messages: Sequence[Message], documents: Sequence[Document] = (), **options: Any
    ) -> AsyncIterator[str | Reply]:
        """Yield as `stream` does, without blocking the event loop."""
        return awaited_pieces_and_value(self._asking(messages, documents, options))

    def remember(
        self, documents: Sequence[Document], *, progress: Any = None, cancelled: Callable[[], bool] | None = None
    ) -> DocumentMemory:
        """Return a memory of documents: each is read at most once, several are joined under one budget of recall.

        Args:
            documents: Of what.
            progress: As in InfiniPot.read.
            cancelled: Asked while reading and waiting.

        Raises:
            DocumentError: There is nothing to read.
            StoreError: The store cannot be used.
            GoneError: `cancelled` said so.
        """
        return self.collection.memory(documents, progress=progress, cancelled=cancelled)[0]

    def recognised(self, document_id: str) -> Document:
        """Return the document with this id (`Document.id`), when a memory of it is here or in the store.

        Raises:
            DocumentError: The id is malformed, or no memory of that document is known.
        """
        return self.collection.recognised(document_id)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens of this model a text is."""
        return len(self.llm.form.codec.untrusted(text))

    def _asking(
        self, messages: Sequence[Message], documents: Sequence[Document], options: dict[str, Any]
    ) -> Callable[..., Reply]:
        """Return `respond` for somebody who waits: it ends when that one goes, or when the caller says so."""
        return overheard(partial(self.respond, messages, documents), options)

    def _tokenised(self, documents: Sequence[Document]) -> TokenizedText:
        """Return the tokens of documents; those of the last ones are kept, since questions come one after another."""
        key = tuple((d.content_hash, d.name) for d in documents)
        kept = self._text
        if kept is None or kept[0] != key:
            kept = self._text = key, self.llm.form.codec.document(documents)
        return kept[1]

    def _fitted(
        self,
        talk: list[Message],
        tokens: int,
        max_new_tokens: int | None,
        held: int | None = None,
        asked: str | None = None,
    ) -> tuple[Prompt, int, bool, list[str]]:
        """Fit a conversation into the budget.

        Args:
            talk: The conversation, tidied.
            tokens: Of the documents; 0 where there are none.
            max_new_tokens: Limit of the answer; None: as the configuration says, or what a long question leaves.
            held: Slots of a pot that is filled already, and stands for all before the conversation.
            asked: The question, where the last message holds more.

        Returns:
            The prompt, the limit of the answer, whether prompt and documents fit as they are, and sentences on what was
            left out.
        """
        config, form = self.llm.config, self.llm.form
        limit = config.max_new_tokens if max_new_tokens is None else max_new_tokens

        def free(prompt: Prompt) -> int:
            return config.budget - limit - len(prompt.behind) - (len(prompt.before) if held is None else held)

        prompt = prompt_of(form, talk, document=tokens > 0, asked=asked)
        whole = not tokens or (held is None and free(prompt) >= tokens and config.followup != "reread")
        beside = tokens if whole else min(self.llm.setup.recall, (config.budget - limit) // 2) if held is None else 0
        dropped = 0
        if free(prompt) < beside and (turns := turns_of(talk)):

            def shorter(count: int) -> Prompt:
                return prompt_of(form, without_oldest(talk, count), document=tokens > 0, asked=asked)

            # As few as may be; rendered some times, not once for every turn of a long conversation.
            dropped = 1 + bisect_left(range(1, turns), True, key=lambda count: free(shorter(count)) >= beside)
            prompt = shorter(dropped)
        least = beside if whole else min(beside, SPAN)  # a long question takes from what is recalled first
        if max_new_tokens is None and free(prompt) < least:
            limit = max(1, limit + free(prompt) - least)
        if free(prompt) < min(1, beside):
            raise QuestionTooLongError(
                f"the question has {len(prompt.before) + len(prompt.behind)} tokens with the prompt around it, which "
                f"with an answer of {limit} do not fit into a budget of {config.budget}: ask more briefly, lower "
                "max_new_tokens, or raise the budget."
            )
        left_out = "turn no longer fits and was" if dropped == 1 else "turns no longer fit and were"
        notes = [f"{dropped} earlier {left_out} left out."] if dropped else []
        if dropped:
            prompt = replace(prompt, alone=False)  # what the question is about stood in them
        return prompt, limit, whole, notes

    def _from_whole(self, text: TokenizedText, prompt: Prompt, sampling: Sampling, options: dict[str, Any]) -> Reply:
        """Answer from documents (or none) read as they are; what was read last is kept for the next question."""
        llm, total = self.llm, len(text)
        key = (prompt.before, tuple((d.content_hash, d.name) for d in text.documents))
        kept = self._whole  # once: another thread may change it in between
        found = kept if kept is not None and kept[0] == key else None
        cancelled = options["cancelled"]

        def told() -> None:
            if cancelled is not None and cancelled():
                raise GoneError

        def state() -> Ready:
            if found is not None:
                return Ready(found[1])
            passages = [Passage(0, total, 0.0)] if total else []
            pot = pot_of_text(llm.setup, text, passages, llm.config.budget, prompt.before, told)
            if total:
                self._whole = (key, pot)
            return Ready(pot)

        stats = ReadStats(total, total, slots=len(prompt.before) + total, budget=llm.config.budget)
        answer = compose(llm.adapter, llm.form.codec, text, stats, prompt, state, sampling, **options)
        read = 0 if found is not None else total
        return Reply(answer, "whole" if total else "plain", text.documents, _size(text, prompt), read, total - read)

    def _from_one_reading(
        self,
        text: TokenizedText,
        prompt: Prompt,
        looked_for: Sequence[int],
        sampling: Sampling,
        options: dict[str, Any],
        progress: Any,
    ) -> Reply:
        """Answer with the question as catalyst, and keep nothing: what is left where there is no shelf."""
        llm = self.llm
        done = ReadStats(len(text))

        def state() -> Ready:
            nonlocal done
            with telling(len(text), progress, options["cancelled"]) as told:
                reserve = len(prompt.behind) + sampling.max_new_tokens
                pot, done = Reader(llm.adapter, llm.config, known=True).read(
                    text, prompt.before, [looked_for], reserve, progress=told
                )
            return Ready(pot)

        answer = compose(llm.adapter, llm.form.codec, text, done, prompt, state, sampling, **options)
        answer = replace(answer, usage=replace(answer.usage, read=done))
        return Reply(answer, "reread", text.documents, _size(text, prompt), len(text), 0)

    @staticmethod
    def _nothing() -> Ready:
        raise AssertionError("a cancelled answer needs no pot")


def _each_once(documents: Sequence[Document]) -> tuple[Document, ...]:
    """Return documents in order, each content once, no two of one name.

    Raises:
        DocumentError: One holds no text.
    """
    for document in documents:
        if not document.text.strip():
            raise DocumentError(f"{document.name} holds no text: there is nothing to read in it.")
    return each_once(documents)


def _size(text: TokenizedText, prompt: Prompt) -> int:
    """Return the tokens of everything that was given."""
    return len(text) + len(prompt.before) + len(prompt.behind)
