"""How far reading is: a bar where one can be drawn, and a line now and then where not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from infinipot_llm.pot.reader import Progress, ReadStats

EVERY = 30.0
"""Seconds between two lines that say how far something is."""


@contextmanager
def reading_bar(tokens: int, progress: Progress | bool | None) -> Iterator[Progress | None]:
    """Yield what the reader should call: the caller's own function, a bar or lines on standard error, or nothing.

    Args:
        tokens: Tokens that will be read.
        progress: A function; True for a bar (on a terminal and in a notebook) or lines (in a file); or None.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield None
    elif _can_be_drawn_over(sys.stderr):
        with tqdm(
            total=tokens,
            desc="reading",
            unit=" tokens",
            unit_scale=True,
            leave=False,
            file=sys.stderr,
            mininterval=0.0,
            miniters=1,
        ) as bar:

            def show(stats: ReadStats) -> None:
                bar.set_postfix(cycles=stats.cycles, slots=stats.slots, refresh=False)
                bar.update(stats.tokens_read - bar.n)

            yield show
    else:
        yield _lines(tokens)


def _lines(tokens: int) -> Progress:
    """Return what says every EVERY seconds how far a reading of so many tokens is."""
    said = time.monotonic()

    def show(stats: ReadStats) -> None:
        nonlocal said
        now, left = time.monotonic(), tokens - stats.tokens_read
        if left > 0 and stats.tokens_per_second and now - said >= EVERY:
            said = now
            percent, seconds = 100 * stats.tokens_read // tokens, left / stats.tokens_per_second
            tqdm.write(f"reading: {percent} % of {tokens:,} tokens, about {duration(seconds)} left", sys.stderr)

    return show


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _can_be_drawn_over(stream: TextIO) -> bool:
    """Tell whether a line can be drawn anew: on a terminal, and in a notebook, whose stream says that it is none."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel.")
