"""Answers to questions that were hidden while reading: recall beside the full cache, the pot alone, and retrieval.

    python benchmarks/followup.py read    --data DIR --memories DIR [--samples A4,m16]     # read once, save
    python benchmarks/followup.py recall  --data DIR --memories DIR --out rows.jsonl       # passages found; no decoding
    python benchmarks/followup.py rounds  --data DIR --memories DIR --out rows.jsonl       # the same, looking twice
    python benchmarks/followup.py answers --data DIR --memories DIR --out rows.jsonl --arms recall-512,full [--limit 40]
    python benchmarks/followup.py report  --out rows.jsonl [--base best-1024] [--data DIR]  # DIR: lengths, too

One state per document serves all its questions; nothing of a question is known while reading (arm `catalyst` is the
exception, and says so). All arms use the same model, prompt, greedy decoding and answer length. Rows are appended to
--out, and what is there already is not run again.

Arms are listed in followup_arms.py; the tables are made in followup_report.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import followup_data as data
import numpy as np
import reform
import retrievers
import torch
from followup_arms import ANSWER_TOKENS, ROOM, Asked, Ranges
from followup_report import FOUND_AT, report, report_lengths

from infinipot_llm import Document, InfiniPot
from infinipot_llm.answering.decode import Sampling, decode
from infinipot_llm.errors import BudgetError
from infinipot_llm.evaluation.metrics import contains
from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import fill, in_order, pot_of_text, text_slots

STORY_TOKENS = 96
"""Of answers about a whole story, whose references are paragraphs."""
STORY_WISH = " Answer in several sentences."
"""Behind a question about a whole story: the usual prompt asks for a few words."""


class Bench:
    """A model, the samples, and what was read of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.samples = data.load(args.data) | {story.name: story for story in data.squality(args.data)}
        self.llm = InfiniPot.from_pretrained(args.model, dtype=args.dtype)
        adapter = self.llm.adapter
        layers, query_heads = adapter.layers, int(adapter.config.num_attention_heads)
        if args.heads == "uncalibrated":
            self.llm.heads = Heads.default(layers, query_heads)
        elif args.heads == "all":
            every = tuple((layer, head) for layer in range(layers) for head in range(query_heads))
            self.llm.heads = Heads(every, (1.0,) * len(every), calibrated=True)  # words count as they do beside a list

    def memory(self, name: str) -> DocumentMemory:
        return self.llm.load(self.args.memories / f"{name}.infinipot")

    @cached_property
    def reform_heads(self) -> list[tuple[int, int]]:
        """KV heads that gather, chosen on a document of which nothing is asked here."""
        chosen = reform.choose_heads(self.memory("cal"), self.samples["cal"].questions)
        print(f"reform: (layer, KV head) {chosen}", flush=True)
        return chosen


def read(bench: Bench) -> None:
    for name in bench.args.samples:
        bench.llm.config = replace(bench.llm.config, shelf=bench.args.shelf)
        memory = bench.llm.read(Document.from_text(bench.samples[name].text, name=name))
        memory.save(bench.args.memories / f"{name}.infinipot")
        ratio = memory.nbytes / (len(memory.text) * _cache_bytes(bench.llm))
        print(
            f"{name}: {memory}, {memory.stats.tokens_per_second:.0f} tokens/s, {ratio:.3f} of an fp16 cache", flush=True
        )


def _cache_bytes(llm: InfiniPot) -> int:
    """Bytes per token of a plain fp16 cache."""
    c = llm.adapter.config
    return 4 * llm.adapter.layers * int(c.num_key_value_heads) * int(llm.adapter.attentions[0].head_dim)


def recall(bench: Bench) -> Iterator[dict[str, Any]]:
    """Say for every question at which number of recalled tokens its gold passages are all there.

    Of a memory whose shelf holds all keys the same is said of REFORM-like gathering.
    """
    for name in bench.args.samples:
        asked = Asked(bench, name)
        for number, question in list(enumerate(asked.sample.questions))[:: bench.args.every]:
            ask = question.question
            if (name, number, "gold-recall") not in bench.done:
                started = time.perf_counter()
                scores = asked.memory.finder.scores(bench.llm.form.question(ask), ask)
                seconds = time.perf_counter() - started
                finder = asked.memory.finder
                found = {b: [(p.start, p.end) for p in finder.best(scores, b)] for b in FOUND_AT}
                yield _found(asked, number, "gold-recall", found, seconds=seconds)
                found = {b: [(p.start, p.end) for p in fill(finder.spans, finder.cuts, scores, b)] for b in FOUND_AT}
                yield _found(asked, number, "spans-recall", found)
            if asked.memory.finder.shelf.segments[0].layout.whole and (name, number, "reform-recall") not in bench.done:
                found = {b: asked.gathered(ask, b) for b in FOUND_AT}
                yield _found(asked, number, "reform-recall", found)


def _found(
    asked: Asked, number: int, way: str, ranges: dict[int, list[tuple[int, int]]], **more: Any
) -> dict[str, Any]:
    question = asked.sample.questions[number]
    found = {b: question.is_covered(retrievers.characters(asked.text, some)) for b, some in ranges.items()}
    return _row(asked, number, way, found=found, **more)


