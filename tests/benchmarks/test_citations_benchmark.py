"""The benchmark of citations: reports of nothing, and rows of another precision."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infinipot_llm import Document, InfiniPot
from infinipot_llm.answering.compose import UNFOUNDED

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import citations


def row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "model": "m", "dtype": "float32", "number": number, "answerable": number % 2 == 0, "gold": [1], "cited": [1],
        "correct": number % 2 == 0, "supported": 0.5 + number, **more,
    }  # fmt: skip


def test_a_report_without_correct_answers_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    citations.report([row(n, correct=False) for n in range(4)])
    out = capsys.readouterr().out
    assert "| answers that contain the reference | 2 | 0.00 | 0.00 to 0.66 |" in out
    assert "| first cited page right, of correct answers | 0 | - | - |" in out
    assert "ROC curve" not in out
    citations.report([row(n) for n in range(4)])
    out = capsys.readouterr().out
    assert "2 correct answers against 2 foreign questions:\n`supported`: 0.25 [" in out
    assert "per token" not in out  # rows of before do not say how long answers are
    citations.report([row(n, tokens=[1, 9, 1, 9][n]) for n in range(4)])
    assert "`supported`, per token: 1.00 [" in capsys.readouterr().out
    citations.report([])
    assert "nan" not in capsys.readouterr().out


class Scripted:
    """Stands for a model and its memory."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.adapter = SimpleNamespace(dtype=dtype)

    def read(self, document: Document) -> Scripted:
        return self

    def ask(self, question: str, **how: Any) -> Any:
        usage = SimpleNamespace(answer_seconds=1.0, answer_tokens=3)
        notes = (UNFOUNDED.format("1871 is"),) if question == "Who?" else ()
        return SimpleNamespace(citations=(), text="1871", supported=0.5, usage=usage, notes=notes)


def test_what_was_asked_in_another_precision_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"question": "When?", "answer": "1871", "pages": [1]}, {"question": "Who?", "answer": None, "pages": []}]
    monkeypatch.setattr(citations, "questions", lambda folder: asked)
    monkeypatch.setattr(Document, "from_file", lambda path: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    out = tmp_path / "rows.jsonl"
    unknown = {name: value for name, value in row(0, model="qwen2.5-coder-0.5b").items() if name != "dtype"}
    out.write_text(json.dumps(unknown) + "\n")

    def run(what: str) -> None:
        monkeypatch.setattr(sys, "argv", ["citations.py", what, "--data", str(tmp_path), "--out", str(out)])
        citations.main()

    for dtype, many in ((torch.float32, 3), (torch.bfloat16, 5), (torch.float32, 5)):
        monkeypatch.setattr(InfiniPot, "from_pretrained", lambda *_, of=dtype, **__: Scripted(of))
        run("ask")
        assert len(out.read_text().splitlines()) == many
    run("report")
    told = capsys.readouterr().out
    assert told.count("| answers that contain the reference | 1 | 1.00 |") == 3, "precisions are never pooled"
    assert "qwen2.5-coder-0.5b, bfloat16:" in told
    noted = "| figures noted that the text does not hold, of"
    assert told.count(f"{noted} correct answers with figures | 1 | 0.00 |") == 2
    assert told.count(f"{noted} answers on other articles with figures | 1 | 1.00 |") == 2
