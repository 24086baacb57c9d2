"""How well PDFs come out of pypdf (plain and layout mode), pypdfium2, and what this package makes of pypdf's text.

    python benchmarks/pdf_reading.py DATA [--also FILE.pdf ...]

DATA holds pdf/EPA2022.pdf, DOT2022.pdf, NARA2022.pdf, alps_wiki.pdf and qa/alps_wiki.questions.jsonl. Columns:

    seconds    to read, in this process ("ours" counts starting a process, too)
    chars      characters, and of those white space
    facts      sentences known to stand on a page (alps_wiki) that are found there, white space aside
    agree      share of the sentences (60 to 300 characters) of pypdf plain that are found, white space removed: what is
               missing is in another order, or lacks characters
    glued      words, per 10,000, that are two words of the document and that no other reader has: a space was lost
    headers    headers "Description Type (Status) Start Date End Date" of the reports' tables that are one line
    rows       rows of the tables in the sample report that are one line each, of those in its source
    paragraphs ends of paragraphs in the sample report told (a blank line), and blank lines within one, by its source
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pypdf
import pypdfium2

from infinipot_llm import Document
from infinipot_llm.documents.clean import clean

SAMPLE = Path(__file__).parents[1] / "examples" / "documents" / "hollin_valley"
HEADER = re.compile(r"Description[ \t]+Type[ \t]+(?:Status[ \t]+)?Start[ \t]+Date[ \t]+End[ \t]+Date")


def plain(path: Path) -> list[str]:
    return [page.extract_text() for page in pypdf.PdfReader(path).pages]


def layout(path: Path) -> list[str]:
    return [page.extract_text(extraction_mode="layout") for page in pypdf.PdfReader(path).pages]


def pdfium(path: Path) -> list[str]:
    pdf = pypdfium2.PdfDocument(path)
    return [pdf[i].get_textpage().get_text_bounded().replace("\x02", "-\n") for i in range(len(pdf))]


def ours(path: Path) -> list[str]:
    document = Document.from_file(path)
    return [document.text[page.start : page.end] for page in document.pages]


READERS: dict[str, Callable[[Path], list[str]]] = {
    "pypdf plain": plain, "pypdf layout": layout, "pypdfium2": pdfium, "ours": ours,
}  # fmt: skip


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def words(text: str) -> list[str]:
    return re.sub(r"\W+", " ", text).split()


def agreement(reference: list[str], pages: list[str]) -> str:
    whole = "".join(map(squeezed, pages))
    found = [
        squeezed(sentence) in whole
        for page in reference
        for sentence in re.findall(r"[A-Z][^.!?]{60,300}[.!?](?=\s)", page)
    ]
    return f"{sum(found)}/{len(found)}" if found else ""


def glued(pages: list[str], vocabulary: set[str]) -> str:
    found = re.findall(r"[^\W\d_]+", " ".join(pages))
    bad = [
        word
        for word in found
        if word not in vocabulary
        and any(word[:i] in vocabulary and word[i:] in vocabulary for i in range(2, len(word) - 1))
    ]
    return f"{1e4 * len(bad) / max(1, len(found)):.0f}"


def headers(pages: list[str]) -> str:
    total = sum(len(re.findall(r"End\s+Date", page)) for page in pages)
    found = sum(len(HEADER.findall(page)) for page in pages)
    return f"{found}/{total}" if total > 3 else ""


def facts(pages: list[str], questions: Path) -> str:
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    wanted = [(fact, row["page_1indexed"]) for row in rows for fact in row["facts"]]
    # References ("[12]") stand in the PDF and not in the facts.
    bare = [squeezed(re.sub(r"\[\w+\]", "", page)) for page in pages]
    found = [any(squeezed(re.sub(r"\[\w+\]", "", f)) in bare[n - 1] for n in numbers) for f, numbers in wanted]
    return f"{sum(found)}/{len(found)}"


def table_rows(pages: list[str]) -> str:
    rows = []
    for line in SAMPLE.with_suffix(".md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not re.fullmatch(r"[|:\s-]+", line):
            rows.append(words(line))
    lines = {" ".join(words(line)) for page in pages for line in page.splitlines()}
    return f"{sum(' '.join(row) in lines for row in rows)}/{len(rows)}"


def paragraphs(pages: list[str]) -> str:
    """Compare every line end of which the source says whether a paragraph ends there."""
    source = SAMPLE.with_suffix(".md").read_text(encoding="utf-8")
    known = " | ".join(" ".join(words(paragraph)) for paragraph in re.split(r"\n\s*\n", source))
    told = missed = wrong = 0
    for page in pages:
        parts = re.split(r"(\n\s*)", clean(page).strip())
        for (above, gap), below in zip(pairwise(parts), parts[2:], strict=False):
            if gap.strip() or not above.strip():
                continue
            before, after = " ".join(words(above)[-4:]), " ".join(words(below)[:4])
            is_blank = gap.count("\n") > 1
            if f"{before} | {after}" in known:
                told, missed = told + is_blank, missed + (not is_blank)
            elif f"{before} {after}" in known:
                wrong += is_blank
    return f"{told}/{told + missed}, {wrong} wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data folder")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="further PDFs")
    arguments = parser.parse_args()
    names = ["EPA2022", "DOT2022", "NARA2022", "alps_wiki"]
    files = [*(arguments.data / "pdf" / f"{name}.pdf" for name in names), SAMPLE.with_suffix(".pdf"), *arguments.also]
    columns = ["file", "pages", "reader", "seconds", "chars", "blank", "facts", "agree", "glued", "headers"]
    print("| " + " | ".join([*columns, "rows", "paragraphs"]) + " |")
    print("| " + " | ".join(["---"] * (len(columns) + 2)) + " |")
    for path in files:
        texts, seconds = {}, {}
        for name, reader in READERS.items():
            begun = time.perf_counter()
            texts[name] = [page.replace("\r\n", "\n") for page in reader(path)]
            seconds[name] = time.perf_counter() - begun
        for name, pages in texts.items():
            others = [other for key, other in texts.items() if key != name and {key, name} != {"pypdf plain", "ours"}]
            known = {word for other in others for word in re.findall(r"[^\W\d_]+", " ".join(other))}
            is_sample = path.stem == SAMPLE.name
            cells = [
                path.stem, str(len(pages)), name, f"{seconds[name]:.2f}", str(sum(map(len, pages))),
                f"{sum(map(str.isspace, ''.join(pages))) / max(1, sum(map(len, pages))):.0%}",
                facts(pages, arguments.data / "qa" / "alps_wiki.questions.jsonl") if path.stem == "alps_wiki" else "",
                agreement(texts["pypdf plain"], pages), glued(pages, known), headers(pages),
                table_rows(pages) if is_sample else "", paragraphs(pages) if is_sample else "",
            ]  # fmt: skip
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