def rounds(bench: Bench) -> Iterator[dict[str, Any]]:
    """Say the same where half of the tokens are found by the question, and the others with what the first half told.

    `draft`: question and a short answer from the first half are looked for; `passage`: question and the best passage.
    """
    for name in bench.args.samples:
        asked = Asked(bench, name)
        for number, question in enumerate(asked.sample.questions):
            for how in ("draft", "passage"):
                if question.kind not in bench.args.kinds or (name, number, f"rounds-{how}") in bench.done:
                    continue
                started = time.perf_counter()
                found = {
                    budget: question.is_covered(
                        retrievers.characters(asked.text, twice(asked, question.question, budget, how))
                    )
                    for budget in (256, 512, 1024)
                }
                seconds = time.perf_counter() - started
                yield _row(asked, number, f"rounds-{how}", found=found, seconds=round(seconds, 2))


def twice(asked: Asked, question: str, budget: int, how: str) -> Ranges:
    """Return what two rounds bring back: half of the budget by the question, the rest by what that told as well."""
    finder, setup = asked.memory.finder, asked.memory.setup
    spans, form = finder.spans, asked.llm.form
    first = in_order(asked.text, finder.find(form.question(question), question, budget // 2).passages, "best")
    if how == "draft":
        slots = setup.prefix[0].shape[2] + text_slots(setup, asked.text, first) + ROOM
        pot = pot_of_text(setup, asked.text, first, slots)
        said = decode(asked.llm.adapter, form.codec, pot, form.question(question), Sampling(ANSWER_TOKENS)).text
    else:
        said = asked.text.span(first[0].start, first[0].end).text
    more = f"{question} {said}"
    scores = finder.scores(form.question(more), more)
    kept = [np.arange(*np.searchsorted(spans.starts, (p.start, p.end))) for p in first]
    scores[np.concatenate(kept)] += 1e6  # what was found stays
    return [(p.start, p.end) for p in fill(spans, finder.cuts, scores, budget)]


def answers(bench: Bench) -> Iterator[dict[str, Any]]:
    for arm in bench.args.arms:
        for name in bench.args.samples:
            asked: Asked | None = None
            for number, question in data.drawn(bench.samples, name, bench.args.limit):
                if (name, number, arm) in bench.done:
                    continue
                asked = asked or Asked(bench, name)
                started = time.perf_counter()
                pot = asked.pot_for(arm, question)
                ready = time.perf_counter()
                story = question.kind == "squality"
                form, limit = bench.llm.form, STORY_TOKENS if story else ANSWER_TOKENS
                behind = form.question(question.question + (STORY_WISH if story else ""))
                said = decode(bench.llm.adapter, form.codec, pot, behind, Sampling(limit))
                yield _row(
                    asked, number, arm, question=question, tokens=len(said.ids), slots=pot.length,
                    words=len(said.text.split()),
                    seconds=round(time.perf_counter() - started, 2), prepared=round(ready - started, 2),
                    contains=contains(said.text, question.answers),
                    f1=round(data.f1(said.text, question.answers), 4),
                )  # fmt: skip


def _row(asked: Asked, number: int, arm: str, question: data.Question | None = None, **values: Any) -> dict[str, Any]:
    question = question or asked.sample.questions[number]
    return {
        "sample": asked.sample.name, "number": number, "arm": arm, "kind": question.kind, "group": question.group,
        "model": Path(asked.llm.name).name, "dtype": str(asked.llm.adapter.dtype).removeprefix("torch."), **values,
    }  # fmt: skip


def check_same(rows: Sequence[dict[str, Any]], model: str, dtype: str, path: Path) -> None:
    """Refuse to add to rows of another model or precision, or of one that they do not tell."""
    of_rows = {(row.get("model") or "an unknown model", row.get("dtype") or "an unknown precision") for row in rows}
    if other := of_rows - {(model, dtype)}:
        raise SystemExit(
            f"{path} holds rows of {' in '.join(min(other))}, these are of {model} in {dtype}: give another --out."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["read", "recall", "rounds", "answers", "report"])
    parser.add_argument("--data", type=Path, help="folder with qa/")
    parser.add_argument("--memories", type=Path, help="folder for saved memories")
    parser.add_argument("--embeddings", type=Path, help="folder with all-MiniLM-L6-v2, for the arms minilm and fused")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--samples", type=lambda s: s.split(","), default=["A4", "B4", "x8", "n8", "m16", "m30"])
    parser.add_argument("--arms", type=lambda s: s.split(","), default=["recall-512", "full"])
    parser.add_argument("--limit", type=int, default=1000, help="questions per sample; of A4 and B4 together")
    parser.add_argument("--every", type=int, default=1, help="`recall` asks each question of so many")
    parser.add_argument(
        "--kinds", type=lambda s: s.split(","), default=["xquad", "nq", "hotpot"], help="which questions `rounds` asks"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--shelf", default="int8", help="what `read` keeps; arms load and reform need all keys and values"
    )
    parser.add_argument(
        "--heads",
        choices=["known", "uncalibrated", "all"],
        default="known",
        help="retrieval heads that `read` reads for: the model's list, those of a model without one, "
        "or every head of every layer",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", default="best-1024", help="the arm that others are compared with")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out and args.out.exists() else []
    if args.what == "report":
        report(rows, args.base)
        if args.data is not None:
            report_lengths(rows, args.data)
        return
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    check_same(rows, Path(args.model).name, str(bench.llm.adapter.dtype).removeprefix("torch."), args.out)
    bench.done = {(r["sample"], r["number"], r["arm"]) for r in rows}
    if args.what == "read":
        read(bench)
        return
    with args.out.open("a") as out:
        try:
            for row in {"recall": recall, "rounds": rounds, "answers": answers}[args.what](bench):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                out.flush()
        except BudgetError as error:  # of an arm: a full cache beyond the window
            raise SystemExit(f"{error}") from error


if __name__ == "__main__":
    main()
