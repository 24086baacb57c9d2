"""The command line. Rooms are imported when a command needs them, so that help is instant."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infinipot_llm import __version__
from infinipot_llm.errors import BudgetError, DocumentError, InfiniPotError, QuestionError
from infinipot_llm.models.catalogue import DEFAULT_MODEL

if TYPE_CHECKING:
    from infinipot_llm.answering.answer import Answer
    from infinipot_llm.documents import Document
    from infinipot_llm.engine import InfiniPot
    from infinipot_llm.memory.memory import DocumentMemory
    from infinipot_llm.memory.store import MemoryStore

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line; errors of the user are one sentence on standard error and exit code 2."""
    try:
        cli.main(standalone_mode=False)
    except InfiniPotError as error:
        _fail(str(error))
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\ninterrupted.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(sentence: str) -> None:
    from infinipot_llm.documents.clean import one_line

    click.echo(f"infinipot: {one_line(sentence)}", err=True)
    sys.exit(EXIT_BAD_INPUT)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that loads a model."""
    for option in (
        click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto"),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."),
        click.option(
            "--model",
            help=f"A name of `models list`, a folder, or a hub id.  [default: a memory's own, or {DEFAULT_MODEL}]",
        ),
    ):
        command = option(command)
    return command


def pot_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a document is read."""
    for option in (
        click.option("--password", envvar="INFINIPOT_PASSWORD", show_envvar=True, help="Password of an encrypted PDF."),
        click.option("--policy", type=click.Choice(["infinipot", "streaming"]), default="infinipot", show_default=True),
        click.option(
            "--novelty-share", type=float, help="Share of the kept slots that novelty chooses.  [default: 0.5]"
        ),
        click.option("--neighbours", type=int, help="Tokens on each side that a high score also keeps.  [default: 4]"),
        click.option("--kept", type=float, help="Share of the slots that a distillation keeps.  [default: 0.5]"),
        click.option(
            "--shelf",
            type=click.Choice(["keys", "int8", "int4", "off"]),
            default="keys",
            show_default=True,
            help="What is kept on disk of every token for later questions.",
        ),
        click.option("--shelf-bytes", type=int, help="Most bytes of the shelf; the least telling passages give way."),
        click.option("--budget", type=int, help="Slots of the cache, in tokens, everything counted.  [default: 4096]"),
    ):
        command = option(command)
    return command


def answer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a question is answered."""
    for option in (
        click.option("--stop", multiple=True, help="A text that ends the answer; may be given several times."),
        click.option("--seed", type=int, help="Of the sampling, with a temperature above 0."),
        click.option(
            "--top-p", type=float, default=1.0, show_default=True, help="Nucleus, with a temperature above 0."
        ),
        click.option("--temperature", type=float, default=0.0, show_default=True, help="0 decodes greedily."),
        click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Longest answer, in tokens."),
        click.option("--recall", type=int, help="Tokens that a question brings back.  [default: 1024]"),
        click.option(
            "--followup",
            type=click.Choice(["recall", "reuse", "reread"]),
            help="Answer from the shelf, from the pot as it is, or by reading again.  [default: recall]",
        ),
    ):
        command = option(command)
    return command


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say whether memories are kept."""
    for option in (
        click.option("--no-store", is_flag=True, help="Keep nothing: what is read is forgotten when the command ends."),
        click.option("--fresh", is_flag=True, help="Read again, although the store has a memory of these files."),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="infinipot")
def cli() -> None:
    """Ask questions of whole long documents with a local language model, through a KV cache that never grows."""


@cli.command()
@click.argument("files", nargs=-1)
@click.argument("question")
@model_options
@pot_options
@answer_options
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def ask(files: tuple[str, ...], question: str, as_json: bool, **options: Any) -> None:
    """Answer QUESTION about FILES (PDF, text, transcripts; - for standard input; or one saved memory), with citations.

    Files are read whole, once: their memory stays in the store, and the next question reads nothing.
    """
    if not files or Path(question).is_file():
        raise click.UsageError('name the files first and then the question, in quotes: infinipot ask FILE "QUESTION"')
    if not question.strip():
        raise QuestionError("the question is empty: ask something about the document.")
    _check_sampling(options)
    memory = _memory(files, options, question)
    answer = _say(memory, question, options, quiet=as_json)
    if as_json:
        click.echo(json.dumps(answer.to_dict(), indent=2))
        return
    for line in _sources(answer, several=len(memory.documents) > 1):
        click.echo(line)
    click.echo(_cost(answer), err=True)


