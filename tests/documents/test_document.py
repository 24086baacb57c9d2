from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinipot_llm.documents import Document, Page, Span
from infinipot_llm.documents.clean import clean
from infinipot_llm.documents.document import distinctly_named, each_once
from infinipot_llm.errors import DocumentError

any_text = st.text(st.one_of(st.characters(), st.sampled_from("\f\r\n\t \ud800\udfff\u00ad\ufeff\x1b[\u0301é가")))


def three_pages() -> Document:
    return Document("d", "one\n\n\n\nthree", (Page(1, "i", 0, 3), Page(2, None, 5, 5), Page(3, "1", 7, 12)))


def test_an_offset_between_pages_belongs_to_the_page_before() -> None:
    document = three_pages()
    numbers = [document.page_at(offset).number for offset in range(13)]
    assert numbers == [1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3]
    assert document.page_count == 3
    assert document.empty_pages == (2,)


@pytest.mark.parametrize("offset", [-1, 13])
def test_an_offset_outside_of_the_text_is_refused(offset: int) -> None:
    with pytest.raises(ValueError, match="outside of the text of 12 characters"):
        three_pages().page_at(offset)


def test_a_span_names_the_page_of_its_first_word() -> None:
    document = three_pages()
    assert document.span(0, 3) == Span("d", 0, 3, 1, "i", "one")
    assert document.span(4, 12) == Span("d", 4, 12, 3, "1", "\n\n\nthree")


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (0, 13)])
def test_a_span_outside_of_the_text_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not a range of the text"):
        three_pages().span(start, end)


@pytest.mark.parametrize(
    "pages",
    [
        (),
        (Page(2, None, 0, 12),),
        (Page(1, None, 0, 11),),
        (Page(1, None, 0, 13),),
        (Page(1, None, 1, 12),),
        (Page(1, None, 0, 8), Page(2, None, 7, 12)),
        (Page(1, None, 0, 2), Page(2, None, 7, 12)),
        (Page(1, None, 5, 3), Page(2, None, 7, 12)),
    ],
)
def test_pages_that_do_not_describe_the_text_are_refused(pages: tuple[Page, ...]) -> None:
    with pytest.raises(ValueError, match="page"):
        Document("d", "one\n\n\n\nthree", pages)


def test_the_hash_depends_on_text_borders_and_labels_only() -> None:
    document = three_pages()
    renamed = dataclasses.replace(document, name="other", source="/tmp/x", notes=("note",))
    assert renamed.content_hash == document.content_hash
    assert len(document.content_hash) == 64
    relabelled = dataclasses.replace(document, pages=(Page(1, "I", 0, 3), *document.pages[1:]))
    shifted = dataclasses.replace(document, pages=(Page(1, "i", 0, 4), *document.pages[1:]))
    rewritten = dataclasses.replace(document, text="One\n\n\n\nthree")
    hashes = {d.content_hash for d in (document, relabelled, shifted, rewritten)}
    assert len(hashes) == 4


def test_a_document_does_not_print_its_text() -> None:
    assert "three" not in repr(three_pages())


def test_form_feeds_split_pages() -> None:
    document = Document.from_text("Seite eins\fSeite zwei\f\fvier\f", name="vier\x1b[31m Seiten")
    assert [document.text[page.start : page.end] for page in document.pages] == ["Seite eins", "Seite zwei", "", "vier"]
    assert document.empty_pages == (3,)
    assert document.name == "vier Seiten"
    assert document.source is None
    assert {page.label for page in document.pages} == {None}


@settings(deadline=None)
@given(any_text)
def test_any_string_gives_a_document_or_one_sentence(text: str) -> None:
    try:
        document = Document.from_text(text)
    except DocumentError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal or not clean(text).strip():
        assert refusal == "text holds no text: there is nothing but white space in it."
        assert not clean(text).strip()
        return
    document.text.encode("utf-8")
    assert "".join(document.text[page.start : page.end] for page in document.pages).strip()
    for page in document.pages:
        assert document.page_at(page.start) == page
        span = document.span(page.start, page.end)
        assert span.text == document.text[span.start : span.end]
        assert span.page == page.number
    again = Document.from_text("\f".join(document.text[page.start : page.end] for page in document.pages) + "\f")
    assert again.content_hash == document.content_hash


@settings(deadline=None)
@given(st.lists(any_text.map(lambda text: text.replace("\f", "")), min_size=1, max_size=5))
def test_every_page_holds_the_cleaned_text_it_was_given(texts: list[str]) -> None:
    document = Document.from_text("\f".join(["first", *texts]) + "\f")
    assert [document.text[page.start : page.end] for page in document.pages] == ["first", *map(clean, texts)]


def test_importing_documents_does_not_import_a_pdf_reader() -> None:
    code = (
        "import sys; from infinipot_llm.documents import Document; Document.from_text('x');"
        "print([m for m in ('pypdf', 'pypdfium2', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_documents_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = [tmp_path / year / "report.txt" for year in ("2021", "2022")]
    for file in files:
        file.parent.mkdir()
        file.write_text(f"Written in {file.parent.name}.", encoding="utf-8")
    texts = [Document.from_text(text, name="prompt") for text in ("one", "two", "one")]
    named = distinctly_named([*map(Document.from_file, files), *texts])
    assert [d.name for d in named] == ["2021/report.txt", "2022/report.txt", "prompt", "prompt (2)", "prompt (3)"]
    assert [d.text for d in named[2:]] == ["one", "two", "one"]
    assert [d.name for d in each_once([*texts, texts[1]])] == ["prompt", "prompt (2)"]
    alone = Document.from_file(files[0])
    assert distinctly_named([alone, texts[0]]) == (alone, texts[0])
    assert distinctly_named([]) == each_once([]) == ()
