"""Sentences on pages: "page 3: ...", "pages 5 to 9 and 12: ..."."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

_MOST_RUNS = 12
"""Stretches of pages that are named in one sentence; of a file that is damaged all over, the rest is counted."""

_MOST_NOTES = 12


def page_list(indexes: Iterable[int]) -> str:
    """Name pages by their numbers, from 1: "page 3", "pages 5 to 9", "pages 1, 3 and 5 to 9".

    Args:
        indexes: The pages, from 0; one at least.
    """
    ordered = sorted(set(indexes))
    runs = []
    # Consecutive indexes have the same distance to their rank.
    for _, run in groupby(enumerate(ordered), key=lambda item: item[1] - item[0]):
        numbers = [index + 1 for _, index in run]
        runs.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}")
        named = numbers[-1]
        if len(runs) == _MOST_RUNS:
            break
    more = sum(index + 1 > named for index in ordered)
    if more:
        runs.append(f"{more} more")
    listed = runs[0] if len(runs) == 1 else f"{', '.join(runs[:-1])} and {runs[-1]}"
    return f"page {listed}" if len(ordered) == 1 else f"pages {listed}"


def page_notes(outcomes: Mapping[int, str]) -> list[str]:
    """Say once, of all pages it holds for, what became of them; pages in order, the most notes bounded.

    Args:
        outcomes: What became of a page, by its index from 0.
    """
    by_outcome: dict[str, list[int]] = {}
    for index, outcome in sorted(outcomes.items()):
        by_outcome.setdefault(outcome, []).append(index)
    notes = [f"{page_list(indexes)}: {outcome}" for outcome, indexes in by_outcome.items()]
    if len(notes) > _MOST_NOTES:
        rest = [index for indexes in list(by_outcome.values())[_MOST_NOTES - 1 :] for index in indexes]
        notes[_MOST_NOTES - 1 :] = [f"{page_list(rest)}: lost or read with pypdfium2, for various reasons"]
    return notes
