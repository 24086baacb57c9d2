"""Tables: means, intervals, differences on the same cases, and what could not be run."""

from __future__ import annotations

import re
from typing import Any

import pytest

from infinipot_llm.evaluation.statistics import paired, share
from infinipot_llm.evaluation.tables import by_cell, grid, hit_table, length_name, summary


def row(arm: str, number: int, score: float | None, task: str = "qa", **more: Any) -> dict[str, Any]:
    done = {"score": score, "read_seconds": 4.0, "answer_seconds": 0.5, "slots": 2000, "memory_bytes": None}
    return {
        "arm": arm, "key": f"{task}{number}", "settings": "x", "task": task, "group": f"g{number // 2}", "facts": {},
        "seen": arm == "small",
        **({"refused": "too long."} if score is None else done), **more,
    }  # fmt: skip


def cells(table: str, task: str, arm: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {task} | {arm} |")]
    return [cell.strip() for cell in line.split("|")[4:-1]]


FULL = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
SMALL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0]
GROUPS = [f"g{n // 2}" for n in range(12)]


def test_a_line_holds_mean_interval_and_paired_difference() -> None:
    rows = [row("full", n, s) for n, s in enumerate(FULL)] + [row("small", n, s) for n, s in enumerate(SMALL)]
    table = summary(rows)
    mean, low, high = share(SMALL, GROUPS)
    n, refused, score, difference, read, answer, slots, taken = cells(table, "qa", "small")
    assert (n, refused, read, answer, slots, taken) == ("12", "", "4.0", "0.50", "2,000", "")
    assert score == f"{mean:.3f} [{low:.3f}, {high:.3f}]" == f"0.292 [{low:.3f}, {high:.3f}]"
    mean, low, high = paired(SMALL, FULL, GROUPS)
    assert high < 0
    assert difference == f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    assert cells(table, "qa", "full")[3] == ""
    assert "minus full" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_memory_is_that_of_the_readings() -> None:
    rows = [row("full", n, 1.0, memory_bytes=(n + 1) * 10**9 if n < 3 else None) for n in range(12)]
    del rows[-1]["memory_bytes"]  # of an older row
    assert cells(summary(rows), "qa", "full")[-1] == "2,000"


def test_a_tie_is_said() -> None:
    rows = [row("a", n, float(n % 2)) for n in range(12)] + [row("b", n, float(n % 3 == 0)) for n in range(12)]
    assert cells(summary(rows, "a"), "qa", "b")[3].endswith("], tie")
    same = [row(arm, n, 1.0) for arm in "ab" for n in range(12)]
    assert cells(summary(same), "qa", "b")[3] == "+0.000 [+0.000, +0.000], tie"


def test_few_sources_show_no_difference() -> None:
    rows = [row("a", n, 1.0) for n in range(10)] + [row("b", n, 0.0) for n in range(10)]
    assert cells(summary(rows, "a"), "qa", "b")[3] == "-1.000 [no interval], tie"
    rows += [row(arm, n, float(arm == "a")) for arm in "ab" for n in (10, 11)]
    assert cells(summary(rows, "a"), "qa", "b")[3] == "-1.000 [-1.000, -1.000]"


def test_what_few_sources_show_is_a_tie() -> None:
    """The interval leaves out 0, and 4 of 24 questions one way come by chance in one case of eight."""
    rows = [row("a", 2 * n, 1.0) for n in range(24)] + [row("b", 2 * n, float(n >= 4)) for n in range(24)]
    difference = cells(summary(rows, "a"), "qa", "b")[3]
    assert re.fullmatch(r"-0\.167 \[-0\.\d+, -0\.\d+\], tie", difference)
    rows = [row("a", 2 * n, 1.0) for n in range(24)] + [row("b", 2 * n, float(n >= 6)) for n in range(24)]
    assert not cells(summary(rows, "a"), "qa", "b")[3].endswith("tie")


def test_who_had_seen_the_question_is_told_apart() -> None:
    table = summary([row(arm, n, 1.0) for arm in ("full", "small") for n in range(4)])
    assert "| task | arm | question | n |" in table
    assert "| qa | full | not seen | 4 |" in table
    assert "| qa | small | seen | 4 |" in table


def test_differences_are_taken_on_the_cases_that_both_could_be_run_on() -> None:
    rows = [row("full", n, None if n >= 12 else 1.0) for n in range(16)]
    rows += [row("small", n, 1.0 if n < 12 else 0.0) for n in range(16)]
    table = summary(rows)
    assert cells(table, "qa", "full")[:2] == ["12", "4"]
    assert cells(table, "qa", "small")[2].startswith("0.750")
    assert cells(table, "qa", "small")[3] == "+0.000 [+0.000, +0.000], tie, 12 cases"


