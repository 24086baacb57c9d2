"""Does `answer.answerable` tell questions that a document answers from those that it does not?

    python benchmarks/answerable.py measure --data DIR --memories MEMORIES --out rows.jsonl
    python benchmarks/answerable.py report --out rows.jsonl

`measure` takes documents and questions of followup_data.py (memories are those of `followup.py read`; missing ones are
read and saved), short texts, and the PDF of citations.py. Each document is looked at with its own questions, with
questions of other documents whose evidence it does not hold, and with its own once more, the paragraphs of their
evidence being hidden. Nothing is answered. Rows hold the signs (memory/answerable.py), no texts; what is there is not
measured again.
`report` fits a judge on the document that is for calibration alone, and prints for all documents the area under the ROC
curve and the share of questions below DOUBTFUL, with the fitted judge and with the one the model comes with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import citations
import followup_data as data
import numpy as np
import torch

from infinipot_llm import Document, InfiniPot
from infinipot_llm.answering.compose import DOUBTFUL
from infinipot_llm.evaluation.statistics import share
from infinipot_llm.memory.answerable import BY_WORDS, Judge, Signs, fit
from infinipot_llm.memory.calibrate import signs_of
from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.memory import DocumentMemory

SAMPLES = ("cal", "A4", "x8", "n8", "m30")
SHORT = (2, 5)
"""Paragraphs of short texts, 18 of each length: about 380 and 940 tokens."""
MOST = 150
"""Questions of each kind and document, drawn with a fixed seed; about as many of all short texts of a length."""


def drawn(questions: list[data.Question], most: int = MOST) -> list[data.Question]:
    return [questions[i] for i in sorted(np.random.default_rng(0).permutation(len(questions))[:most].tolist())]


def signs(memory: DocumentMemory, question: str, gold: tuple[int, int] | None) -> tuple[Signs | None, Signs | None]:
    """Return the signs of a question, and those with its evidence hidden: characters `gold`, if there is any."""
    finder, heads = memory.finder, memory.setup.heads
    by_head = finder.attention(memory.setup.form.question(question))
    if gold is None:
        scores = finder.combined(by_head, heads.weights, question, calibrated=True)
        return finder.signs(by_head, heads.weights, scores, question), None
    a, b = memory.text.tokens_in(0, *gold)
    first, last = np.searchsorted(finder.spans.starts, (a, b - 1), side="right") - 1
    return signs_of(finder, by_head, heads.weights, question, (int(first), int(last)))


def measure(args: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    samples = data.load(args.data)
    torch.set_num_threads(args.threads)
    llm = InfiniPot.from_pretrained(args.model)
    for name in SAMPLES:
        if name in done:
            continue
        file, sample = args.memories / f"{name}.infinipot", samples[name]
        if not file.exists():
            llm.read(Document.from_text(sample.text, name=name)).save(file)
        others = [samples[other] for other in ("m30", "n8", "x8") if other != name]
        yield {
            "document": name,
            "rows": rows(llm.load(file), drawn(list(sample.questions)), drawn(data.absent(sample, others))),
        }
    for paragraphs in SHORT:
        if (name := f"{paragraphs} paragraphs") in done:
            continue
        texts, found = data.short(args.data, paragraphs), []
        each = -(-MOST // len(texts))
        for sample in texts:
            memory = llm.read(Document.from_text(sample.text, name=sample.name))
            foreign = drawn(data.absent(sample, [samples["n8"], samples["x8"]]), each)
            found += rows(memory, drawn(list(sample.questions), each), foreign)
        yield {"document": name, "rows": found}
    if "alps" not in done:
        memory = llm.read(Document.from_file(args.data / "pdf" / "alps_wiki.pdf"))
        asked = citations.questions(args.data)
        own, foreign = ([q for q in asked if (q["answer"] is None) is absent] for absent in (False, True))
        found = [("own", str(n), *signs(memory, q["question"], None)) for n, q in enumerate(own)]
        found += [("absent", str(n), *signs(memory, q["question"], None)) for n, q in enumerate(foreign)]
        yield {"document": "alps", "rows": [row(kind, group, there) for kind, group, there, _ in found]}


def rows(memory: DocumentMemory, own: list[data.Question], absent: list[data.Question]) -> list[dict[str, Any]]:
    found = []
    for question in own:
        single = question.gold[0] if len(question.gold) == 1 else None  # a second place would still answer in part
        there, hidden = signs(memory, question.question, single)
        found.append(row("own", question.group, there))
        if single is not None:
            found.append(row("hidden", question.group, hidden))
    return found + [row("absent", q.group, signs(memory, q.question, None)[0]) for q in absent]


def row(kind: str, group: str, found: Signs | None) -> dict[str, Any]:
    told = None if found is None else [round(found.attention, 4), round(found.words, 4)]
    return {"kind": kind, "group": group, "signs": told}


def report(documents: dict[str, list[dict[str, Any]]], model: str) -> None:
    of = {
        name: {
            kind: [(Signs(*r["signs"]), r["group"]) for r in found if r["kind"] == kind and r["signs"]]
            for kind in ("own", "absent", "hidden")
        }
        for name, found in documents.items()
    }  # fmt: skip
    cal = {kind: [s for s, _ in found] for kind, found in of["cal"].items()}
    fitted = fit(cal["own"], cal["absent"] + cal["hidden"])
    words = {kind: [Signs(0.0, s.words) for s in found] for kind, found in cal.items()}
    print(f"fitted on cal: {fitted}\nby words alone: {fit(words['own'], words['absent'] + words['hidden'])}")
    shipped = Heads.known(model, lambda: "", 10**6, 10**6).judge
    for title, judge in (("fitted on cal", fitted), ("of the model", shipped), ("by words alone", BY_WORDS)):
        if judge is not None:
            table(title, judge, of)


def table(title: str, judge: Judge, of: dict[str, dict[str, list[tuple[Signs, str]]]]) -> None:
    print(f"\n{title}\n\n| document | against | n | AUROC | doubted: own questions | doubted: the others |")
    print("|---|---|---|---|---|---|")
    for name, found in of.items():
        own = [judge(s) for s, _ in found["own"]]
        for kind in ("absent", "hidden"):
            if not found[kind]:
                continue
            other = [judge(s) for s, _ in found[kind]]
            doubted = [
                shown(share([p < DOUBTFUL for p in values], [g for _, g in found[which]]))
                for values, which in ((own, "own"), (other, kind))
            ]
            print(
                f"| {name} | {kind} | {len(own)}, {len(other)} | {citations.auroc(own, other)} | "
                + " | ".join(doubted)
                + " |"
            )


def shown(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{mean:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("--data", type=Path, help="folder with pdf/ and qa/")
    parser.add_argument("--memories", type=Path, help="folder for saved memories")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    mine = [one for one in known if one["model"] == args.model]
    if args.what == "report":
        report({one["document"]: one["rows"] for one in mine}, args.model)
        return
    with args.out.open("a") as out:
        for one in measure(args, {one["document"] for one in mine}):
            out.write(json.dumps({"model": args.model, **one}) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
