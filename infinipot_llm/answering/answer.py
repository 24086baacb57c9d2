"""What a question gives back: the answer, where it stands, and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from infinipot_llm.answering.html import answer_html
from infinipot_llm.pot.reader import ReadStats

FinishReason = Literal["stop", "length", "cancelled"]
"""stop: the model ended, or a stop string came; length: max_new_tokens was reached; cancelled: the reader went away."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that the answer rests on; `quote` stands in the document exactly so, at [start, end).

    Attributes:
        document: Name of the document.
        page: Page, 1-based.
        page_label: The label printed on the page ("iv", "12"), when the document says.
        start: First character in the document's text.
        end: One past the last.
        quote: The text there.
        score: Share of the answer's support that falls on this passage, 0 to 1.
        speaker: Who says it, in a transcript that tells.
        time: When the turn begins, in seconds from the start of the recording, where the transcript tells.
        length: Characters of the document's text: start / length says how far into it the passage stands.
    """

    document: str
    page: int
    page_label: str | None
    start: int
    end: int
    quote: str
    score: float
    speaker: str | None = None
    time: float | None = None
    length: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost.

    Attributes:
        read: What reading the document cost, once.
        question_tokens: Tokens of the question, of the prompt around it and of earlier turns.
        recalled_tokens: Tokens brought back from the shelf.
        answer_tokens: Tokens decoded.
        first_token_seconds: Wall-clock time from question to first token.
        answer_seconds: Wall-clock time from question to end of answer.
        peak_memory_bytes: Highest resident memory of this process so far, or of the GPU when the model is on one.
        pot_bytes: Buffers of the pot (1.5 times plain keys and values, for the rotated working copy).
    """

    read: ReadStats
    question_tokens: int
    recalled_tokens: int
    answer_tokens: int
    first_token_seconds: float
    answer_seconds: float
    peak_memory_bytes: int
    pot_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        text: What the model said.
        citations: At most three passages that it rests on, best first; empty when nothing can be shown.
        finish_reason: Why it ended.
        usage: What it cost.
        supported: How many nats likelier the document makes this answer than the prompt alone does; near 0 or below,
            the answer does not come from the document. None where it was not looked for, or the answer tells nothing.
        notes: Sentences on what the answer could not take into account, and on what in it is doubtful: that no passage
            matches the question, or which figures stand nowhere in the text that it was answered from.
        answerable: How likely it is that the documents answer the question at all, 0 to 1, judged by how well the best
            passage on the shelf matches it, before anything was written (docs/recall.md: how far to trust it). None
            where nothing was looked for, and for questions that only earlier turns explain.
    """

    text: str
    citations: tuple[Citation, ...]
    finish_reason: FinishReason
    usage: Usage
    supported: float | None = None
    notes: tuple[str, ...] = ()
    answerable: float | None = None

    def _repr_html_(self) -> str:
        """Show the answer in a notebook."""
        return answer_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = asdict(self)
        values["usage"]["read"]["tokens_per_second"] = round(self.usage.read.tokens_per_second, 2)
        return values
