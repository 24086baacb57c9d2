"""Form fields and text boxes of PDFs: what was typed into them is read, what nobody sees is not."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from pdf_samples import make_pdf, rewrite
from pypdf import PdfWriter
from pypdf.annotations import FreeText
from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject, TextStringObject
from reportlab.pdfgen.canvas import Canvas

from infinipot_llm.documents import Document


def form() -> bytes:
    stream = io.BytesIO()
    canvas = Canvas(stream, invariant=True)
    canvas.drawString(72, 750, "Application")
    fields = canvas.acroForm
    fields.textfield(name="applicant", tooltip="Name of the applicant", value="Zora Quill", x=72, y=700)
    fields.textfield(name="sum", value="412 crowns", x=72, y=660)
    fields.textfield(name="remarks", value="", x=72, y=620)
    fields.checkbox(name="insured", tooltip="Insured", checked=True, x=72, y=580)
    fields.checkbox(name="married", tooltip="Married", checked=False, x=72, y=540)
    fields.choice(name="region", tooltip="Region", value="North", options=["North", "South"], x=72, y=500)
    canvas.showPage()
    canvas.drawString(72, 750, "Second page")
    canvas.save()
    return stream.getvalue()


def read(data: bytes) -> Document:
    return Document.from_bytes(data, name="form.pdf")


def test_what_was_typed_into_a_form_is_read_on_its_page() -> None:
    document = read(form())
    first, second = (document.text[page.start : page.end] for page in document.pages)
    assert "Name of the applicant: Zora Quill" in first.split("\n\n")
    assert "sum: 412 crowns" in first.split("\n\n")
    assert "Insured: Yes" in first.split("\n\n")
    assert "Region: North" in first.split("\n\n")
    assert "remarks" not in first
    assert "Married" not in first
    assert second == "Second page"
    assert not document.notes


def widgets(writer: PdfWriter) -> list[Any]:
    return [reference.get_object() for reference in writer.pages[0]["/Annots"]]  # type: ignore[attr-defined]


def hide(writer: PdfWriter) -> None:
    for widget in widgets(writer):
        widget[NameObject("/F")] = NumberObject(2)


def nest(writer: PdfWriter) -> None:
    """Let the first field be a part of another, which has the value, and which is a part of itself."""
    part = widgets(writer)[0]
    whole = DictionaryObject({NameObject("/T"): TextStringObject("person"), NameObject("/V"): part.pop("/V")})
    reference = writer._add_object(whole)
    whole[NameObject("/Parent")] = reference
    part[NameObject("/Parent")] = reference
    del part["/TU"]


def damage(writer: PdfWriter) -> None:
    first, second = widgets(writer)[:2]
    first[NameObject("/F")] = TextStringObject("odd")
    second[NameObject("/V")] = ArrayObject([TextStringObject("a"), NumberObject(1), TextStringObject("b")])
    writer.pages[0]["/Annots"].insert(0, NumberObject(7))  # type: ignore[attr-defined]


def remark(writer: PdfWriter) -> None:
    writer.add_annotation(1, FreeText(text="Approved by Ines\non 4 May", rect=(50, 550, 200, 650)))


@pytest.mark.parametrize(
    ("change", "there", "gone"),
    [
        (hide, ["Application"], ["Zora", "crowns"]),
        (nest, ["person.applicant: Zora Quill"], []),
        (damage, ["sum: a, b"], ["Zora"]),
        (remark, ["Approved by Ines on 4 May", "Zora Quill"], []),
    ],
)
def test_odd_forms(change: Callable[[PdfWriter], None], there: list[str], gone: list[str]) -> None:
    text = read(rewrite(form(), change)).text
    assert all(words in text for words in there), text
    assert not any(words in text for words in gone), text


def test_a_form_that_is_only_filled_in_is_no_scan() -> None:
    """A page without other text than that of a box holds text."""
    document = read(rewrite(make_pdf("", ""), remark))
    assert document.text.strip() == "Approved by Ines on 4 May"
    assert document.notes == ("page 1 holds no text: it may be a scan, which needs OCR first, for instance with "
                              "ocrmypdf, or blank",)  # fmt: skip
