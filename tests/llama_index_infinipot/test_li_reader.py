"""InfiniPotPDFReader: one document per page, numbers and labels right, sentences for what is no PDF."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import fsspec
import nbformat
import pytest
from li_helpers import DOCUMENTS, EXAMPLES, write_pdf
from llama_index.core import SimpleDirectoryReader
from llama_index.core.readers.base import BaseReader
from llama_index.indices.managed.infinipot import rejoin
from llama_index.readers.infinipot import InfiniPotPDFReader
from pypdf import PdfReader, PdfWriter

from infinipot_llm.documents import Document
from infinipot_llm.errors import DocumentError

PDF = DOCUMENTS / "hollin_valley.pdf"
ROOT = EXAMPLES.parent


def test_base_class() -> None:
    assert BaseReader in inspect.getmro(InfiniPotPDFReader)


def test_one_document_per_page_with_number_and_label() -> None:
    pages = InfiniPotPDFReader().load_data(PDF, extra_info={"author": "nobody"})
    whole = Document.from_file(PDF)
    assert [p.metadata["page"] for p in pages] == list(range(1, 40))
    assert [p.metadata["page_label"] for p in pages] == [p.label for p in whole.pages]
    assert pages[3].metadata["page_label"] == "1"
    assert {p.metadata["total_pages"] for p in pages} == {39}
    assert {p.metadata["file_name"] for p in pages} == {"hollin_valley.pdf"}
    assert {p.metadata["author"] for p in pages} == {"nobody"}
    assert pages[17].text == whole.text[whole.pages[17].start : whole.pages[17].end]
    assert "412,650 crowns" in pages[17].text


def test_the_pages_make_the_document_that_the_command_line_reads(tmp_path: Path) -> None:
    plain = write_pdf(tmp_path / "plain.pdf", "One.", "", "Three.")  # defines no labels, page 2 is empty
    for pdf in (PDF, plain):
        pages = InfiniPotPDFReader().load_data(pdf)
        assert rejoin.rejoined(rejoin.in_order(pages[::-1])).content_hash == Document.from_file(pdf).content_hash
    assert [p.metadata["page_label"] for p in pages] == ["1", "2", "3"]
    assert pages[1].text == ""


def test_through_simple_directory_reader(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", "One.", "Two.")
    (tmp_path / "b.txt").write_text("Three.")
    reader = SimpleDirectoryReader(
        tmp_path, file_extractor={".pdf": InfiniPotPDFReader()}, filename_as_id=True, raise_on_error=True
    )
    docs = reader.load_data()
    assert [d.metadata["file_name"] for d in docs] == ["a.pdf", "a.pdf", "b.txt"]
    assert docs[0].doc_id.endswith("a.pdf_part_0")
    assert docs[0].metadata["file_path"] == str(tmp_path / "a.pdf")
    assert docs[0].metadata["file_size"] > 0
    assert "file_path" not in docs[0].get_content("llm")  # type: ignore[arg-type]


def snippets() -> list[str]:
    """Return the statements by which README, docs and notebook load a folder."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/llama-index.md")]
    notebook = nbformat.read(EXAMPLES / "llama_index_pdf_query_engine.ipynb", 4)
    texts += [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [
        found
        for text in texts
        for found in re.findall(r"^docs = SimpleDirectoryReader\((?:.|\n)*?load_data\(\)", text, re.M)
    ]


@pytest.mark.parametrize("snippet", snippets())
def test_what_users_are_told_to_write_leaves_no_file_out(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("reports", "documents"):
        (tmp_path / folder).mkdir()
        write_pdf(tmp_path / folder / "a.pdf", "One.")
        write_pdf(tmp_path / folder / "scan.pdf", "")
    monkeypatch.chdir(tmp_path)
    names = {"SimpleDirectoryReader": SimpleDirectoryReader, "InfiniPotPDFReader": InfiniPotPDFReader}
    with pytest.raises(Exception, match="Error loading file") as raised:
        exec(snippet, names)
    assert isinstance(raised.value.__cause__, DocumentError)
    assert "scan.pdf" in str(raised.value.__cause__)


def test_every_way_of_loading_a_folder_is_among_them() -> None:
    assert len(snippets()) == 3


def test_another_file_system(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", "One.", "Two.")
    memory = fsspec.filesystem("memory")
    memory.pipe("/li/a.pdf", (tmp_path / "a.pdf").read_bytes())
    memory.pipe("/li/b.pdf", b"Not at all.")
    pages = InfiniPotPDFReader().load_data("/li/a.pdf", fs=memory)
    assert [p.text for p in pages] == ["One.", "Two."]
    assert pages[0].metadata["file_name"] == "a.pdf"
    with pytest.raises(DocumentError, match=r"b\.pdf is not a PDF"):
        InfiniPotPDFReader().load_data("/li/b.pdf", fs=memory)


def test_password(tmp_path: Path) -> None:
    writer = PdfWriter(clone_from=PdfReader(write_pdf(tmp_path / "open.pdf", "Secret.")))
    writer.encrypt("sesame", algorithm="AES-256")
    writer.write(tmp_path / "shut.pdf")
    assert InfiniPotPDFReader(password="sesame").load_data(tmp_path / "shut.pdf")[0].text == "Secret."
    with pytest.raises(DocumentError, match="encrypted"):
        InfiniPotPDFReader().load_data(tmp_path / "shut.pdf")


async def test_async() -> None:
    pages = await InfiniPotPDFReader().aload_data(PDF)
    assert len(pages) == 39
    assert len(list(await InfiniPotPDFReader().alazy_load_data(PDF))) == 39


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.pdf", b"No PDF.", "is named .pdf but is not a PDF"),
        ("a.txt", b"No PDF.", r"a\.txt is not a PDF: leave it to SimpleDirectoryReader"),
        ("a.pdf", b"%PDF-1.7\nrubbish", "cannot be read as a PDF"),
        ("a.pdf", b"", "is empty"),
    ],
)
def test_what_is_no_pdf(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DocumentError, match=sentence):
        InfiniPotPDFReader().load_data(tmp_path / name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="does not exist"):
        InfiniPotPDFReader().load_data(tmp_path / "none.pdf")


def test_what_was_lost_is_told_on_the_first_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    whole = replace(Document.from_text("One.\fTwo.", name="a.pdf"), notes=("page 2: half of it was lost",))
    monkeypatch.setattr("llama_index.readers.infinipot.base.Document.from_file", lambda *_, **__: whole)
    pages = InfiniPotPDFReader().load_data("a.pdf")
    assert pages[0].metadata["reading_notes"] == "page 2: half of it was lost"
    assert "reading_notes" not in pages[1].metadata
    assert rejoin.rejoined(pages).notes == whole.notes


@pytest.mark.parametrize("address", ["http://example.com/a.pdf", "s3://bucket/a.pdf"])
def test_addresses_are_not_fetched(address: str) -> None:
    with pytest.raises(DocumentError, match=r"is an address, and this reader fetches none: download it"):
        InfiniPotPDFReader().load_data(address)
