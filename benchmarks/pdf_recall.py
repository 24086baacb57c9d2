"""How many of the sample report's questions bring back the passage that answers them, out of a real PDF.

    python benchmarks/pdf_recall.py [--model NAME]

The report is read once (and found in the store after that). A question counts at B tokens when one of its reference
answers stands in what was recalled from its page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from infinipot_llm import Document, DocumentMemory, InfiniPot, MemoryStore

DOCUMENTS = Path(__file__).resolve().parents[1] / "examples" / "documents"
BUDGETS = (128, 256, 512, 1024)


def found(memory: DocumentMemory, question: dict[str, object], tokens: int) -> bool:
    """Say whether the answer is in what the question brings back of its page."""
    answers = [" ".join(str(a).casefold().split()) for a in question["answers"]]  # type: ignore[attr-defined]
    page = memory.documents[0].pages[int(str(question["page"])) - 1]
    for span, _ in memory.recall(str(question["question"]), tokens):
        start, end = max(span.start, page.start), min(span.end, page.end)
        text = " ".join(memory.documents[0].text[start:end].casefold().split())
        if start < end and any(answer in text for answer in answers):
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    args = parser.parse_args()
    memory = InfiniPot.from_pretrained(args.model).read(
        Document.from_file(DOCUMENTS / "hollin_valley.pdf"), store=MemoryStore(), progress=True
    )
    lines = (DOCUMENTS / "hollin_valley.questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    for budget in BUDGETS:
        hits = sum(found(memory, question, budget) for question in questions)
        print(f"{budget:5} tokens recalled: {hits} of {len(questions)} answers among them", flush=True)


if __name__ == "__main__":
    main()
