"""Pages of one file, as readers give them, back into one document with page borders and labels; nothing is split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from llama_index.core.schema import BaseNode, Document, MetadataMode
from llama_index.indices.managed.infinipot.errors import InfiniPotIndexError

from infinipot_llm.documents import Document as WholeDocument
from infinipot_llm.documents import Page
from infinipot_llm.documents.clean import clean, one_line
from infinipot_llm.documents.document import PAGE_BREAK
from infinipot_llm.errors import DocumentError

MOST_PAGES = 100_000
"""A page number beyond this is no page number; gaps up to it are filled with empty pages."""

TEXT = "#text"
"""Ends the id of the one node of a document that has its own id: LlamaIndex tells documents and nodes apart by id."""

_RAW_PDF = (
    "{name} was loaded as the raw bytes of a PDF, not as its text: read it with "
    'SimpleDirectoryReader(..., file_extractor={{".pdf": InfiniPotPDFReader()}}).'
)


def by_file(parts: Iterable[BaseNode]) -> dict[str, list[BaseNode]]:
    """Group pages by the file they are of, in order of first appearance; the key is what the index calls the file.

    Pages are of one file when they have the same `file_path`, or the same `file_name` and a page number or label each.
    Anything else is a document of its own, under its own id.

    Raises:
        InfiniPotIndexError: There are chunks among them, as splitters make, or different documents of one id.
    """
    files: dict[str, list[BaseNode]] = {}
    seen: dict[str, BaseNode] = {}
    for part in parts:
        check_kind(part)
        if not isinstance(part, Document) and getattr(part, "start_char_idx", None) is not None:
            raise InfiniPotIndexError(
                "these nodes are chunks of documents, which overlap: give the documents to from_documents instead."
            )
        first = seen.setdefault(own_id(part), part)
        if first is not part and (first.hash, file_key(first)) != (part.hash, file_key(part)):
            raise InfiniPotIndexError(
                f"two different documents have the id {own_id(part)!r}: give each an id_ of its own, or leave id_ out."
            )
        if first is part:
            files.setdefault(file_key(part), []).append(part)
    return files


def check_kind(part: object) -> None:
    """Refuse what is no document or page of LlamaIndex.

    Raises:
        InfiniPotIndexError: It is something else, such as a string.
    """
    if not isinstance(part, BaseNode):
        raise InfiniPotIndexError(
            f"an index is made of LlamaIndex documents, and this is of type {type(part).__name__}: give a list of "
            "Document(text=...), or what a reader's load_data returned."
        )


def own_id(part: BaseNode) -> str:
    """Return the id that a document or page was given, before the docstore's node of it got another."""
    return part.node_id.removesuffix(TEXT)


def file_key(part: BaseNode) -> str:
    """Return what the index calls the document that this is, or is a page of."""
    told = part.metadata
    if told.get("file_path"):
        return str(told["file_path"])
    if told.get("file_name") and is_page(part):
        return str(told["file_name"])
    return part.node_id


def is_page(part: BaseNode) -> bool:
    """Tell whether a reader said which page this is."""
    return "page" in part.metadata or "page_label" in part.metadata or page_number(part) is not None


def page_number(part: BaseNode) -> int | None:
    """Return the page number, from 1, where the reader gave a usable one; PyMuPDFReader has it in `source`."""
    told = part.metadata
    number, total, source = told.get("page"), told.get("total_pages"), str(told.get("source", ""))
    if number is None and type(total) is int and re.fullmatch("[0-9]{1,6}", source) and int(source) <= total:
        number = int(source)
    return number if type(number) is int and 1 <= number <= MOST_PAGES else None


def in_order(parts: Sequence[BaseNode]) -> list[BaseNode]:
    """Return pages by number where all have one, as InfiniPotPDFReader gives them; as they came, where not.

    Raises:
        DocumentError: Two have the same number.
    """
    numbers = [page_number(part) for part in parts]
    if None in numbers:
        return list(parts)
    ordered = [part for _, part in sorted(zip(numbers, parts, strict=True), key=lambda pair: pair[0] or 0)]
    twice = next((n for n in numbers if numbers.count(n) > 1), None) if len(set(numbers)) < len(numbers) else None
    if twice is not None:
        raise DocumentError(
            f"{name_of(parts[0])} has page {twice} twice: give documents of different files different "
            'metadata["file_path"], and every page once.'
        )
    return ordered


