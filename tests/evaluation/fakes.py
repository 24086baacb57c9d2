"""An examinee that answers from a table and remembers how it was asked."""

from __future__ import annotations

from typing import Any

from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.errors import BudgetError
from infinipot_llm.evaluation.arms import Arm, Outcome
from infinipot_llm.evaluation.cases import Case

QUIET = Arm("streaming", "streaming", None, wants_question=False)
CURIOUS = Arm("infinipot", "infinipot", None, wants_question=True)
FULL = Arm("full", "full", None, wants_question=False)
SETTINGS = {"model": "tiny", "dtype": "float32", "budget": 512, "more": [1, 2]}


def make_case(number: int, context: str = "", **facts: Any) -> Case:
    return Case(
        f"case-{number}",
        context or f"context {number}",
        f"secret question {number}",
        (f"secret reference {number}",),
        "qa",
        f"group-{number // 2}",
        facts=facts,
    )


def prompt_of(case: Case) -> Prompt:
    return Prompt((1,), (2, 3), (3,), case.question)


class FakeExaminee:
    """Reads a context anew when arm or context change, or when the arm reads for a question."""

    def forget(self) -> None:
        """Hold nothing."""

    def __init__(self, refuses: str = "never", stops_after: int | None = None) -> None:
        self.refuses = refuses
        self.stops_after = stops_after
        self.asked: list[tuple[str, str, str]] = []
        self.reads = 0
        self.how: list[dict[str, Any]] = []
        self._held: tuple[object, ...] = ()

    def answer(self, arm: Arm, context: str, prompt: Prompt, **how: Any) -> Outcome:
        if self.stops_after == len(self.asked):
            raise KeyboardInterrupt
        self.asked.append((arm.name, context, prompt.question))
        self.how.append(how)
        if arm.name == "full" and self.refuses in context:
            raise BudgetError("too long for a full cache.")
        held = (arm, context, prompt.question if arm.reads_for_question and not how["hidden"] else None)
        fresh = held != self._held
        self.reads += fresh
        self._held = held
        text = f"secret answer to {prompt.question}"
        return Outcome(text, "stop", 100, 50, 2, 2.0 * fresh, 0.25, 4, 3_000_000 if fresh else None)
