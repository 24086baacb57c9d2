"""What a follow-up question costs, by the length of the document: time to first token and memory.

    python benchmarks/recall_cost.py --text FILE --out benchmarks/results/recall-cost.jsonl [--lengths 8192,131072]

The beginning of --text (4,096 tokens) is read for real, and timed. Longer documents repeat its keys, values and text:
what a question costs depends on how many tokens are on the shelf, not on what they say. Each length is asked in a fresh
process (three questions, after one that fills the caches), which notes its anonymous memory (RssAnon, Linux) before the
memory is opened and its peak while answering.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infinipot_llm import Document, InfiniPot
from infinipot_llm.memory import saved
from infinipot_llm.memory.file import Draft
from infinipot_llm.memory.scoring import NO_CONTENT, null_scores
from infinipot_llm.memory.shelf import Segment, Shelf, ShelfWriter
from infinipot_llm.models.resources import NOT_TOLD, memory_taken
from infinipot_llm.models.text import TokenizedText

READ = 4096
QUESTIONS = ("Who is named first?", "When did it happen?", "How much did it cost?", "What was decided?")


def read(llm: InfiniPot, text: str) -> tuple[Any, float]:
    """Read the beginning of a text; return its memory and the tokens per second."""
    whole = llm.form.codec.document((Document.from_text(text),))
    end = int(whole.ends[min(READ, len(whole)) - 1])
    config, llm.config = llm.config, replace(llm.config, shelf="int8")  # its keys and values are to be repeated
    memory = llm.read(Document.from_text(text[:end]))
    llm.config = config
    return memory, memory.stats.tokens_per_second


def stretch(llm: InfiniPot, memory: Any, tokens: int, target: Path) -> None:
    """Write a memory of `tokens` tokens that repeats another."""
    short = len(memory.text)
    setup = llm.setup  # as a user has it: only the keys on the shelf
    times = -(-tokens // short)
    document = memory.documents[0]
    shelf = memory.finder.shelf
    draft = Draft(target)
    writer = ShelfWriter(draft, setup.layout, normal=shelf.normal)
    for _ in range(times):
        for start in range(0, short, 512):
            writer.take(start, *shelf.load(start, min(start + 512, short)))
    writer.finish()
    gap = len(document.text) + 2
    text = TokenizedText(
        (Document.from_text("\n\n".join([document.text] * times)),),
        np.tile(memory.text.ids, times),
        np.concatenate([memory.text.starts + i * gap for i in range(times)]).astype(np.int32),
        np.concatenate([memory.text.ends + i * gap for i in range(times)]).astype(np.int32),
        np.asarray([0, short * times], np.int64),
    )
    written = Shelf([Segment(draft, setup.layout, setup.adapter.device)])
    nothing = [setup.form.question(q) for q in NO_CONTENT]
    null = null_scores(setup.adapter, setup.prefix, nothing, written, setup.heads)
    saved.write_rest(draft, setup, text, memory.stats, memory.pot, null)


def ask(path: Path, model: str, recall: int | None) -> dict[str, Any]:
    """Open a memory and ask it; what the parent prints of it."""
    torch.set_num_threads(2)
    llm = InfiniPot.from_pretrained(model)
    warm = llm.read(Document.from_text("A line of text, read so that the libraries have what they need. " * 40))
    warm.ask("What is it?", max_new_tokens=4, citations=False)
    with memory_taken(torch.device("cpu")) as taken:
        started = time.perf_counter()
        memory = llm.load(path)
        opened = time.perf_counter() - started
        usages = [memory.ask(q, max_new_tokens=8, citations=False, recall=recall).usage for q in QUESTIONS]
        seconds = [usage.first_token_seconds for usage in usages]
    if taken.before is None or taken.peak is None:
        raise SystemExit(NOT_TOLD)
    return {
        "tokens": len(memory.text),
        "bytes": memory.nbytes,
        "recalled_tokens": usages[-1].recalled_tokens,
        "open_seconds": round(opened, 2),
        "first_question_seconds": round(seconds[0], 2),
        "first_token_seconds": round(float(np.median(seconds[1:])), 3),
        "rss_anon_before_mb": round(taken.before / 1e6, 1),
        "rss_anon_peak_mb": round(taken.peak / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="any text of at least 4,096 tokens")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument(
        "--lengths", type=lambda s: [int(x) for x in s.split(",")], default=[8192, 10240, 32768, 131072, 204800]
    )
    parser.add_argument("--recall", type=int, help="tokens that a question brings back")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        print(json.dumps(ask(args.ask, args.model, args.recall)))
        return
    torch.set_num_threads(2)
    llm = InfiniPot.from_pretrained(args.model)
    memory, speed = read(llm, args.text.read_text(encoding="utf-8"))
    print(f"read at {speed:.0f} tokens/s", flush=True)
    for length in args.lengths:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "long.infinipot"
            stretch(llm, memory, length, path)
            command = [sys.executable, __file__, "--ask", str(path), "--model", args.model]
            command += ["--recall", str(args.recall)] if args.recall else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = {**json.loads(done.stdout.splitlines()[-1]), "read_tokens_per_second": round(speed, 1)}
        row["times_faster_than_reading"] = round(row["tokens"] / speed / row["first_token_seconds"], 1)
        print(json.dumps(row), flush=True)
        if args.out:
            with args.out.open("a") as out:
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
