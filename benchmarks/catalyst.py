"""How well a pot keeps the answer when the question is the catalyst, per configuration.

    python benchmarks/catalyst.py --squad DEV.json --out results.jsonl base full no-novelty ...

Joins paragraphs of a SQuAD-format file to documents, asks questions spread over each, reads the document once per
question and configuration, and reports per configuration: mean negative log-likelihood per token of the best
reference answer (nats, lower is better), the share of greedy answers that contain a reference, and paired differences
to the first configuration with a 95 % bootstrap interval. Rows are appended to --out; what is there already, of the
same text, question, model, precision and settings, is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infinipot_llm import Document, InfiniPot, PotConfig
from infinipot_llm.errors import BudgetError
from infinipot_llm.evaluation.rows import digest
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.pot.novelty import surprise

ANSWER_TOKENS = 32
CONFIGS: dict[str, dict[str, Any]] = {
    "base": {},
    "full": {"policy": "full"},
    "no-novelty": {"novelty_share": 0.0},
    "quarter-novelty": {"novelty_share": 0.25},
    "lone-tokens": {"neighbours": 0},
    "neighbours-4": {"neighbours": 4},
    "neighbours-4-no-novelty": {"neighbours": 4, "novelty_share": 0.0},
    "wide-neighbours": {"neighbours": 12},
    "max": {"catalyst_reduce": "max"},
    "weight-half": {"neighbour_weight": 0.5},
    "weight-whole": {"neighbour_weight": 1.0},
    "no-agreement": {"agreement": 0.0},
    "tenth-agreement": {"agreement": 0.1},
    "half-agreement": {"agreement": 0.5},
    "keep-quarter": {"kept": 0.25},
    "keep-three-quarters": {"kept": 0.75},
    "keep-three-quarters-weight-half": {"kept": 0.75, "neighbour_weight": 0.5},
    "more-sinks": {"sink_tokens": 64},
    "streaming": {"policy": "streaming"},
}

KEY = ("config", "item", "settings")
"""What tells a row from all others."""


def items(squad: Path, documents: int, characters: int, per_document: int) -> Iterator[tuple[int, str, str, list[str]]]:
    """Yield (document number, text, question, reference answers)."""
    articles = json.loads(squad.read_text(encoding="utf-8"))["data"]
    random.Random(0).shuffle(articles)
    paragraphs = [p for a in articles for p in a["paragraphs"]]
    at = count = 0
    for number in range(documents):
        chosen: list[dict[str, Any]] = []
        while sum(len(p["context"]) for p in chosen) < characters:
            chosen.append(paragraphs[at % len(paragraphs)])
            at += 1
        text = "\n\n".join(p["context"] for p in chosen)
        for p in chosen[:: max(1, len(chosen) // per_document)][:per_document]:
            qa = p["qas"][count % len(p["qas"])]
            count += 1
            yield number, text, qa["question"], sorted({a["text"] for a in qa["answers"]})


def config_for(llm: InfiniPot, name: str, budget: int, document: Document, question: str) -> PotConfig:
    """Return the settings of a configuration; where everything is kept, with room for everything."""
    # Without a shelf: it is the pot that answers.
    config = PotConfig(**{"budget": budget, "max_new_tokens": ANSWER_TOKENS, "shelf": "off", **CONFIGS[name]})
    if config.policy != "full":
        return config
    tokens = len(llm.form.prefix) + len(llm.form.codec.document([document])) + len(llm.form.question(question))
    return replace(config, budget=tokens + ANSWER_TOKENS)


def answer_nll(llm: InfiniPot, memory: DocumentMemory, question: str, answer: str) -> float:
    """Return -log P(answer | pot, question) per token, in nats."""
    asked, told = llm.form.question(question), llm.form.codec.untrusted(answer)
    ids = torch.tensor([*asked, *told])
    with memory.pot.scratch():
        hidden = llm.adapter.forward(ids, memory.pot.cache)
    return float(surprise(llm.adapter, hidden[len(asked) - 1 : -1], ids[len(asked) :]).mean())


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean."""
    draws = np.random.default_rng(0).choice(differences, (10_000, len(differences))).mean(axis=1)
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def report(rows: list[dict[str, Any]], names: list[str]) -> None:
    """Print one line per configuration, and the paired differences to the first."""
    by = {name: {r["item"]: r for r in rows if r["config"] == name} for name in names}
    for name in names:
        mine = by[name]
        if not mine:
            continue
        nll = np.mean([r["nll"] for r in mine.values()])
        hits = sum(r["hit"] for r in mine.values())
        line = f"{name:<20} n={len(mine):<4} nll {nll:.3f}  contains {hits}/{len(mine)}"
        both = sorted(set(mine) & set(by[names[0]]))
        if name != names[0] and both:
            d = np.asarray([mine[i]["nll"] - by[names[0]][i]["nll"] for i in both])
            low, high = interval(d)
            line += f"  nll - {names[0]}: {d.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
        print(line, flush=True)


def measure(loaded: InfiniPot, options: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that are asked for: those that are there already, and the others, which are added to the file."""
    done = {tuple(row.get(name) for name in KEY): row for row in rows}
    about = {"model": Path(loaded.name).name, "dtype": str(loaded.adapter.dtype).removeprefix("torch.")}
    work = list(items(options.squad, options.documents, options.characters, options.questions))
    found = []
    for name in options.configs:
        for number, text, question, answers in work:
            document = Document.from_text(text)
            config = config_for(loaded, name, options.budget, document, question)
            item = hashlib.sha256("\0".join((text, question, *answers)).encode()).hexdigest()[:16]
            key = (name, item, digest({**about, **config.to_dict()}))
            if key not in done:
                started = time.perf_counter()
                llm = InfiniPot(loaded.adapter, loaded.form.codec, config)
                memory = llm.read(document, question=question)
                said = memory.ask(question, citations=False).text
                done[key] = {
                    **dict(zip(KEY, key, strict=True)),
                    **about,
                    "budget": config.budget,
                    "document": number,
                    "tokens": memory.stats.tokens_read,
                    "cycles": memory.stats.cycles,
                    "nll": min(answer_nll(llm, memory, question, a) for a in answers),
                    "hit": any(a.lower() in said.lower() for a in answers),
                    "seconds": round(time.perf_counter() - started, 1),
                }
                with options.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(done[key], ensure_ascii=False) + "\n")
            found.append(done[key])
    return found


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", choices=sorted(CONFIGS), metavar="CONFIG")
    parser.add_argument("--squad", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--characters", type=int, default=16_000)
    parser.add_argument("--questions", type=int, default=6, help="per document")
    options = parser.parse_args()

    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    llm = InfiniPot.from_pretrained(options.model, dtype=options.dtype)
    try:
        report(measure(llm, options, rows), options.configs)
    except BudgetError as error:  # a text beyond the model's window, of which everything was to be kept
        raise SystemExit(f"{error}") from error


if __name__ == "__main__":
    main()
