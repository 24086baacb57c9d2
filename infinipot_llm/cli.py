"""The command line: ask, info, trace, models. Rooms are imported when a command needs them, so that help is instant."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infinipot_llm import __version__
from infinipot_llm.errors import BudgetError, DocumentError, InfiniPotError, QuestionError
from infinipot_llm.models.catalogue import DEFAULT_MODEL

if TYPE_CHECKING:
    from infinipot_llm.answering.answer import Answer
    from infinipot_llm.documents import Document

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
            "--model", default=DEFAULT_MODEL, show_default=True, help="A name of `models list`, a folder, or a hub id."
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
        click.option("--budget", type=int, help="Slots of the cache, in tokens, everything counted.  [default: 4096]"),
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
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 decodes greedily.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Nucleus, with a temperature above 0.")
@click.option("--seed", type=int, help="Of the sampling, with a temperature above 0.")
@click.option("--stop", multiple=True, help="A text that ends the answer; may be given several times.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def ask(files: tuple[str, ...], question: str, as_json: bool, **options: Any) -> None:
    """Read FILES whole (PDF, .txt, .md; - for standard input) and answer QUESTION with page citations."""
    if not files or Path(question).is_file():
        raise click.UsageError('name the files first and then the question, in quotes: infinipot ask FILE "QUESTION"')
    if not question.strip():
        raise QuestionError("the question is empty: ask something about the document.")
    documents = _documents(files, options["password"])
    config = _config(options, max_new_tokens=options["max_new_tokens"])
    _check_sampling(options)
    llm = _engine(options, config)
    memory = llm.read(documents, question=question, progress=True)
    streamed: list[str] = []

    def show(piece: str) -> None:
        from infinipot_llm.documents.clean import printable

        streamed.append(piece)
        click.echo(printable(piece), nl=False)

    answer = memory.ask(
        question,
        temperature=options["temperature"],
        top_p=options["top_p"],
        stop=options["stop"],
        seed=options["seed"],
        on_text=None if as_json else show,
    )
    if as_json:
        click.echo(json.dumps(answer.to_dict(), indent=2))
        return
    click.echo("" if streamed else "(no answer)")
    for line in _sources(answer, several=len(documents) > 1):
        click.echo(line)
    click.echo(_cost(answer), err=True)


@cli.command()
@click.argument("files", nargs=-1, required=True)
@model_options
@pot_options
@click.option(
    "--price-per-million", type=float, help="Price of a hosted model per million input tokens, to show a cost."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def info(files: tuple[str, ...], as_json: bool, price_per_million: float | None, **options: Any) -> None:
    """Say what FILES hold and what reading them would cost, without reading them."""
    documents = _documents(files, options["password"])
    from infinipot_llm import facts

    if price_per_million is not None and not price_per_million >= 0:
        raise click.UsageError("--price-per-million is a price: give 0 or more.")
    where = (options["model"], options["device"], options["dtype"])
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
    llm = _engine(options, _config(options, max_new_tokens=1))
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


def _config(options: dict[str, Any], **more: Any) -> Any:
    from infinipot_llm.config import PotConfig

    given = {
        name: options[name]
        for name in ("budget", "kept", "novelty_share", "neighbours", "policy")
        if options.get(name) is not None
    }
    return PotConfig(**given, **more)


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
    if sys.stderr.isatty():
        click.echo(f"loading {options['model']} ...", err=True)
    return InfiniPot.from_pretrained(
        options["model"], device=options["device"], dtype=options["dtype"], **given, **knobs
    )


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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _cost(answer: Answer) -> str:
    u, r = answer.usage, answer.usage.read
    return (
        f"\n{r.tokens_read} tokens read in {r.seconds:.0f} s ({r.tokens_per_second:.0f} tokens/s), {r.cycles} cycles, "
        f"{r.slots} of {r.budget} slots held; answered in {u.answer_seconds:.1f} s; "
        f"pot {u.pot_bytes / 1e6:.0f} MB, peak memory of the process {u.peak_memory_bytes / 1e6:.0f} MB"
    )