def merged(old: Sequence[BaseNode], new: Sequence[BaseNode]) -> list[BaseNode]:
    """Return the pages of a file after some of them were given anew: the same number, or else id, is the same page.

    A text that is no page, such as a text file loaded again, is the whole file, unless it has the id of a part, or says
    that there are more (`total_pages`).
    """
    known = {own_id(part) for part in old}
    if not any(is_page(part) or own_id(part) in known or _of_more(part, len(new)) for part in new):
        return list(new)

    def same(part: BaseNode) -> object:
        number = page_number(part)
        return own_id(part) if number is None else number

    pages = {same(part): part for part in old}
    pages.update({same(part): part for part in new})
    return list(pages.values())


def _of_more(part: BaseNode, given: int) -> bool:
    total = part.metadata.get("total_pages")
    return type(total) is int and total > given


def is_whole(parts: Sequence[BaseNode]) -> bool:
    """Tell whether these are all pages of their file, as far as their reader says."""
    totals = {part.metadata.get("total_pages") for part in parts}
    return totals == {len(parts)} or totals == {None}


def name_of(part: BaseNode) -> str:
    """Return what answers and messages call the document."""
    told = part.metadata
    return one_line(str(told.get("file_name") or told.get("title") or part.node_id))[:200]


def rejoined(parts: Sequence[BaseNode], name: str | None = None) -> WholeDocument:
    """Make one document of the pages of a file, which are in order.

    Args:
        parts: The pages, or the one text that a file is.
        name: What to call it; None: the name of the file.

    Raises:
        DocumentError: No page holds text, or what was loaded are the raw bytes of a PDF.
    """
    name = name or name_of(parts[0])
    texts = [part.get_content(MetadataMode.NONE) for part in parts]
    if any(text[:1024].lstrip("\ufeff \t\r\n\0").startswith("%PDF-") for text in texts):
        raise DocumentError(_RAW_PDF.format(name=name))
    if not any(text.strip() for text in texts):
        if is_page(parts[0]):
            what = "none of its pages holds text: run OCR on it first, or leave it out"
        else:
            what = "it holds no text: give it some, or leave it out"
        raise DocumentError(f"{name} cannot be indexed, {what}.")
    if not is_page(parts[0]):  # text, captions, sections: what a file of that name and content is read as elsewhere
        data = "\n\n".join(texts).encode("utf-8", "replace")
        return WholeDocument.from_bytes(data, name=name, media_type="text/plain")
    return _paged(parts, texts, name)


def _paged(parts: Sequence[BaseNode], texts: Sequence[str], name: str) -> WholeDocument:
    """Set pages one behind another, empty ones in the place of those that are missing in between."""
    numbers = [page_number(part) or at for at, part in enumerate(parts, start=1)]
    if len(set(numbers)) < len(numbers) or numbers != sorted(numbers):
        numbers = list(range(1, len(parts) + 1))  # only some have a number
    labels = [_label(part.metadata) for part in parts]
    if all(label in (None, str(number)) for label, number in zip(labels, numbers, strict=True)):
        labels = [None] * len(labels)  # readers give the number where the PDF defines no label
    known = {n: (clean(t), label) for n, t, label in zip(numbers, texts, labels, strict=True)}
    pages, start, pieces = [], 0, []
    for number in range(1, numbers[-1] + 1):
        text, label = known.get(number, ("", None))
        pages.append(Page(number, label, start, start + len(text)))
        pieces.append(text)
        start += len(text) + len(PAGE_BREAK)
    notes = tuple(str(part.metadata["reading_notes"]) for part in parts if part.metadata.get("reading_notes"))
    return WholeDocument(name, PAGE_BREAK.join(pieces), tuple(pages), None, notes)


def _label(told: dict[str, Any]) -> str | None:
    """Return the page label of a page's metadata."""
    label = told.get("page_label")
    return one_line(str(label)) or None if label is not None else None
