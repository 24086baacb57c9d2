"""Printed page numbers: number trees as they occur, numerals of every style."""

from __future__ import annotations

from typing import Any

import pytest
from pdf_samples import make_pdf, rewrite
from pypdf import PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject, TextStringObject

from infinipot_llm.documents import Document
from infinipot_llm.documents.page_labels import page_labels


def how(style: str = "", start: int | None = None, prefix: str | None = None) -> DictionaryObject:
    found: dict[Any, Any] = {}
    if style:
        found[NameObject("/S")] = NameObject(f"/{style}")
    if start is not None:
        found[NameObject("/St")] = NumberObject(start)
    if prefix is not None:
        found[NameObject("/P")] = TextStringObject(prefix)
    return DictionaryObject(found)


def numbers(*pairs: tuple[int, DictionaryObject]) -> DictionaryObject:
    flat = [part for first, one in pairs for part in (NumberObject(first), one)]
    return DictionaryObject({NameObject("/Nums"): ArrayObject(flat)})


def kids(*nodes: DictionaryObject) -> DictionaryObject:
    return DictionaryObject({NameObject("/Kids"): ArrayObject(nodes)})


def root(tree: DictionaryObject) -> DictionaryObject:
    return DictionaryObject({NameObject("/PageLabels"): tree})


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (numbers((0, how("r")), (4, how("D"))), "i ii iii iv 1 2"),
        (kids(numbers((0, how("r"))), numbers((4, how("D")))), "i ii iii iv 1 2"),
        (kids(kids(numbers((3, how("D", 10)))), numbers((0, how("A", prefix="x-")))), "x-A x-B x-C 10 11 12"),
        (numbers((3, how("D"))), "- - - 1 2 3"),  # nothing says what the pages before are
        (numbers((0, how(prefix="cover")), (1, how("a", 26))), "cover z aa bb cc dd"),
        (numbers((0, how("R", 3999))), "MMMCMXCIX MMMM MMMMI MMMMII MMMMIII MMMMIV"),
        (numbers((0, how("D", 0)), (1, how("r", -1))), "0 - - i ii iii"),
        (numbers((0, how("odd"))), "- - - - - -"),
    ],
)
def test_labels(tree: DictionaryObject, expected: str) -> None:
    assert page_labels(root(tree), 6) == [label if label != "-" else "" for label in expected.split()]


def test_a_tree_within_itself_ends() -> None:
    tree = kids(numbers((0, how("D"))))
    for _ in range(3):  # bounded by its depth alone, it would branch for ever
        tree[NameObject("/Kids")].append(tree)  # type: ignore[attr-defined]
    assert page_labels(root(tree), 2) == ["1", "2"]


def test_a_prefix_is_cut() -> None:
    """It stands in the label of every page of its range."""
    assert page_labels(root(numbers((0, how("D", prefix="x" * 10**6)))), 2) == ["x" * 100 + "1", "x" * 100 + "2"]


def test_huge_numbers_are_not_written_out() -> None:
    assert page_labels(root(numbers((0, how("a", 10**9)))), 1) == [""]
    assert page_labels(root(numbers((0, how("D", 10**9)))), 1) == ["1000000000"]


def test_labels_of_a_document_whose_tree_has_branches() -> None:
    def change(writer: PdfWriter) -> None:
        tree = kids(numbers((0, how("r"))), numbers((2, how("D"))))
        writer.root_object[NameObject("/PageLabels")] = tree

    document = Document.from_bytes(rewrite(make_pdf("a", "b", "c", "d"), change), name="x.pdf")
    assert [page.label for page in document.pages] == ["i", "ii", "1", "2"]
