"""One reader's run over a PDF: what it read before and after each time that its process died."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from infinipot_llm.documents.clean import one_line
from infinipot_llm.documents.process import ParserDiedError, Process

_MOST_PAGES = 200_000
"""A page tree that claims more is not believed; the longest books there are have a hundredth of it."""


@dataclass(slots=True)
class Reading:
    """What a reader made of a PDF.

    Attributes:
        count: Number of pages, or None if the file could not be opened.
        texts: Text by page index, from 0, of the pages that could be read.
        lost: Reason by page index of those that could not.
        cut: Characters by page index of pages that are longer than may be kept.
        labels: Printed label of every page ("" for none), or nothing if the PDF defines none.
        label_failure: Why the labels could not be read.
        is_locked: Whether the password is missing or wrong.
        failure: Why the file could not be opened.
    """

    count: int | None = None
    texts: dict[int, str] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    cut: dict[int, int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    label_failure: str | None = None
    is_locked: bool = False
    failure: str | None = None

    @property
    def blank(self) -> list[int]:
        """Indexes, in order, of the pages that were read and hold nothing visible."""
        return sorted(index for index, text in self.texts.items() if not text.strip() and index not in self.cut)


def read(
    process: Process, data: bytes, reader: str, *, password: str | None, indexes: Sequence[int] | None = None
) -> Reading:
    """Have a reader read a PDF, going on behind a page that its process died of.

    Args:
        process: Where to read.
        data: The content of the PDF.
        reader: One of `worker.READERS`.
        password: Its password, or None.
        indexes: The pages to read, from 0, or None for all.

    Raises:
        ParserMissingError: If no process can be started.
    """
    reading = Reading()
    begun = time.monotonic()
    room = process.limits.characters
    for restarts in range(process.limits.restarts + 1):
        death = None
        try:
            for message in process.read(data, reader, password=password, indexes=indexes, begun=begun):
                room -= _take(reading, message, room)
                if message.get("kind") == "opened" and reading.count is None:
                    process.close()  # not believed: what it goes on to read would be for nothing
                    break
        except ParserDiedError as error:
            death = f"it {error}"
        reason = death or reading.failure or "it ended early"
        if reading.is_locked or reading.count is None:
            reading.failure = reason
            break
        wanted = range(reading.count) if indexes is None else indexes
        indexes = [index for index in wanted if index not in reading.texts and index not in reading.lost]
        if not indexes:
            reading.label_failure = reading.label_failure or death
            break
        # The first page that is missing is the one that the reader died of; every other may be a good one.
        process.close()
        dead = 1 if restarts < process.limits.restarts else len(indexes)
        reading.lost |= dict.fromkeys(indexes[:dead], reason)
        if dead == len(indexes):
            break
        indexes = indexes[dead:]
    return reading


def _take(reading: Reading, message: dict[str, Any], room: int) -> int:
    """Note what a message says, and return the characters it brings; what is no message of ours says nothing."""
    match message:
        case {"kind": "locked"}:
            reading.is_locked = True
        case {"kind": "failed", "reason": str(reason)}:
            reading.failure = one_line(reason)
        case {"kind": "opened", "pages": int(pages)} if 0 < pages <= _MOST_PAGES:
            reading.count = pages
        case {"kind": "opened", "pages": int(pages)}:
            reading.failure = f"it found {pages} pages"
        case {"kind": "lost", "index": int(index), "reason": str(reason)}:
            reading.lost[index] = one_line(reason)
        case {"kind": "page", "index": int(index), "text": str(text), "characters": int(characters)}:
            kept = text[: max(0, room)]
            reading.texts[index] = kept
            if characters > len(kept):
                reading.cut[index] = len(kept)
            return len(kept)
        case {"kind": "labels", "labels": list(labels)}:
            reading.labels = [one_line(str(label)) for label in labels]
            reading.label_failure = message.get("reason")
    return 0
