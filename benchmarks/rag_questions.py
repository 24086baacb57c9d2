"""The questions of rag.py, and how an answer to each kind is scored: from 0 to 1, by rule, without a judge.

`pages`: questions about one PDF whose answer stands on one page (`page`: the answer contains a reference).

`hard`: questions that retrieval is bad at, about the two sample reports, which share one index:

    two-places  needs facts that stand pages apart      the answer contains a reference
    list        asks for all of something               share of the items that the answer tells
    count       asks how many times, or how many        the first number that the answer tells is the right one
    summary     asks about the whole document           share of key facts that the answer tells

They are in examples/documents/hard_questions.jsonl, a JSON object a line. `facts` and `parts` name the PDF page (the
first is 1) where each stands, in these words or the first of `any`; the further ones are as good in an answer.
`counted` is the regular expression whose matches are the count, in the whole document or on `pages` alone. Shares are
of what should be told: an answer is not punished for telling more, but no answer may be longer than the others'.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from infinipot_llm.evaluation.metrics import contains

Kind: TypeAlias = Literal["page", "two-places", "list", "count", "summary"]

SAMPLES = Path(__file__).parents[1] / "examples" / "documents"
HARD = SAMPLES / "hard_questions.jsonl"
SETS = ("pages", "hard")
KINDS: tuple[Kind, ...] = ("page", "two-places", "list", "count", "summary")

_WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
_NUMBER = re.compile(rf"(?<![\w.,])(?:\d{{1,3}}(?:,\d{{3}})+|\d+|{'|'.join(_WORDS)})(?![.,]?\d|\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question and what is expected of its answer.

    Attributes:
        document: The PDF's name without suffix.
        kind: How the answer is scored.
        question: The question.
        answers: Reference answers, any of them is right; none for lists and summaries.
        parts: What a list or a summary must tell: the wordings of each part, any of them counts.
        pages: PDF pages, from 1, on which the answer, or what it follows from, stands.
    """

    document: str
    kind: Kind
    question: str
    answers: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]
    pages: tuple[int, ...]


def load(name: str, folder: Path | None) -> tuple[list[Path], list[Question]]:
    """Return the PDFs of a set, and the questions about them.

    Args:
        name: "pages" or "hard".
        folder: The folder that holds pdf/ and qa/; "hard" needs none.
    """
    if name == "hard":
        return [SAMPLES / "hollin_valley.pdf", SAMPLES / "merrow_ferry.pdf"], hard_questions()
    if folder is None:
        raise SystemExit("the questions about pages need --data DIR, the folder with pdf/ and qa/.")
    pdf = folder / "pdf" / "alps_wiki.pdf"
    rows = _rows(folder / "qa" / "alps_wiki.questions.jsonl")
    return [pdf], [
        Question(pdf.stem, "page", row["question"], (row["answer"],), (), tuple(row["page_1indexed"])) for row in rows
    ]


def hard_questions() -> list[Question]:
    """Return the questions of examples/documents/hard_questions.jsonl."""
    return [
        Question(
            row["document"],
            row["kind"],
            row["question"],
            tuple(row["answers"]),
            tuple(tuple(part["any"]) for part in row.get("parts", ())),
            tuple(row["pages"]),
        )
        for row in _rows(HARD)
    ]


def score(question: Question, answer: str) -> float:
    """Score an answer from 0 to 1, by the rule of its kind."""
    if question.kind == "count":
        return float(first_number(answer) == int(question.answers[0]))
    if question.parts:
        return sum(contains(answer, part) for part in question.parts) / len(question.parts)
    return float(contains(answer, question.answers))


def first_number(answer: str) -> int | None:
    """Return the first whole number that is told, in digits or, to twenty, in words; None where none is."""
    found = _NUMBER.search(answer)
    if found is None:
        return None
    told = found.group().lower()
    return _WORDS.index(told) if told in _WORDS else int(told.replace(",", ""))


def pages_found(question: Question, sources: list[tuple[str, int]]) -> float:
    """Return which share of the question's pages is among the sources, (name of the PDF, page) each."""
    there = {page for name, page in sources if Path(name).stem == question.document}
    return len(there & {*question.pages}) / len({*question.pages})


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
