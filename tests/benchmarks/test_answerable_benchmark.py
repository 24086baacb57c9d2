"""The benchmark of `answerable`: what it asks of a document, and what it makes of rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, tiny_model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import answerable
import followup_data as data

from infinipot_llm import Document, InfiniPot, PotConfig
from infinipot_llm.memory import recall
from infinipot_llm.memory.answerable import Signs
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

TEXT = "\n\n".join(f"In {1900 + i} the mill number {i} burned, and {7 * i} crowns were paid." for i in range(8))


def question(i: int, *more: tuple[int, int]) -> data.Question:
    at = TEXT.index(f"{1900 + i}")
    return data.Question("xquad", f"x{i}", f"When did mill number {i} burn?", (f"{1900 + i}",), ((at, at + 4), *more))


def test_own_questions_are_asked_twice_and_absent_ones_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "WORDS_SHARE", 1e6)  # what a random model attends to is chance
    config = PotConfig(budget=400, max_new_tokens=12, question_tokens=40, chunk=64)
    with InfiniPot(Adapter(tiny_model("llama")), TextCodec(byte_tokenizer()), config) as llm:
        memory = llm.read(Document.from_text(TEXT, name="mills"))
        foreign = data.Question("nq", "n1", "Which comets did Tycho observe?", ("one",), ())
        found = answerable.rows(memory, [question(3), question(5, (0, 4))], [foreign])
        kinds = [(row["kind"], row["group"]) for row in found]
        assert kinds == [("own", "x3"), ("hidden", "x3"), ("own", "x5"), ("absent", "n1")]
        own, hidden = (Signs(*row["signs"]) for row in found[:2])
        assert own.words > hidden.words, "its number stands in its own paragraph alone"
        assert found[3]["signs"][1] == 0.0
        assert "mill" not in str(found), "rows hold no texts"


def test_the_report_says_how_well_both_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    def rows(*groups: tuple[str, float, float]) -> list[dict[str, Any]]:
        return [
            {"kind": kind, "group": f"g{n}", "signs": [attention + 0.01 * n, words]}
            for kind, attention, words in groups
            for n in range(12)
        ]

    clear = rows(("own", -1.0, 0.7), ("absent", -2.5, 0.0), ("hidden", -2.3, 0.1))
    alike = rows(("own", -1.0, 0.7), ("absent", -1.0, 0.7))
    answerable.report({"cal": clear, "A4": clear, "x8": [*alike, {"kind": "own", "group": "g", "signs": None}]}, "none")
    out = capsys.readouterr().out
    assert "| A4 | absent | 12, 12 | 1.00 [1.00, 1.00] | 0.00 [0.00, 0.24] | 1.00 [0.76, 1.00] |" in out
    assert "| A4 | hidden | 12, 12 | 1.00 [" in out
    assert "| x8 | absent | 12, 12 | 0.50 [" in out
    assert "x8 | hidden" not in out
    assert "of the model" not in out, "a model of that name comes with none"
