"""Pages of one file become one document again: in order, with borders and labels, or a sentence says why not."""

from __future__ import annotations

import pytest
from li_helpers import mill_pages, page, river
from llama_index.core.schema import Document
from llama_index.indices.managed.infinipot import rejoin

from infinipot_llm.documents import Document as WholeDocument
from infinipot_llm.errors import DocumentError


def test_files_in_order_of_appearance() -> None:
    other = [page(1, "x", "b.pdf"), page(2, "y", "b.pdf")]
    mixed = [other[0], river(), *mill_pages(), other[1]]
    files = rejoin.by_file(mixed)
    assert list(files) == ["/nowhere/b.pdf", "river", "/nowhere/mill.pdf"]
    assert [len(parts) for parts in files.values()] == [2, 1, 6]


def test_one_name_in_two_folders_are_two_files() -> None:
    pages = [page(1, "x", file_path="/a/mill.pdf"), page(1, "y", file_path="/b/mill.pdf")]
    assert list(rejoin.by_file(pages)) == ["/a/mill.pdf", "/b/mill.pdf"]


def test_names_without_pages_are_documents_of_their_own() -> None:
    texts = [Document(text=t, metadata={"file_name": "note.txt"}, id_=t) for t in ("a", "b")]
    assert list(rejoin.by_file(texts)) == ["a", "b"]
    labelled = [Document(text=t, metadata={"file_name": "n.pdf", "page_label": t}) for t in ("1", "2")]
    assert list(rejoin.by_file(labelled)) == ["n.pdf"]


def test_borders_labels_and_order() -> None:
    whole = rejoin.rejoined(rejoin.in_order(mill_pages()[::-1]))
    assert whole.name == "mill.pdf"
    assert [p.number for p in whole.pages] == [1, 2, 3, 4, 5, 6]
    assert [p.label for p in whole.pages] == ["A-1", "A-2", "A-3", "A-4", "A-5", "A-6"]
    for p, given in zip(whole.pages, mill_pages(), strict=True):
        assert whole.text[p.start : p.end] == given.text


def test_readers_that_only_give_labels_keep_the_order_given() -> None:
    pages = [Document(text=t, metadata={"file_name": "a.pdf", "page_label": t}) for t in ("ii", "i", "x")]
    whole = rejoin.rejoined(rejoin.in_order(pages))
    assert [p.label for p in whole.pages] == ["ii", "i", "x"]
    assert whole.text == "ii\n\ni\n\nx"


def test_labels_that_are_numbers_are_none() -> None:
    pages = [Document(text=f"Text {i}.", metadata={"file_name": "a.pdf", "page_label": str(i)}) for i in (1, 2)]
    assert [p.label for p in rejoin.rejoined(pages).pages] == [None, None]
    pages[1].metadata["page_label"] = "3"
    assert [p.label for p in rejoin.rejoined(pages).pages] == ["1", "3"]


def test_missing_pages_keep_the_numbers_of_the_others() -> None:
    whole = rejoin.rejoined(rejoin.in_order([page(4, "Four."), page(2, "Two.")]))
    assert whole.page_count == 4
    assert whole.page_at(whole.text.index("Four")).number == 4
    assert whole.page_at(whole.text.index("Two")).label == "A-2"
    assert whole.empty_pages == (1, 3)


@pytest.mark.parametrize("number", [0, -1, 10**9, True, "3", 2.0])
def test_impossible_numbers_do_not_count(number: object) -> None:
    pages = [page(1, "One."), page(2, "Two.")]
    pages[0].metadata["page"] = number
    assert rejoin.rejoined(rejoin.in_order(pages)).text == "One.\n\nTwo."


def test_a_page_twice_is_refused_by_name() -> None:
    with pytest.raises(DocumentError, match=r"mill\.pdf has page 3 twice"):
        rejoin.in_order([*mill_pages(), page(3, "Another.")])


def test_a_pdf_read_as_text_is_refused_by_name() -> None:
    raw = Document(text="%PDF-1.7\n\x93\x8c\x8b\x9e", metadata={"file_name": "a.pdf", "file_path": "/x/a.pdf"})
    with pytest.raises(DocumentError, match=r"a\.pdf was loaded as the raw bytes of a PDF.*InfiniPotPDFReader"):
        rejoin.rejoined([raw])
    told = Document(text="The header of a PDF is %PDF-1.7, as everybody knows.", id_="a")
    assert rejoin.rejoined([told]).page_count == 1


