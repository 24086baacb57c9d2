"""kvpress beside us: its presses on our arms' cases, weights, prompts and answer lengths, with as many kept tokens.

    python benchmarks/peers.py env DIR
    python benchmarks/peers.py needle  --python DIR/bin/python --out RESULTS --lengths 4k,8k --budget 2048 [--hidden]
    python benchmarks/peers.py qa DATA --python DIR/bin/python --out RESULTS --budget 2048 [--hidden]

`env` makes the environment that kvpress runs in: torch of the version that this project uses, kvpress 0.5.5, and a
transformers that it works with. The other two take the options of `infinipot bench needle` and `infinipot bench qa`,
append to the same rows in the same folder, and write one table of both: RESULTS/needle-peers.md, RESULTS/qa-peers.md.
What is there already is not run again.

    kvpress:PRESS            the question is not known while reading
    kvpress:PRESS+question   it is: without --hidden, for presses that look at it (snapkv, ada-snapkv, tova, finch)

A press keeps as many slots per layer as our arms hold when the question is put: the budget less what is reserved for
question and answer (--keep says another number). It reads the whole context in one forward pass first, so that its
memory grows with the context whatever it keeps: rows have the peak. `--share` reads a context once for all presses and
questions: much sooner done, the same answers, and no times or peaks of reading. How prompts are read, and what is
measured, stands in kvpress_worker.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from kvpress_arms import Kvpress, Peer, PeerRows, make_environment, peer_arm, press_of, python_of

from infinipot_llm.answering.prompt import PromptForm
from infinipot_llm.cli.comparing import (
    Bench,
    Clock,
    Questions,
    describe,
    listed,
    load,
    parse_depth,
    parse_length,
    report,
    run_name,
)
from infinipot_llm.cli.options import model_options
from infinipot_llm.config import PotConfig
from infinipot_llm.errors import InfiniPotError
from infinipot_llm.evaluation.arms import Arm
from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.heatmap import draw
from infinipot_llm.evaluation.needle import KINDS, NEW_TOKENS, needle_cases
from infinipot_llm.evaluation.needle import prompt_for as needle_prompt
from infinipot_llm.evaluation.needle import score as needle_score
from infinipot_llm.evaluation.rows import Row, Rows
from infinipot_llm.evaluation.runs import plan_readings, run, settings_digest
from infinipot_llm.evaluation.tables import grid
from infinipot_llm.models.catalogue import DEFAULT_MODEL
from infinipot_llm.models.load import find_folder

PYTHON_VARIABLE = "INFINIPOT_KVPRESS_PYTHON"
PRESSES = ("snapkv", "streaming", "tova", "keydiff", "expected-attention", "kvzip", "random")
PRESSES_KNOWN = ("snapkv", "tova", "finch")


@dataclass(frozen=True)
class Setup:
    """What `infinipot bench` runs with under the same options.

    Attributes:
        form: How questions are put.
        config: Of the pot.
        settings: What its rows are told apart by.
        folder: Where the weights are.
        device: Where they go.
        dtype: As what.
        about: All that in a few words.
    """

    form: PromptForm
    config: PotConfig
    settings: dict[str, Any]
    folder: Path
    device: str
    dtype: str
    about: str

    @classmethod
    def of(cls, options: dict[str, Any], max_new_tokens: int, prompts: dict[str, str | None] | None = None) -> Setup:
        """Load the model as `infinipot bench` does, for what is to be known of it, and let go of it."""
        with load(options, [], max_new_tokens) as llm:
            return cls(
                llm.form, llm.config, Bench(llm, [], Rows(None), options, prompts).settings(),
                find_folder(options["model"] or DEFAULT_MODEL, download=False), str(llm.adapter.device),
                str(llm.adapter.dtype).removeprefix("torch."), describe(llm, options),
            )  # fmt: skip


def compare(setup: Setup, name: str, options: dict[str, Any], cases: Sequence[Case], **how: Any) -> list[Row]:
    """Run what there are no rows of yet; return the rows of all arms, ours and theirs, for these cases.

    Args:
        setup: As `infinipot bench` would run.
        name: Of the file of rows, without its ending.
        options: Of the command.
        cases: What is asked.
        **how: As `runs.run` takes it.
    """
    hidden, keep, arms = bool(options["hidden"]), options["keep"], chosen(options)
    presses = [press_of(arm.name) for arm in arms]
    threads = torch.get_num_threads()
    with Kvpress.start(options["python"], setup.folder, setup.device, setup.dtype, threads) as kvpress:
        if unknown := [press for press in presses if press not in kvpress.about["presses"]]:
            there = ", ".join(kvpress.about["presses"])
            raise click.UsageError(f"there is no press {unknown[0]!r}: choose among {there}.")
        options["out"].mkdir(parents=True, exist_ok=True)
        peer = Peer(kvpress, setup.form, setup.config, keep, share=options["share"])
        with PeerRows(options["out"] / f"{name}.jsonl", peer) as rows:
            counts = {case.context: len(setup.form.codec.untrusted(case.context)) for case in cases}
            theirs = {**setup.settings, "share": options["share"], **peer.settings}
            clock = Clock(plan_readings(cases, arms, rows, theirs, hidden=hidden), counts)
            found = run(rows.peer, cases, arms, rows, settings=theirs, hidden=hidden, progress=clock, **how)
            keys = {case.key for case in cases}
            return [row for row in rows.of(settings_digest(setup.settings, hidden)) if row["key"] in keys] + found


def chosen(options: dict[str, Any]) -> list[Arm]:
    """Return the presses that --presses names, or the usual ones, as arms."""
    hidden = bool(options["hidden"])
    presses = listed(options["presses"] or ",".join(PRESSES if hidden else PRESSES_KNOWN), "--presses")
    return [peer_arm(press, hidden=hidden, keep=options["keep"]) for press in presses]


def check_base(options: dict[str, Any], name: str) -> None:
    """Refuse a base that will have no rows, before hours are spent on what is to be compared with it."""
    base = options["base"]
    with Rows(options["out"] / f"{name}.jsonl") as rows:
        names = dict.fromkeys([*(row["arm"] for row in rows), *(arm.name for arm in chosen(options))])
    if base is not None and base not in names:
        raise click.UsageError(f"--base is {base!r}, of which there are no rows: choose one of {', '.join(names)}.")


def peer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of both commands: those of `infinipot bench` that say what its rows are, and ours."""
    for option in (
        click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder with the rows."),
        click.option("--hidden", is_flag=True, help="Read without knowing the question."),
        click.option("--base", help="The arm that others are compared with."),
        click.option("--budget", type=int, default=2048, show_default=True),
        click.option("--keep", type=click.IntRange(min=1), help="Slots to keep.  [default: as many as our arms]"),
        click.option("--share", is_flag=True, help="Read a context once for all presses; no times, no memory."),
        click.option("--presses", help=f"[default: {','.join(PRESSES)}; without --hidden {','.join(PRESSES_KNOWN)}]"),
        click.option("--python", envvar=PYTHON_VARIABLE, show_envvar=True, required=True, help="Which has kvpress."),
    ):
        command = option(command)
    return command


