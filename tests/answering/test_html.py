"""An answer in a notebook: readable, escaped, and the strip shows where it comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infinipot_llm.answering.answer import Answer, Citation, Usage
from infinipot_llm.answering.html import CELLS, place, strip
from infinipot_llm.pot.reader import ReadStats

CITED = Citation("report.pdf", 3, "3", 500, 520, "It cost 4 crowns.", 0.9, length=1000)
USAGE = Usage(ReadStats(1234, 1234), 20, 512, 8, 1.0, 2.34, 0, 0)
ANSWER = Answer("4 crowns", (CITED,), "stop", USAGE)


def test_text_strip_quote_and_cost_are_shown() -> None:
    shown = ANSWER._repr_html_()
    for part in (
        "4 crowns",
        "report.pdf",
        "<q>It cost 4 crowns.</q>",
        "p. 3",
        "1,234 tokens read",
        "512 recalled",
        "2.3 s",
    ):
        assert part in shown
    assert strip([CITED]) in shown
    assert "cut" not in shown
    assert "cut at max_new_tokens" in replace(ANSWER, finish_reason="length")._repr_html_()


def test_notes_stand_between_the_answer_and_its_quotes() -> None:
    shown = replace(ANSWER, notes=("It may not tell.", "4 is not in the text."))._repr_html_()
    assert shown.index("4 crowns") < shown.index("It may not tell.<br>4 is not in the text.") < shown.index("<q>")
    assert "<i>" not in ANSWER._repr_html_()


def test_nothing_of_document_or_answer_becomes_markup() -> None:
    evil = "<script>alert('x')</script>&\n<b>"
    cited = replace(CITED, document=evil, quote=evil, page_label=evil, speaker=evil)
    shown = Answer(evil, (cited, replace(cited, speaker=None)), "stop", USAGE, notes=(evil,))._repr_html_()
    assert "<script" not in shown
    assert shown.count("<b>") == 1
    assert shown.count("&lt;script&gt;") >= 5


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [(0, 1, 0, 0), (999, 1000, CELLS - 1, CELLS - 1), (500, 520, CELLS // 2, 31), (0, 1000, 0, CELLS - 1)],
)
def test_the_strip_has_a_block_where_the_passage_is(start: int, end: int, first: int, last: int) -> None:
    line = strip([replace(CITED, start=start, end=end)])
    assert len(line) == CELLS
    assert [i for i, c in enumerate(line) if c == "█"] == list(range(first, last + 1))


def test_without_a_length_nothing_is_marked() -> None:
    assert set(strip([replace(CITED, length=0)])) == {"·"}


def test_places() -> None:
    assert place(CITED) == "p. 3"
    assert place(replace(CITED, page_label="iv")) == "p. iv (page 3)"
    assert place(replace(CITED, page_label=None)) == "p. 3"
    assert place(replace(CITED, speaker="Ann", time=3725.0)) == "Ann, 1:02:05"


def test_an_answer_without_citations() -> None:
    shown = replace(ANSWER, citations=(), text="")._repr_html_()
    assert "(no answer)" in shown
    assert "<ol>" not in shown
