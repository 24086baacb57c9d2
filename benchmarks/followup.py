"""Answers to questions that were hidden while reading: recall beside the full cache, the pot alone, and retrieval.

    python benchmarks/followup.py read    --data DIR --memories DIR [--samples A4,m16]     # read once, save
    python benchmarks/followup.py recall  --data DIR --memories DIR --out rows.jsonl       # passages found; no decoding
    python benchmarks/followup.py rounds  --data DIR --memories DIR --out rows.jsonl       # the same, looking twice
    python benchmarks/followup.py answers --data DIR --memories DIR --out rows.jsonl --arms recall-512,full [--limit 40]
    python benchmarks/followup.py report  --out rows.jsonl [--base best-1024]

One state per document serves all its questions; nothing of a question is known while reading (arm `catalyst` is the
exception, and says so). All arms use the same model, prompt, greedy decoding and answer length. Rows are appended to
--out, and what is there already is not run again.

Arms, B being tokens:
    best-B        what `DocumentMemory.ask` does: our passages, their text read again, the best first
    recall-B      the same passages in the order of the text
    spans-B       best-B without whole sentences: the spans as they are scored, 32 tokens each
    load-B        our passages, loaded from the shelf as they were when the document was read
    joined-B      recall-B without anything between the passages
    pot           what distillation kept          pot-load-B    both in one pot
    full          everything in the cache         streaming-B   StreamingLLM: the first and the last tokens
    bm25-B, minilm-B, fused-B                     chunks of 128 tokens, read in the order of the text
    bm25best-B, fusedbest-B                       the same, the best first
    reform-B      tokens whose keys are like the question's, gathered and read (reform.py; heads chosen on `cal`)
    truncate-B    first and last half of B, read  gold-B        the gold spans and what is around them, read
    closed        no document                     catalyst      the document read with the question known, one by one
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import followup_data as data
import numpy as np
import reform
import retrievers
import torch

from infinipot_llm import Document, InfiniPot
from infinipot_llm.answering.decode import Sampling, decode
from infinipot_llm.errors import BudgetError
from infinipot_llm.evaluation.metrics import contains
from infinipot_llm.evaluation.statistics import paired, share
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import fill, in_order, pot_of_text, question_pot, text_slots
from infinipot_llm.pot.pot import PREFIX, Pot
from infinipot_llm.pot.reader import Reader

ANSWER_TOKENS = 24
STORY_TOKENS = 96
"""Of answers about a whole story, whose references are paragraphs."""
STORY_WISH = " Answer in several sentences."
"""Behind a question about a whole story: the usual prompt asks for a few words."""
ROOM = 256
"""Slots for a question and its answer, in every pot that is made here but that of `catalyst`."""

FOUND_AT = (256, 512, 1024, 2048)
"""Recalled tokens at which `recall` looks for the gold passages."""

Ranges = Sequence[tuple[int, int]]


class Bench:
    """A model, the samples, and what was read of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.samples = data.load(args.data) | {story.name: story for story in data.squality(args.data)}
        self.llm = InfiniPot.from_pretrained(args.model, dtype=args.dtype)

    def memory(self, name: str) -> DocumentMemory:
        return self.llm.load(self.args.memories / f"{name}.infinipot")

    @cached_property
    def reform_heads(self) -> list[tuple[int, int]]:
        """KV heads that gather, chosen on a document of which nothing is asked here."""
        chosen = reform.choose_heads(self.memory("cal"), self.samples["cal"].questions)
        print(f"reform: (layer, KV head) {chosen}", flush=True)
        return chosen


