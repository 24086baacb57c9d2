"""Batches, for reading.py: what they could gain at most, and what asking several questions at a time gains."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reading_tools import Row, Subject, beside, plain, plain_forward, seconds_of
from transformers import DynamicCache

from infinipot_llm.memory.memory import DocumentMemory


def batch(subject: Subject, size: int, new: int, rounds: int) -> Row:
    """Time plain transformers with a batch in turns with a batch of one, at the length of a full pot.

    It is the bound of what batches through slots could gain: rows of one length, no padding, no scores, no pot.
    Questions over one pot have its cache copied for each, which costs what as many pots cost.
    """
    adapter, divided = subject.adapter, subject.plan()
    question = torch.tensor([subject.catalysts[0]])
    taken = min(subject.config.chunk, divided.room - divided.kept)
    piece = torch.from_numpy(np.resize(subject.source, taken).astype("int64"))[None]
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    full, kept = ({n: subject.states(tokens, n) for n in (1, size)} for tokens in (divided.room, divided.kept))

    def answer(rows: int, cache: DynamicCache) -> None:
        ids = question.expand(rows, -1)
        for _ in range(new):
            hidden = plain_forward(adapter, ids, cache)[:, -1]
            ids = adapter.logits(hidden).argmax(dim=-1)[:, None]

    with plain(adapter):
        for number in range(rounds + 1):
            for rows in (1, size):
                questions, _ = seconds_of(adapter, answer, rows, subject.plain_cache(full[rows]))
                several = piece.expand(rows, -1)
                texts, _ = seconds_of(adapter, plain_forward, adapter, several, subject.plain_cache(kept[rows]))
                if number:  # the first round warms up
                    times["questions", rows].append(questions)
                    times["texts", rows].append(texts)
    return {
        "slots": divided.room,
        "tokens_of_question": question.shape[1],
        "tokens_of_answer": new,
        **{
            what: gain(times[what, 1], times[what, size], size)  # one after the other takes `size` times one
            for what in ("questions", "texts")
        },
    }


def gain(one: Sequence[float], together: Sequence[float], size: int) -> Row:
    """Compare `size` times a batch of one with a batch of `size`: the ratio says how many times as fast it is."""
    return beside([size * seconds for seconds in one], together)


def many(memory: DocumentMemory, questions: Sequence[str], size: int, new: int, rounds: int) -> Row:
    """Ask questions one after another and so many at a time, in turns, with citations and without."""
    row: Row = {"questions": len(questions)}
    for name, cited in (("bare", False), ("cited", True)):
        options: dict[str, Any] = {"max_new_tokens": new, "citations": cited}
        alone, together, same, tokens = [], [], 0, 0
        for number in range(rounds + 1):
            started = time.perf_counter()
            one_by_one = [memory.ask(question, **options) for question in questions]
            between = time.perf_counter()
            at_once = memory.ask_many(questions, together=size, **options)
            if number:  # the first round warms up
                alone.append(between - started)
                together.append(time.perf_counter() - between)
            same = sum(a.text == b.text for a, b in zip(one_by_one, at_once, strict=True))
            tokens = sum(a.usage.answer_tokens for a in one_by_one)
        row |= {name: beside(alone, together), f"{name}_same_answers": same, "tokens_of_answers": tokens}
    return row


def questions_beside(document: Path, size: int) -> list[str]:
    """Return the first questions of the file that stands beside a document."""
    beside_it = document.with_suffix(".questions.jsonl")
    if not beside_it.is_file():
        raise SystemExit(f"there are no questions beside {document}: write {beside_it.name}, a JSON object per line.")
    lines = beside_it.read_text(encoding="utf-8").splitlines()
    if len(lines) < size:
        raise SystemExit(f"{beside_it} holds {len(lines)} questions, and {size} are asked at a time: lower --sizes.")
    return [str(json.loads(line)["question"]) for line in lines[:size]]
