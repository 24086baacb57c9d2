"""Are the passages that a follow-up question is about among the recalled tokens?

    python benchmarks/conversations.py read   --data DIR --memories MEMORIES
    python benchmarks/conversations.py find   --data DIR --memories MEMORIES --out rows.jsonl
    python benchmarks/conversations.py report --out rows.jsonl [--base WAY]

MT-RAG's conversations (Katsis et al., "MTRAG", 2025; Apache-2.0): people asked a few collections, and every question
stands with its earlier turns and the passages that answer it. Asked are the questions from the second turn on that have
one to four passages; those of a collection's questions make one document here, read once without any question. The file
has one question of each conversation, so that what answered its earlier turns is not in the document.

The ways of looking are those of WAYS. Of each, rows tell for several numbers of recalled tokens whether a gold passage
was found (COVERED characters of it are there), and which share of what was recalled is of gold passages.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import followup_data as data
import retrievers
import torch
from followup_report import shown

from infinipot_llm import Document, InfiniPot
from infinipot_llm.evaluation.statistics import paired, share
from infinipot_llm.memory.asking import usual_prompt
from infinipot_llm.memory.memory import DocumentMemory

BUDGETS = (256, 512, 1024)
COVERED = 100
"""Characters of a gold passage, of some 1,500 on average, that count as having found it: about a sentence."""
MOST_PASSAGES = 4
"""Questions with more are summaries of a collection."""


@dataclass(frozen=True)
class Turn:
    """A question that follows others.

    Attributes:
        group: Its conversation; MT-RAG's file asks one question of each.
        turns: Questions and answers before it, oldest first.
        question: What is asked.
        gold: Character ranges of the passages that answer it.
    """

    group: str
    turns: tuple[tuple[str, str], ...]
    question: str
    gold: tuple[data.Range, ...]


def load(folder: Path) -> dict[str, tuple[str, list[Turn]]]:
    """Return a document of each collection, and what is asked of it.

    Args:
        folder: Holds `qa/mtrag.dev.jsonl`.
    """
    with (folder / "qa" / "mtrag.dev.jsonl").open(encoding="utf-8") as lines:
        asked = [one for one in map(json.loads, lines) if int(one["turn"]) > 1]
    asked = [one for one in asked if 1 <= len(one["contexts"]) <= MOST_PASSAGES]
    if len({one["conversation_id"] for one in asked}) < len(asked):  # rows are told apart by them
        raise SystemExit("two questions are of one conversation: ask those of MT-RAG's file, which has one of each.")
    names = sorted({one["Collection"] for one in asked})
    return {name: _joined([one for one in asked if one["Collection"] == name]) for name in names}


def _joined(asked: list[dict[str, Any]]) -> tuple[str, list[Turn]]:
    """Join the passages of a collection, in an order that is always the same, and say where each came to stand."""
    passages = sorted({_cleaned(context["text"]) for one in asked for context in one["contexts"]})
    random.Random(0).shuffle(passages)
    at, ranges = 0, {}
    for passage in passages:
        ranges[passage] = at, at + len(passage)
        at += len(passage) + len(data.BETWEEN)
    return data.BETWEEN.join(passages), [
        Turn(
            one["conversation_id"],
            tuple((q["text"], a["text"]) for q, a in zip(one["input"][:-1:2], one["input"][1::2], strict=True)),
            one["input"][-1]["text"],
            tuple(sorted({ranges[_cleaned(context["text"])] for context in one["contexts"]})),
        )
        for one in asked
    ]


def _cleaned(text: str) -> str:
    """Return a passage as it stands in a document that was loaded."""
    return Document.from_text(text).text.strip()


def read(args: argparse.Namespace, llm: InfiniPot) -> None:
    for name, (text, _) in load(args.data).items():
        memory = llm.read(Document.from_text(text, name=name))
        memory.save(_file(args, name))
        print(f"{name}: {memory}", flush=True)


def find(args: argparse.Namespace, llm: InfiniPot, done: set[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
    """Say what each way of looking finds of every question."""
    for name, (_, asked) in load(args.data).items():
        memory = llm.load(_file(args, name))
        for turn in asked:
            for way, scores in WAYS.items():
                if (name, turn.group, way) in done:
                    continue
                best = scores(memory, turn).cpu()
                found = {budget: _found(memory, best, turn, budget) for budget in BUDGETS}
                model = Path(args.model).name
                yield {"document": name, "group": turn.group, "way": way, "model": model, "found": found}


def _found(memory: DocumentMemory, scores: torch.Tensor, turn: Turn, budget: int) -> tuple[bool, float]:
    """Return whether a gold passage is found, and the share of recalled characters that gold passages hold."""
    passages = memory.finder.best(scores, budget)
    recalled = retrievers.characters(memory.text, [(p.start, p.end) for p in passages])
    held = [sum(max(0, min(b, end) - max(a, start)) for a, b in recalled) for start, end in turn.gold]
    return max(held) >= COVERED, round(sum(held) / max(1, sum(b - a for a, b in recalled)), 4)


def _file(args: argparse.Namespace, name: str) -> Path:
    return Path(args.memories) / f"mtrag-{name}.infinipot"


def _chat(memory: DocumentMemory, turn: Turn) -> torch.Tensor:
    prompt, _, _ = usual_prompt(memory, "recall", turn.question, turn.turns, None, None)
    return memory.finder.scores(prompt.query, prompt.question, alone=prompt.alone)


def _behind(memory: DocumentMemory, turn: Turn) -> torch.Tensor:
    return memory.finder.scores(memory.setup.form.looked_for(turn.turns, turn.question), turn.question)


def _itself(memory: DocumentMemory, turn: Turn) -> torch.Tensor:
    return memory.finder.scores(memory.setup.form.looked_for((), turn.question), turn.question)


WAYS: dict[str, Callable[[DocumentMemory, Turn], torch.Tensor]] = {
    "chat": _chat,  # what `Chat` does: the next two together
    "behind": _behind,  # the question behind the turns before it
    "itself": _itself,  # without them
}


def report(rows: list[dict[str, Any]], base: str) -> None:
    """Print both figures of every way and collection, and differences to a way over all of them."""
    documents = sorted({row["document"] for row in rows})
    ways = sorted({row["way"] for row in rows}, key=lambda way: (way != base, way))
    by = {(row["document"], row["group"], row["way"]): row["found"] for row in rows}
    for number, title in enumerate(("a gold passage found", "share of recalled text in gold passages")):
        heads = [f"{title}: {budget}" for budget in BUDGETS] + [f"minus {base}, {budget}" for budget in BUDGETS]
        print(f"\n| collection | way | n | {' | '.join(heads)} |\n|{'---|' * (3 + len(heads))}")
        for document in [*documents, "all"]:
            for way in ways:
                asked = sorted({(d, g) for d, g, w in by if w == way and document in (d, "all")})
                both = [q for q in asked if (*q, base) in by]
                cells = []
                for budget in map(str, BUDGETS):
                    values = [float(by[*q, way][budget][number]) for q in asked]
                    cells.append(shown(share(values, [group for _, group in asked])))
                for budget in map(str, BUDGETS):
                    values, others = ([float(by[*q, w][budget][number]) for q in both] for w in (way, base))
                    same = way == base
                    cells.append("" if same else shown(paired(values, others, [g for _, g in both]), "+.3f", "+.3f"))
                print(f"| {document} | {way} | {len(asked)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["read", "find", "report"])
    parser.add_argument("--data", type=Path, help="folder with qa/")
    parser.add_argument("--memories", type=Path, help="folder for saved memories")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", default="chat", choices=list(WAYS), help="the way that others are compared with")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.what != "read" and args.out is None:
        parser.error(f"{args.what} needs --out, the file of rows")
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out and args.out.exists() else []
    if args.what == "report":
        report(rows, args.base)
        return
    torch.set_num_threads(args.threads)
    llm = InfiniPot.from_pretrained(args.model)
    if args.what == "read":
        read(args, llm)
        return
    if other := {row["model"] for row in rows} - {Path(args.model).name}:
        raise SystemExit(f"{args.out} holds rows of {min(other)}: give another --out.")
    with args.out.open("a") as out:
        for row in find(args, llm, {(row["document"], row["group"], row["way"]) for row in rows}):
            out.write(json.dumps(row) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
