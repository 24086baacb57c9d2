"""Whether citations point to the right page, and whether `answer.supported` tells what the document does not hold.

    python benchmarks/citations.py ask --data DIR --out rows.jsonl
    python benchmarks/citations.py report --out rows.jsonl

`ask` reads a PDF of 25 pages once, and asks its 39 questions by recall, then as many questions about other articles
(XQuAD), which the document cannot answer. Rows are appended to --out without questions or answers; what is there is not
asked again. `report` prints, for each precision, with 95 % intervals: the share of correct answers whose first cited
page is right, and of those with a right page among at most three; how often nothing is cited; how many answers with
figures are noted to have some that the text does not hold; and the area under the ROC curve of `supported` between
correct answers and questions that the document cannot answer.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import followup_data as data
import numpy as np
import torch

from infinipot_llm import Document, InfiniPot
from infinipot_llm.answering.compose import UNFOUNDED
from infinipot_llm.evaluation.metrics import contains
from infinipot_llm.evaluation.statistics import share

ANSWER_TOKENS = 48


def questions(folder: Path) -> list[dict[str, Any]]:
    """Return the document's own questions, and behind them those of other articles."""
    lines = (folder / "qa" / "alps_wiki.questions.jsonl").read_text(encoding="utf-8").splitlines()
    own = [json.loads(line) for line in lines]
    found = [{"question": q["question"], "answer": q["answer"], "pages": q["page_1indexed"]} for q in own]
    foreign = [q for q in data.load(folder)["x8"].questions if q.kind == "xquad"]
    for i in np.random.default_rng(0).permutation(len(foreign))[: len(own)].tolist():
        found.append({"question": foreign[i].question, "answer": None, "pages": []})
    return found


def ask(args: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    torch.set_num_threads(args.threads)
    llm = InfiniPot.from_pretrained(args.model, dtype=args.dtype)
    mine = args.model, str(llm.adapter.dtype).removeprefix("torch.")
    done = {row["number"] for row in rows if (row["model"], row.get("dtype")) == mine}
    memory = llm.read(Document.from_file(args.data / "pdf" / "alps_wiki.pdf"))
    with args.out.open("a") as out:
        for number, q in enumerate(questions(args.data)):
            if number in done:
                continue
            answer = memory.ask(q["question"], max_new_tokens=ANSWER_TOKENS)
            pages = [c.page for c in answer.citations]
            row = {
                "model": args.model, "dtype": mine[1], "number": number, "answerable": q["answer"] is not None,
                "gold": q["pages"], "cited": pages,
                "correct": q["answer"] is not None and contains(answer.text, [q["answer"]]),
                "supported": answer.supported, "tokens": answer.usage.answer_tokens,
                "seconds": round(answer.usage.answer_seconds, 1),
                "figures": re.search(r"\d\d", answer.text) is not None,
                "unfounded": any(note.endswith(UNFOUNDED.removeprefix("{}")) for note in answer.notes),
            }  # fmt: skip
            out.write(json.dumps(row) + "\n")
            out.flush()


def report(rows: list[dict[str, Any]]) -> None:
    own = [r for r in rows if r["answerable"]]
    correct = [r for r in own if r["correct"]]
    foreign = [r for r in rows if not r["answerable"]]
    first = [bool(r["cited"]) and r["cited"][0] in r["gold"] for r in correct]
    shown: list[tuple[str, list[Any]]] = [
        ("answers that contain the reference", [r["correct"] for r in own]),
        ("first cited page right, of correct answers", first),
        ("a right page among at most three, of correct answers", [bool({*r["cited"]} & {*r["gold"]}) for r in correct]),
        ("nothing cited, of correct answers", [not r["cited"] for r in correct]),
        ("nothing cited, of questions of other articles", [not r["cited"] for r in foreign]),
    ]
    wrong = [r for r in own if not r["correct"]]
    for name, some in (("correct answers", correct), ("wrong answers", wrong), ("answers on other articles", foreign)):
        noted = [r["unfounded"] for r in some if r.get("figures")]
        shown.append((f"figures noted that the text does not hold, of {name} with figures", noted))
    print("| | n | share | 95 % |\n|---|---|---|---|")
    for name, values in shown:
        mean, low, high = share(values, [str(i) for i in range(len(values))])
        found = "- | -" if np.isnan(mean) else f"{mean:.2f} | {low:.2f} to {high:.2f}"
        print(f"| {name} | {len(values)} | {found} |")
    if not correct or not foreign:
        return
    print(f"\nArea under the ROC curve, {len(correct)} correct answers against {len(foreign)} foreign questions:")
    print(f"`supported`: {auroc(*(supports(some) for some in (correct, foreign)))}")
    if all("tokens" in r for r in rows):
        print(f"`supported`, per token: {auroc(*(supports(some, per_token=True) for some in (correct, foreign)))}")


def supports(rows: list[dict[str, Any]], *, per_token: bool = False) -> list[float]:
    """Return `supported` of answers; one that says that the document does not tell has none, and counts as least."""
    return [
        -np.inf if r["supported"] is None else r["supported"] / (max(1, r["tokens"]) if per_token else 1) for r in rows
    ]


def auroc(yes: list[float], no: list[float]) -> str:
    """Return the area under the ROC curve, and its interval from a bootstrap over both groups."""
    a, b = np.asarray(yes), np.asarray(no)

    def area(x: Any, y: Any) -> float:
        return float((x[:, None] > y).mean() + 0.5 * (x[:, None] == y).mean())

    rng = np.random.default_rng(0)
    drawn = [area(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(2000)]
    return f"{area(a, b):.2f} [{np.quantile(drawn, 0.025):.2f}, {np.quantile(drawn, 0.975):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ask", "report"])
    parser.add_argument("--data", type=Path, help="folder with pdf/ and qa/")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "ask":
        ask(args)
    else:
        rows = [json.loads(line) for line in args.out.read_text().splitlines()]
        of_model = [row for row in rows if row["model"] == args.model]
        for dtype in dict.fromkeys(row.get("dtype") for row in of_model):
            print(f"\n{args.model}, {dtype or 'in a precision that its rows do not tell'}:\n")
            report([row for row in of_model if row.get("dtype") == dtype])


if __name__ == "__main__":
    main()
