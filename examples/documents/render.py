"""Render the sample documents, ``hollin_valley.md`` and ``merrow_ferry.md``, to PDF; or check them.

    python render.py            write hollin_valley.pdf and merrow_ferry.pdf next to this file
    python render.py --check    verify the PDFs and hollin_valley.questions.jsonl, write nothing

The output is deterministic: the same text and the same release of reportlab give the same bytes. The streams are
left uncompressed, so that the zlib of the machine does not matter, and only the built-in PDF fonts are used.

The Markdown is a small subset: one ``#`` title page, ``##`` sections (each starts a page), paragraphs of one line,
``*italic*`` and ``**bold**``, and pipe tables, whose caption is the paragraph "Table N. ..." before them. Two comments
steer the page labels: ``<!-- contents -->`` inserts the list of contents, and ``<!-- body -->`` ends the front matter,
which is numbered i, ii, iii; the pages after it are numbered 1, 2, 3.

``--check`` exits with 1 and names every fault unless

* the PDFs in the folder equal fresh renderings byte for byte,
* every section fits on one page, every page prints the label that the PDF's page labels give it, and the contents
  agree,
* each question names a page that exists, with its label, its answers (white space folded) occur on that page,
  and none of them occurs on any other.

It needs reportlab, and pypdf for the check (``pip install "infinipot-llm[dev]"``).
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from html import escape
from pathlib import Path

from pypdf import PdfReader
from reportlab.lib import colors
from reportlab.lib.enums import TA_CENTER, TA_JUSTIFY
from reportlab.lib.pagesizes import B5
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    NextPageTemplate,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)
from reportlab.platypus.tableofcontents import TableOfContents

FOLDER = Path(__file__).resolve().parent
SOURCE = FOLDER / "hollin_valley.md"
PDF = FOLDER / "hollin_valley.pdf"
QUESTIONS = FOLDER / "hollin_valley.questions.jsonl"
FERRY = FOLDER / "merrow_ferry.md"

KINDS = {"fact", "table", "figure", "name", "date"}
MIN_PAGES = 32

INK = colors.HexColor("#1c2b36")
ACCENT = colors.HexColor("#1f5f7a")
RULE = colors.HexColor("#b9c7cf")
MARGIN = 22 * mm

BODY = ParagraphStyle(
    "body", fontName="Times-Roman", fontSize=12, leading=17.4, spaceAfter=8, alignment=TA_JUSTIFY, textColor=INK
)
SMALL = ParagraphStyle("small", parent=BODY, fontSize=11, leading=14.6, alignment=0, spaceAfter=5)
HEADING = ParagraphStyle("heading", fontName="Helvetica-Bold", fontSize=17, leading=21, spaceAfter=12, textColor=ACCENT)
TITLE = ParagraphStyle("title", parent=HEADING, fontSize=26, leading=33, alignment=TA_CENTER, spaceAfter=30)
SUBTITLE = ParagraphStyle("subtitle", parent=BODY, alignment=TA_CENTER, spaceAfter=12)
CAPTION = ParagraphStyle(
    "caption", fontName="Helvetica-Oblique", fontSize=9.5, leading=12.5, spaceBefore=2, spaceAfter=4, textColor=ACCENT
)
CONTENTS = ParagraphStyle("contents", fontName="Times-Roman", fontSize=10.5, leading=14, textColor=INK)


def roman(number: int) -> str:
    """A page number below forty in small Roman figures."""
    tens, ones = divmod(number, 10)
    return "x" * tens + ("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")[ones]


class Report(BaseDocTemplate):
    """A document whose front matter is numbered i, ii, ... and whose body starts again at 1."""

    def __init__(self, target: io.BytesIO, title: str) -> None:
        super().__init__(
            target,
            pagesize=B5,
            leftMargin=MARGIN,
            rightMargin=MARGIN,
            topMargin=20 * mm,
            bottomMargin=22 * mm,
            title=title,
            author=title.partition(":")[0],
            subject="A fictional annual report, the sample document of infinipot-llm",
            creator="examples/documents/render.py",
            lang="en-GB",
            invariant=1,
            pageCompression=0,
        )
        self.front_pages = sys.maxsize  # known once the first pass of multiBuild has met the body
        self.last_front_page = 0
        frame = Frame(
            self.leftMargin, self.bottomMargin, self.width, self.height,
            leftPadding=0, rightPadding=0, topPadding=0, bottomPadding=0,
        )  # fmt: skip
        self.addPageTemplates(
            [
                PageTemplate("front", frames=[frame], onPage=self.start_front_page, onPageEnd=self.draw_footer),
                PageTemplate("body", frames=[frame], onPage=self.start_body_page, onPageEnd=self.draw_footer),
            ]
        )

    def label(self, page: int) -> str:
        """The printed label of a physical page (from 1)."""
        return roman(page) if page <= self.front_pages else str(page - self.front_pages)

    def start_front_page(self, canvas: Canvas, _doc: BaseDocTemplate) -> None:
        self.last_front_page = canvas.getPageNumber()
        if self.last_front_page == 1:
            canvas.addPageLabel(0, style="ROMAN_LOWER", start=1)

    def start_body_page(self, canvas: Canvas, _doc: BaseDocTemplate) -> None:
        if canvas.getPageNumber() == self.last_front_page + 1:
            self.front_pages = self.last_front_page
            canvas.addPageLabel(self.front_pages, style="ARABIC", start=1)

    def draw_footer(self, canvas: Canvas, _doc: BaseDocTemplate) -> None:
        width = self.pagesize[0]
        canvas.saveState()
        canvas.setStrokeColor(RULE)
        canvas.line(MARGIN, 16 * mm, width - MARGIN, 16 * mm)
        canvas.setFillColor(INK)
        canvas.setFont("Helvetica", 9.5)
        canvas.drawCentredString(width / 2, 11 * mm, self.label(canvas.getPageNumber()))
        canvas.restoreState()

    def afterFlowable(self, flowable: Flowable) -> None:  # noqa: N802 - the name is reportlab's
        """Enter each section's heading in the contents and in the PDF's outline."""
        if isinstance(flowable, Paragraph) and flowable.style.name == HEADING.name:
            text = flowable.getPlainText()
            key = f"section-{self.page}"
            self.canv.bookmarkPage(key)
            self.canv.addOutlineEntry(text, key)
            self.notify("TOCEntry", (0, escape(text), self.page, key))


def inline(text: str) -> str:
    """Markdown's emphasis as reportlab's markup."""
    text = escape(text, quote=False)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"\*(.+?)\*", r"<i>\1</i>", text)


def table(lines: list[str], width: float) -> Table:
    """A pipe table; a column whose rule ends with a colon is set to the right."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    aligned_right = [rule.endswith(":") for rule in rows.pop(1)]
    dense = len(rows) > 12
    style = [
        ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 9.5),
        ("FONT", (0, 1), (-1, -1), "Helvetica", 9),
        ("TEXTCOLOR", (0, 0), (-1, -1), INK),
        ("BACKGROUND", (0, 0), (-1, 0), colors.HexColor("#e6eef2")),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, ACCENT),
        ("LINEBELOW", (0, 1), (-1, -1), 0.3, RULE),
        ("TOPPADDING", (0, 0), (-1, -1), 2 if dense else 3),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2.5 if dense else 3.5),
    ]
    style += [("ALIGN", (column, 0), (column, -1), "RIGHT") for column, right in enumerate(aligned_right) if right]
    style += [
        ("FONT", (0, number), (-1, number), "Helvetica-Bold", 9.5)
        for number, row in enumerate(rows)
        if row[0].startswith("Total") or row[0] == "Surplus"
    ]
    first = 0.34 if len(rows[0]) > 3 else 0.5
    widths = [first * width] + [(1 - first) * width / (len(rows[0]) - 1)] * (len(rows[0]) - 1)
    return Table(rows, colWidths=widths, style=TableStyle(style), spaceBefore=2, spaceAfter=10)


