"""Tables of contents are told from text, lists and tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinipot_llm.documents import Document, Page
from infinipot_llm.documents.contents import tables_of_contents

TITLES = ("About This Report", "The Reservoirs", "Water Quality", "Complaints", "The Fleet", "Safety", "Glossary")
PAGES = (1, 5, 8, 13, 13, 21, 36)
SECTIONS = "\n\n".join(f"{title}\n\nOf that year much was said, and more of the years before it." for title in TITLES)


def paged(text: str, pages: int = 20) -> Document:
    """A document of so many pages, nearly all of whose text stands on the first."""
    whole = text + "\n" * (pages - 1)
    borders = [0, *range(len(text) + 1, len(whole) + 1)]
    ends = [*borders[1:], len(whole)]
    found = tuple(Page(n + 1, None, borders[n], ends[n]) for n in range(pages))
    return Document("report", whole, found)


def found_in(text: str, pages: int = 20) -> list[str]:
    document = paged(text, pages)
    return [document.text[start:end] for start, end in tables_of_contents(document)]


@pytest.mark.parametrize("between", [" ", "\n", " ........... ", " . . . . . . ", "\t", "…"])
def test_titles_with_pages_that_rise_are_a_table(between: str) -> None:
    table = "\n".join(f"{title}{between}{page}" for title, page in zip(TITLES, PAGES, strict=True))
    assert found_in(f"The Report of 2022\n\nContents\n\n{table}\n\nThe year was dry.\n\n{SECTIONS}") == [table]


def test_the_table_of_a_real_report_is_found() -> None:
    document = Document.from_file(Path(__file__).parents[2] / "examples" / "documents" / "hollin_valley.pdf")
    ((start, end),) = tables_of_contents(document)
    assert document.text[start:end].startswith("About This Report 1\n")
    assert document.text[start:end].endswith("Notes to the Accounts 36")


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"{t} {p}" for t, p in zip(TITLES[:5], PAGES, strict=False)),  # too short
        "\n".join(f"{t} {p}" for t, p in zip(TITLES, reversed(PAGES), strict=True)),  # falling
        "\n".join(f"{t} {p}000" for t, p in zip(TITLES, PAGES, strict=True)),  # no pages
        "\n".join(map(str, PAGES)),  # no titles
        "\n".join(f"The year {p} was dry, and nobody in the valley had seen a summer like it." for p in PAGES),
        "\n".join(f"{'a long sentence about water that goes on ' * 3}until {p}" for p in PAGES),
        "North 3\nSouth 5\nEast 8\nWest 12\nHarbour 15\nHill 21\nTotal 33",  # figures that rise
        "\n".join(f"Step {n}" for n in range(1, 9)),
        "",
    ],
)
def test_what_is_none_is_none(text: str) -> None:
    assert found_in(f"{text}\n\n{SECTIONS}") == []


def test_a_short_document_has_none() -> None:
    table = "\n".join(f"{title} {page}" for title, page in zip(TITLES, PAGES, strict=True))
    assert found_in(f"{table}\n\n{SECTIONS}", pages=5) == []
    assert tables_of_contents(Document.from_text(f"{table}\n\n{SECTIONS}")) == []


def test_text_between_two_tables_is_in_neither() -> None:
    table = "\n".join(f"{title} {page}" for title, page in zip(TITLES, PAGES, strict=True))
    prose = "\n\nIn that year the reservoirs were lower than anybody who was asked about it could remember them.\n\n"
    assert found_in(table + prose + table + prose + SECTIONS) == [table, table]
    assert found_in(f"{table}\n{table}\n\n{SECTIONS}") == [table, table], "the second begins where numbers fall"


@given(
    st.lists(st.sampled_from([*TITLES, "7", "12", "3", "The Fleet 9", "x" * 40, "", "9999", "a b " * 20]), max_size=40)
)
def test_what_is_found_lies_in_order_and_holds_enough_numbers(lines: list[str]) -> None:
    document = paged("\n".join(lines))
    last = 0
    for start, end in tables_of_contents(document):
        assert last <= start < end <= len(document.text)
        numbers = [int(line.split()[-1]) for line in document.text[start:end].split("\n") if line[-1:].isdigit()]
        assert len(numbers) >= 6
        assert numbers == sorted(numbers)
        last = end
