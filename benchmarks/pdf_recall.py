"""How much of what an answer needs is recalled, out of a real PDF: single facts, two places, lists, counts, summaries.

    python benchmarks/pdf_recall.py [--model NAME] [--device auto] [--dtype auto]

The sample report (39 pages) is read once, and found in the store after that; nothing is answered. Its questions are
those of hollin_valley.questions.jsonl (`page`) and hard_questions.jsonl. What is needed: one of a page's reference
answers; both facts of two places; the parts that a list or a summary should tell; every match of what is counted. Each
has to be recalled from its own page.

    score      the best spans until the budget is full, which is what the product does
    spread-N   of N sections of equal length the best span and those beside it come first, until half of the budget is
               taken; the rest by score
    even-N     the same until all of the budget is taken, with more and more spans beside: as much of each section
    twice      half of the budget by score; the rest by the score of question and best passage together
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from infinipot_llm import Document, DocumentMemory, InfiniPot, MemoryStore
from infinipot_llm.evaluation.statistics import share
from infinipot_llm.memory.recall import Passage, fill

DOCUMENTS = Path(__file__).resolve().parents[1] / "examples" / "documents"
REPORT = "hollin_valley"
BUDGETS = (256, 512, 1024, 2048, 3072)
WAYS = ("score", "spread-8", "spread-16", "spread-32", "even-8", "even-16", "twice")
BESIDE = 1
"""Spans on each side of a section's best one that come with it."""

Place = tuple[int, int, tuple[str, ...]]
"""First character and one past the last of where evidence may stand, and its wordings: any of them counts."""


def questions_of(report: str) -> list[dict[str, Any]]:
    """Return what is asked about a report."""
    single, hard = (
        [json.loads(line) for line in (DOCUMENTS / name).read_text(encoding="utf-8").splitlines()]
        for name in (f"{report}.questions.jsonl", "hard_questions.jsonl")
    )
    pages = [{**q, "kind": "page", "parts": [{"page": int(q["page"]), "any": q["answers"]}]} for q in single]
    return pages + [q for q in hard if q["document"] == report]


def evidence(question: dict[str, Any], document: Document) -> list[Place]:
    """Return where the evidence of a question stands."""
    if (counted := question.get("counted")) is not None:
        ranges = [(0, len(document.text))]
        if counted["within"] == "pages":
            ranges = [(document.pages[p - 1].start, document.pages[p - 1].end) for p in question["pages"]]
        pattern = re.compile(counted["pattern"], re.MULTILINE)
        found = [match for start, end in ranges for match in pattern.finditer(document.text, start, end)]
        return [(match.start(), match.end(), (match.group(),)) for match in found]
    parts = question.get("parts") or [{"page": fact["page"], "any": [fact["text"]]} for fact in question["facts"]]
    pages = [document.pages[part["page"] - 1] for part in parts]
    return [(page.start, page.end, tuple(part["any"])) for page, part in zip(pages, parts, strict=True)]


def told(memory: DocumentMemory, passages: Sequence[Passage], place: Place) -> bool:
    """Say whether evidence is among the passages."""
    first, last, wordings = place
    for span, _ in memory.spans(passages):
        start, end = max(span.start, first), min(span.end, last)
        text = plain(memory.documents[0].text[start:end]) if start < end else ""
        if any(plain(words) in text for words in wordings):
            return True
    return False


def plain(text: str) -> str:
    """Return a text without what line breaks and capitals change."""
    return " ".join(text.casefold().split())


def choose(memory: DocumentMemory, question: str) -> Iterator[tuple[str, int, list[Passage]]]:
    """Yield the passages of every way of choosing, for every budget."""
    finder, form = memory.finder, memory.setup.form
    scores = finder.scores(form.question(question), question).cpu()
    for budget in BUDGETS:
        for way in WAYS:
            kind, _, number = way.partition("-")
            if kind == "score":
                changed = scores
            elif kind == "twice":
                first = fill(finder.spans, finder.cuts, scores, budget // 2)
                best = max(first, key=lambda passage: passage.score)
                more = f"{question} {memory.text.span(best.start, best.end).text}"
                changed = finder.scores(form.question(more), more).cpu()
                for passage in first:  # what was found stays
                    changed[slice(*np.searchsorted(finder.spans.starts, (passage.start, passage.end)))] += 1e6
            else:
                sizes = np.diff(finder.spans.starts)
                beside = len(scores) if kind == "even" else BESIDE
                changed = spread(scores, sizes, int(number), budget if kind == "even" else budget // 2, beside)
            yield way, budget, finder.best(changed, budget)


def spread(scores: Tensor, sizes: np.ndarray[Any, Any], sections: int, room: int, beside: int) -> Tensor:
    """Raise the best span of every section, and those beside it, above all others.

    Args:
        scores: [M] float32.
        sizes: [M] tokens of every span.
        sections: How many there are.
        room: Tokens that may be raised.
        beside: Spans on each side of the best one.
    """
    raised, above = scores.clone(), float(scores.max() - scores.min()) + 1
    parts = np.array_split(np.arange(len(scores)), sections)
    best = sorted((int(part[int(scores[part].argmax())]) for part in parts), key=lambda i: -float(scores[i]))
    for distance in range(beside + 1):
        if room < sizes.min():
            break
        for i in best:
            for near in {i - distance, i + distance}:
                if 0 <= near < len(scores) and raised[near] == scores[near] and sizes[near] <= room:
                    raised[near] += above * (len(scores) - distance)
                    room -= int(sizes[near])
    return raised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    llm = InfiniPot.from_pretrained(args.model, device=args.device, dtype=args.dtype)
    memory = llm.read(Document.from_file(DOCUMENTS / f"{REPORT}.pdf"), store=MemoryStore(), progress=True)
    shares: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for question in questions_of(REPORT):
        places = evidence(question, memory.documents[0])
        for way, budget, passages in choose(memory, question["question"]):
            rate = sum(told(memory, passages, place) for place in places) / len(places)
            shares[question["kind"], way, budget].append(rate)
    print("| kind | n | way | " + " | ".join(f"{budget:,}" for budget in BUDGETS) + " |")
    print("|---|---:|---|" + "---|" * len(BUDGETS))
    for kind, way in dict.fromkeys((kind, way) for kind, way, _ in shares):
        of_way = [shares[kind, way, budget] for budget in BUDGETS]
        cells = []
        for values in of_way:
            mean, low, high = share(values, list(map(str, range(len(values)))))
            cells.append(f"{mean:.3f}" + (f" [{low:.2f}, {high:.2f}]" if low == low else ""))
        print(f"| {kind} | {len(of_way[0])} | {way} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