def test_where_nothing_could_be_run() -> None:
    table = summary([row("full", 0, None), row("small", 0, 0.5)])
    assert cells(table, "qa", "full") == ["0", "1", "", "", "", "", "", ""]
    assert "minus small" in table, "what could not be run is no base"
    assert cells(table, "qa", "small")[2] == "0.500 [no interval]"
    assert summary([]) == "There are no results.\n"


def test_every_task_and_all_of_them() -> None:
    rows = [row(arm, n, float(task == "name"), task) for arm in "ab" for task in ("number", "name") for n in range(4)]
    table = summary(rows)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["number"] * 2 + ["name"] * 2 + [
        "all"
    ] * 2
    assert cells(table, "all", "a")[2].startswith("0.500")
    assert cells(table, "all", "a")[0] == "8"


def test_a_further_score() -> None:
    rows = [row("a", n, 1.0, scores={"contains": 1.0, "f1": 0.25}) for n in range(4)]
    assert cells(summary(rows, score="f1"), "qa", "a")[2].startswith("0.250")
    assert "| f1 |" in summary(rows, score="f1")


def test_reading_counts_once() -> None:
    rows = [row("a", n, 1.0, read_seconds=6.0 if n == 0 else 0.0) for n in range(5)]
    assert cells(summary(rows), "qa", "a")[4] == "6.0"


def test_a_grid_of_needles() -> None:
    rows = [
        row("a", n, score, facts={"length": length, "depth": depth})
        for n, (length, depth, score) in enumerate(
            [(8192, 50, 1.0), (8192, 50, 0.0), (4096, 50, 1.0), (4096, 0, None), (8192, 0, 0.25)]
        )
    ]
    assert grid(rows, "a").splitlines() == [
        "| a: depth | 4K | 8K |",
        "|---:|---:|---:|",
        "| 0 % | refused | 0.25 |",
        "| 50 % | 1.00 | 0.50 |",
    ]
    assert by_cell(rows)[4096, 0] == []
    assert by_cell([row("a", 1, 1.0)]) == {}


@pytest.mark.parametrize(
    ("tokens", "name"), [(4096, "4K"), (1 << 20, "1M"), (131072, "128K"), (6000, "6,000"), (512, "512")]
)
def test_names_of_lengths(tokens: int, name: str) -> None:
    assert length_name(tokens) == name


def test_hit_rates_tell_what_was_refused_from_what_was_not_distilled() -> None:
    def counted(arm: str, *rates: float) -> dict[str, Any]:
        hits = [{"rate": rate, "chance": 0.25} for rate in rates]
        return {"arm": arm, "group": f"g{len(rates)}", "hits": hits}

    rows = [counted("a", 0.5, 0.25, 0.125), counted("a", 1.0), counted("a"), counted("a")]
    rows += [{"arm": "a", "group": "g", "refused": "no room."}, {"arm": "b", "group": "g", "refused": "no room."}]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in hit_table(rows).splitlines()]
    assert lines[0][-1] == "whole"
    assert lines[2][:3] == ["a", "2", "1"]
    assert [cell.split()[0] for cell in lines[2][3:6]] == ["0.750", "0.625", "0.562"]
    assert lines[2][6:] == ["0.250", "2", "2"]
    assert lines[3] == ["b", "0", "1", *[""] * 6]


def test_all_is_the_mean_of_the_tasks_over_what_every_arm_could_do() -> None:
    few = [row(arm, n, 1.0, "few") for arm in ("full", "small") for n in range(6)]
    many = [row(arm, n, 0.2 if arm == "full" else 0.4, "many") for arm in ("full", "small") for n in range(18)]
    long = [row("full", 99, None, "many"), row("small", 99, 1.0, "many")]
    table = summary(few + many + long)
    n, refused, score, *_ = cells(table, "all", "full")
    assert (n, refused, score[:5]) == ("24", "", "0.600")
    n, _, score, difference, *_ = cells(table, "all", "small")
    assert (n, score[:5], difference[:6]) == ("24", "0.700", "+0.100")
    assert cells(table, "many", "full")[:2] == ["18", "1"]
    assert cells(table, "many", "small")[0] == "19"


def test_the_interval_of_all_stays_among_the_scores() -> None:
    """One task has many questions to a source: a draw without it must not lift the others above 1."""
    few = [row(arm, n, 1.0 - (n == 5), "few", group=f"few{n}") for arm in ("full", "small") for n in range(6)]
    many = [
        row(arm, n, 1.0 - (n == 0), "many", group=f"many{n // 25}") for arm in ("full", "small") for n in range(150)
    ]
    score, difference = cells(summary(few + many), "all", "small")[2:4]
    mean, low, high = (float(part) for part in re.findall(r"[0-9.]+", score))
    assert mean == pytest.approx((5 / 6 + 149 / 150) / 2, abs=1e-3)
    assert low < mean < high <= 1.0
    assert difference == "+0.000 [+0.000, +0.000], tie"
