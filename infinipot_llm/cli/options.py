"""Options that several commands share, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from infinipot_llm.config import POLICIES
from infinipot_llm.models.catalogue import DEFAULT_MODEL


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that loads a model."""
    for option in (
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="auto: bf16 where it is faster, which is tried out on a CPU. A memory belongs to its dtype.",
        ),
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
        click.option(
            "--policy",
            type=click.Choice(POLICIES),
            default="infinipot",
            show_default=True,
            help="What says which tokens the cache keeps while reading.",
        ),
        click.option(
            "--novelty-share",
            type=float,
            help="Share of the kept slots that novelty chooses.  [default: 0.5]",
        ),
        click.option(
            "--agreement",
            type=float,
            help="Share of the kept slots for what all heads want most.  [default: 0.25 for a known question, else 0]",
        ),
        click.option("--neighbours", type=int, help="Tokens on each side that a high score also keeps.  [default: 8]"),
        click.option("--kept", type=float, help="Share of the slots that a distillation keeps.  [default: 0.5]"),
        click.option("--budget", type=int, help="Slots of the cache, in tokens, everything counted.  [default: 4096]"),
    ):
        command = option(command)
    return command


def shelf_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what reading leaves on disk."""
    for option in (
        click.option("--shelf-bytes", type=int, help="Most bytes of the shelf; the least telling passages give way."),
        click.option(
            "--shelf",
            type=click.Choice(["keys", "int8", "int4", "off"]),
            default="keys",
            show_default=True,
            help="What is kept on disk of every token for later questions.",
        ),
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
        click.option(
            "--recall",
            type=int,
            help="Tokens that a question brings back.  [default: 256; about 1 billion parameters and more: 1024]",
        ),
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
        click.option("--no-store", is_flag=True, help="Keep nothing: what is read goes when the command ends."),
        click.option("--fresh", is_flag=True, help="Read again, although the store has a memory of these files."),
    ):
        command = option(command)
    return command


_KNOBS = (
    "budget", "kept", "novelty_share", "agreement", "neighbours", "policy", "shelf", "shelf_bytes", "recall",
    "followup", "max_new_tokens",
)  # fmt: skip


def make_config(options: dict[str, Any], **more: Any) -> Any:
    """Return the PotConfig that the options of a command ask for."""
    from infinipot_llm.config import PotConfig

    given = {name: options[name] for name in _KNOBS if options.get(name) is not None}
    return PotConfig(**{**given, **more})


def check_answering(options: dict[str, Any]) -> None:
    """Refuse options of answering that are wrong, or would do nothing, before a document is read for them."""
    if options["temperature"] == 0:
        for name, usual in (("seed", None), ("top_p", 1.0)):
            if options[name] != usual:
                option = f"--{name.replace('_', '-')}"
                raise click.UsageError(
                    f"{option} has no effect on greedy decoding: give a --temperature above 0 with it."
                )
    if options["followup"] == "recall" and options["shelf"] == "off":
        raise click.UsageError("without a shelf nothing can be recalled: leave out --shelf off or --followup recall.")
    if options["recall"] is not None and (options["followup"] in ("reuse", "reread") or options["shelf"] == "off"):
        raise click.UsageError("--recall has no effect where nothing is recalled: leave it out, or answer by recall.")
    from infinipot_llm.answering.decode import Sampling

    Sampling(options["max_new_tokens"], options["temperature"], options["top_p"], options["stop"], options["seed"])
