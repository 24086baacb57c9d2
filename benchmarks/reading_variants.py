"""Variants of running a model on a CPU, for reading.py: dtypes, threads, chunk sizes, int8, compiled."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from statistics import median

import torch
from reading_tools import Row, Subject, decode_ours

from infinipot_llm.models.adapter import Adapter
from infinipot_llm.pot.novelty import surprise
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader, ReadStats


@dataclass(frozen=True)
class Variant:
    """One way to run the model on a CPU.

    Attributes:
        name: As the table calls it.
        dtype: Of the weights.
        threads: Of torch.
        chunk: Tokens per forward.
        novelty_share: As in PotConfig.
        change: What is done to the loaded model; see `change`.
    """

    name: str
    dtype: str
    threads: int
    chunk: int
    novelty_share: float
    change: str = ""


def variants(base: Variant, cores: int) -> list[Variant]:
    """Return the first line and all others, each with one thing changed."""
    found = [base]
    found += [replace(base, name=f"{n} threads", threads=n) for n in range(1, cores + 1) if n != base.threads]
    found += [replace(base, name=f"chunks of {n}", chunk=n) for n in (128, 256, 512, 1024, 2048) if n != base.chunk]
    found += [replace(base, name="no novelty", novelty_share=0.0)]
    found += [replace(base, name=d, dtype=d) for d in ("float32", "bfloat16") if d != base.dtype]
    found += [
        replace(base, name=f"{base.dtype}, {said}", change=name)
        for name, said in (
            ("plain", "weights as torch has them, not laid out"),
            ("torchao", "int8 layers by torchao"),
            ("torchao-head", "int8 layers and output head by torchao"),
            ("dynamic", "int8 layers by torch.ao.quantization.quantize_dynamic (deprecated)"),
            ("compile", "MLPs by torch.compile"),
        )
    ]
    return found


class Skipped(Exception):  # noqa: N818 - nothing failed
    """A variant that cannot be tried here; the sentence says why."""


def change(adapter: Adapter, how: str) -> None:
    """Quantise or compile a model in place; its weights are plain then, not laid out.

    Raises:
        Skipped: What that needs is not installed.
    """
    if how:
        adapter.unpack()
    if how.startswith("torchao"):
        try:
            from torchao.quantization import (  # type: ignore[import-not-found,unused-ignore]
                Int8DynamicActivationInt8WeightConfig,
                quantize_,
            )
        except ImportError as error:
            raise Skipped("torchao is not installed: pip install torchao, and run this again.") from error
        quantize_(adapter.backbone, Int8DynamicActivationInt8WeightConfig())
        if how == "torchao-head":
            quantize_(torch.nn.ModuleList([adapter.head]), Int8DynamicActivationInt8WeightConfig())
    elif how == "dynamic":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, as the table says
            try:
                torch.ao.quantization.quantize_dynamic(adapter.backbone, {torch.nn.Linear}, torch.qint8, inplace=True)
            except (RuntimeError, AttributeError) as error:
                raise Skipped(f"this torch cannot do it: {str(error).splitlines()[0]}") from error
    elif how == "compile":
        for layer in adapter.backbone.layers:  # type: ignore[union-attr]
            layer.mlp.compile(dynamic=True)


class _OutOfTime(Exception):  # noqa: N818
    pass


def speed(subject: Subject, tokens: int, new: int, how: str = "", limit: float = float("inf")) -> Row:
    """Read a text and decode over it in one variant; threads and dtype are those of the process.

    Args:
        subject: Model, chunk and novelty.
        tokens: Of the text.
        new: Tokens of the answer.
        how: See `change`.
        limit: Seconds after which reading stops; the row says so.
    """
    adapter = subject.adapter
    try:
        change(adapter, how)
        for length in (subject.config.chunk, subject.config.chunk // 2 + 1, 1):  # warm up; a compiler compiles now
            adapter.forward(torch.from_numpy(subject.text(length).ids.astype("int64")), adapter.new_cache(length))
    except Skipped as why:
        return {"skipped": str(why)}
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        return {"skipped": f"it fails here ({type(error).__name__}: {str(error).strip().splitlines()[0][:120]})"}
    last = ReadStats(tokens)

    def told(stats: ReadStats) -> None:
        nonlocal last
        last = stats
        if stats.seconds > limit and stats.tokens_read < tokens:
            raise _OutOfTime

    pot: Pot | None = None
    try:
        pot, last = Reader(adapter, subject.config).read(
            subject.text(tokens), subject.prefix, subject.catalysts, subject.reserve, progress=told
        )
    except _OutOfTime:
        pot = subject.filled(min(last.slots, subject.plan().room))
    question = subject.catalysts[0][: subject.reserve - new]
    times = decode_ours(subject, pot, question, new)
    continued = torch.from_numpy(subject.text(tokens + 257).ids[tokens:].astype("int64"))[: pot.budget - pot.length]
    with pot.scratch():
        hidden = adapter.forward(continued[:-1], pot.cache)
        nll = float(surprise(adapter, hidden, continued[1:]).mean())
    return {
        "tokens_read": last.tokens_read,
        "cycles": last.cycles,
        "read_tokens_per_second": round(last.tokens_per_second, 2),
        "decode_tokens_per_second": round(1.0 / median(times), 2),
        "nll": round(nll, 4),
    }
