"""From documents to a memory: read through the pot, with the shelf written on the way, in one file."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from infinipot_llm.errors import StoreError
from infinipot_llm.memory import saved
from infinipot_llm.memory.file import HEADER_BYTES, Draft, MemoryFile
from infinipot_llm.memory.memory import DocumentMemory, Shelved
from infinipot_llm.memory.saved_pot import SHORT
from infinipot_llm.memory.scoring import NO_CONTENT, null_scores
from infinipot_llm.memory.setup import Setup
from infinipot_llm.memory.shelf import Segment, Shelf, ShelfWriter
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.distill import Tracer
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Progress, Reader, ReadStats

TEXT_BYTES_PER_TOKEN = 12 + 4 + 2 + 6
"""Beside keys and values: ids and offsets, the token's row, its novelty, and its share of the text."""


def expected_bytes(setup: Setup, tokens: int) -> int:
    """Return about how large the file will be that reading `tokens` tokens leaves."""
    layout, config = setup.layout, setup.config
    shelf = tokens * (layout.token_bytes + 2 * len(setup.heads.heads))  # null scores are float16
    if config.shelf_bytes is not None:
        shelf = min(shelf, config.shelf_bytes)
    slots = min(config.budget, tokens + 64)
    pot = slots * layout.layers * layout.kv_heads * (2 if tokens <= SHORT else 4)
    if not layout.whole or config.shelf_bytes is not None:  # then the pot's own keys and values are stored
        pot += slots * 2 * layout.layers * layout.kv_heads * (layout.dim + 2)
    return HEADER_BYTES + shelf + tokens * TEXT_BYTES_PER_TOKEN + pot


def working_bytes(setup: Setup, tokens: int) -> int:
    """Return about how much room is needed beside that file until what was written is put in order, at the end."""
    layout, most = setup.layout, setup.config.shelf_bytes
    if most is None:
        return tokens * layout.scoring_packing.row_bytes
    return min(most + setup.config.budget * layout.token_bytes, tokens * layout.token_bytes)


MOST_SEGMENTS = 32
"""Segments of a shelf that is read on from: each holds a file open."""


def remember(
    setup: Setup,
    text: TokenizedText,
    catalysts: Sequence[Sequence[int]],
    reserve: int,
    scratch: Path | None,
    *,
    placed: Callable[[Path], Path] | None = None,
    unused: Callable[[], None] | None = None,
    base: DocumentMemory | None = None,
    known: bool = False,
    progress: Progress | None = None,
    tracer: Tracer | None = None,
) -> DocumentMemory:
    """Read a text into a memory. The model is held while it reads, and not while the file finds its place.

    Args:
        setup: The model and how to read.
        text: What to read; for an extension the base's text with more behind it.
        catalysts: Tokens of the prompts that score the slots.
        reserve: Slots left free behind the text in the pot.
        scratch: File to write into, on a disk with room; None without a shelf.
        placed: Called when it is whole, before anything is read from it; returns where it is to be opened.
        unused: Called when nothing uses the file any more, at the latest when the process ends.
        base: A memory of the beginning of this text, to read on from; it stays as it is.
        known: Whether the catalyst is the question that will be asked.
        progress: Told after every forward pass.
        tracer: Told about every distillation.

    Raises:
        StoreError: The disk has no room, before reading or while at it; nothing is left behind then.
    """
    with setup.adapter.lock:
        pot, stats, null = _read(setup, text, catalysts, reserve, scratch, base, known, progress, tracer)
    if null is None or scratch is None:
        return DocumentMemory(setup, text, stats, pot=pot)
    file = _placed(scratch, placed)
    if unused is not None:
        weakref.finalize(file, unused)
    before = _segments(base)
    shelf = Shelf([*before, Segment(file, setup.layout, setup.adapter.device)])
    return DocumentMemory(setup, text, stats, pot=pot, shelved=Shelved(shelf, null), file=None if before else file)