def story(source: str, doc: Report) -> list[Flowable]:
    """The flowables of the whole document."""
    flowables: list[Flowable] = []
    section = ""
    for block in re.split(r"\n\s*\n", source.strip()):
        if block == "<!-- contents -->":
            contents = TableOfContents(
                dotsMinLevel=-1,  # no leaders: to whoever reads the text alone they are a page of dots
                levelStyles=[CONTENTS],
                formatter=doc.label,
                tableStyle=TableStyle(
                    [
                        ("LEFTPADDING", (0, 0), (-1, -1), 0),
                        ("RIGHTPADDING", (0, 0), (-1, -1), 0),
                        ("TOPPADDING", (0, 0), (-1, -1), 0),
                        ("BOTTOMPADDING", (0, 0), (-1, -1), 0),
                    ]
                ),
            )
            heading = ParagraphStyle("contents heading", parent=HEADING)
            flowables += [PageBreak(), Paragraph("Contents", heading), contents]
        elif block == "<!-- body -->":
            flowables.append(NextPageTemplate("body"))
        elif block.startswith("# "):
            title, _, year = block[2:].partition(": ")
            flowables += [Spacer(1, 45 * mm), Paragraph(f"{escape(title)}:<br/>{escape(year)}", TITLE)]
        elif block.startswith("## "):
            section = block[3:]
            flowables += [PageBreak(), Paragraph(inline(section), HEADING)]
        elif block.startswith("|"):
            flowables.append(table(block.splitlines(), doc.width))
        elif re.match(r"Table \d+\. ", block):
            flowables.append(Paragraph(inline(block), CAPTION))
        else:
            style = SUBTITLE if not section else SMALL if section == "Glossary" else BODY
            flowables.append(Paragraph(inline(block), style))
    return flowables


