from __future__ import annotations

import io
from pathlib import Path

import pytest
from pdf_samples import in_child, make_pdf, rewrite
from pypdf import PdfReader, PdfWriter
from pypdf.constants import PageLabelStyle
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from infinipot_llm.documents import Document, pdfium
from infinipot_llm.errors import DocumentError


def page_texts(document: Document) -> list[str]:
    return [document.text[page.start : page.end].strip() for page in document.pages]


def without_pdfium(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdfium, "is_installed", lambda: False)


def fail_on(monkeypatch: pytest.MonkeyPatch, *bad_numbers: int, error: str) -> None:
    """Make pypdf raise on pages of these numbers, from 1."""
    in_child(
        monkeypatch,
        f"""
import pypdf
extract = pypdf.PageObject.extract_text
def extract_text(page, **kwargs):
    if page.page_number + 1 in {bad_numbers}:
        raise {error}
    return extract(page, **kwargs)
pypdf.PageObject.extract_text = extract_text
""",
    )


def test_pages_are_read_in_order_and_without_made_up_labels(tmp_path: Path) -> None:
    path = tmp_path / "report.pdf"
    path.write_bytes(make_pdf("First page\nsecond line", "", "Third page"))
    document = Document.from_file(path)
    assert page_texts(document) == ["First page second line", "", "Third page"]
    assert [page.label for page in document.pages] == [None, None, None]
    assert document.empty_pages == (2,)
    assert document.notes == (
        "page 2 holds no text: it may be a scan, which needs OCR first, for instance with ocrmypdf, or blank",
    )
    assert document.name == "report.pdf"
    start = document.text.index("Third")
    assert document.span(start, start + 5).page == 3


def test_printed_page_labels() -> None:
    def label(writer: PdfWriter) -> None:
        writer.set_page_label(0, 1, style=PageLabelStyle.LOWERCASE_ROMAN)
        writer.set_page_label(2, 3, style=PageLabelStyle.DECIMAL, start=1)
        writer.set_page_label(4, 4, style=PageLabelStyle.DECIMAL, prefix="A-", start=8)

    document = Document.from_bytes(rewrite(make_pdf("a", "b", "c", "d", "e"), label), name="-")
    assert [page.label for page in document.pages] == ["i", "ii", "1", "2", "A-8"]
    offset = document.text.index("c")
    assert (document.span(offset, offset + 1).page, document.span(offset, offset + 1).page_label) == (3, "1")


def test_broken_page_labels_cost_the_labels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    in_child(
        monkeypatch,
        """
from infinipot_llm.documents import pypdf_pages
def fail(root, count):
    raise RecursionError("deep")
pypdf_pages.page_labels = fail
""",
    )
    data = rewrite(make_pdf("a", "b"), lambda writer: writer.set_page_label(0, 1, style=PageLabelStyle.DECIMAL))
    document = Document.from_bytes(data, name="-")
    assert page_texts(document) == ["a", "b"]
    assert [page.label for page in document.pages] == [None, None]
    assert document.notes == ("the printed page numbers could not be read (RecursionError: deep)",)


@pytest.mark.parametrize(
    ("font", "text"),
    [("HYSMyeongJo-Medium", "한국어 문서"), ("HeiseiMin-W3", "日本語の文書"), ("STSong-Light", "中文文件")],
)
def test_east_asian_text(font: str, text: str) -> None:
    pdfmetrics.registerFont(UnicodeCIDFont(font))
    assert page_texts(Document.from_bytes(make_pdf(text, font=font), name="-")) == [text]


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_encrypted(algorithm: str) -> None:
    def encrypt(writer: PdfWriter) -> None:
        writer.encrypt("geheim", "owner", algorithm=algorithm)

    data = rewrite(make_pdf("Secret text"), encrypt)
    with pytest.raises(DocumentError) as raised:
        Document.from_bytes(data, name="x.pdf")
    assert str(raised.value) == (
        "x.pdf is encrypted: give its password (--password, or password=... in Python), or save it without one."
    )
    with pytest.raises(DocumentError, match=r"x\.pdf does not open with this password: check it"):
        Document.from_bytes(data, name="x.pdf", password="wrong")
    with pytest.raises(DocumentError, match="does not open with this password"):
        Document.from_bytes(data, name="x.pdf", password="틀린 암호")
    for password in ("geheim", "owner"):
        assert page_texts(Document.from_bytes(data, name="x.pdf", password=password)) == ["Secret text"]


