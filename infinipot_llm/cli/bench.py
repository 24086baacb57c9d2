"""Commands that measure what is remembered: needles, questions of data sets, hit rates, and what each knob does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infinipot_llm.cli.comparing import (
    Bench,
    Questions,
    arm_options,
    describe,
    listed,
    load,
    open_rows,
    parse_arms,
    parse_depth,
    parse_length,
    report,
    run_name,
    write_report,
)
from infinipot_llm.cli.options import make_config, model_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infinipot_llm.evaluation.arms import Arm
    from infinipot_llm.evaluation.cases import Case

GRIDS = {
    "components": (
        "infinipot",
        "infinipot:agreement=0",  # catalyst and novelty, as in the paper
        "infinipot:agreement=0:novelty_share=0",  # the catalyst alone
        "infinipot:agreement=0:novelty_share=1",  # novelty alone
        "tova",  # neither: the last token's attention
        "infinipot:positions=kept",  # without Context-Reset RoPE
    ),
    "alpha": tuple(f"infinipot:novelty_share={share}" for share in ("0", "0.25", "0.5", "0.75")),
    "agreement": tuple(f"infinipot:agreement={share}" for share in ("0", "0.1", "0.25", "0.5")),
    "kept": tuple(f"infinipot:kept={share}" for share in ("0.25", "0.5", "0.75", "0.9")),
    "budget": tuple(f"infinipot:budget={slots}" for slots in (1024, 2048, 4096, 8192)),
    "span": tuple(f"infinipot:neighbours={count}" for count in (0, 4, 8, 16)),
    "reduce": ("infinipot:catalyst_reduce=sum", "infinipot:catalyst_reduce=max"),
}
"""What `infinipot bench ablation` compares: the paper's components, and the settings that the paper leaves open."""


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that takes a data set."""
    for option in (
        click.option("--join", type=int, help="SQuAD: join paragraphs to contexts of about so many characters."),
        click.option("--limit", type=int, help="Most questions, drawn evenly over contexts.  [default: all]"),
        click.option(
            "--prompts", type=click.Path(path_type=Path), help="Prompts by task: LongBench's dataset2prompt.json."
        ),
        click.option("--task", help="Task of all questions (prompt, metric).  [default: what the data says, or qa]"),
    ):
        command = option(command)
    return command


@click.group()
def bench() -> None:
    """Measure what a pot keeps, beside other ways and beside the full cache.

    Results are written as they come, and the same command goes on where it was interrupted. The tables of several runs
    stand in one file, each under a heading of its own.
    """


@bench.command()
@model_options
@arm_options("full,infinipot,streaming,own:truncate")
@click.option("--lengths", default="4k,8k", show_default=True, help="Tokens of the contexts; 4k are 4,096.")
@click.option("--depths", default="0,25,50,75,100", show_default=True, help="Where needles stand, in percent.")
@click.option(
    "--kinds", default="single,number,name,sentence,several,key-value", show_default=True, help="Kinds of needles."
)
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Contexts of each sort.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the texts.")
def needle(lengths: str, depths: str, kinds: str, repeats: int, seed: int, **options: Any) -> None:
    """Hide facts at known depths of invented texts, and ask for them.

    Writes needle.jsonl, needle.md (tables) and needle-RUN.png (a heat-map) into the folder --out.
    """
    sizes = [parse_length(text) for text in listed(lengths, "--lengths")]
    places = [parse_depth(text) for text in listed(depths, "--depths")]
    sorts = listed(kinds, "--kinds")
    arms = parse_arms(options)
    from infinipot_llm.evaluation.heatmap import check_matplotlib, draw
    from infinipot_llm.evaluation.needle import KINDS, NEW_TOKENS, needle_cases, prompt_for, score
    from infinipot_llm.evaluation.tables import grid

    if unknown := [sort for sort in sorts if sort not in KINDS]:
        raise click.UsageError(f"there is no needle of kind {unknown[0]!r}: choose among {', '.join(KINDS)}.")
    if len(set(sizes)) < len(sizes) or len(set(places)) < len(places):
        raise click.UsageError("--lengths or --depths names the same value twice.")
    check_matplotlib()
    with open_rows(options["out"], "needle.jsonl") as rows:
        llm = load(options, arms, max(NEW_TOKENS.values()))
        cases = needle_cases(sizes, places, sorts, llm.form.codec, seed=seed, repeats=repeats)
        found = Bench(llm, arms, rows, options).run(
            cases,
            prompt_for=lambda case: prompt_for(llm.form, case),
            score=score,
            max_new_tokens=lambda case: NEW_TOKENS[case.facts["kind"]],
        )
    about = f"Needles ({', '.join(sorts)}; seed {seed}): {describe(llm, options)}"
    grids = [grid(found, arm.name) for arm in arms]
    report(options["out"] / "needle.md", about, found, options["base"], grids)
    picture = f"needle-{run_name(found, options['base'])}.png"
    draw(found, options["out"] / picture, title=about)
    click.echo(f"infinipot: {options['out'] / 'needle.jsonl'}, needle.md and {picture} are written", err=True)


@bench.command()
@click.argument("data", type=click.Path(path_type=Path))
@model_options
@arm_options("full,infinipot,streaming,own:truncate")
@data_options
def qa(data: Path, task: str | None, prompts: Path | None, limit: int | None, join: int | None, **options: Any) -> None:
    """Ask the questions of DATA: LongBench's JSON lines, SQuAD's JSON, or PDFs with NAME.questions.jsonl beside them.

    Writes qa.jsonl and qa.md (tables) into the folder --out. Rows hold no text of the data.
    """
    ask(Questions(data, task, prompts, limit, join), parse_arms(options), "qa", options)


@bench.command()
@click.argument("data", type=click.Path(path_type=Path))
@model_options
@arm_options("full,infinipot")
@data_options
@click.option("--grids", default="components", show_default=True, help=f"What to vary: {', '.join(GRIDS)}.")
def ablation(
    data: Path, grids: str, task: str | None, prompts: Path | None, limit: int | None, join: int | None, **options: Any
) -> None:
    """Ask the questions of DATA with one part or setting of the method changed at a time.

    --policies may name further ways. Writes ablation.jsonl and ablation.md (tables) into the folder --out.
    """
    chosen = listed(grids, "--grids")
    if unknown := [name for name in chosen if name not in GRIDS]:
        raise click.UsageError(f"there is no grid {unknown[0]!r}: choose among {', '.join(GRIDS)}.")
    names = {name: plainest(name, options) for grid in chosen for name in GRIDS[grid]}
    options["base"] = names.get(options["base"], options["base"])
    arms = parse_arms(options, names.values())
    ask(Questions(data, task, prompts, limit, join), arms, "ablation", options)


@bench.command("hit-rate")
@click.argument("data", type=click.Path(path_type=Path))
@model_options
@arm_options("infinipot,infinipot:novelty_share=0,streaming,random")
@data_options
def hit_rate(
    data: Path, task: str | None, prompts: Path | None, limit: int | None, join: int | None, **options: Any
) -> None:
    """Count, after each distillation, the tokens that scoring with the whole context would have kept as well.

    The questions of DATA are known while reading; contexts must fit into the model's window, since a full cache is read
    beside the pot. Writes hit-rate.jsonl and hit-rate.md into the folder --out.
    """
    if options["hidden"]:
        raise click.UsageError("--hidden has no meaning here: the question is what tokens are wanted for.")
    arms = parse_arms(options)
    from infinipot_llm.evaluation.hits import check_arm
    from infinipot_llm.evaluation.tables import hit_table

    for arm in arms:
        check_arm(arm)
    questions = Questions(data, task, prompts, limit, join)
    with open_rows(options["out"], "hit-rate.jsonl") as rows:
        llm = load(options, arms, questions.max_new_tokens)
        counting = Bench(llm, arms, rows, options, questions.templates)
        announce(counting, questions.cases)
        found = counting.count_hits(questions.cases, questions.prompts(llm.form))
    about = f"Hit rates, {data.name}: {describe(llm, options)}; run {run_name(found)}"
    write_report(options["out"] / "hit-rate.md", about, hit_table(found))
    click.echo(f"infinipot: {options['out'] / 'hit-rate.jsonl'} and hit-rate.md are written", err=True)


def plainest(name: str, options: dict[str, Any]) -> str:
    """Return the arm that an entry of a grid is: the plain policy, where its settings are those of the run."""
    from dataclasses import replace

    from infinipot_llm.evaluation.arms import parse_arm

    arm, known = parse_arm(name), not options["hidden"]
    plain = make_config(options, policy=arm.policy)
    changed = replace(plain, **dict(arm.changes))
    alike = replace(changed, agreement=changed.agreed(known)) == replace(plain, agreement=plain.agreed(known))
    same = alike and not arm.keeps_positions
    return arm.policy if same else name


def announce(bench: Bench, cases: Sequence[Case]) -> None:
    """Say how much is to be read for hit rates: every context once as a whole, and once by every arm."""
    from infinipot_llm.evaluation.runs import settings_digest

    which = settings_digest(bench.settings(), hidden=False)
    rates = readings = tokens = 0
    for case in cases:
        if left := sum(bench.rows.find(arm.name, case.key, which) is None for arm in bench.arms):
            rates += left
            readings += left + 1
            tokens += (left + 1) * len(bench.llm.form.codec.untrusted(case.context))
    before = len(cases) * len(bench.arms) - rates
    click.echo(
        f"infinipot: {rates} hit rates to count, for which {readings} contexts are read, {tokens:,} tokens in all"
        + (f"; {before} were counted before" if before else ""),
        err=True,
    )


def ask(questions: Questions, arms: list[Arm], name: str, options: dict[str, Any]) -> None:
    """Ask questions of arms, and write NAME.jsonl and NAME.md."""
    if options["hidden"]:
        questions.check_hidden()
    with open_rows(options["out"], f"{name}.jsonl") as rows:
        llm = load(options, arms, questions.max_new_tokens)
        found = Bench(llm, arms, rows, options, questions.templates).run(questions.cases, **questions.asked(llm.form))
    report(options["out"] / f"{name}.md", f"{questions.name}: {describe(llm, options)}", found, options["base"])
    click.echo(f"infinipot: {options['out'] / name}.jsonl and {name}.md are written", err=True)
