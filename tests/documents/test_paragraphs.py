"""Paragraphs of PDF pages: blank lines where the page has gaps, and wrapped lines joined."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader
from reportlab.pdfgen.canvas import Canvas

from infinipot_llm.documents import Document
from infinipot_llm.documents.clean import clean
from infinipot_llm.documents.paragraphs import unwrapped, with_breaks

REPORT = Path(__file__).parents[2] / "examples" / "documents" / "hollin_valley"
UPRIGHT = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)

Placed = tuple[str, float, float, float]


def pdf(*drawn: Placed, turn: float = 0) -> bytes:
    """Draw lines: (text, x, y, size)."""
    stream = io.BytesIO()
    canvas = Canvas(stream, invariant=True)
    if turn:
        canvas.translate(300, 300)
        canvas.rotate(turn)
    for text, x, y, size in drawn:
        canvas.setFont("Helvetica", size)
        canvas.drawString(x, y, text)
    canvas.showPage()
    canvas.save()
    return stream.getvalue()


def breaks(data: bytes) -> str:
    pieces: list[Any] = []
    page = PdfReader(io.BytesIO(data)).pages[0]
    text = page.extract_text(visitor_text=lambda *piece: pieces.append(piece))
    return "\n".join(line.strip() for line in with_breaks(text, pieces).strip().split("\n"))


def column(*lines: str, x: float = 72, top: float = 700, size: float = 10, step: float = 12) -> list[Placed]:
    return [(line, x, top - step * i, size) for i, line in enumerate(lines)]


LONG = "a line that is as long as lines are in this column"


def test_a_gap_ends_a_paragraph() -> None:
    data = pdf(*column(*[LONG] * 4), *column(*[LONG] * 3, top=640))
    assert breaks(data) == "\n".join([LONG] * 4) + "\n\n" + "\n".join([LONG] * 3)


def test_a_heading_stands_alone() -> None:
    data = pdf(("1 Heading", 72, 712, 13), *column(*[LONG] * 4))
    assert breaks(data) == "1 Heading\n\n" + "\n".join([LONG] * 4)


def test_an_indented_first_line_begins_a_paragraph() -> None:
    lines = [*column(LONG, LONG, "which ends here."), ("Another begins", 84, 664, 10), *column(LONG, LONG, top=652)]
    assert breaks(pdf(*lines)) == f"{LONG}\n{LONG}\nwhich ends here.\n\nAnother begins\n{LONG}\n{LONG}"


def test_a_hanging_item_is_no_paragraph_of_its_own() -> None:
    lines = [("* An item that ends.", 72, 700, 10), *column(LONG, LONG, x=84, top=688)]
    assert "\n\n" not in breaks(pdf(*lines))


@pytest.mark.parametrize(("last", "first", "is_break"), [("and so", "it goes on", False), ("the end.", "Next", True)])
def test_a_paragraph_may_go_on_in_the_next_column(last: str, first: str, is_break: bool) -> None:
    data = pdf(*column(LONG, LONG, LONG, last), *column(first, LONG, LONG, x=350))
    assert (f"{last}\n\n{first}" if is_break else f"{last}\n{first}") in breaks(data)


def test_cells_of_a_row_share_a_line() -> None:
    rows = [("Name", "Built", "Height"), ("Ashgill", "1927", "14"), ("Blackmere", "1934", "31")]
    drawn = [(cell, 72 + 90 * i, 600 - 20 * n, 10.0) for n, row in enumerate(rows) for i, cell in enumerate(row)]
    page = Document.from_bytes(pdf(*column(*[LONG] * 4), *drawn), name="-").text
    assert page.endswith("Name\tBuilt\tHeight\nAshgill\t1927\t14\nBlackmere\t1934\t31")


def test_a_raised_figure_is_no_cell() -> None:
    data = pdf(("ten m", 72, 700, 10), ("2", 98, 703, 7), ("and on", 104, 700, 10))
    assert breaks(data).split() == ["ten", "m", "2", "and", "on"]
    assert "\t" not in breaks(data)
    assert "\n\n" not in breaks(data)


@pytest.mark.parametrize("turn", [0, 90, 180])
def test_turned_text_loses_nothing(turn: float) -> None:
    data = pdf(*column(LONG, LONG, top=0, x=0), *column("after a gap", top=-60, x=0), turn=turn)
    plain = PdfReader(io.BytesIO(data)).pages[0].extract_text()
    assert breaks(data).split() == plain.split()


def test_what_does_not_add_up_is_left_alone() -> None:
    assert with_breaks("one\ntwo", [("one\n", UPRIGHT, UPRIGHT, None, 10.0)]) == "one\ntwo"
    assert with_breaks("", []) == ""


numbers = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 10.0, -1.0]))
matrices = st.tuples(*[numbers] * 6)
texts = st.text(st.sampled_from("ab. \n\t-1你。́"), max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, matrices, matrices, st.none(), numbers), max_size=12))
def test_only_white_space_changes_whatever_the_places(pieces: list[Any]) -> None:
    text = "".join(piece[0] for piece in pieces)
    assert with_breaks(text, pieces).split() == text.split()


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("ab. \t-1你。́A"), max_size=40), max_size=12).map("\n".join))
def test_joining_lines_changes_white_space_only(text: str) -> None:
    assert re.sub(r"\s", "", unwrapped(text)) == re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The first of two\nlines is joined.", "The first of two lines is joined."),
        ("A word that is hyphe-\nnated at its line's", "A word that is hyphe-nated at its line's"),
        ("from 1990 until 1995 -\nsix years in all, and", "from 1990 until 1995 - six years in all, and"),
        ("中文的第一行文字写到这里\n第二行文字继续写下去", "中文的第一行文字写到这里第二行文字继续写下去"),
        ("한국어 문서의 첫째 줄은\n둘째 줄로 이어진다", "한국어 문서의 첫째 줄은 둘째 줄로 이어진다"),
        ("a\tb\nc\td\ne\tf", "a\tb\nc\td\ne\tf"),
        ("for i in range(3):\nx += 1\nand a line of prose that is much longer than code", None),
        ("• one item of a list\n• another item of it", "• one item of a list\n• another item of it"),
        ("one\n\n\n two \n", "one\n\ntwo"),
        (" \n", ""),
    ],
)
def test_unwrapped(text: str, expected: str | None) -> None:
    assert unwrapped(text) == (text if expected is None else expected)


def test_paragraphs_of_the_sample_report() -> None:
    """Its source says where paragraphs end: every pair of lines that stands in it is compared."""

    def words(text: str) -> str:
        return re.sub(r"\W+", " ", text).strip()

    source = " | ".join(map(words, re.split(r"\n\s*\n", REPORT.with_suffix(".md").read_text(encoding="utf-8"))))
    document = Document.from_file(REPORT.with_suffix(".pdf"))
    right = wrong = 0
    for page in document.pages:
        blocks = document.text[page.start : page.end].split("\n\n")
        for above, below in pairwise(blocks):
            before, after = " ".join(words(above).split()[-4:]), " ".join(words(below).split()[:4])
            right += f"{before} | {after}" in source
            wrong += f"{before} {after}" in source
    assert right >= 150
    assert wrong == 0


def test_offsets_and_quotes_stand_in_the_text() -> None:
    document = Document.from_file(REPORT.with_suffix(".pdf"))
    assert clean(document.text) == document.text
    sentence = "There are three, all of them earth dams, all built by direct labour, and all still in use."
    start = document.text.index(sentence)  # wrapped in the PDF
    assert document.span(start, start + len(sentence)).text == sentence
    assert "Blackmere\t1934\t6,400\t31" in document.text
