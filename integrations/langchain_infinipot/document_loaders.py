"""InfiniPotLoader: PDFs, transcripts and text files as LangChain documents, with page labels, speakers and times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from infinipot_llm.documents import Document as Read
from langchain_infinipot.errors import InvalidRequestError, langchain_errors
from langchain_infinipot.sources import is_address


class InfiniPotLoader(BaseLoader):
    """Loads PDFs (encrypted ones too), WebVTT and SubRip captions, transcripts and text files.

    Metadata are named as people know them from other loaders: `source`, `page` (from 0), `page_label` (as printed, else
    the page's number), `total_pages`; transcripts have `speaker` and `time` (seconds) as well.

    Example:
        ```python
        from langchain_infinipot import InfiniPotLoader

        for page in InfiniPotLoader("report.pdf").lazy_load():
            print(page.metadata["page_label"], len(page.page_content))
        ```
    """

    def __init__(
        self,
        file_path: str | Path | Sequence[str | Path],
        *,
        mode: Literal["page", "single"] = "page",
        password: str | None = None,
    ) -> None:
        """Say what to load; nothing is opened yet.

        Args:
            file_path: A file, or several.
            mode: "page" makes a document of every page, of a transcript one of every turn; "single" one of every file.
            password: Of encrypted PDFs.

        Raises:
            ValueError: The mode is unknown.
            InvalidRequestError: What is to be loaded is no path.
        """
        if mode not in ("page", "single"):
            raise ValueError(f"mode is {mode!r}: give 'page' or 'single'.")
        several = isinstance(file_path, Sequence) and not isinstance(file_path, (str, bytes, bytearray))
        paths: list[Any] = list(file_path) if several else [file_path]  # type: ignore[arg-type]
        for path in paths:
            _check_path(path)
        self.paths = [Path(path) for path in paths]
        self.mode = mode
        self.password = password

    def lazy_load(self) -> Iterator[Document]:
        """Yield documents, opening a file when its first one is wanted.

        Raises:
            InvalidRequestError: A file is missing, encrypted, damaged, or without text.
        """
        for path in self.paths:
            with langchain_errors():
                read = Read.from_file(path.expanduser(), password=self.password)
            yield from self._parts(read, str(path))

    def _parts(self, read: Read, source: str) -> Iterator[Document]:
        about: dict[str, Any] = {"source": source, "total_pages": read.page_count, "document_id": read.id}
        if read.notes:  # pages that hold no text, say
            about["notes"] = list(read.notes)
        if self.mode == "single":
            yield Document(page_content=read.text, metadata=about)
        elif read.turns:
            for turn in read.turns:
                page = read.page_at(turn.start)
                told = {"speaker": turn.speaker, "time": turn.time, "start_index": turn.start}
                yield _part(read, turn.start, turn.end, page, {**about, **told})
        else:
            for page in read.pages:
                yield _part(read, page.start, page.end, page, about)


def _check_path(path: Any) -> None:
    """Refuse what is no path, before anything is opened."""
    if isinstance(path, (bytes, bytearray)):
        raise InvalidRequestError("the loader was given raw bytes: save them as a file, and give its path.")
    if not isinstance(path, (str, Path)) or not str(path).strip():
        given = repr(path) if isinstance(path, str) else f"something of type {type(path).__name__}"
        raise InvalidRequestError(f"the loader was given {given}: give the path of a file, or a list of paths.")
    if is_address(path):
        raise InvalidRequestError("the loader was given an address, and nothing is fetched: give the path of a file.")


def _part(read: Read, start: int, end: int, page: Any, about: dict[str, Any]) -> Document:
    where = {"page": page.number - 1, "page_label": page.label or str(page.number)}
    return Document(page_content=read.text[start:end], metadata={**about, **where})
