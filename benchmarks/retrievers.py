"""Choosing text for a question without the language model: BM25, MiniLM embeddings, their fusion, random, truncation.

    pip install bm25s
    python benchmarks/retrievers.py --data DIR --embeddings MINILM_FOLDER [--out OUT] [--beside ROWS] [SAMPLE ...]

Prints the share of questions whose whole evidence lies in the first B tokens that are chosen (R@B), per document of
`followup_data.py`, kind of question, and way of choosing; tokens are those of a catalogue model, which is not run.
With the rows of `followup.py recall`, also recall minus each of them, paired on the questions that both were asked.

A document is cut to units (token ranges); a retriever scores all units for a question (`rank`), and `fill` takes the
best until the budget of tokens is full, whatever the size of the units. With neighbours, a unit beside a good one
counts as half as good: answers often stand beside the words that match.

BM25 sees lower-case words (runs of letters and digits of any script) without bm25s' 33 English stop words, not stemmed.
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from followup_data import NAMES, Range, Sample, load, merged
from followup_report import shown
from numpy.typing import NDArray

from infinipot_llm import Document
from infinipot_llm.documents.sentences import sentences
from infinipot_llm.evaluation.statistics import paired
from infinipot_llm.models.load import load_facts, quiet
from infinipot_llm.models.text import TextCodec, TokenizedText

Scores: TypeAlias = NDArray[np.float64]  # [U], one per unit, higher = better

K1, B = 0.9, 0.4
"""BM25's constants, as in Anserini."""
FUSION_K = 60
NEIGHBOUR_SHARE = 0.5
EMBEDDED_TOKENS = 256
"""What all-MiniLM-L6-v2 was trained for; the rest of a longer text is not seen. Tokens of its own, not the model's."""
BATCH = 32

_WORD = re.compile(r"[^\W_]+")


class Retriever(Protocol):
    """Scores the units of a text for a question."""

    def rank(self, question: str) -> Scores:
        """Return [U] scores, higher = better."""
        ...


class BM25:
    """BM25 (Lucene's variant) over the words of the units."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index the units' texts."""
        import bm25s  # type: ignore[import-untyped]
        from bm25s.stopwords import STOPWORDS_EN  # type: ignore[import-untyped]

        self._stop = frozenset(STOPWORDS_EN)
        self._count = len(texts)
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")
        self._index.index([self._words(text) for text in texts], show_progress=False)

    def rank(self, question: str) -> Scores:
        """Return [U] BM25 scores; a word that the question says twice counts twice."""
        known = self._index.get_tokens_ids(self._words(question))
        if not known:
            return np.zeros(self._count)
        return np.asarray(self._index.get_scores_from_ids(known), dtype=np.float64)

    def _words(self, text: str) -> list[str]:
        return [word for word in _WORD.findall(text.lower()) if word not in self._stop]


class MiniLM:
    """The sentence encoder all-MiniLM-L6-v2 (mean of the last layer's token vectors, normalised)."""

    def __init__(self, folder: Path) -> None:
        """Load the encoder from a folder with its weights and tokenizer; nothing is downloaded."""
        from transformers import AutoModel, AutoTokenizer

        with quiet():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        self._questions: dict[str, NDArray[np.float32]] = {}

    def encode_question(self, question: str) -> NDArray[np.float32]:
        """Return the [E] vector of a question, computed once."""
        if question not in self._questions:
            self._questions[question] = self.encode([question])[0]
        return self._questions[question]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return [texts, E] vectors of length 1."""
        out = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in a batch
        for at in range(0, len(order), BATCH):
            chosen = order[at : at + BATCH]
            batch = self._tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=EMBEDDED_TOKENS,
                return_tensors="pt",
            )
            hidden = self._model(**batch).last_hidden_state  # [B, T, E]
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            out[chosen] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return out


class Embeddings:
    """Cosine of the question's and the units' vectors."""

    def __init__(self, encoder: MiniLM, texts: Sequence[str]) -> None:
        """Embed the units' texts."""
        self._encoder = encoder
        self._vectors = encoder.encode(texts)  # [U, E]

    def rank(self, question: str) -> Scores:
        """Return [U] cosines."""
        return (self._vectors @ self._encoder.encode_question(question)).astype(np.float64)


