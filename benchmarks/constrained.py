"""What holding an answer to a JSON schema costs: set-up once, and time per token beside the model's own.

    python benchmarks/constrained.py [--model NAME] [--out FILE]

A short text is read and each schema filled in from it, greedily, on one thread. Printed, and appended to --out as a
JSON line: seconds for the tokenizer's tables (once per process and tokenizer), milliseconds to compile the schema, and
milliseconds per token of the constraint and of the whole decoding. All are processor time of that thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from infinipot_llm import Document, InfiniPot
from infinipot_llm.answering.constrain import json_schema
from infinipot_llm.answering.decode import Decoded, Sampling, decode, end_ids

TEXT = (
    "Minutes of 4 March 1893. Present: Ada Brook, surveyor; Ivo Lund, clerk; Mary Thorne, miller. The bridge at "
    "Colmere was opened in 1887 and cost 4,215 crowns. The weir is to be mended before May; nobody objected."
)
QUESTION = "Who was present, and what was said about the bridge? Answer as JSON."
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "trade": {"enum": ["surveyor", "clerk", "miller"]}},
    "required": ["name", "trade"],
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "two fields": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "year": {"type": "integer"}},
        "required": ["name", "year"],
    },
    "nested": {
        "type": "object",
        "properties": {
            "date": {"type": "string", "format": "date"},
            "present": {"type": "array", "items": {"$ref": "#/$defs/person"}, "minItems": 1, "maxItems": 5},
            "bridge": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "year": {"type": "integer"}, "cost": {"type": "number"}},
                "required": ["place", "year", "cost"],
            },
            "objection": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["date", "present", "bridge", "objection"],
        "$defs": {"person": PERSON},
    },
    "any JSON": {"type": "object"},
}


class Timed:
    """A constraint that notes how long each call takes."""

    def __init__(self, constraint: Any) -> None:
        self.constraint = constraint
        self.seconds: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        started = time.thread_time()
        scores = self.constraint(input_ids, scores)
        self.seconds.append(time.thread_time() - started)
        return scores


def measure(llm: InfiniPot, memory: Any, schema: dict[str, Any]) -> tuple[dict[str, Any], Decoded]:
    adapter, codec = llm.adapter, llm.form.codec
    started = time.thread_time()
    timed = Timed(json_schema(codec, schema, end_ids(adapter, codec)))
    compiled = time.thread_time() - started
    question = llm.form.question(QUESTION)
    started = time.thread_time()
    said = decode(adapter, codec, memory.pot, question, Sampling(max_new_tokens=160), processors=[timed])
    whole = time.thread_time() - started
    tokens = len(said.ids)
    own = sum(timed.seconds)
    line = {
        "tokens": tokens,
        "finish_reason": said.finish_reason,
        "compile_ms": round(1e3 * compiled, 1),
        "first_mask_ms": round(1e3 * timed.seconds[0], 2),
        "constraint_ms_per_token": round(1e3 * own / tokens, 3),
        "constraint_ms_worst": round(1e3 * max(timed.seconds), 2),
        "decoding_ms_per_token": round(1e3 * whole / tokens, 1),
        "share": round(own / whole, 4),
    }
    return line, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with InfiniPot.from_pretrained(given.model, budget=1024, device="cpu") as llm:
        memory = llm.read(Document.from_text(TEXT))
        ends = end_ids(llm.adapter, llm.form.codec)
        started = time.thread_time()
        json_schema(llm.form.codec, {"type": "null"}, ends)
        tables = round(time.thread_time() - started, 2)
        print(f"tables of {len(llm.form.codec.tokenizer)} tokens: {tables} s")
        for name, schema in SCHEMAS.items():
            line, said = measure(llm, memory, schema)
            print(f"{name}: {line}\n  {said.text}")
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"model": given.model, "schema": name, "tables_s": tables, **line}) + "\n")


if __name__ == "__main__":
    main()
