from __future__ import annotations

import random
from pathlib import Path

import pytest
from pdf_samples import make_pdf

from infinipot_llm.documents import Document
from infinipot_llm.errors import DocumentError

SAMPLE = "Größe: 3 µm – naïve façade.\n한국어 문장입니다.\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marked_and_utf8_files_are_read_without_a_note(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "sample.md"
    path.write_bytes(SAMPLE.encode(encoding))
    document = Document.from_file(path)
    assert document.text == SAMPLE
    assert document.notes == ()
    assert document.name == "sample.md"
    assert document.source == str(path)


def test_a_name_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert Document.from_file(str(tmp_path / "a.txt"), name="the plan").name == "the plan"


def test_form_feeds_in_a_file_are_pages() -> None:
    document = Document.from_bytes(b"one\x0ctwo\x0c", name="-")
    assert [document.text[page.start : page.end] for page in document.pages] == ["one", "two"]


def test_western_text_is_read_with_a_note() -> None:
    document = Document.from_bytes("Die Größe der Brücke – „groß“ genug für alle".encode("cp1252"), name="alt.txt")
    assert document.text == "Die Größe der Brücke – „groß“ genug für alle"
    assert document.notes == ("read as Windows-1252 because it is not UTF-8: accented letters may be wrong",)


def test_bytes_that_windows_1252_lacks_are_read_as_latin_1() -> None:
    document = Document.from_bytes(b"caf\xe9 au lait \x81 et du pain", name="alt.txt")
    assert document.text == "café au lait  et du pain"
    assert "Latin-1" in document.notes[0]


def test_utf8_with_a_damaged_byte_keeps_its_other_letters() -> None:
    document = Document.from_bytes("한국어 문장".encode() + b"\xff" + " 그리고".encode(), name="x.txt")
    assert document.text == "한국어 문장\ufffd 그리고"
    assert document.notes == ("1 damaged characters are shown as \ufffd: the file is not valid UTF-8 throughout",)


def test_a_marked_file_with_a_damaged_end_is_read() -> None:
    """A file that is still being written, say; without the mark it was read, with it refused."""
    document = Document.from_bytes(b"\xef\xbb\xbf" + "Grüße aus Köln ä".encode()[:-1], name="x.txt")
    assert document.text == "Grüße aus Köln \ufffd"
    assert "not valid UTF-8" in document.notes[0]
    assert Document.from_bytes(b"\xef\xbb\xbfa\xff", name="x.txt").text == "a\ufffd"  # never taken for Windows-1252
    with pytest.raises(DocumentError, match="binary"):
        Document.from_bytes(b"\xef\xbb\xbfa\x00b", name="x.txt")


@pytest.mark.parametrize("encoding", ["shift_jis", "cp1251", "euc_kr"])
def test_other_code_pages_are_refused_rather_than_garbled(encoding: str) -> None:
    words = {"shift_jis": "日本語の文書です。", "cp1251": "Это русский текст.", "euc_kr": "한국어 문서입니다."}
    with pytest.raises(DocumentError, match="convert it to UTF-8, for instance with iconv"):
        Document.from_bytes((words[encoding] * 5).encode(encoding), name="x.txt")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"PK\x03\x04rest", "looks like binary data, not text: it is a ZIP container, as Word"),
        (b"\x89PNG\r\n", "it is a picture: it needs OCR first"),
        (b"{\\rtf1 text}", "an RTF file: export it"),
        (b"some\x00thing", "looks like binary data, not text: only PDF and text files"),
        (b"\x01\x02\x03\x04abc", "looks like binary data, not text: only PDF and text files"),
        (random.Random(3).randbytes(5000), "looks like binary data, not text"),
        ("text".encode("utf-16-le"), "UTF-16 text needs a byte order mark"),
        ("\ufefftext".encode("utf-16-le") + b"x", "is marked as UTF-16 but is damaged"),
        (b"", "is empty"),
        (b" \n\t\x0c ", "holds no text: there is nothing but white space"),
        (b"\xef\xbb\xbf", "holds no text: there is nothing but white space"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(data: bytes, told: str) -> None:
    with pytest.raises(DocumentError) as raised:
        Document.from_bytes(data, name="thing.dat")
    assert str(raised.value).startswith("thing.dat ")
    assert told in str(raised.value)


def test_missing_files_folders_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"nowhere\.txt does not exist: check the path\."):
        Document.from_file(tmp_path / "nowhere.txt")
    with pytest.raises(DocumentError, match="is a folder: name the files in it"):
        Document.from_file(tmp_path)
    (tmp_path / "empty.pdf").write_bytes(b"")
    with pytest.raises(DocumentError, match=r"empty\.pdf is empty"):
        Document.from_file(tmp_path / "empty.pdf")
    with pytest.raises(DocumentError, match="cannot be read"):
        Document.from_file("nul\x00.txt")
    with pytest.raises(DocumentError, match="cannot be read"):
        Document.from_file(tmp_path / ("x" * 5000))


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    path = tmp_path / "secret.txt"
    path.write_text("x")
    monkeypatch.setattr(Path, "read_bytes", refuse)  # permissions do not bind root, who may run the tests
    with pytest.raises(DocumentError, match="may not be read: check its permissions"):
        Document.from_file(path)


def test_a_file_named_pdf_that_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "page.PDF"
    path.write_text("<html>not found</html>")
    with pytest.raises(DocumentError, match=r"is named \.pdf but is not a PDF"):
        Document.from_file(path)


def test_bytes_are_what_a_file_of_that_name_would_be(tmp_path: Path) -> None:
    """Printers and mail gateways put lines before the header, and a login page is saved as report.pdf."""
    printed = b"@PJL JOB\r\n" + make_pdf("The mill.")
    for how in ({"name": "report.pdf"}, {"name": "report", "media_type": "application/pdf"}):
        document = Document.from_bytes(printed, **how)
        assert document.page_count == 1
        assert document.text.strip() == "The mill."
        with pytest.raises(
            DocumentError, match=r"^report.* is (named \.pdf|given as application/pdf) but is not a PDF"
        ):
            Document.from_bytes(b"<html>Please log in</html>", **how)
    assert Document.from_bytes(b"<html>", name="page.html", media_type="text/html").text == "<html>"


def test_a_text_that_mentions_the_pdf_magic_is_text(tmp_path: Path) -> None:
    path = tmp_path / "format.txt"
    path.write_text("A PDF starts with %PDF-1.7.")
    assert Document.from_file(path).text == "A PDF starts with %PDF-1.7."


def test_control_characters_in_a_file_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as raised:
        Document.from_file(tmp_path / "a\x1b[2J\nb\udcff.txt")
    assert str(raised.value).endswith("a b\ufffd.txt does not exist: check the path.")


@pytest.mark.parametrize("address", ["http://x.org/y.pdf", "https://x.org/y", "s3://bucket/y.txt", "file:///etc/hosts"])
def test_an_address_is_no_path(address: str) -> None:
    with pytest.raises(DocumentError, match="nothing is fetched"):
        Document.from_file(address)


def test_a_text_in_the_place_of_a_path_is_not_repeated_whole() -> None:
    with pytest.raises(DocumentError) as caught:
        Document.from_file("secret text " * 1000)
    assert len(str(caught.value)) < 400