class Shuffled:
    """Random scores: the same for the same question and seed."""

    def __init__(self, count: int, seed: int = 0) -> None:
        """Give scores to `count` units."""
        self._count, self._seed = count, seed

    def rank(self, question: str) -> Scores:
        """Return [U] uniform scores."""
        return np.random.default_rng([self._seed, zlib.crc32(question.encode())]).random(self._count)


class WithNeighbours:
    """Another retriever's scores, neighbours counted (`spread`): for a fusion, as `fill` can do it for one."""

    def __init__(self, retriever: Retriever) -> None:
        """Wrap a retriever."""
        self._retriever = retriever

    def rank(self, question: str) -> Scores:
        """Return [U] scores."""
        return spread(self._retriever.rank(question))


class Fused:
    """Several retrievers over the same units, fused by reciprocal rank."""

    def __init__(self, *retrievers: Retriever) -> None:
        """Fuse retrievers, with equal weight."""
        self._retrievers = retrievers

    def rank(self, question: str) -> Scores:
        """Return [U] fused scores."""
        return fuse([retriever.rank(question) for retriever in self._retrievers])


def fuse(scores: Sequence[Scores], k: int = FUSION_K) -> Scores:
    """Fuse scores of the same units: the sum over rankings of 1 / (k + rank), best rank 1.

    Units of equal score share the best of their ranks, so that units without any of the question's words are not told
    apart by where they stand.
    """
    if len({len(one) for one in scores}) != 1:
        raise ValueError("only scores of the same units can be fused")
    total = np.zeros(len(scores[0]))
    for one in scores:
        rank = 1 + len(one) - np.searchsorted(np.sort(one), one, side="right")
        total += 1.0 / (k + rank)
    return total


def spread(scores: Scores) -> Scores:
    """Raise each unit's score to half the better of its two neighbours' scores, where that is more."""
    beside = np.full(len(scores), -np.inf)
    beside[1:] = scores[:-1]
    beside[:-1] = np.maximum(beside[:-1], scores[1:])
    return np.maximum(scores, NEIGHBOUR_SHARE * beside)


def fill(units: Sequence[Range], scores: Scores, budget_tokens: int, neighbours: bool = False) -> list[Range]:
    """Take the best units until the budget is full.

    The budget is met exactly unless the units hold less: of the last unit only the first tokens are taken. Units of
    equal score are taken in reading order.

    Args:
        units: [U] token ranges [a, b), in order and disjoint.
        scores: [U] scores.
        budget_tokens: Tokens to take.
        neighbours: Whether a unit beside a good one counts as half as good (`spread`).

    Returns:
        Token ranges in reading order, disjoint, those that touch merged.

    Raises:
        ValueError: If units overlap or are not in order, or there is not one score per unit.
    """
    if len(units) != len(scores):
        raise ValueError(f"{len(scores)} scores for {len(units)} units")
    if any(a > b for a, b in units) or any(left[1] > right[0] for left, right in pairwise(units)):
        raise ValueError("units must be in order and disjoint")
    ranking = np.argsort(-(spread(scores) if neighbours else scores), kind="stable")
    left, taken = budget_tokens, []
    for a, b in (units[i] for i in ranking):
        if left <= 0:
            break
        taken.append((a, min(b, a + left)))
        left -= min(b - a, left)
    return merged(taken)


def truncate(tokens: int, budget_tokens: int) -> list[Range]:
    """Keep the first and the last half of a budget, whatever the question: LongBench's cut in the middle."""
    if budget_tokens >= tokens:
        return merged([(0, tokens)])
    tail = budget_tokens // 2
    return merged([(0, budget_tokens - tail), (tokens - tail, tokens)])


def fixed(text: TokenizedText, size: int = 32) -> list[Range]:
    """Cut a text every `size` tokens; no unit holds tokens of two documents."""
    return [
        (a, min(a + size, int(last)))
        for first, last in zip(text.first[:-1], text.first[1:], strict=True)
        for a in range(int(first), int(last), size)
    ]