def test_a_pdf_that_only_restricts_its_use_opens_silently() -> None:
    data = rewrite(make_pdf("Do not print"), lambda writer: writer.encrypt("", "owner", algorithm="AES-256"))
    for password in (None, "whatever"):
        assert page_texts(Document.from_bytes(data, name="x.pdf", password=password)) == ["Do not print"]


def test_a_password_that_is_not_needed_does_not_matter() -> None:
    assert page_texts(Document.from_bytes(make_pdf("open"), name="x.pdf", password="geheim")) == ["open"]


@pytest.mark.parametrize("installed", [True, False])
def test_scans_and_blank_pages_need_ocr(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        without_pdfium(monkeypatch)
    stream = io.BytesIO()
    canvas = Canvas(stream)
    canvas.rect(100, 100, 200, 200, fill=1)
    canvas.showPage()
    canvas.showPage()
    canvas.save()
    with pytest.raises(DocumentError) as raised:
        Document.from_bytes(stream.getvalue(), name="scan.pdf")
    assert str(raised.value) == (
        "scan.pdf holds no text, only images or blank pages: run OCR on it first, for instance with ocrmypdf."
    )


def test_a_page_pypdf_fails_on_is_read_with_pypdfium2(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on(monkeypatch, 2, 3, 5, error="RecursionError('too deep.')")
    document = Document.from_bytes(make_pdf("one", "two", "three", "four", "five"), name="-")
    assert page_texts(document) == ["one", "two", "three", "four", "five"]
    assert document.notes == (
        "pages 2 to 3 and 5: read with pypdfium2 because pypdf failed (RecursionError: too deep)",
    )


def test_without_pypdfium2_the_other_pages_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pdfium(monkeypatch)
    fail_on(monkeypatch, 2, error="KeyError('/Contents')")
    document = Document.from_bytes(make_pdf("one", "two", "three"), name="-")
    assert page_texts(document) == ["one", "", "three"]
    (note,) = document.notes
    assert note.startswith("page 2: lost because pypdf failed (KeyError: '/Contents')")
    assert 'pip install "infinipot-llm[pdfium]"' in note


def test_when_no_page_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pdfium(monkeypatch)
    fail_on(monkeypatch, 1, 2, error="MemoryError()")
    with pytest.raises(DocumentError, match=r"x\.pdf cannot be read as a PDF, .*\(pages 1 to 2: lost .*MemoryError"):
        Document.from_bytes(make_pdf("one", "two"), name="x.pdf")


def test_a_page_both_readers_fail_on_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on(monkeypatch, 1, error="ValueError('odd')")
    in_child(
        monkeypatch,
        """
from infinipot_llm.documents import pdfium
def fail(pdf, index):
    raise OSError("no glyphs")
pdfium._page_text = fail
""",
    )
    document = Document.from_bytes(make_pdf("one", "two"), name="-")
    assert page_texts(document) == ["", "two"]
    assert document.notes == (
        "page 1: lost because pypdf failed (ValueError: odd) and so did pypdfium2 (OSError: no glyphs)",
    )


def test_a_page_pypdf_fails_on_and_pypdfium2_finds_empty_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on(monkeypatch, 2, error="ValueError('x' * 500)")
    document = Document.from_bytes(make_pdf("one", ""), name="-")
    assert document.notes == (
        f"page 2: lost because pypdf failed (ValueError: {'x' * 80}) and pypdfium2 found no text",
    )


def test_a_file_pypdf_cannot_open_is_read_with_pypdfium2(monkeypatch: pytest.MonkeyPatch) -> None:
    def label(writer: PdfWriter) -> None:
        writer.set_page_label(0, 1, style=PageLabelStyle.LOWERCASE_ROMAN)

    plain = make_pdf("one", "two")
    labelled = rewrite(plain, label)
    locked = rewrite(plain, lambda writer: writer.encrypt("geheim", algorithm="AES-256"))
    in_child(
        monkeypatch,
        """
import pypdf
def fail(*args, **kwargs):
    raise TypeError("unexpected object")
pypdf.PdfReader.__init__ = fail
""",
    )
    document = Document.from_bytes(plain, name="-")
    assert page_texts(document) == ["one", "two"]
    assert [page.label for page in document.pages] == [None, None]
    assert document.notes == ("read with pypdfium2 because pypdf failed (TypeError: unexpected object)",)
    assert [page.label for page in Document.from_bytes(labelled, name="-").pages] == ["i", "ii"]
    with pytest.raises(DocumentError, match="is encrypted: give its password"):
        Document.from_bytes(locked, name="-")
    with pytest.raises(DocumentError, match="does not open with this password"):
        Document.from_bytes(locked, name="-", password="wrong")
    assert page_texts(Document.from_bytes(locked, name="-", password="geheim")) == ["one", "two"]


def test_text_that_only_pypdfium2_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    in_child(monkeypatch, "import pypdf; pypdf.PageObject.extract_text = lambda page, **kwargs: ' '")
    document = Document.from_bytes(make_pdf("hidden", ""), name="-")
    assert page_texts(document) == ["hidden", ""]
    assert document.notes[0] == "page 1: read with pypdfium2 because pypdf found no text"
    assert document.notes[1].startswith("page 2 holds no text")


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("data", [b"%PDF-1.7\n", b"%PDF-1.7\nnot really one\n%%EOF", b"%PDF-1.7" + b"\x00<<" * 500])
def test_a_damaged_file(data: bytes, installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        without_pdfium(monkeypatch)
    with pytest.raises(DocumentError) as raised:
        Document.from_bytes(data, name="broken.pdf")
    message = str(raised.value)
    assert message.startswith("broken.pdf cannot be read as a PDF, it may be damaged or cut short")
    assert ('pip install "infinipot-llm[pdfium]"' in message) is not installed
    assert "\n" not in message


def test_the_header_may_follow_other_bytes_and_the_suffix_may_differ(tmp_path: Path) -> None:
    data = make_pdf("text")
    (tmp_path / "mail.pdf").write_bytes(b"X-Mail: yes\r\n" + data)
    assert page_texts(Document.from_file(tmp_path / "mail.pdf")) == ["text"]
    (tmp_path / "download").write_bytes(data)
    assert page_texts(Document.from_file(tmp_path / "download")) == ["text"]


def test_reading_is_silent(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    data = make_pdf("text").replace(b"startxref\n", b"startxref\n9")
    PdfReader(io.BytesIO(data))
    assert caplog.records  # pypdf does have something to say about this file
    caplog.clear()
    capfd.readouterr()
    assert page_texts(Document.from_bytes(data, name="-")) == ["text"]
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_many_notes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pdfium(monkeypatch)
    in_child(
        monkeypatch,
        """
import pypdf
extract = pypdf.PageObject.extract_text
def extract_text(page, **kwargs):
    if page.page_number % 2:
        raise ValueError(f"bad {page.page_number}")
    return extract(page, **kwargs)
pypdf.PageObject.extract_text = extract_text
""",
    )
    document = Document.from_bytes(make_pdf(*["text"] * 80), name="-")
    assert len(document.notes) == 12
    assert document.notes[0].startswith("page 2: lost because pypdf failed (ValueError: bad 1)")
    assert document.notes[-1].startswith("pages 24, 26, 28,")
    assert "and 17 more: lost" in document.notes[-1]
