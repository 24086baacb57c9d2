"""From the arguments of a command to documents, a model, and a memory of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infinipot_llm.cli.options import make_config
from infinipot_llm.errors import DocumentError
from infinipot_llm.models.catalogue import DEFAULT_MODEL

if TYPE_CHECKING:
    from infinipot_llm.documents import Document
    from infinipot_llm.engine import InfiniPot
    from infinipot_llm.memory.memory import DocumentMemory
    from infinipot_llm.memory.store import MemoryStore


_OF_READING = ("budget", "kept", "novelty_share", "agreement", "neighbours", "shelf_bytes")
_USUAL = {"policy": "infinipot", "shelf": "keys", "fresh": False}
"""Options that say how a document is read: those of a saved memory stand in its file."""


def load_documents(files: tuple[str, ...], password: str | None) -> list[Document]:
    """Load every file before anything expensive starts, and report what could not be read of it."""
    from infinipot_llm.documents.document import Document, distinctly_named

    if files.count("-") > 1:
        raise DocumentError("standard input (-) can be read only once: name it once.")
    loaded = []
    for file in files:
        if file == "-":
            if sys.stdin is None:
                raise DocumentError("there is no standard input here: name a file.")
            data = sys.stdin.buffer.read()
            loaded.append(Document.from_bytes(data, name="standard input", password=password))
        else:
            loaded.append(Document.from_file(Path(file), password=password))
        for note in loaded[-1].notes:
            click.echo(f"infinipot: note: {loaded[-1].name}: {note}", err=True)
    return list(distinctly_named(loaded))


def check_files(files: tuple[str, ...]) -> None:
    """Refuse files that are not there before the model's libraries are imported, which takes seconds."""
    for file in files:
        if file != "-" and not os.path.exists(file):  # noqa: PTH110 - Path.exists raises where a name is too long
            load_documents((file,), None)  # says why


def load_engine(options: dict[str, Any], config: Any) -> Any:
    """Load the model; a budget that was not asked for is lowered to the trained window."""
    from dataclasses import asdict

    from infinipot_llm.engine import InfiniPot

    knobs = asdict(config)
    budget = knobs.pop("budget")
    knobs.pop("version")
    given = {"budget": budget} if options.get("budget") is not None else {}
    model = options["model"] or DEFAULT_MODEL
    if sys.stderr.isatty():
        click.echo(f"loading {model} ...", err=True)
    return InfiniPot.from_pretrained(model, device=options["device"], dtype=options["dtype"], **given, **knobs)


def open_store() -> MemoryStore:
    """Open the store of this machine."""
    from infinipot_llm.memory.store import MemoryStore

    return MemoryStore()


def is_memory(file: str) -> bool:
    """Tell a saved memory from a document by how it begins."""
    from infinipot_llm.memory.file import begins_like_a_memory

    return begins_like_a_memory(Path(file))


def find_memory(files: tuple[str, ...], options: dict[str, Any], questions: Sequence[str] = ()) -> DocumentMemory:
    """Open a saved memory, or read documents, or find what was read of them before.

    Questions that cannot be asked are refused before anything is read. Without a shelf, the one there is serves as the
    catalyst.
    """
    if len(files) == 1 and is_memory(files[0]):
        from infinipot_llm.memory.file import MemoryFile
        from infinipot_llm.models.device import DTYPES

        path = Path(files[0])
        given = [name for name in _OF_READING if options.get(name) is not None]
        given += [name for name, usual in _USUAL.items() if options[name] != usual]
        if given:
            name = given[0].replace("_", "-")
            raise click.UsageError(f"{path.name} was read with settings of its own: leave --{name} out.")
        if options["model"] is None:
            about = MemoryFile(path).about
            named, dtype = about.get("model"), about.get("dtype")
            # A stranger's file may name any model: nothing is fetched for it, and one that did not write it is refused.
            options = {**options, "model": named if isinstance(named, str) else None}
            if options["dtype"] == "auto" and isinstance(dtype, str) and dtype in DTYPES:
                options["dtype"] = dtype
        return load_engine(options, make_config(options)).load(path.absolute())  # a name that begins with ~ is one
    if any(map(is_memory, files)):
        raise click.UsageError("ask one saved memory at a time, or the documents themselves together.")
    documents = load_documents(files, options["password"])
    llm = load_engine(options, make_config(options))
    from infinipot_llm.memory.asking import check_asked

    for question in questions:
        check_asked(llm.form, llm.config.budget, question, {})
    kept = None if options["no_store"] else open_store()
    if kept is not None and not options["fresh"] and llm.config.shelf != "off":
        found = llm.key(documents) in kept
        if found:
            click.echo("infinipot: these files were read before: nothing is read again (--fresh reads them)", err=True)
            return llm.read(documents, store=kept)
    announce(llm, documents)
    catalyst = questions[0] if questions and llm.config.shelf == "off" else None
    memory = llm.read(documents, question=catalyst, store=kept, fresh=options["fresh"], progress=True)
    if kept is not None and llm.config.shelf != "off":
        click.echo(f"infinipot: remembered in {kept.folder} ({memory.nbytes / 1e6:.0f} MB)", err=True)
    return memory


def announce(llm: InfiniPot, documents: list[Document]) -> None:
    """Say what reading will leave on the disk, before it begins."""
    if llm.config.shelf != "off":
        tokens, nbytes = llm.shelf_size(documents)
        click.echo(f"infinipot: reading {tokens} tokens; the shelf will take {nbytes / 1e6:.0f} MB", err=True)
