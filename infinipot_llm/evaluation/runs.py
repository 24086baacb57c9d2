"""Asking cases of arms, one after the other, and writing down how each answer did."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from infinipot_llm.errors import BudgetError, QuestionError
from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.rows import OUT_OF_MEMORY, Row, Rows, digest

if TYPE_CHECKING:
    from infinipot_llm.answering.prompt import Prompt
    from infinipot_llm.evaluation.arms import Arm, Outcome

Score: TypeAlias = Callable[[Case, str], "float | Mapping[str, float]"]

ROOMS = ("documents", "pot", "models", "answering", "memory", "evaluation")
FILES = ("engine.py", "config.py")
"""Packages and files beside them whose sources decide what is answered, and what an answer is worth."""

SHOWN_BY = ("tables.py", "statistics.py", "heatmap.py", "lm_eval.py")
"""Files of evaluation/ that only show what was found, or have no rows."""


class Examined(Protocol):
    """Whatever answers; `arms.Examinee` does."""

    def answer(
        self,
        arm: Arm,
        context: str,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        hidden: bool = False,
    ) -> Outcome:
        """Read a context the way of an arm, and answer a prompt about it."""

    def forget(self) -> None:
        """Let go of what was read last."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A context that one arm reads once, and the cases that are answered from it.

    Attributes:
        arm: Who reads.
        cases: What is asked, all about one context.
    """

    arm: Arm
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """How far a run is.

    Attributes:
        reading: What was read.
        row: What came of one of its cases.
        done: Cases done in this run.
        total: Cases to do in it.
    """

    reading: Reading
    row: Row
    done: int
    total: int


def settings_digest(settings: Mapping[str, Any], hidden: bool) -> str:
    """Return what stands in the rows of a run as `settings`."""
    return digest({**settings, "hidden": hidden})


def sources_digest(package: Path = Path(__file__).parents[1]) -> str:
    """Return 16 hex digits that stand for the code that answers: rows of before and after an edit are two runs.

    Args:
        package: Folder of infinipot_llm.
    """
    found = hashlib.sha256()
    of_rooms = [path for room in ROOMS for path in (package / room).rglob("*.py")]
    for path in sorted([*of_rooms, *(package / name for name in FILES)]):
        if path.parent != package / "evaluation" or path.name not in SHOWN_BY:
            source = path.read_bytes()
            found.update(f"{path.relative_to(package).as_posix()}\n{len(source)}\n".encode() + source)
    return found.hexdigest()[:16]


def plan_readings(
    cases: Iterable[Case], arms: Iterable[Arm], rows: Rows, settings: Mapping[str, Any], *, hidden: bool = False
) -> list[Reading]:
    """Return what is still to be read, arm by arm and context by context.

    Cases of one context are answered from one reading, unless the arm reads for a question that is not hidden.

    Args:
        cases: What is asked.
        arms: Who is asked.
        rows: What was done before; it is left out.
        settings: As `run` takes them.
        hidden: Whether the questions are hidden while reading.
    """
    which = settings_digest(settings, hidden)
    contexts: dict[str, list[Case]] = {}
    for case in cases:
        contexts.setdefault(case.context, []).append(case)
    readings = []
    for arm in arms:
        for several in contexts.values():
            left = [case for case in several if not rows.holds(arm.name, case.key, which)]
            if arm.reads_for_question and not hidden:
                readings += [Reading(arm, (case,)) for case in left]
            elif left:
                readings.append(Reading(arm, tuple(left)))
    return readings


def run(
    examinee: Examined,
    cases: Sequence[Case],
    arms: Sequence[Arm],
    rows: Rows,
    *,
    settings: Mapping[str, Any],
    prompt_for: Callable[[Case], Prompt],
    score: Score,
    max_new_tokens: Callable[[Case], int],
    stop: Callable[[Case], tuple[str, ...]] = lambda case: (),
    shown_first: Callable[[Case], bool] = lambda case: False,
    hidden: bool = False,
    progress: Callable[[Step], None] | None = None,
) -> list[Row]:
    """Ask every case of every arm that has no row yet.

    An arm that cannot be run on a case, such as a full cache on a context beyond the model's window or this machine's
    memory, leaves a row with the reason in `refused` and no score; where memory ran out, the next run tries again. An
    interruption (Ctrl-C) leaves whole rows, and the next run goes on there.

    Args:
        examinee: The model.
        cases: What is asked; keys differ.
        arms: Who is asked.
        rows: Where rows are looked for and added.
        settings: Plain JSON values: everything beside arm and case that decides an answer. `model`, `dtype` and
            `budget` are copied into the rows, a digest of all stands in `settings`. Rows also say whether the arm had
            `seen` the question while reading.
        prompt_for: Returns the prompt of a case.
        score: Returns what an answer to a case is worth, from 0 to 1; several figures by name where there are several,
            the one that counts first.
        max_new_tokens: Returns the longest answer of a case.
        stop: Returns the texts that end the answer of a case.
        shown_first: Returns whether the prompt of a case has the question before the context, which every arm sees.
        hidden: The question is not known while reading.
        progress: Told after every case.

    Returns:
        The rows of these cases and arms, those of earlier runs included: arm by arm, in the order of the cases.

    Raises:
        StoreError: Rows cannot be written.
        ValueError: Two cases have the same key.
    """
    if len({case.key for case in cases}) < len(cases):
        raise ValueError("two cases have the same key: their rows could not be told apart")
    which = settings_digest(settings, hidden)
    common = {name: settings.get(name) for name in ("model", "dtype", "budget")}
    readings = plan_readings(cases, arms, rows, settings, hidden=hidden)
    done, total = 0, sum(len(reading.cases) for reading in readings)
    for reading in readings:
        for case in reading.cases:
            identity = {"arm": reading.arm.name, "key": case.key, "settings": which}
            seen = (reading.arm.wants_question and not hidden) or shown_first(case)
            about = {"task": case.task, "group": case.group, "facts": case.facts, "hidden": hidden, "seen": seen}
            about |= common
            try:
                outcome = examinee.answer(
                    reading.arm,
                    case.context,
                    prompt_for(case),
                    max_new_tokens=max_new_tokens(case),
                    stop=stop(case),
                    hidden=hidden,
                )
            except (BudgetError, QuestionError) as error:
                row = rows.add({**identity, **about, "refused": str(error)})
            except (MemoryError, RuntimeError) as error:  # the next arm may need less
                from infinipot_llm.models.device import is_out_of_memory

                if not is_out_of_memory(error):
                    raise
                examinee.forget()
                row = rows.add({**identity, **about, "refused": OUT_OF_MEMORY})
            else:
                row = rows.add({**identity, **about, **_scores(score(case, outcome.text)), **_numbers(outcome)})
            done += 1
            if progress is not None:
                progress(Step(reading, row, done, total))
    found = (rows.find(arm.name, case.key, which) for arm in arms for case in cases)
    return [row for row in found if row is not None]


def _scores(scored: float | Mapping[str, float]) -> dict[str, Any]:
    if not isinstance(scored, Mapping):
        return {"score": float(scored)}
    return {"score": float(next(iter(scored.values()))), "scores": {name: float(s) for name, s in scored.items()}}


def _numbers(outcome: Outcome) -> dict[str, Any]:
    """Return what may be written down of an outcome: everything but the answer's text."""
    return {
        "finish_reason": outcome.finish_reason,
        "context_tokens": outcome.context_tokens,
        "slots": outcome.slots,
        "cycles": outcome.cycles,
        "read_seconds": round(outcome.read_seconds, 4),
        "answer_seconds": round(outcome.answer_seconds, 4),
        "answer_tokens": outcome.answer_tokens,
        "memory_bytes": outcome.memory_bytes,
    }
