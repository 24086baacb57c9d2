"""Running: the order that reads least, refusals, resuming, and nothing of the data in the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import CURIOUS, FULL, QUIET, SETTINGS, FakeExaminee, make_case, prompt_of

from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.rows import Row, Rows
from infinipot_llm.evaluation.runs import FILES, ROOMS, Step, plan_readings, run, sources_digest

CASES = [make_case(n, context=f"secret context {'ABABA'[n]}", depth=n) for n in range(5)]  # two contexts, mixed


def go(examinee: FakeExaminee, rows: Rows, cases: Sequence[Case] = CASES, **changes: Any) -> list[Row]:
    how: dict[str, Any] = {
        "arms": [QUIET, CURIOUS],
        "settings": SETTINGS,
        "prompt_for": prompt_of,
        "score": lambda case, answer: float(case.question in answer),
        "max_new_tokens": lambda case: 7,
        **changes,
    }
    return run(examinee, cases, how.pop("arms"), rows, **how)


@pytest.mark.parametrize(("hidden", "reads"), [(False, 2 + 5), (True, 2 + 2)])
def test_a_context_is_read_once_where_the_arm_allows(hidden: bool, reads: int) -> None:
    examinee = FakeExaminee()
    planned = plan_readings(CASES, [QUIET, CURIOUS], Rows(None), SETTINGS, hidden=hidden)
    found = go(examinee, Rows(None), hidden=hidden)
    assert examinee.reads == len(planned) == reads
    assert [arm for arm, _, _ in examinee.asked] == ["streaming"] * 5 + ["infinipot"] * 5
    assert [context[-1] for _, context, _ in examinee.asked] == list("AAABB") * 2
    assert [(row["arm"], row["key"]) for row in found] == [
        (arm, case.key) for arm in ("streaming", "infinipot") for case in CASES
    ], "rows come back in the order of the cases"
    assert {how["hidden"] for how in examinee.how} == {hidden}
    assert {how["max_new_tokens"] for how in examinee.how} == {7}
    assert {how["stop"] for how in examinee.how} == {()}


def test_a_question_that_the_prompt_shows_first_is_seen_by_all() -> None:
    shown = {case.key for case in CASES[:2]}
    found = go(FakeExaminee(), Rows(None), shown_first=lambda case: case.key in shown)
    assert [row["seen"] for row in found] == [True, True, False, False, False] + [True] * 5


def test_a_row_says_how_it_went_and_nothing_of_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Rows(path) as rows:
        (row, *_) = go(FakeExaminee(), rows, stop=lambda case: ("\n",))
    assert row == {
        "arm": "streaming", "key": "case-0", "settings": row["settings"], "task": "qa", "group": "group-0",
        "facts": {"depth": 0}, "hidden": False, "seen": False, "model": "tiny", "dtype": "float32", "budget": 512,
        "score": 1.0, "finish_reason": "stop", "context_tokens": 100, "slots": 50, "cycles": 2,
        "read_seconds": 2.0, "answer_seconds": 0.25, "answer_tokens": 4, "memory_bytes": 3_000_000,
    }  # fmt: skip
    assert "secret" not in path.read_text()
    assert json.loads(path.read_text().partition("\n")[0]) == row


@pytest.mark.parametrize("hidden", [False, True])
def test_a_row_says_whether_the_question_was_seen(hidden: bool) -> None:
    found = go(FakeExaminee(), Rows(None), hidden=hidden, arms=[QUIET, CURIOUS, FULL])
    assert {(row["arm"], row["seen"]) for row in found} == {
        ("streaming", False), ("infinipot", not hidden), ("full", False),
    }  # fmt: skip


def test_sources_that_answer_are_told_apart_from_those_that_show(tmp_path: Path) -> None:
    for name in (*(f"{room}/a.py" for room in ROOMS), *FILES, "pot/policies/b.py", "evaluation/tables.py", "cli/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    first = sources_digest(tmp_path)
    for name in ("evaluation/tables.py", "cli/c.py", "pot/notes.txt"):
        (tmp_path / name).write_text("x = 2\n")
        assert sources_digest(tmp_path) == first
    for name in (
        *("pot/policies/b.py", "evaluation/a.py", "models/new.py"),
        *("documents/a.py", "engine.py", "config.py"),  # what a text is cut into, and which settings it is read with
    ):
        (tmp_path / name).write_text("x = 2\n")
        assert sources_digest(tmp_path) != first
        first = sources_digest(tmp_path)
    assert sources_digest() == sources_digest() != first


def test_several_figures_the_first_counts() -> None:
    (row, *_) = go(FakeExaminee(), Rows(None), score=lambda case, answer: {"contains": True, "f1": 0.4})
    assert (row["score"], row["scores"]) == (1.0, {"contains": 1.0, "f1": 0.4})


def test_what_cannot_be_run_is_written_down_and_the_rest_goes_on() -> None:
    cases = [make_case(n, context=f"{'long' if n == 1 else 'short'} {n}") for n in range(3)]
    steps: list[Step] = []
    found = go(FakeExaminee(refuses="long"), Rows(None), cases, arms=[FULL, QUIET], progress=steps.append)
    assert [row.get("refused") for row in found] == [None, "too long for a full cache.", None, None, None, None]
    assert ["score" in row for row in found] == [True, False, True, True, True, True]
    assert [step.done for step in steps] == [1, 2, 3, 4, 5, 6]
    assert {step.total for step in steps} == {6}


def test_an_interruption_leaves_whole_rows_and_the_next_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Rows(path) as rows, pytest.raises(KeyboardInterrupt):
        go(FakeExaminee(stops_after=4), rows)
    assert len(path.read_text().splitlines()) == 4
    examinee = FakeExaminee()
    with Rows(path) as rows:
        steps: list[Step] = []
        assert len(plan_readings(CASES, [QUIET, CURIOUS], rows, SETTINGS)) == 1 + 5
        found = go(examinee, rows, progress=steps.append)
    assert len(examinee.asked) == len(steps) == 6
    assert len(found) == 10
    assert len({(row["arm"], row["key"]) for row in found}) == 10
    idle = FakeExaminee()
    assert go(idle, Rows(path)) == found
    assert idle.asked == []


@pytest.mark.parametrize("changes", [{"settings": {**SETTINGS, "more": [1, 3]}}, {"hidden": True}])
def test_other_settings_are_another_run(changes: dict[str, Any]) -> None:
    rows = Rows(None)
    go(FakeExaminee(), rows)
    examinee = FakeExaminee()
    assert len(go(examinee, rows, **changes)) == 10
    assert len(examinee.asked) == 10
    assert len(rows) == 20


def test_two_cases_of_one_key_are_refused() -> None:
    with pytest.raises(ValueError, match="same key"):
        go(FakeExaminee(), Rows(None), [CASES[0], CASES[0]])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_an_arm_for_which_memory_runs_out_is_refused_and_the_others_go_on(error: Exception, tmp_path: Path) -> None:
    class Small(FakeExaminee):
        forgot = 0

        def answer(self, arm: Any, *args: Any, **how: Any) -> Any:
            if arm is FULL:
                raise error
            return super().answer(arm, *args, **how)

        def forget(self) -> None:
            self.forgot += 1

    examinee, kept = Small(), Rows(tmp_path / "rows.jsonl")
    found = go(examinee, kept, arms=[FULL, QUIET])
    assert ["refused" in row for row in found] == [True] * 5 + [False] * 5
    assert examinee.forgot == 5
    (left, _) = plan_readings(CASES, [FULL, QUIET], kept, SETTINGS)  # another day there may be memory
    assert left.arm is FULL
    again = go(FakeExaminee(), kept, arms=[FULL, QUIET])
    assert ["score" in row for row in again] == [True] * 10
    idle = FakeExaminee()
    assert go(idle, Rows(kept.path), arms=[FULL, QUIET]) == again, "what came of it stands in place of the refusal"
    assert idle.asked == []
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        go(examinee, Rows(None), arms=[FULL])
