"""pdf_recall.py: what counts as evidence, and what is raised above the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from infinipot_llm.documents import Document

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import pdf_recall

PAGES = Document.from_text("The mill cost 7.\fTable 1. The mill\nTable 2. The ferry\fThe Mill burned.", name="report")


def words(places: list[pdf_recall.Place]) -> list[tuple[str, tuple[str, ...]]]:
    return [(PAGES.text[start:end], wordings) for start, end, wordings in places]


def test_evidence_is_what_an_answer_needs_on_its_page() -> None:
    part = {"kind": "list", "parts": [{"page": 2, "any": ["mill", "Mill"]}, {"page": 3, "any": ["burned"]}]}
    assert words(pdf_recall.evidence(part, PAGES)) == [
        ("Table 1. The mill\nTable 2. The ferry", ("mill", "Mill")), ("The Mill burned.", ("burned",)),
    ]  # fmt: skip
    two = {"kind": "two-places", "facts": [{"page": 1, "text": "cost 7"}]}
    assert words(pdf_recall.evidence(two, PAGES)) == [("The mill cost 7.", ("cost 7",))]
    count = {"kind": "count", "pages": [3], "counted": {"pattern": r"^Table \d", "within": "document"}}
    assert words(pdf_recall.evidence(count, PAGES)) == [("Table 1", ("Table 1",)), ("Table 2", ("Table 2",))]
    count["counted"] = {"pattern": "[Mm]ill", "within": "pages"}
    assert words(pdf_recall.evidence(count, PAGES)) == [("Mill", ("Mill",))]


def test_every_question_about_the_sample_has_evidence() -> None:
    report = Document.from_file(pdf_recall.DOCUMENTS / f"{pdf_recall.REPORT}.pdf")
    questions = pdf_recall.questions_of(pdf_recall.REPORT)
    assert {q["kind"] for q in questions} == {"page", "two-places", "list", "count", "summary"}
    for question in questions:
        places = pdf_recall.evidence(question, report)
        assert places, question["question"]
        for start, end, wordings in places:
            there = pdf_recall.plain(report.text[start:end])
            assert any(pdf_recall.plain(w) in there for w in wordings), (question["question"], wordings)


@pytest.mark.parametrize(
    ("room", "beside", "raised"),
    [
        (20, 0, [2, 5]),
        (15, 0, [5]),  # the better section first
        (40, 1, [2, 4, 5, 6]),
        (80, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (5, 8, []),
    ],
)
def test_the_best_span_of_every_section_is_raised(room: int, beside: int, raised: list[int]) -> None:
    scores = torch.tensor([0.0, 0.1, 0.5, 0.2, 0.3, 0.9, 0.4, 0.1])
    found = pdf_recall.spread(scores, np.full(8, 10), sections=2, room=room, beside=beside)
    assert [i for i in range(8) if found[i] > scores.max()] == raised
    assert torch.equal(
        found[[i for i in range(8) if i not in raised]], scores[[i for i in range(8) if i not in raised]]
    )