class Asked:
    """One sample being asked, with everything that the arms share."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench = bench
        self.llm = bench.llm
        self.embeddings = bench.args.embeddings
        self.sample = bench.samples[name]
        self.memory = bench.memory(name)
        self.text = self.memory.text

    @cached_property
    def full(self) -> Pot:
        """Everything in the cache, read in the same chunks; what is beyond the model's window is refused."""
        budget = len(self.text) + len(self.llm.form.prefix) + ROOM
        return self._read(replace(self.llm.config, budget=budget, policy="full", shelf="off"))

    def streaming(self, budget: int) -> Pot:
        slots = budget + len(self.llm.form.prefix) + ROOM
        return self._read(replace(self.llm.config, budget=slots, policy="streaming", kept=0.9, shelf="off"))

    def _read(self, config: Any, catalyst: Sequence[int] = (0,), reserve: int = ROOM, *, known: bool = False) -> Pot:
        started = time.perf_counter()
        pot, _ = Reader(self.llm.adapter, config, known=known).read(
            self.text, self.llm.form.prefix, [catalyst], reserve
        )
        print(f"read {len(self.text)} tokens in {time.perf_counter() - started:.0f} s", flush=True)
        return pot

    @cached_property
    def chunks(self) -> Ranges:
        return retrievers.chunks(self.text, 128)

    @cached_property
    def bm25(self) -> Any:
        return retrievers.BM25(retrievers.unit_texts(self.text, self.chunks))

    @cached_property
    def minilm(self) -> Any:
        texts = retrievers.unit_texts(self.text, self.chunks)
        return retrievers.Embeddings(retrievers.MiniLM(self.embeddings), texts)

    @cached_property
    def fused(self) -> Any:
        return retrievers.Fused(self.bm25, self.minilm)

    @cached_property
    def gathering(self) -> reform.Gathering:
        return reform.Gathering(self.memory, self.bench.reform_heads)

    def gathered(self, question: str, budget: int) -> Ranges:
        """The tokens of the text that REFORM-like ranking takes, those that touch together."""
        tokens = [(int(t), int(t) + 1) for t in self.memory.finder.shelf.tokens]
        return retrievers.fill(tokens, self.gathering.rank(question), budget)

    def passages(self, question: str, budget: int) -> Ranges:
        found = self.memory.finder.find(self.llm.form.question(question), question, budget).passages
        return [(p.start, p.end) for p in found]

    def gold(self, question: data.Question, budget: int) -> Ranges:
        """The gold spans and as much text around each as the budget allows."""
        gold = [self.text.tokens_in(0, a, b) for a, b in question.gold]
        around = (budget - sum(b - a for a, b in gold)) // (2 * len(gold))
        wide = sorted((max(0, a - around), min(len(self.text), b + around)) for a, b in gold)
        return _merged(wide)

    def read_again(self, ranges: Ranges) -> Pot:
        """Prefix and the text of some ranges, forwarded as if they were the document."""
        ids = [*self.llm.form.prefix, *(int(i) for a, b in ranges for i in self.text.ids[a:b])]
        pot = Pot(self.llm.adapter, len(ids) + ROOM)
        with self.llm.adapter.lock:
            for start in range(0, len(ids), 512):
                self.llm.adapter.forward(torch.tensor(ids[start : start + 512]), pot.cache)
        pot.record(torch.full((len(ids),), PREFIX))
        return pot

    def pot_and_passages(self, question: str, budget: int) -> Pot:
        """The pot with recalled passages behind it."""
        setup, pot = self.memory.setup, self.memory.pot
        slots = pot.length + budget + ROOM
        both = Pot(setup.adapter, slots)
        both.place(*pot.newest(pot.length), pot.origin)
        shelf = self.memory.finder.shelf
        for a, b in self.passages(question, budget):
            x, y = shelf.rows_of(a, b)
            both.place(*shelf.load(x, y), torch.arange(a, b))
        return both

    def pot_for(self, arm: str, question: data.Question) -> Pot:
        """Return the pot that an arm answers from."""
        kind, _, number = arm.rpartition("-") if arm[-1].isdigit() else (arm, "", "")
        budget = int(number or 0)
        ask = question.question
        again: dict[str, Callable[[], Ranges]] = {
            "joined": lambda: self.passages(ask, budget),
            "truncate": lambda: retrievers.truncate(len(self.text), budget),
            "bm25": lambda: retrievers.fill(self.chunks, self.bm25.rank(ask), budget),
            "minilm": lambda: retrievers.fill(self.chunks, self.minilm.rank(ask), budget),
            "fused": lambda: retrievers.fill(self.chunks, self.fused.rank(ask), budget),
            "bm25best": lambda: best_first(self.chunks, self.bm25.rank(ask), budget),
            "fusedbest": lambda: best_first(self.chunks, self.fused.rank(ask), budget),
            "reform": lambda: self.gathered(ask, budget),
            "gold": lambda: self.gold(question, budget),
            "closed": list,
        }
        if kind in again:
            return self.read_again(again[kind]())
        if kind in ("recall", "best", "spans"):
            setup, finder = self.memory.setup, self.memory.finder
            if kind == "spans":
                scores = finder.scores(self.llm.form.question(ask), ask)
                found = fill(finder.spans, finder.cuts, scores, budget)
            else:
                found = finder.find(self.llm.form.question(ask), ask, budget).passages
            found = in_order(self.text, found, "text" if kind == "recall" else "best")
            slots = setup.prefix[0].shape[2] + text_slots(setup, self.text, found) + ROOM
            return pot_of_text(setup, self.text, found, slots)
        if kind == "load":
            setup = self.memory.setup
            found = self.memory.finder.find(self.llm.form.question(ask), ask, budget).passages
            slots = len(setup.form.prefix) + budget + ROOM
            return question_pot(setup, self.memory.finder.shelf, found, slots)
        if kind == "pot-load":
            return self.pot_and_passages(ask, budget)
        if kind == "pot":
            return self.memory.pot
        if kind == "full":
            return self.full
        if kind == "streaming":
            if not hasattr(self, "_streaming"):
                self._streaming = self.streaming(budget)
            return self._streaming
        if kind == "catalyst":
            asked = self.llm.form.question(ask)
            return self._read(replace(self.llm.config, shelf="off"), asked, len(asked) + ANSWER_TOKENS, known=True)
        raise SystemExit(f"unknown arm {arm}")


def _merged(ranges: Ranges) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for a, b in ranges:
        if found and a <= found[-1][1]:
            found[-1] = (found[-1][0], max(b, found[-1][1]))
        else:
            found.append((a, b))
    return found