def chunks(text: TokenizedText, size: int) -> list[Range]:
    """Cut a text to chunks of at most `size` tokens, at the last end of a sentence that fits, else after `size`.

    The sentences are those that citations point to (`infinipot_llm.documents.sentences`).
    """
    found: list[Range] = []
    for number, document in enumerate(text.documents):
        a, last = int(text.first[number]), int(text.first[number + 1])
        ends = [text.tokens_in(number, *sentence)[1] for sentence in sentences(document.text, 0, len(document.text))]
        while a < last:
            limit = min(a + size, last)
            fits = bisect_right(ends, limit)
            b = ends[fits - 1] if limit < last and fits and ends[fits - 1] > a else limit
            found.append((a, b))
            a = b
    return found


def unit_texts(text: TokenizedText, units: Sequence[Range]) -> list[str]:
    """Give the text of each unit for scoring; a word that a border cuts is given whole to both sides.

    For scripts that put blanks between words.
    """
    texts = []
    for a, b in units:
        whole = text.documents[text.document_of(a)].text
        start, end = int(text.starts[a]), int(text.ends[b - 1])
        while 0 < start < end and whole[start - 1].isalnum() and whole[start].isalnum():
            start -= 1
        while start < end < len(whole) and whole[end - 1].isalnum() and whole[end].isalnum():
            end += 1
        texts.append(whole[start:end])
    return texts


def characters(text: TokenizedText, ranges: Sequence[Range]) -> list[Range]:
    """Give the characters of token ranges of a text that is a single document."""
    if len(text.documents) != 1:
        raise ValueError("characters of several documents cannot be told apart")
    return [(int(text.starts[a]), int(text.ends[b - 1])) for a, b in ranges]


def ways(text: TokenizedText, encoder: MiniLM) -> dict[str, tuple[list[Range], Retriever, bool]]:
    """Give the ways of choosing that are compared: units, retriever, and whether neighbours count."""
    units = {"32": fixed(text, 32), "128": chunks(text, 128), "256": chunks(text, 256)}
    texts = {size: unit_texts(text, cut) for size, cut in units.items()}
    words = {size: BM25(texts[size]) for size in units}
    dense = {size: Embeddings(encoder, texts[size]) for size in units}
    both = Fused(WithNeighbours(words["32"]), WithNeighbours(dense["32"]))
    return {
        "BM25 32": (units["32"], words["32"], False),
        "BM25 32 + neighbours": (units["32"], words["32"], True),
        "BM25 128": (units["128"], words["128"], False),
        "BM25 256": (units["256"], words["256"], False),
        "MiniLM 32": (units["32"], dense["32"], False),
        "MiniLM 32 + neighbours": (units["32"], dense["32"], True),
        "MiniLM 128": (units["128"], dense["128"], False),
        "MiniLM 256": (units["256"], dense["256"], False),
        "fused 128": (units["128"], Fused(words["128"], dense["128"]), False),
        "fused 32 + neighbours": (units["32"], both, False),
        "random 32": (units["32"], Shuffled(len(units["32"])), False),
        "random 128": (units["128"], Shuffled(len(units["128"])), False),
    }