def in_one_file(memory: DocumentMemory, scratch: Path, unused: Callable[[], object]) -> DocumentMemory:
    """Return the same memory with the segments of its shelf in one file, where each had a file open.

    Args:
        memory: With a shelf.
        scratch: Where to write.
        unused: As in `remember`.

    Raises:
        StoreError: The file cannot be written.
    """
    setup, null = memory.setup, memory.finder.null
    with setup.adapter.lock:
        saved.write_whole(memory, scratch)
    file = MemoryFile(scratch)
    weakref.finalize(file, unused)
    shelf = Shelf([Segment(file, setup.layout, setup.adapter.device)])
    return DocumentMemory(setup, memory.text, memory.stats, pot=memory.pot, shelved=Shelved(shelf, null), file=file)


def _read(
    setup: Setup,
    text: TokenizedText,
    catalysts: Sequence[Sequence[int]],
    reserve: int,
    scratch: Path | None,
    base: DocumentMemory | None,
    known: bool,
    progress: Progress | None,
    tracer: Tracer | None,
) -> tuple[Pot, ReadStats, Tensor | None]:
    """Read, and write the file where there is a shelf; returns the pot, what it cost, and null scores of all rows."""
    adapter, config = setup.adapter, setup.config
    begin = len(base.text) if base else 0
    before = _segments(base)
    pot = _copy(adapter, base.pot, config.budget) if base else None
    draft: Draft | None = None
    writer: ShelfWriter | None = None
    try:
        if scratch is not None:
            layout, more = setup.layout, len(text) - begin
            check_room(scratch.parent, expected_bytes(setup, more) + working_bytes(setup, more))
            draft = Draft(scratch)
            most = None if config.shelf_bytes is None else config.shelf_bytes // layout.token_bytes
            writer = ShelfWriter(draft, layout, begin, most, before[0].normal if before else None)
        pot, stats = Reader(adapter, config, known=known).read(
            text, setup.form.prefix, catalysts, reserve,
            sink=writer, pot=pot, start=begin, progress=progress, tracer=tracer,
        )  # fmt: skip
        if base:
            stats = replace(stats, cycles=stats.cycles + base.stats.cycles, seconds=stats.seconds + base.stats.seconds)
        if draft is None or writer is None:
            return pot, stats, None
        writer.finish()
        written = Shelf([*before, Segment(draft, writer.layout, adapter.device)])
        nothing = [setup.form.question(q) for q in NO_CONTENT]
        null = saved.as_saved(null_scores(adapter, setup.prefix, nothing, written, setup.heads))
        if before:  # a segment of a shelf: the memory becomes one file when it is saved
            draft.finish({"segment": True})
        else:
            saved.write_rest(draft, setup, text, stats, pot, null)
        return pot, stats, null
    except BaseException:
        if writer is not None:
            writer.close()
        if draft is not None:
            draft.discard()
        raise


def _segments(base: DocumentMemory | None) -> tuple[Segment, ...]:
    return base.shelved.shelf.segments if base and base.shelved else ()


def _placed(scratch: Path, placed: Callable[[Path], Path] | None) -> MemoryFile:
    """Open a finished file where it is to stay; another process may remove it from there at once, or soon."""
    if placed is None:
        return MemoryFile(scratch)
    if os.name == "nt":  # an open file can be neither moved there nor removed
        return MemoryFile(placed(scratch))
    file = MemoryFile(scratch)  # opened before anybody else can see it: what is open stays readable
    file.path = placed(scratch)
    return file


def check_room(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        StoreError: It has not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"the shelf of this document takes {needed / 1e6:.0f} MB while it is written, and {folder} has "
            f"{free / 1e6:.0f} MB free: make room, bound it (shelf_bytes), or keep less (shelf='keys', or 'off')."
        )


def _copy(adapter: Adapter, pot: Pot, budget: int) -> Pot:
    """Return a pot of its own with the same content."""
    fresh = Pot(adapter, budget)
    keys, values = pot.newest(pot.length)
    fresh.place(keys, values, pot.origin, pot.novelty)
    if (recent := pot.recent()) is not None:
        fresh.hold_recent(recent)
    fresh.pinned = pot.pinned
    return fresh
