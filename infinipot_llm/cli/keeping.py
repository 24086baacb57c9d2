"""Commands on what is kept on this machine: memories and models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from infinipot_llm.cli.opening import open_store
from infinipot_llm.cli.printing import moment


@click.group()
def store() -> None:
    """List and remove the memories of files that were read."""


@store.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def store_list(as_json: bool) -> None:
    """List the memories in the store, the last used first."""
    from infinipot_llm.documents.clean import one_line

    kept = open_store()
    rows: list[dict[str, Any]] = [
        {**e.description, "key": e.key, "bytes": e.nbytes, "last_used": moment(e.last_used)} for e in kept.list()
    ]
    if as_json:
        click.echo(json.dumps({"folder": str(kept.folder), "memories": rows}, indent=2))
        return
    for row in rows:
        names = one_line(", ".join(map(str, row.get("documents", ["?"]))))
        click.echo(f"{row['key'][:12]}  {row['bytes'] / 1e6:8.1f} MB  {row['last_used']}  {names}")
    click.echo(f"{len(rows)} memories, {kept.total_bytes() / 1e6:.0f} MB, in {kept.folder}")


@store.command("rm")
@click.argument("key")
def store_rm(key: str) -> None:
    """Remove the memory whose key begins with KEY."""
    kept = open_store()
    found = [e.key for e in kept.list() if e.key.startswith(key)]
    if len(found) != 1:
        raise click.UsageError(
            f"{len(found)} memories have a key that begins with {key!r}: see `infinipot store list`."
        )
    kept.remove(found[0])
    click.echo(f"removed {found[0][:12]}")


@store.command("clear")
def store_clear() -> None:
    """Remove every memory from the store."""
    click.echo(f"removed {open_store().clear()} memories")


@click.group()
def models() -> None:
    """List models, and fetch them."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def models_list(as_json: bool) -> None:
    """List the models that have a short name, and whether they are on this machine."""
    from infinipot_llm.models.catalogue import CATALOGUE, is_fetched, model_dir

    rows = [
        {
            "name": e.name,
            "fetched": is_fetched(e.name),
            "folder": str(model_dir(e.name)),
            "download_mb": round(e.size_bytes / 1e6),
            "disk_mb": round(e.parameters * 4 / 1e6),
            "window_tokens": e.window_tokens,
            "licence": e.licence,
            "note": e.note,
        }
        for e in CATALOGUE.values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        state = "fetched" if row["fetched"] else f"not fetched ({row['download_mb']} MB to download)"
        click.echo(
            f"{row['name']:<20} {state}; {row['disk_mb']} MB on disk; window {row['window_tokens']}; {row['licence']}"
        )
        click.echo(f"{'':<20} {row['note']}")
    click.echo(
        "any folder or hub id of a decoder with rotary positions works too, as --model: docs/models.md lists families"
    )


@models.command("get")
@click.argument("name")
def models_get(name: str) -> None:
    """Fetch the model NAME (of `models list`, or a hub id) so that it can be used without a network."""
    from infinipot_llm.models.catalogue import CATALOGUE, is_fetched

    if name in CATALOGUE:
        from infinipot_llm.models.fetch import fetch

        if is_fetched(name):
            click.echo(f"{name} is on this machine already.")
        folder = fetch(name, progress=lambda line: click.echo(line, err=True))
    else:
        from infinipot_llm.models.load import find_folder

        folder = find_folder(name, download=True)
    click.echo(str(folder))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def verify(file: Path) -> None:
    """Check every byte of a saved memory."""
    from infinipot_llm.memory.file import MemoryFile

    opened = MemoryFile(file)
    click.echo(f"{file}: whole, {opened.nbytes / 1e6:.1f} MB")


@click.command()
@click.argument("model")
@click.option("--document", type=click.Path(path_type=Path), help="A document to calibrate on.  [default: our report]")
@click.option("--questions", type=click.Path(path_type=Path), help="JSON lines about it: question, answers, page.")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto")
def calibrate(model: str, document: Path | None, questions: Path | None, device: str, dtype: str) -> None:
    """Measure which attention heads of MODEL find passages best; later commands use what is found.

    The models of `models list` come calibrated. A model that was not is asked through a list that suits most.
    """
    if (document is None) != (questions is None):
        raise click.UsageError("give --document and --questions together, or neither.")
    from infinipot_llm.documents import Document
    from infinipot_llm.engine import InfiniPot
    from infinipot_llm.memory.calibrate import all_heads, builtin, labelled
    from infinipot_llm.memory.calibrate import calibrate as measure
    from infinipot_llm.memory.heads import calibrated_folder
    from infinipot_llm.models.fingerprint import model_fingerprint

    if document is not None and questions is not None:
        loaded = Document.from_file(document)
        if not questions.is_file():
            raise click.UsageError(f"there is no file {questions}.")
        try:
            lines = [line for line in questions.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        except UnicodeDecodeError as error:
            raise click.UsageError(f"{questions} is not UTF-8 text: save it as such.") from error
        asked = labelled(loaded, lines)
    else:
        loaded, asked = builtin()
    llm = InfiniPot.from_pretrained(model, device=device, dtype=dtype)
    llm.heads = all_heads(llm.adapter.layers, llm.setup.query_heads)
    found = measure(llm.read(loaded, progress=True), asked)
    folder = calibrated_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{model_fingerprint(llm.adapter)}.json"
    fresh = target.with_suffix(".tmp")
    fresh.write_text(json.dumps(found.heads.to_dict()), encoding="utf-8")
    fresh.replace(target)
    click.echo(
        f"{found.questions} questions; the answer came back within 512 tokens for {found.found_before:.0%} with the "
        f"list for any model, and for {found.found_after:.0%} with lists fitted on the other half of the questions"
    )
    click.echo(f"{len(found.heads.heads)} heads: {target}")