def read(bench: Bench) -> None:
    for name in bench.args.samples:
        bench.llm.config = replace(bench.llm.config, shelf="int8")  # for the arm load
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
        for number, question in enumerate(asked.sample.questions):
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
                if (name, number, f"rounds-{how}") in bench.done:
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
            for number, question in drawn(bench.samples, name, bench.args.limit):
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


def drawn(samples: dict[str, data.Sample], name: str, limit: int) -> list[tuple[int, data.Question]]:
    """Draw questions of a sample, the same ones whenever: (number among its questions, question).

    A4, B4, m16 and m30 are asked the same questions, so that lengths can be compared: `limit` is of A4 and B4 together.
    """
    nested = ("A4", "B4")
    if name in (*nested, "m16", "m30"):
        pool = [q.question for s in nested for q in samples[s].questions]
        chosen = [q for q in samples[name].questions if q.question in set(pool)]
    else:
        chosen = list(samples[name].questions)
        pool = [q.question for q in chosen]
    kept = set(sorted(pool, key=lambda text: (zlib.crc32(text.encode()), text))[:limit])
    return [(number, question) for number, question in enumerate(chosen) if question.question in kept]


def best_first(units: Ranges, scores: Any, budget: int) -> list[tuple[int, int]]:
    """Return what `retrievers.fill` takes, the range with the best unit first."""
    found = retrievers.fill(units, scores, budget)
    best = [max(scores[i] for i, (a, b) in enumerate(units) if a < end and start < b) for start, end in found]
    return [found[i] for i in sorted(range(len(found)), key=lambda i: -best[i])]


def _row(asked: Asked, number: int, arm: str, question: data.Question | None = None, **values: Any) -> dict[str, Any]:
    question = question or asked.sample.questions[number]
    return {
        "sample": asked.sample.name, "number": number, "arm": arm, "kind": question.kind, "group": question.group,
        "model": Path(asked.llm.name).name, "dtype": str(asked.llm.adapter.dtype).removeprefix("torch."), **values,
    }  # fmt: skip


def shown(found: tuple[float, float, float], mean_as: str = ".3f", ends_as: str = ".2f") -> str:
    """Return a mean and its interval, where there are sources enough for one."""
    mean, low, high = found
    between = "no interval" if np.isnan(low) else f"{low:{ends_as}}, {high:{ends_as}}"
    return f"{mean:{mean_as}} [{between}]"


def report(rows: list[dict[str, Any]], base: str = "best-1024") -> None:
    """Print both tables: gold passages found, and answers with paired differences to the base arm."""
    table: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        table.setdefault((row["sample"], row["arm"]), []).append(row)
    print("| sample | kind | found by | n | R@256 | R@512 | R@1,024 | R@2,048 |\n|---|---|---|---|---|---|---|---|")
    for (sample, arm), found in sorted(table.items()):
        if "found" in found[0]:
            for kind in sorted({r["kind"] for r in found}):
                some = [r for r in found if r["kind"] == kind]
                shares = [
                    shown(share([r["found"][b] for r in some], [r["group"] for r in some]))
                    if b in some[0]["found"]
                    else ""
                    for b in map(str, FOUND_AT)
                ]
                print(f"| {sample} | {kind} | {arm} | {len(some)} | " + " | ".join(shares) + " |")
    stories = tuple(sorted({sample for sample, _ in table if sample.startswith("squality")}))
    lengths = {
        "4K": ("A4", "B4"), "16K": ("m16",), "30K": ("m30",), "8K xquad": ("x8",), "8K nq": ("n8",),
        "30K hotpot": ("h30",), "stories": stories,
    }  # fmt: skip
    together = {"4K, 16K, 30K": ("A4", "B4", "m16", "m30"), "8K": ("x8", "n8")}
    answered = {arm for (_, arm), found in table.items() if "found" not in found[0]}
    arms = sorted(answered, key=lambda a: (a != base, a))
    print(f"\n| length | arm | n | contains | F1 | words | seconds | pairs | contains: {base} minus this | F1 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for length, samples in (lengths | together).items():
        by_arm = {a: {(s, r["number"]): r for s in samples for r in table.get((s, a), [])} for a in arms}
        for arm, found in by_arm.items():
            if not found or (length in together and {s for s, _ in found} < set(samples)):
                continue
            some = list(found.values())
            right = shown(share([r["contains"] for r in some], [r["group"] for r in some]))
            f1, words = (np.mean([r[name] for r in some]) for name in ("f1", "words"))
            both = [] if arm == base else [q for q in found if q in by_arm.get(base, {})]
            differences = [
                shown(paired(*([of[q][score] for q in both] for of in (by_arm[base], found)), groups), "+.3f", "+.3f")
                for score in ("contains", "f1")
                if (groups := [found[q]["group"] for q in both])
            ] or ["", ""]
            print(
                f"| {length} | {arm} | {len(some)} | {right} | {f1:.3f} | {words:.1f} "
                f"| {np.median([r['seconds'] for r in some]):.1f} | {len(both)} | {' | '.join(differences)} |"
            )


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
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", default="best-1024", help="the arm that others are compared with")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out and args.out.exists() else []
    if args.what == "report":
        report(rows, args.base)
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