class Commands(click.Group):
    """Commands whose errors are one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InfiniPotError as error:
            raise click.UsageError(str(error)) from error


@click.group(cls=Commands, help=__doc__)
def main() -> None:
    pass


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def env(folder: Path) -> None:
    """Make the environment that kvpress runs in."""
    make_environment(folder)
    click.echo(f"give --python {python_of(folder)}, or set {PYTHON_VARIABLE} to that")


@main.command()
@model_options
@peer_options
@click.option("--lengths", default="4k,8k", show_default=True)
@click.option("--depths", default="0,25,50,75,100", show_default=True)
@click.option("--kinds", default=",".join(KINDS), show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def needle(lengths: str, depths: str, kinds: str, repeats: int, seed: int, **options: Any) -> None:
    """Ask for hidden facts: the cases of `infinipot bench needle`."""
    sizes = [parse_length(text) for text in listed(lengths, "--lengths")]
    places = [parse_depth(text) for text in listed(depths, "--depths")]
    sorts = listed(kinds, "--kinds")
    if len(set(sizes)) < len(sizes) or len(set(places)) < len(places):
        raise click.UsageError("--lengths or --depths names the same value twice.")
    check_base(options, "needle")
    setup = Setup.of(options, max(NEW_TOKENS.values()))
    cases = needle_cases(sizes, places, sorts, setup.form.codec, seed=seed, repeats=repeats)
    found = compare(
        setup, "needle", options, cases,
        prompt_for=lambda case: needle_prompt(setup.form, case), score=needle_score,
        max_new_tokens=lambda case: NEW_TOKENS[case.facts["kind"]],
    )  # fmt: skip
    arms = dict.fromkeys(row["arm"] for row in found)
    grids = [grid(found, arm) for arm in arms]
    report(options["out"] / "needle-peers.md", setup.about, found, options["base"], grids)
    draw(found, options["out"] / f"needle-peers-{run_name(found, options['base'])}.png", title=setup.about)


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@model_options
@peer_options
@click.option("--task")
@click.option("--prompts", type=click.Path(path_type=Path), help="Prompts by task: LongBench's dataset2prompt.json.")
@click.option("--limit", type=int)
@click.option("--join", type=int)
def qa(data: Path, task: str | None, prompts: Path | None, limit: int | None, join: int | None, **options: Any) -> None:
    """Ask the questions of DATA: the cases of `infinipot bench qa`."""
    questions = Questions(data, task, prompts, limit, join)
    if options["hidden"]:
        questions.check_hidden()
    check_base(options, "qa")
    setup = Setup.of(options, questions.max_new_tokens, questions.templates)
    found = compare(setup, "qa", options, questions.cases, **questions.asked(setup.form))
    report(options["out"] / "qa-peers.md", f"{questions.name}: {setup.about}", found, options["base"])


if __name__ == "__main__":
    main()
