"""What parsing a PDF may take, in time, memory and text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What parsing a PDF may take; the defaults are far above what real documents need.

    Attributes:
        start_seconds: Until the process answers at all.
        open_seconds: Until the file is open, plus `seconds_per_mib`.
        page_seconds: For a page, and for the page labels.
        total_seconds: For the whole file, plus `seconds_per_mib` and `seconds_per_page`.
        seconds_per_mib: What each MiB of the file adds to both.
        seconds_per_page: What each page adds to the whole.
        most_seconds: For the whole file, however long it is.
        memory: Bytes of memory, beside the file itself.
        page_characters: Characters of a page that are kept.
        characters: Characters of all pages that are kept.
        restarts: How often a parser that died is started again behind the page that it died of.
    """

    start_seconds: float = 60.0
    open_seconds: float = 30.0
    page_seconds: float = 20.0
    total_seconds: float = 60.0
    seconds_per_mib: float = 2.0
    seconds_per_page: float = 0.5
    most_seconds: float = 1800.0
    memory: int = 1536 * 2**20
    page_characters: int = 1_000_000
    characters: int = 50_000_000
    restarts: int = 4