def render(source: str) -> bytes:
    """The PDF of a Markdown text."""
    target = io.BytesIO()
    doc = Report(target, title=source.partition("\n")[0].removeprefix("# "))
    doc.multiBuild(story(source, doc))
    return target.getvalue()


def fold(text: str) -> str:
    return " ".join(text.split())


def occurs(answer: str, text: str) -> bool:
    """Whether the answer stands in the text as whole words (12 does not stand in 312, nor in 12,500)."""
    return re.search(rf"(?<![\w.,]){re.escape(fold(answer))}(?!\w|[.,]\d)", text) is not None


def document_faults(reader: PdfReader, pages: list[str], source: str) -> list[str]:
    """What is wrong with the PDF that lies in the folder."""
    faults = []
    if PDF.read_bytes() != render(source):
        faults.append(f"{PDF.name} is not what this text and this reportlab render; run render.py")
    if len(pages) < MIN_PAGES:
        faults.append(f"{len(pages)} pages, fewer than {MIN_PAGES}")
    titles = [fold(title) for title in re.findall(r"^## (.+)$", source, flags=re.MULTILINE)]
    starts = ["Hollin Valley", "Contents", *titles]
    if len(starts) != len(pages):
        faults.append(f"{len(starts)} sections on {len(pages)} pages; each should fill one")
    front = 2 + source.partition("<!-- body -->")[0].count("\n## ")
    for number, (text, label) in enumerate(zip(pages, reader.page_labels, strict=True), start=1):
        expected = roman(number) if number <= front else str(number - front)
        if label != expected:
            faults.append(f"page {number}: its label is {label!r}, not {expected!r}")
        if label not in (text.split()[0], text.split()[-1]):
            faults.append(f"page {number}: the footer does not print {label!r}")
        if number <= len(starts) and not re.search(rf"\b{re.escape(starts[number - 1])}\b", text):
            faults.append(f"page {number}: does not hold the section {starts[number - 1]!r}")
        if 2 < number <= len(starts) and not occurs(f"{label} {starts[number - 1]}", pages[1]):
            faults.append(f"the contents do not list {starts[number - 1]!r} at {label}")
    return faults


def ferry_faults() -> list[str]:
    """What is wrong with the second PDF."""
    source, pdf = FERRY.read_text(encoding="utf-8"), FERRY.with_suffix(".pdf")
    faults = []
    if pdf.read_bytes() != render(source):
        faults.append(f"{pdf.name} is not what this text and this reportlab render; run render.py")
    pages, sections = len(PdfReader(pdf).pages), 1 + source.count("\n## ")
    if pages != sections:
        faults.append(f"{pdf.name}: {sections} sections on {pages} pages; each should fill one")
    return faults


def question_faults(reader: PdfReader, pages: list[str]) -> list[str]:
    """What is wrong with the questions."""
    faults = []
    for number, line in enumerate(QUESTIONS.read_text(encoding="utf-8").splitlines(), start=1):
        item = json.loads(line)
        where = f"question {number}"
        if set(item) != {"question", "answers", "page", "label", "kind"} or item["kind"] not in KINDS:
            faults.append(f"{where}: wrong fields or kind")
            continue
        page = item["page"]
        if not 1 <= page <= len(pages) or reader.page_labels[page - 1] != item["label"]:
            faults.append(f"{where}: page {page} does not exist or is not labelled {item['label']!r}")
            continue
        for answer in item["answers"]:
            found = [at for at, text in enumerate(pages, start=1) if occurs(answer, text)]
            if found != [page]:
                faults.append(f"{where}: {answer!r} should occur on page {page} alone, and occurs on {found}")
    return faults


def check() -> int:
    """Verify PDF and questions; the exit status."""
    reader = PdfReader(PDF)
    pages = [fold(page.extract_text()) for page in reader.pages]
    faults = document_faults(reader, pages, SOURCE.read_text(encoding="utf-8")) + question_faults(reader, pages)
    faults += ferry_faults()
    for fault in faults:
        print(fault, file=sys.stderr)
    questions = len(QUESTIONS.read_text(encoding="utf-8").splitlines())
    words = sum(len(text.split()) for text in pages)
    print(f"{len(pages)} pages, {words:,} words, {questions} questions: {len(faults)} faults")
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Render the sample document, or check it.")
    parser.add_argument("--check", action="store_true", help="verify the PDF and the questions, write nothing")
    if parser.parse_args().check:
        return check()
    for source in (SOURCE, FERRY):
        pdf = source.with_suffix(".pdf")
        pdf.write_bytes(render(source.read_text(encoding="utf-8")))
        print(f"{pdf.name}: {len(PdfReader(pdf).pages)} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