def hits(text: TokenizedText, sample: Sample, encoder: MiniLM, budgets: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Return, per way of choosing, [questions, budgets]: whether the question's whole evidence was chosen."""
    found: dict[str, NDArray[np.bool_]] = {}
    for name, (units, retriever, neighbours) in ways(text, encoder).items():
        rows = []
        for question in sample.questions:
            scores = retriever.rank(question.question)
            chosen = [fill(units, scores, budget, neighbours) for budget in budgets]
            rows.append([question.is_covered(characters(text, ranges)) for ranges in chosen])
        found[name] = np.asarray(rows)
    cut = [characters(text, truncate(len(text), budget)) for budget in budgets]
    found["first and last half"] = np.asarray([[q.is_covered(ranges) for ranges in cut] for q in sample.questions])
    return found


def table(sample: Sample, tokens: int, found: dict[str, NDArray[np.bool_]], budgets: Sequence[int]) -> str:
    """Give the shares of a document as a Markdown table."""
    asked = np.asarray([question.kind for question in sample.questions])
    kinds = [kind for kind in ("xquad", "nq", "hotpot") if (asked == kind).any()]
    head = [f"{kind} R@{budget}" for kind in kinds for budget in budgets]
    counts = ", ".join(f"{kind} n = {(asked == kind).sum()}" for kind in kinds)
    lines = [f"{sample.name}: {tokens} tokens, {counts}", "", f"| chosen by | {' | '.join(head)} |"]
    lines.append("|---" * (len(head) + 1) + "|")
    for name, hit in found.items():
        shares = [f"{share:.3f}" for kind in kinds for share in hit[asked == kind].mean(axis=0)]
        lines.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def beside(
    sample: Sample,
    every: int,
    found: dict[str, NDArray[np.bool_]],
    budgets: Sequence[int],
    recalled: dict[int, dict[str, bool]],
) -> str:
    """Give recall minus each way of choosing as a Markdown table, with 95 % intervals clustered by source.

    Args:
        sample: Its questions are those asked.
        every: Which of the document's questions they are: each of so many.
        found: [questions, budgets] per way of choosing.
        budgets: Tokens; recall was measured at those that `followup.py recall` has.
        recalled: Per number of a question in its document: whether it was found, per number of tokens as text.
    """
    lines = [f"{sample.name}: recall minus", "", "| chosen by | kind | n |" + "".join(f" R@{b} |" for b in budgets)]
    lines.append("|---" * (3 + len(budgets)) + "|")
    for name, hit in found.items():
        for kind in sorted({q.kind for q in sample.questions}):
            both = [i for i, q in enumerate(sample.questions) if q.kind == kind and i * every in recalled]
            groups = [sample.questions[i].group for i in both]
            cells = [
                shown(paired([recalled[i * every][str(b)] for i in both], hit[both, column], groups), "+.3f", "+.3f")
                for column, b in enumerate(budgets)
            ]
            lines.append(f"| {name} | {kind} | {len(both)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="*", default=["x8", "n8", "m16", "m30"], metavar="SAMPLE")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds qa/")
    parser.add_argument("--embeddings", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b", help="whose tokens are counted")
    parser.add_argument("--budgets", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="each question of so many")
    parser.add_argument("--beside", type=Path, help="rows of `followup.py recall`: recall minus each way is printed")
    parser.add_argument("--out", type=Path, help="write a JSON line per question and way of choosing")
    options = parser.parse_args()
    if unknown := set(options.samples) - set(NAMES):
        parser.error(f"no document is called {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")

    torch.set_num_threads(options.threads)
    codec = TextCodec(load_facts(options.model)[1])
    encoder = MiniLM(options.embeddings)
    samples = load(options.data)
    if options.out:
        options.out.write_text("")
    for name in options.samples:
        sample = replace(samples[name], questions=samples[name].questions[:: options.every])
        document = Document.from_text(sample.text, name=name)
        if document.text != sample.text:
            parser.error(f"{name}: reading changed the text, so evidence cannot be found in it")
        text = codec.document((document,))
        found = hits(text, sample, encoder, options.budgets)
        print(table(sample, len(text), found, options.budgets), flush=True)
        if options.beside:
            rows = map(json.loads, options.beside.read_text().splitlines())
            ours = {r["number"]: r["found"] for r in rows if (r["sample"], r["arm"]) == (name, "gold-recall")}
            print(beside(sample, options.every, found, options.budgets, ours), flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as out:
                for way, hit in found.items():
                    for number, question in enumerate(sample.questions):
                        row = {
                            "sample": name,
                            "item": number * options.every,
                            "kind": question.kind,
                            "group": question.group,
                        }
                        row |= {"chosen_by": way}
                        row |= {f"R@{b}": bool(h) for b, h in zip(options.budgets, hit[number], strict=True)}
                        out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
