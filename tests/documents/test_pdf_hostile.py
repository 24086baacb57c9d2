"""Real awkward PDFs and damaged ones: each gives a document or a sentence, in time and within the memory."""

from __future__ import annotations

import time
from collections import Counter

import psutil
import pytest
from pdf_samples import HOSTILE, hostile_files, make_pdf, mutants, rewrite
from pypdf import PdfWriter
from pypdf.constants import PageLabelStyle

from infinipot_llm.documents import Document, pdf, pdfium
from infinipot_llm.documents.clean import clean
from infinipot_llm.documents.limits import Limits
from infinipot_llm.documents.loading import _assemble
from infinipot_llm.documents.process import Process
from infinipot_llm.errors import DocumentError

NEEDS_FILES = pytest.mark.skipif(not HOSTILE.is_dir(), reason="the folder ../shared/data/pdf-hostile is not there")

MOST_BYTES = 2_000_000_000
SLOW = 1_000_000
"""Bytes; the one book among the files (117 pages) takes seconds to read, so that two mutants are made of it."""


def read(process: Process, data: bytes) -> Document:
    """Read as `Document.from_bytes` does, but in a process that reads many files: starting one takes 0.2 s."""
    return _assemble(
        pdf.read_with(process, data, name="m.pdf", password=None),
        name="m.pdf",
        shown="m.pdf",
        source=None,
        is_prose=False,
    )


def check(document: Document) -> None:
    assert document.text.strip()
    assert clean(document.text) == document.text
    assert all(note and "\n" not in note for note in document.notes)
    assert len(document.notes) < 40
    lost = {index + 1 for index in range(document.page_count)} & set(document.empty_pages)
    # Whatever page is without text, somewhere it is said why.
    assert bool(lost) <= bool(document.notes)


def check_refusal(error: DocumentError) -> None:
    message = str(error)
    assert message.startswith("m.pdf ")
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 600


@NEEDS_FILES
def test_real_awkward_pdfs_give_a_document_or_a_sentence() -> None:
    files = hostile_files()
    assert len(files) >= 28
    kinds: Counter[str] = Counter()
    for name, path, password, pages in files:
        try:
            document = Document.from_file(path, password=password)
        except DocumentError as error:
            kinds["needs OCR" if "run OCR on it first" in str(error) else str(error)] += 1
            continue
        check(document)
        assert document.page_count == pages or pages is None, name
        kinds["read"] += 1
        if name == "imagemagick-images.pdf":
            assert len(document.notes) == 1
            assert document.notes[0].startswith("pages 4 to 5 hold no text: they may be scans, which need OCR first")
        if password is not None:
            kinds["encrypted"] += 1
            with pytest.raises(DocumentError, match="is encrypted: give its password"):
                Document.from_file(path)
            with pytest.raises(DocumentError, match="does not open with this password"):
                Document.from_file(path, password="no")
    assert kinds["read"] >= 20
    assert kinds["needs OCR"] >= 4
    assert kinds["encrypted"] == 1
    assert set(kinds) == {"read", "needs OCR", "encrypted"}


@NEEDS_FILES
def test_five_hundred_mutants_give_a_document_or_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "LIMITS", Limits(page_seconds=5.0, open_seconds=10.0))
    files = [path.read_bytes() for _, path, _, _ in hostile_files()]
    small = [data for data in files if len(data) < SLOW]
    large = [data for data in files if len(data) >= SLOW]
    damaged = [*mutants(small, 500 - 2 * len(large), seed=7), *mutants(large, 2 * len(large), seed=8)]
    assert len(damaged) == 500
    kinds: Counter[str] = Counter()
    longest = peak = 0.0
    with Process(pdf.LIMITS) as process:
        for _, data in damaged:
            begun = time.monotonic()
            try:
                document = read(process, data)
            except DocumentError as error:
                check_refusal(error)
                kinds["refused"] += 1
            else:
                check(document)
                kinds["noted" if document.notes else "read"] += 1
            longest = max(longest, time.monotonic() - begun)
            peak = max(peak, resident(process))
    assert all(kinds[kind] >= 20 for kind in ("read", "noted", "refused"))
    assert longest < 60
    assert peak < MOST_BYTES


@NEEDS_FILES
def test_some_mutants_in_a_process_each() -> None:
    files = [path.read_bytes() for _, path, _, _ in hostile_files()]
    small = [data for data in files if len(data) < SLOW]
    for number, data in mutants(small, 5 * len(small), seed=9):
        if number % 4:
            continue
        try:
            check(Document.from_bytes(data, name="m.pdf"))
        except DocumentError as error:
            check_refusal(error)


@pytest.mark.parametrize("installed", [True, False])
def test_damage_anywhere_in_a_small_file(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setattr(pdfium, "is_installed", lambda: False)
    whole = rewrite(
        make_pdf("The first page", "The second page"),
        lambda writer: writer.set_page_label(0, 1, style=PageLabelStyle.LOWERCASE_ROMAN),
    )

    def lock(writer: PdfWriter) -> None:
        writer.encrypt("", "owner", algorithm="RC4-128")

    outcomes: Counter[bool] = Counter()
    with Process(pdf.LIMITS) as process:
        for _, data in mutants([whole, rewrite(whole, lock)], 100, seed=20):
            try:
                check(read(process, data))
                outcomes[True] += 1
            except DocumentError as error:
                check_refusal(error)
                outcomes[False] += 1
    assert min(outcomes.values()) >= 10


def resident(process: Process) -> int:
    child = process._child
    if child is None:
        return 0
    try:
        info = psutil.Process(child.process.pid).memory_info()
    except psutil.Error:
        return 0
    return int(getattr(info, "peak_wset", info.rss))
