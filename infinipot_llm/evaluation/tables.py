"""Tables of results, as markdown: how each arm did, beside a base, and where needles were found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from infinipot_llm.evaluation.rows import Row
from infinipot_llm.evaluation.statistics import LEAST_GROUPS, differing, paired, share

NOTE = (
    "Intervals are 95 % intervals, clustered by source, each for itself; a task of fewer than "
    f"{LEAST_GROUPS} sources has none. A tie is a difference whose interval holds 0, or that fewer than {LEAST_GROUPS} "
    "sources show, which can be chance; it is taken on the cases that both arms could be run on. Question: whether the "
    "arm had seen it while reading; compare methods among those that had, or among those that had not. Seconds, slots "
    "and MB are medians; reading that served several questions counts once, and intervals speak of further questions "
    "on these contexts then. MB: what reading and an answer added at most to the memory taken before, the weights "
    "among it (of the process, where Linux tells it, or of a GPU). All: the mean of the tasks' means, over the cases "
    "that every arm could be run on."
)
"""What a reader of the tables must know."""


def summary(rows: Sequence[Row], base: str | None = None, *, score: str | None = None) -> str:
    """Return how each arm did: one table, with lines for every task, and for all where there are several.

    Args:
        rows: Of one run: one row for each arm and case.
        base: The arm that the others are compared with; None: "full" where it could be run, or else the first
            that could.
        score: Name of a further score of the rows (`scores`); None: the one that counts.
    """
    arms = _distinct(row["arm"] for row in rows)
    if not arms:
        return "There are no results.\n"
    if base is None:
        able = _distinct(row["arm"] for row in rows if "score" in row)
        base = "full" if "full" in able else (able or arms)[0]
    tasks = _distinct(row["task"] for row in rows)
    what = score or "score"
    lines = [
        f"| task | arm | question | n | refused | {what} | minus {base} | read, s | answer, s | slots | MB |",
        "|---|---|---|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    for task in [*tasks, None] if len(tasks) > 1 else tasks:
        of_task = _by_all(rows, score) if task is None else [row for row in rows if row["task"] == task]
        against = {row["key"]: row for row in of_task if row["arm"] == base and _score(row, score) is not None}
        for arm in arms:
            of_arm = [row for row in of_task if row["arm"] == arm]
            if of_arm:
                lines.append(_line(task or "all", arm, of_arm, {} if arm == base else against, score))
    return "\n".join(lines) + "\n"


def _by_all(rows: Sequence[Row], score: str | None) -> list[Row]:
    """Return the rows of the cases that every arm could be run on."""
    left_out = {row["key"] for row in rows if _score(row, score) is None}
    return [row for row in rows if row["key"] not in left_out]


def grid(rows: Iterable[Row], arm: str) -> str:
    """Return where an arm found needles: mean scores by depth (lines) and length (columns)."""
    cells = by_cell(row for row in rows if row["arm"] == arm)
    lengths = sorted({length for length, _ in cells})
    lines = [
        f"| {arm}: depth | " + " | ".join(map(length_name, lengths)) + " |",
        "|---:|" + "---:|" * len(lengths),
    ]
    for depth in sorted({depth for _, depth in cells}):
        found = [cells.get((length, depth)) for length in lengths]
        lines.append(f"| {depth} % | " + " | ".join("" if cell is None else _cell(cell) for cell in found) + " |")
    return "\n".join(lines) + "\n"


def hit_table(rows: Sequence[Row]) -> str:
    """Return the hit rates of every arm after the first, the middle and the last distillation of each context.

    Contexts that fit into the budget whole, so that nothing was distilled, have no rates: they are counted as `whole`.
    """
    lines = [
        "| arm | n | refused | after the first cycle | halfway | after the last | chance | cycles | whole |",
        "|---|---:|---:|---|---|---|---:|---:|---:|",
    ]
    for arm in _distinct(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        some = [row for row in of_arm if row.get("hits")]
        cells = [""] * 5
        if some:
            groups = [row["group"] for row in some]
            places = [[row["hits"][at(len(row["hits"]))] for row in some] for at in _PLACES]
            cells = [_interval("{:.3f}", *share([hits["rate"] for hits in found], groups)) for found in places]
            cells += [_median([hits["chance"] for hits in places[-1]], "{:.3f}")]
            cells += [_median([len(row["hits"]) for row in some], "{:.0f}")]
        refused = sum("refused" in row for row in of_arm)
        cells += [str(len(of_arm) - len(some) - refused or "")]
        lines.append(f"| {arm} | {len(some)} | {refused or ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_PLACES = (lambda count: 0, lambda count: count // 2, lambda count: count - 1)


def by_cell(rows: Iterable[Row]) -> dict[tuple[int, int], list[float]]:
    """Return the scores of needles by length and depth; a place where all were refused has none."""
    cells: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        facts = row["facts"]
        if "length" in facts and "depth" in facts:
            cell = cells.setdefault((facts["length"], facts["depth"]), [])
            cell += [row["score"]] if "score" in row else []
    return cells


def length_name(tokens: int) -> str:
    """Return a number of tokens as people say it: 4K are 4,096."""
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return f"{tokens:,}"


def _line(task: str, arm: str, rows: Sequence[Row], against: dict[str, Row], score: str | None) -> str:
    scored = [row for row in rows if _score(row, score) is not None]
    refused = sum("refused" in row for row in rows)
    both = [row for row in scored if row["key"] in against]
    mean = difference = ""
    if scored:
        groups, tasks = ([row[name] for row in scored] for name in ("group", "task"))
        mean = _interval("{:.3f}", *share([_score(row, score) for row in scored], groups, tasks=tasks))
    if both:
        own, of_base = ([_score(row, score) for row in some] for some in (both, (against[row["key"]] for row in both)))
        groups, tasks = ([row[name] for row in both] for name in ("group", "task"))
        difference = _difference(
            *paired(own, of_base, groups, tasks=tasks),
            chance=differing(own, of_base, groups) < LEAST_GROUPS,
            cases=None if len(both) == len(scored) == len(against) else len(both),
        )
    reads = [row["read_seconds"] for row in scored if row["read_seconds"] > 0]
    answers, slots = [row["answer_seconds"] for row in scored], [row["slots"] for row in scored]
    taken = [row["memory_bytes"] / 1e6 for row in scored if row.get("memory_bytes") is not None]
    numbers = [
        _median(reads, "{:.1f}"),
        _median(answers, "{:.2f}"),
        _median(slots, "{:,.0f}"),
        _median(taken, "{:,.0f}"),
    ]
    known = " and ".join(_distinct("seen" if row["seen"] else "not seen" for row in rows))
    cells = [task, arm, known, str(len(scored)), str(refused or ""), mean, difference, *numbers]
    return "| " + " | ".join(cells) + " |"


def _score(row: Row, name: str | None) -> Any:
    return row.get("score") if name is None else row.get("scores", {}).get(name)


def _interval(form: str, mean: float, low: float, high: float) -> str:
    """Write a mean with its interval; too few sources have none."""
    between = "no interval" if math.isnan(low) else f"{form.format(low)}, {form.format(high)}"
    return f"{form.format(mean)} [{between}]"


def _difference(mean: float, low: float, high: float, *, chance: bool, cases: int | None) -> str:
    """Write a difference, whether it is one, and on how many cases it was taken where these are not all."""
    some = "" if cases is None else f", {cases} cases"
    tie = ", tie" if chance or math.isnan(low) or low <= 0 <= high else ""
    return _interval("{:+.3f}", mean, low, high) + tie + some


def _median(values: Sequence[float], form: str) -> str:
    return form.format(median(values)) if values else ""


def _cell(scores: Sequence[float]) -> str:
    return f"{sum(scores) / len(scores):.2f}" if scores else "refused"


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
