"""What is asked: one question about one context, with the right answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """One question about one context.

    Attributes:
        key: Tells the case from all others of a run, the same in every run: results are resumed by it.
        context: The text to read.
        question: What is asked; may be empty where the task itself is the question (a summary).
        references: Right answers; an answer counts by the one that it is nearest to.
        task: Name of the task, which decides prompt, metric and length of the answer (tasks.py).
        group: Cases of one source; intervals are clustered by it.
        classes: All labels there are, for classification tasks.
        facts: What else describes the case (length, depth, kind, ...); plain JSON values, copied into its rows.
        wrong: Answers to questions that were not asked: who tells one of them has not found the right one. Never in
            rows.
    """

    key: str
    context: str
    question: str
    references: tuple[str, ...]
    task: str
    group: str
    classes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
