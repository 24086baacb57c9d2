"""Commands that read documents and ask them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from infinipot_llm.cli.opening import check_files, find_memory, is_memory, load_documents, load_engine
from infinipot_llm.cli.options import (
    answer_options,
    check_answering,
    make_config,
    model_options,
    pot_options,
    shelf_options,
    store_options,
)
from infinipot_llm.cli.printing import cost, remembered, say, show_memory, sources
from infinipot_llm.errors import BudgetError, QuestionError
from infinipot_llm.models.catalogue import DEFAULT_MODEL

TOGETHER = 8
"""Answers that `--questions` writes at a time."""


@click.command()
@click.argument("files", nargs=-1)
@click.argument("question", required=False)
@model_options
@pot_options
@shelf_options
@answer_options
@store_options
@click.option(
    "--questions",
    "listed",
    type=click.Path(path_type=Path),
    help="Ask the questions in this file instead of QUESTION, several at a time: one per line, plain or as JSON.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text: an object, or one per line.")
def ask(files: tuple[str, ...], question: str | None, listed: Path | None, as_json: bool, **options: Any) -> None:
    """Answer QUESTION about FILES (PDF, text, transcripts; - for standard input; or one saved memory), with citations.

    Files are read whole, once: their memory stays in the store, and the next question reads nothing. Each question
    stands for itself; `infinipot chat FILES` remembers what was asked before.
    """
    from infinipot_llm.documents.clean import one_line

    if listed is not None:
        if files and question is not None and question != "-" and not os.path.exists(question):  # noqa: PTH110 - as below
            raise click.UsageError(f"{one_line(question)[:200]!r} is no file: with --questions, name files alone.")
        _ask_listed(files if question is None else (*files, question), listed, as_json, options)
        return
    if not files or question is None or os.path.isfile(question):  # noqa: PTH113 - Path.is_file raises where a name is too long
        raise click.UsageError('name the files first and then the question, in quotes: infinipot ask FILE "QUESTION"')
    if not question.strip():
        raise QuestionError("the question is empty: ask something about the document.")
    check_files(files)
    check_answering(options)
    memory = find_memory(files, options, [question])
    answer = say(memory, question, options, quiet=as_json)
    if as_json:
        click.echo(json.dumps(answer.to_dict(), indent=2))
        return
    for line in (*sources(answer, several=len(memory.documents) > 1), *answer.notes):
        click.echo(line)
    click.echo(cost(answer), err=True)


def _ask_listed(files: tuple[str, ...], listed: Path, as_json: bool, options: dict[str, Any]) -> None:
    """Answer the lines of a file, printing the answers as they come: so many at a time."""
    from infinipot_llm.documents.clean import printable

    if not files:
        raise click.UsageError("name the files that the questions are about: infinipot ask FILE --questions LIST")
    if options["followup"] not in (None, "recall") or options["shelf"] == "off":
        raise click.UsageError("several questions are answered by recall: leave out --followup and --shelf off.")
    try:
        lines = listed.read_text(encoding="utf-8-sig").split("\n")  # some editors write a mark before the text
    except UnicodeDecodeError as error:
        raise QuestionError(f"{listed} is not UTF-8 text: save it as such, a question per line.") from error
    except OSError as error:
        why = error.strerror or "unreadable"
        raise QuestionError(f"{listed} cannot be read ({why}): name a file with a question per line.") from error
    questions = [_question(line.strip()) for line in lines if line.strip()]
    if not questions:
        raise QuestionError(f"{listed} holds no question: write one per line.")
    check_files(files)
    check_answering(options)
    memory = find_memory(files, options, questions)
    sampling = {name: options[name] for name in ("temperature", "top_p", "stop", "seed", "recall")}
    for start in range(0, len(questions), TOGETHER):
        some = questions[start : start + TOGETHER]
        for question, answer in zip(some, memory.ask_many(some, together=TOGETHER, **sampling), strict=True):
            if as_json:
                click.echo(json.dumps({"question": question, **answer.to_dict()}))
                continue
            click.echo(f"{question}\n{printable(answer.text) or '(no answer)'}")
            for line in (*sources(answer, several=len(memory.documents) > 1), *answer.notes, ""):
                click.echo(line)


def _question(line: str) -> str:
    """Return the question of a line: the line itself, or "question" of a JSON object.

    Raises:
        QuestionError: It is a JSON object without one.
    """
    try:
        held = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(held, dict):
        return line
    if not isinstance(question := held.get("question"), str) or not question.strip():
        raise QuestionError('a line is a JSON object without "question": write plain questions, one per line.')
    return question.strip()


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@model_options
@pot_options
@shelf_options
@store_options
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def read(files: tuple[str, ...], output: Path, force: bool, **options: Any) -> None:
    """Read FILES whole and save what is remembered of them to one file, to be asked later or elsewhere.

    What the store remembers of them is not read again.
    """
    check_files(files)
    if any(map(is_memory, files)):
        raise click.UsageError("a saved memory needs no reading: copy the file, or ask it.")
    if output.is_dir():
        raise click.UsageError(f"{output} is a folder: name a file in it.")
    if output.exists() and not force:
        raise click.UsageError(f"{output} is there already: give another name, or --force.")
    if not output.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {output.absolute().parent}: make it first.")
    if any(file != "-" and output.exists() and output.samefile(file) for file in files):
        raise click.UsageError(f"{output} is what is to be read: give another name.")
    if not os.access(output.absolute().parent, os.W_OK):
        raise click.UsageError(f"nothing can be written into {output.absolute().parent}: give another folder.")
    memory = find_memory(files, options)
    memory.save(output.absolute())  # a name that begins with ~ is one
    click.echo(f"{output}: {remembered(memory)}")


@click.command()
@click.argument("files", nargs=-1, required=True)
@model_options
@pot_options
@shelf_options
@answer_options
@store_options
def chat(files: tuple[str, ...], **options: Any) -> None:
    """Talk about FILES, or about one saved memory: a question per line, until the input ends."""
    if "-" in files:
        raise click.UsageError("questions come from standard input here: name a file.")
    check_files(files)
    check_answering(options)
    memory = find_memory(files, options)
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
            answer = say(memory, question, options, history=talk.turns)
        except QuestionError as error:
            click.echo(f"infinipot: {error}", err=True)
            continue
        talk.turns.append((question, answer.text))
        for line in (*sources(answer, several), *answer.notes):
            click.echo(line)


@click.command()
@click.argument("files", nargs=-1, required=True)
@model_options
@pot_options
@shelf_options
@click.option(
    "--price-per-million", type=float, help="Price of a hosted model per million input tokens, to show a cost."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def info(files: tuple[str, ...], as_json: bool, price_per_million: float | None, **options: Any) -> None:
    """Say what FILES hold and what reading them would cost, without reading them; or what a saved memory holds."""
    if len(files) == 1 and is_memory(files[0]):
        show_memory(Path(files[0]), as_json)
        return
    documents = load_documents(files, options["password"])
    from infinipot_llm import facts

    if price_per_million is not None and not price_per_million >= 0:
        raise click.UsageError("--price-per-million is a price: give 0 or more.")
    where = (options["model"] or DEFAULT_MODEL, options["device"], options["dtype"])
    lowered = options["budget"] is None
    values = facts.gather(documents, make_config(options), *where, price_per_million, lowered=lowered)
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    for line in facts.render(values):
        click.echo(line)


@click.command()
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
    documents = load_documents(files, options["password"])
    llm = load_engine(options, make_config({**options, "shelf": "off"}, max_new_tokens=1))
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