@pytest.mark.parametrize("texts", [[""], ["", " \n\t"], [" "]])
def test_empty_pages_alone_are_refused_by_name(texts: list[str]) -> None:
    with pytest.raises(DocumentError, match=r"mill\.pdf cannot be indexed, none of its pages holds text: run OCR"):
        rejoin.rejoined([page(i, text) for i, text in enumerate(texts, start=1)])
    with pytest.raises(DocumentError, match="it holds no text: give it some, or leave it out"):
        rejoin.rejoined([Document(text=texts[0])])


def test_text_is_read_as_a_file_of_its_name_is() -> None:
    captions = "WEBVTT\n\n00:00:01.000 --> 00:00:04.000\n<v Ann>We sign on Monday.\n"
    whole = rejoin.rejoined([Document(text=captions, metadata={"file_name": "talk.vtt"})])
    assert whole.turns[0].speaker == "Ann"
    assert rejoin.rejoined([Document(text="One.\fTwo.", id_="a")]).page_count == 2
    sections = [Document(text=t, metadata={"file_path": "/x/a.md", "file_name": "a.md"}) for t in ("# A", "# B")]
    assert rejoin.rejoined(sections).text == "# A\n\n# B"
    zipped = Document(text="PK\x03\x04rubbish", metadata={"file_name": "a.docx"})
    with pytest.raises(DocumentError, match="ZIP container"):
        rejoin.rejoined([zipped])


def test_control_characters_and_surrogates_do_not_come_through() -> None:
    whole = rejoin.rejoined([page(1, "a\x00b\x1b[31mc\ud800"), page(2, "d\r\ne")])
    assert whole.text == "abc\ufffd\n\nd\ne"
    assert isinstance(whole, WholeDocument)


def test_merging_replaces_the_same_page_alone() -> None:
    new = [page(3, "Three anew."), page(7, "Seven.")]
    pages = rejoin.in_order(rejoin.merged(mill_pages(), new))
    assert [p.metadata["page"] for p in pages] == [1, 2, 3, 4, 5, 6, 7]
    assert pages[2].text == "Three anew."
    unnumbered = [Document(text="a", id_="1"), Document(text="b", id_="2")]
    assert [p.text for p in rejoin.merged(unnumbered, [Document(text="c", id_="2")])] == ["a", "c"]


def test_whether_a_file_is_whole_is_its_reader_s_word() -> None:
    assert rejoin.is_whole([page(1, "a", total_pages=2), page(2, "b", total_pages=2)])
    assert not rejoin.is_whole([page(1, "a", total_pages=2)])
    assert rejoin.is_whole([page(1, "a")])


def pymupdf(number: int, total: int) -> Document:
    """A page as PyMuPDFReader gives it."""
    return Document(
        text=f"Page {number}.", metadata={"total_pages": total, "file_path": "/a.pdf", "source": str(number)}
    )


def test_pages_whose_number_stands_in_their_source() -> None:
    pages = [pymupdf(n, 3) for n in (1, 2, 3)]
    assert [rejoin.page_number(part) for part in pages] == [1, 2, 3]
    whole = rejoin.rejoined(rejoin.in_order(pages[::-1]))
    assert [(p.number, whole.text[p.start : p.end]) for p in whole.pages] == [(n, f"Page {n}.") for n in (1, 2, 3)]
    one_by_one: list[Document] = []
    for part in pages:
        one_by_one = rejoin.merged(one_by_one, [part])  # type: ignore[assignment]
    assert one_by_one == pages
    for told in ({"source": "2"}, {"source": "7", "total_pages": 3}, {"source": "a.pdf", "total_pages": 3}):
        assert rejoin.page_number(Document(text="x", metadata=told)) is None


def test_a_part_of_more_than_are_given_joins_the_others() -> None:
    first, second = (Document(text=t, id_=t, metadata={"file_path": "/a.pdf", "total_pages": 2}) for t in "ab")
    assert rejoin.merged([first], [second]) == [first, second]
    assert rejoin.merged([first, second], [Document(text="c", metadata={"file_path": "/a.pdf"})])[0].text == "c"
