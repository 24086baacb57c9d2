"""The progress bar of reading: tokens read, cycles, tokens per second, time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from infinipot_llm.pot.reader import Progress, ReadStats


@contextmanager
def reading_bar(tokens: int, progress: Progress | bool | None) -> Iterator[Progress | None]:
    """Yield what the reader should call: the caller's own function, a bar on standard error, or nothing.

    Args:
        tokens: Tokens that will be read.
        progress: A function, True for a bar (shown only on a terminal), or None.
    """
    if progress is None or isinstance(progress, bool):
        if not progress or not sys.stderr.isatty():
            yield None
            return
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
        return
    yield progress