@cli.command()
@click.argument("files", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@model_options
@pot_options
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def read(files: tuple[str, ...], output: Path, force: bool, **options: Any) -> None:
    """Read FILES whole and save what is remembered of them to one file, to be asked later or elsewhere."""
    if output.exists() and not force:
        raise click.UsageError(f"{output} is there already: give another name, or --force.")
    if not output.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {output.absolute().parent}: make it first.")
    documents = _documents(files, options["password"])
    llm = _engine(options, _config(options))
    _announce(llm, documents)
    memory = llm.read(documents, progress=True)
    memory.save(output)
    click.echo(f"{output}: {_remembered(memory)}")


@cli.command()
@click.argument("files", nargs=-1, required=True)
@model_options
@pot_options
@answer_options
@store_options
def chat(files: tuple[str, ...], **options: Any) -> None:
    """Talk about FILES, or about one saved memory: a question per line, until the input ends."""
    if "-" in files:
        raise click.UsageError("questions come from standard input here: name a file.")
    _check_sampling(options)
    memory = _memory(files, options)
    talk = memory.chat()
    several = len(memory.documents) > 1
    while True:
        try:
            question = click.prompt("\nquestion", prompt_suffix="> ", default="", show_default=False, err=True)
        except click.Abort:  # the end of the input, or Ctrl-C at the prompt
            click.echo(err=True)
            return
        if not question.strip():
            continue
        try:
            answer = _say(memory, question, options, history=talk.turns)
        except QuestionError as error:
            click.echo(f"infinipot: {error}", err=True)
            continue
        talk.turns.append((question, answer.text))
        for line in (*_sources(answer, several), *answer.notes):
            click.echo(line)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
def verify(file: Path) -> None:
    """Check every byte of a saved memory."""
    from infinipot_llm.memory.file import MemoryFile

    opened = MemoryFile(file)
    click.echo(f"{file}: whole, {opened.nbytes / 1e6:.1f} MB")


@cli.command()
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
        asked = labelled(loaded, questions.read_text(encoding="utf-8").splitlines())
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


@cli.group()
def store() -> None:
    """List and remove the memories of files that were read."""


@store.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def store_list(as_json: bool) -> None:
    """List the memories in the store, the last used first."""
    from infinipot_llm.documents.clean import one_line

    kept = _store()
    rows: list[dict[str, Any]] = [
        {**e.description, "key": e.key, "bytes": e.nbytes, "last_used": _moment(e.last_used)} for e in kept.list()
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
    kept = _store()
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
    click.echo(f"removed {_store().clear()} memories")


@cli.command()
@click.argument("files", nargs=-1, required=True)
@model_options
@pot_options
@click.option(
    "--price-per-million", type=float, help="Price of a hosted model per million input tokens, to show a cost."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def info(files: tuple[str, ...], as_json: bool, price_per_million: float | None, **options: Any) -> None:
    """Say what FILES hold and what reading them would cost, without reading them; or what a saved memory holds."""
    if len(files) == 1 and _is_memory(files[0]):
        _memory_info(Path(files[0]), as_json)
        return
    documents = _documents(files, options["password"])
    from infinipot_llm import facts

    if price_per_million is not None and not price_per_million >= 0:
        raise click.UsageError("--price-per-million is a price: give 0 or more.")
    where = (options["model"] or DEFAULT_MODEL, options["device"], options["dtype"])
    values = facts.gather(documents, _config(options), *where, price_per_million)
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    for line in facts.render(values):
        click.echo(line)


@cli.command()
@click.argument("files", nargs=-1, required=True)
@click.option("-q", "--question", required=True, help="The question that is the catalyst.")
@model_options
@pot_options
@click.option("--slots", type=int, help="Slots for the document alone, instead of --budget.")
@click.option("--top", type=click.IntRange(min=1), default=24, show_default=True, help="Most tokens to list per cycle.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def trace(files: tuple[str, ...], question: str, slots: int | None, top: int, as_json: bool, **options: Any) -> None:
    """Show, cycle by cycle, which tokens of FILES stay in the pot and why: pinned, novelty, catalyst, neighbour."""
    if slots is not None and options["budget"] is not None:
        raise click.UsageError("give either --budget or --slots, not both.")
    if slots is not None and slots < 3:
        raise BudgetError(f"slots is {slots}: give at least 3.")
    documents = _documents(files, options["password"])
    llm = _engine(options, _config({**options, "shelf": "off"}, max_new_tokens=1))
    from dataclasses import replace

    from infinipot_llm.trace import Trace, render

    if slots is not None:
        beside = len(llm.form.prefix) + len(llm.form.question(question)) + 1
        llm.config = replace(llm.config, budget=slots + beside)
    collected = Trace()
    memory = llm.read(documents, question=question, progress=not as_json, tracer=collected)
    cycles = collected.with_text(memory, llm.form.codec)
    if as_json:
        click.echo(json.dumps({"budget": llm.config.budget, "cycles": cycles}))
        return
    click.echo(
        f"budget {llm.config.budget}: {len(llm.form.prefix)} slots for the prompt before the document, "
        f"{len(llm.form.question(question))} for the question behind it (the catalyst)\n"
    )
    for line in render(cycles, top):
        click.echo(line)


@cli.group()
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
    click.echo("any folder or hub id of a Llama, Qwen2 or Qwen3 model works too, as --model")


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


def _documents(files: tuple[str, ...], password: str | None) -> list[Document]:
    """Load every file before anything expensive starts, and report what could not be read of it."""
    from infinipot_llm.documents import Document

    if files.count("-") > 1:
        raise DocumentError("standard input (-) can be read only once: name it once.")
    loaded = []
    for file in files:
        if file == "-":
            data = sys.stdin.buffer.read()
            loaded.append(Document.from_bytes(data, name="standard input", password=password))
        else:
            loaded.append(Document.from_file(Path(file), password=password))
        for note in loaded[-1].notes:
            click.echo(f"infinipot: note: {loaded[-1].name}: {note}", err=True)
    return loaded


_KNOBS = (
    "budget", "kept", "novelty_share", "neighbours", "policy", "shelf", "shelf_bytes", "recall", "followup",
    "max_new_tokens",
)  # fmt: skip


def _config(options: dict[str, Any], **more: Any) -> Any:
    from infinipot_llm.config import PotConfig

    given = {name: options[name] for name in _KNOBS if options.get(name) is not None}
    return PotConfig(**{**given, **more})


def _check_sampling(options: dict[str, Any]) -> None:
    """Refuse wrong decoding options before a model is loaded and a document read for nothing."""
    from infinipot_llm.answering.decode import Sampling

    if options["seed"] is not None and options["temperature"] == 0:
        raise click.UsageError("--seed has no effect on greedy decoding: give a --temperature above 0 with it.")
    Sampling(options["max_new_tokens"], options["temperature"], options["top_p"], options["stop"], options["seed"])


def _engine(options: dict[str, Any], config: Any) -> Any:
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


def _store() -> MemoryStore:
    from infinipot_llm.memory.store import MemoryStore

    return MemoryStore()


def _is_memory(file: str) -> bool:
    """Tell a saved memory from a document by how it begins."""
    from infinipot_llm.memory.file import begins_like_a_memory

    return begins_like_a_memory(Path(file))


def _memory(files: tuple[str, ...], options: dict[str, Any], question: str | None = None) -> DocumentMemory:
    """Open a saved memory, or read documents, or find what was read of them before.

    Without a shelf, the question is the catalyst.
    """
    if len(files) == 1 and _is_memory(files[0]):
        from infinipot_llm.memory.file import MemoryFile

        path = Path(files[0])
        if options["model"] is None:
            options = {**options, "model": MemoryFile(path).about.get("model")}
        return _engine(options, _config(options)).load(path)
    if any(map(_is_memory, files)):
        raise click.UsageError("ask one saved memory at a time, or the documents themselves together.")
    documents = _documents(files, options["password"])
    llm = _engine(options, _config(options))
    kept = None if options["no_store"] else _store()
    if kept is not None and not options["fresh"] and llm.config.shelf != "off":
        found = llm.key(documents) in kept
        if found:
            click.echo("infinipot: these files were read before: nothing is read again (--fresh reads them)", err=True)
            return llm.read(documents, store=kept)
    _announce(llm, documents)
    catalyst = question if llm.config.shelf == "off" else None
    memory = llm.read(documents, question=catalyst, store=kept, fresh=options["fresh"], progress=True)
    if kept is not None and llm.config.shelf != "off":
        click.echo(f"infinipot: remembered in {kept.folder} ({memory.nbytes / 1e6:.0f} MB)", err=True)
    return memory


def _announce(llm: InfiniPot, documents: list[Document]) -> None:
    """Say what reading will leave on the disk, before it begins."""
    if llm.config.shelf != "off":
        tokens, nbytes = llm.shelf_size(documents)
        click.echo(f"infinipot: reading {tokens} tokens; the shelf will take {nbytes / 1e6:.0f} MB", err=True)


def _remembered(memory: DocumentMemory) -> str:
    s = memory.stats
    return (
        f"{s.tokens_read} tokens read in {s.seconds:.0f} s ({s.tokens_per_second:.0f} tokens/s), "
        f"{memory.nbytes / 1e6:.1f} MB"
    )


def _memory_info(path: Path, as_json: bool) -> None:
    from infinipot_llm.documents.clean import one_line
    from infinipot_llm.memory.file import MemoryFile

    file = MemoryFile(path)
    about = file.about
    documents = [
        {"name": d["name"], "pages": len(d["pages"]), "characters": len(d["text"]), "content_hash": d["content_hash"]}
        for d in json.loads(file.rows("documents").tobytes())
    ]
    kept = {key: about[key] for key in ("model", "family", "made_by", "config", "stats", "layout", "fingerprints")}
    values = {"file": str(path), "bytes": file.nbytes, "documents": documents, **kept}
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    stats, layout = about["stats"], about["layout"]
    for d in documents:
        click.echo(f"{one_line(d['name'])}: {d['pages']} pages, {d['characters']} characters")
    click.echo(
        f"read with {about['model']} ({about['family']}): {stats['tokens_read']} tokens, {stats['cycles']} cycles"
    )
    kind = "keys alone" if layout and not layout["whole"] else "keys and values"
    shelf = f"shelf of {kind} in {layout['bits']} bits" if layout else "no shelf"
    each = file.nbytes / max(1, stats["tokens_read"])
    click.echo(f"{file.nbytes / 1e6:.1f} MB, {each:.0f} bytes per token, {shelf}; every byte is as it was written")


def _say(
    memory: DocumentMemory,
    question: str,
    options: dict[str, Any],
    *,
    quiet: bool = False,
    history: Sequence[tuple[str, str]] = (),
) -> Answer:
    """Answer a question, printing the answer as it is decoded."""
    from infinipot_llm.documents.clean import printable

    streamed: list[str] = []

    def show(piece: str) -> None:
        streamed.append(piece)
        click.echo(printable(piece), nl=False)

    answer = memory.ask(
        question,
        history=history,
        temperature=options["temperature"],
        top_p=options["top_p"],
        stop=options["stop"],
        seed=options["seed"],
        on_text=None if quiet else show,
    )
    if not quiet:
        click.echo("" if streamed else "(no answer)")
    return answer


def _sources(answer: Answer, several: bool) -> list[str]:
    from infinipot_llm.documents.clean import one_line

    if answer.finish_reason == "length":
        note = ["", "(cut at --max-new-tokens)"]
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


def _moment(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "minutes")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _cost(answer: Answer) -> str:
    u, r = answer.usage, answer.usage.read
    return (
        f"\n{r.tokens_read} tokens read in {r.seconds:.0f} s ({r.tokens_per_second:.0f} tokens/s), {r.cycles} cycles, "
        f"{r.slots} of {r.budget} slots held; {u.recalled_tokens} recalled, answered in {u.answer_seconds:.1f} s; "
        f"pot {u.pot_bytes / 1e6:.0f} MB, peak memory of the process {u.peak_memory_bytes / 1e6:.0f} MB"
    )
