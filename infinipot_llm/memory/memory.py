"""DocumentMemory: documents that were read once; a value that no question changes.

Three tiers: the pot (what distillation kept, in memory), the shelf (what every token looked like, on disk), and the
documents (the text, for citations). A question is answered from the shelf by recall, from the pot as it is, or by
reading again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from infinipot_llm.answering.answer import Answer
from infinipot_llm.answering.compose import Asked, compose, compose_several
from infinipot_llm.answering.decode import OnText, Sampling
from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.answering.together import fits_together
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document, Span
from infinipot_llm.errors import MemoryFileError, QuestionError
from infinipot_llm.memory import saved
from infinipot_llm.memory.asking import (
    check_followup,
    check_passages,
    check_recall,
    passages_for,
    pot_for,
    room_for,
    usual_prompt,
)
from infinipot_llm.memory.file import MemoryFile
from infinipot_llm.memory.recall import Finder, Passage
from infinipot_llm.memory.setup import Setup
from infinipot_llm.memory.shelf import Shelf
from infinipot_llm.memory.waiting import awaited, awaited_pieces, held, overheard, pieces
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import ReadStats

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
        passages: Sequence[Passage] | None = None,
        citations: bool = True,
        on_text: OnText | None = None,
        on_doubt: Callable[[str], None] | None = None,
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
            passages: Answer from these, none being looked for: what `passages` found, or a part of it.
            citations: Whether to look for the passages that the answer rests on (some forward passes more).
            on_text: Given the answer piece by piece.
            on_doubt: Given the note that no passage matches the question well, if so, before the first piece.
            cancelled: Asked while waiting for the model and after every token; True ends the answer, with
                finish_reason "cancelled".

        Raises:
            QuestionError: The question is empty, an option is unknown, question and answer do not fit, or passages were
                given that are not of this text, or to something else than recall.
        """
        how = self._how(followup)
        prompt, limit, notes = usual_prompt(self, how, question, history, max_new_tokens, recall)
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        sampling = Sampling(limit, temperature, top_p, stops, seed)
        return self.answer(
            prompt, sampling, followup=how, recall=recall, passages=passages, notes=notes, citations=citations,
            on_text=on_text, on_doubt=on_doubt, cancelled=cancelled,
        )  # fmt: skip

    def ask_many(
        self,
        questions: Sequence[str],
        *,
        together: int = 8,
        recall: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        citations: bool = True,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Answer]:
        """Answer questions that do not depend on one another, from the shelf, writing several answers at a time.

        A token of each answer is decoded in one pass through the model, which is faster than one after another where
        reading the weights is what takes the time (docs/speed.md). The answers are those of `ask` up to rounding; a
        model with sliding layers decodes them one by one.

        Args:
            questions: What to ask.
            together: Most answers at a time; each holds a pot of the recalled tokens in memory.
            recall: As in `ask`.
            max_new_tokens: As in `ask`.
            temperature: As in `ask`.
            top_p: As in `ask`.
            stop: As in `ask`.
            seed: Of the sampling; above temperature 0 an answer then depends on which questions stand beside it.
            citations: As in `ask`.
            cancelled: As in `ask`; answers that were not begun are empty, with finish_reason "cancelled".

        Returns:
            An answer per question. The seconds in its usage are those of the answers written with it.

        Raises:
            QuestionError: A question is empty, an option is out of range, question and answer do not fit, or the memory
                has no shelf.
        """
        if isinstance(questions, str):
            raise QuestionError("questions is one text: give a list of questions, or use `ask`.")
        if together < 1:
            raise QuestionError(f"together is {together}: give a whole number of at least 1.")
        self._how("recall")
        together = together if fits_together(self._adapter) else 1
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        prompts = [usual_prompt(self, "recall", question, (), max_new_tokens, recall) for question in questions]
        groups: dict[int, list[int]] = {}
        for number, (prompt, limit, _) in enumerate(prompts):  # a long question leaves its answer less
            room_for(self, prompt, limit)  # one that does not fit is refused before any is answered
            groups.setdefault(limit, []).append(number)
        answers: dict[int, Answer] = {}
        for limit, numbers in groups.items():
            sampling = Sampling(limit, temperature, top_p, stops, seed)
            for start in range(0, len(numbers), together):
                some = numbers[start : start + together]
                asked = [
                    Asked(
                        prompts[n][0],
                        partial(pot_for, self, "recall", prompts[n][0], limit, recall, cancelled=cancelled),
                        prompts[n][2],
                    )
                    for n in some
                ]
                found = compose_several(
                    self._adapter, self._form.codec, self.text, self.stats, asked, sampling, citations=citations,
                    cancelled=cancelled,
                )  # fmt: skip
                answers.update(zip(some, found, strict=True))
        return [answers[n] for n in range(len(prompts))]

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        followup: str | None = None,
        recall: int | None = None,
        passages: Sequence[Passage] | None = None,
        **options: Any,
    ) -> Answer:
        """Answer a prompt of one's own making; `ask` makes the usual one.

        Args:
            prompt: What is asked. What stands before the document counts only where the documents' text is read:
                with "recall" and "reread".
            sampling: How to decode.
            followup: As in `ask`.
            recall: As in `ask`.
            passages: As in `ask`.
            **options: Those of answering.compose.compose_several, and `notes`.

        Raises:
            QuestionError: An option is unknown, or prompt and answer do not fit.
        """
        how = self._how(followup)
        check_recall(recall)
        check_passages(passages, how, len(self.text))
        return compose(
            self._adapter, self._form.codec, self.text, self.stats, prompt,
            lambda: pot_for(self, how, prompt, sampling.max_new_tokens, recall, passages, options.get("cancelled")),
            sampling, **options,
        )  # fmt: skip

    def stream(self, question: str, **options: Any) -> Iterator[str]:
        """Yield the answer piece by piece, without citations; takes the options of `ask`.

        An error is raised here, and leaving the loop ends the decoding.
        """
        return pieces(overheard(partial(self.ask, question, citations=False), options))

    async def aask(self, question: str, **options: Any) -> Answer:
        """Answer a question without blocking the event loop; cancelling the task ends the decoding."""
        return await awaited(overheard(partial(self.ask, question), options))

    def astream(self, question: str, **options: Any) -> AsyncIterator[str]:
        """Yield the answer piece by piece without blocking the event loop; takes the options of `ask`."""
        return awaited_pieces(overheard(partial(self.ask, question, citations=False), options))

    def chat(self) -> Chat:
        """Start a conversation about the documents: earlier questions and answers are kept."""
        from infinipot_llm.memory.chat import Chat

        return Chat(self)

    def passages(
        self,
        question: str,
        *,
        history: Turns = (),
        recall: int | None = None,
        max_new_tokens: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Passage]:
        """Return what `ask` would answer from, in document order; takes its options.

        Raises:
            QuestionError: The question is empty or too long, or the memory has no shelf.
            GoneError: `cancelled` said so while the model was not free.
        """
        prompt, limit, _ = usual_prompt(self, self._how("recall"), question, history, max_new_tokens, recall)
        with held(self._adapter.lock, cancelled):
            return passages_for(self, prompt, limit, recall).passages

    def recall(self, question: str, tokens: int | None = None) -> list[tuple[Span, float]]:
        """Return the passages that a question brings back, best first, without answering it.

        Args:
            question: What to look for.
            tokens: How much to bring back; None: as the configuration says.

        Raises:
            QuestionError: The question is empty, or the memory has no shelf.
        """
        self._how("recall")
        check_recall(tokens)
        with self._adapter.lock:
            found = self.finder.find(self._form.question(question), question, tokens or self.setup.recall)
        return sorted(self.spans(found.passages), key=lambda found: -found[1])

    def spans(self, passages: Sequence[Passage]) -> list[tuple[Span, float]]:
        """Return the text, page and score of passages, cut at the borders of documents."""
        found = []
        for passage in passages:
            for start, end in self.text.per_document(passage.start, passage.end):
                found.append((self.text.span(start, end), passage.score))
        return found

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
            with self._adapter.lock:  # somebody may be answering over the pot that is written
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
        pot = self._pot if isinstance(self._pot, Pot) else lambda: self.pot  # rebuilt once, for both
        return DocumentMemory(self.setup, text, self.stats, pot=pot, shelved=self.shelved, file=file)

    def _how(self, followup: str | None) -> str:
        check_followup(followup)
        how = followup or self.config.followup
        if how == "recall" and self.shelved is None:
            if followup is not None:
                raise QuestionError("this memory was read without a shelf: ask with followup='reuse' or 'reread'.")
            return "reuse"
        return how
