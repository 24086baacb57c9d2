"""What the commands print of answers and memories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infinipot_llm.errors import MemoryFileError

if TYPE_CHECKING:
    from infinipot_llm.answering.answer import Answer
    from infinipot_llm.memory.memory import DocumentMemory


def say(
    memory: DocumentMemory,
    question: str,
    options: dict[str, Any],
    *,
    quiet: bool = False,
    history: Sequence[tuple[str, str]] = (),
) -> Answer:
    """Answer a question, printing the answer as it is decoded; the notes that it returns are those not printed yet.

    That the document may not tell is known before anything is written, and is printed first: an answer that may be
    invented should not be read before that.
    """
    from infinipot_llm.documents.clean import printable

    streamed: list[str] = []
    told: list[str] = []

    def doubt(note: str) -> None:
        told.append(note)
        click.echo(f"{note}\n")

    def show(piece: str) -> None:
        streamed.append(piece)
        click.echo(printable(piece), nl=False)

    answer = memory.ask(
        question,
        history=history,
        recall=options["recall"],
        temperature=options["temperature"],
        top_p=options["top_p"],
        stop=options["stop"],
        seed=options["seed"],
        on_text=None if quiet else show,
        on_doubt=None if quiet else doubt,
    )
    if not quiet:
        click.echo("" if streamed else "(no answer)")
    return replace(answer, notes=tuple(note for note in answer.notes if note not in told))


def sources(answer: Answer, several: bool) -> list[str]:
    """Return the lines on where an answer stands."""
    from infinipot_llm.documents.clean import one_line

    if answer.finish_reason == "length":
        note = ["", "(cut: the answer reached its limit)"]
    else:
        note = []
    if not answer.citations:
        return [*note, "", "No passage of the document can be shown for this answer: check it yourself."]
    lines = [*note, ""]
    for c in answer.citations:
        where = [f"page {c.page}"] if c.speaker is None and c.time is None else []
        if c.page_label not in (None, str(c.page)):
            where[-1:] = [f'page {c.page} (printed "{one_line(c.page_label or "")}")']
        where += [one_line(c.speaker)] if c.speaker is not None else []
        where += [_clock(c.time)] if c.time is not None else []
        where[:0] = [one_line(c.document)] if several else []
        lines.append(f"  {', '.join(where)}: “{one_line(c.quote)}”")
    return lines


def cost(answer: Answer) -> str:
    """Return the line on what an answer cost."""
    u, r = answer.usage, answer.usage.read
    return (
        f"\n{r.tokens_read} tokens read once, in {r.seconds:.0f} s ({r.tokens_per_second:.0f} tokens/s), "
        f"{r.cycles} cycles, {r.slots} of {r.budget} slots held; {u.recalled_tokens} recalled, "
        f"answered in {u.answer_seconds:.1f} s; "
        f"pot {u.pot_bytes / 1e6:.0f} MB, peak memory of the process {u.peak_memory_bytes / 1e6:.0f} MB"
    )


def remembered(memory: DocumentMemory) -> str:
    """Return what a reading left, in a line."""
    s = memory.stats
    return (
        f"{s.tokens_read} tokens read in {s.seconds:.0f} s ({s.tokens_per_second:.0f} tokens/s), "
        f"{memory.nbytes / 1e6:.1f} MB"
    )


def show_memory(path: Path, as_json: bool) -> None:
    """Print what a saved memory holds; it may be a stranger's, so nothing in it is taken to be as it should.

    Raises:
        MemoryFileError: The file is damaged, or contradicts itself.
    """
    from infinipot_llm.documents.clean import one_line
    from infinipot_llm.memory.file import MemoryFile

    file = MemoryFile(path)
    about = file.about
    try:
        documents: list[dict[str, Any]] = [
            {"name": str(d["name"]), "pages": len(d["pages"]), "characters": len(d["text"])}
            for d in json.loads(file.rows("documents").tobytes())
        ]
        kept = {key: about[key] for key in ("model", "family", "made_by", "config", "stats", "layout", "fingerprints")}
        kept["dtype"] = about.get("dtype")
        tokens, cycles, layout = int(about["stats"]["tokens_read"]), int(about["stats"]["cycles"]), about["layout"]
        kind = "keys and values" if layout and layout["whole"] else "keys alone"
        shelf = f"shelf of {kind} in {int(layout['bits'])} bits" if layout else "no shelf"
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise MemoryFileError(f"{path.name} contradicts itself: read the document again.") from error
    if as_json:
        click.echo(json.dumps({"file": str(path), "bytes": file.nbytes, "documents": documents, **kept}, indent=2))
        return
    for d in documents:
        click.echo(f"{one_line(d['name'])}: {d['pages']} pages, {d['characters']} characters")
    dtype = f", {kept['dtype']}" if kept["dtype"] else ""
    made_with = one_line(f"{about['model']} ({about['family']}{dtype})"[:200])
    click.echo(f"read with {made_with}: {tokens} tokens, {cycles} cycles")
    each = file.nbytes / max(1, tokens)
    click.echo(f"{file.nbytes / 1e6:.1f} MB, {each:.0f} bytes per token, {shelf}; every byte is as it was written")


def moment(seconds: float) -> str:
    """Return a moment, in seconds since 1970, as people read it."""
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "minutes")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
