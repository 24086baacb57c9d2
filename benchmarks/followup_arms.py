"""The arms of followup.py: the pot that each answers a question from.

Arms, B being tokens:
    best-B        what `DocumentMemory.ask` does: our passages, their text read again, the best first
    recall-B      the same passages in the order of the text
    spans-B       best-B without whole sentences: the spans as they are scored, 32 tokens each
    load-B        our passages, loaded from the shelf as they were when the document was read
    loaded-B      the same, in the order and with the marks between them of best-B
    first-B       loaded-B, the first tokens of each passage computed again (repair.py)
    asked-B       loaded-B, the tokens that the question attends to most computed again
    joined-B      recall-B without anything between the passages
    pot           what distillation kept          pot-load-B    both in one pot
    full          everything in the cache         streaming-B   StreamingLLM: the first and the last tokens
    bm25-B, minilm-B, fused-B                     chunks of 128 tokens, read in the order of the text
    bm25best-B, minilmbest-B, fusedbest-B         the same, the best first
    reform-B      tokens whose keys are like the question's, gathered and read (reform.py; heads chosen on `cal`)
    truncate-B    first and last half of B, read  gold-B        the gold spans and what is around them, read
    closed        no document                     catalyst      the document read with the question known, one by one
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import followup_data as data
import reform
import repair
import retrievers
import torch

from infinipot_llm.memory.recall import fill, in_order, pot_of_text, question_pot, text_slots
from infinipot_llm.pot.pot import PREFIX, Pot
from infinipot_llm.pot.reader import Reader

ANSWER_TOKENS = 24
ROOM = 256
"""Slots for a question and its answer, in every pot that is made here but that of `catalyst`."""

Ranges = Sequence[tuple[int, int]]


class Asked:
    """One sample being asked, with everything that the arms share; `bench` is followup.py's."""

    def __init__(self, bench: Any, name: str) -> None:
        self.bench = bench
        self.llm = bench.llm
        self.embeddings = bench.args.embeddings
        self.sample = bench.samples[name]
        self.memory = bench.memory(name)
        self.text = self.memory.text
        self._again: tuple[list[tuple[int, int]], Pot] | None = None
        self._streaming: Pot | None = None

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
        """Prefix and the text of some ranges, forwarded as if they were the document; the same as before only once."""
        if self._again is not None and self._again[0] == list(ranges):
            return self._again[1]
        ids = [*self.llm.form.prefix, *(int(i) for a, b in ranges for i in self.text.ids[a:b])]
        pot = Pot(self.llm.adapter, len(ids) + ROOM)
        with self.llm.adapter.lock:
            for start in range(0, len(ids), 512):
                self.llm.adapter.forward(torch.tensor(ids[start : start + 512]), pot.cache)
        pot.record(torch.full((len(ids),), PREFIX))
        self._again = list(ranges), pot
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
            "minilmbest": lambda: best_first(self.chunks, self.minilm.rank(ask), budget),
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
        if kind in ("loaded", "first", "asked"):
            setup, asked = self.memory.setup, self.llm.form.question(ask)
            found = in_order(self.text, self.memory.finder.find(asked, ask, budget).passages, "best")
            slots = setup.prefix[0].shape[2] + text_slots(setup, self.text, found) + ROOM
            place = partial(repair.loaded, setup, self.text, self.memory.finder.shelf, found, slots)
            with setup.adapter.lock:
                if kind == "first":
                    return place(repair.first_tokens(found))
                pot = place(frozenset())
                return pot if kind == "loaded" else place(repair.most_asked(setup, pot, asked))
        if kind == "pot-load":
            return self.pot_and_passages(ask, budget)
        if kind == "pot":
            return self.memory.pot
        if kind == "full":
            return self.full
        if kind == "streaming":
            if self._streaming is None:
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


def best_first(units: Ranges, scores: Any, budget: int) -> list[tuple[int, int]]:
    """Return what `retrievers.fill` takes, the range with the best unit first."""
    found = retrievers.fill(units, scores, budget)
    best = [max(scores[i] for i, (a, b) in enumerate(units) if a < end and start < b) for start, end in found]
    return [found[i] for i in sorted(range(len(found)), key=lambda i: -best[i])]
