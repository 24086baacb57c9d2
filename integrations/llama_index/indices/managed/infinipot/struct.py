"""What LlamaIndex's index store keeps of an index: its documents in order, their pages, names of their memories."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from dataclasses_json import DataClassJsonMixin
from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS

STRUCT_TYPE: Any = "infinipot"
"""LlamaIndex's own types are a closed enumeration; its registries are plain dictionaries, which take this as well."""


@dataclass
class Entry(DataClassJsonMixin):
    """One document of an index.

    Attributes:
        ref_doc_id: What the index calls it: its path, where its reader gave one.
        name: What answers call it.
        content: The content hash of the document that its pages make.
        node_ids: Its pages in the docstore, in order.
        memory: Name of its memory's file, once it was read.
        file: Path, size, time and hash of the file it came from, where that was on this machine.
    """

    ref_doc_id: str
    name: str
    content: str
    node_ids: list[str] = field(default_factory=list)
    memory: Optional[str] = None  # noqa: UP045 - dataclasses_json reads the annotation
    file: Optional[dict[str, Any]] = None  # noqa: UP045


@dataclass
class InfiniPotStruct(IndexStruct):
    """The documents of an index, in the order in which they were given."""

    documents: list[Entry] = field(default_factory=list)

    @classmethod
    def get_type(cls) -> Any:
        """Return the name under which the index store knows it."""
        return STRUCT_TYPE

    def find(self, document_id: str) -> Entry | None:
        """Return the document with this id, or with a page of this id."""
        return next((e for e in self.documents if document_id == e.ref_doc_id or document_id in e.node_ids), None)


INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[STRUCT_TYPE] = InfiniPotStruct


def file_facts(path: object) -> dict[str, Any] | None:
    """Return where a file of this machine is, its size, time of change and SHA-256; None where there is none.

    Args:
        path: The `file_path` of metadata, if there is one. A relative one is noted as an absolute one, since another
            process may work in another folder.
    """
    if not path:
        return None
    try:
        place = Path(str(path)).absolute()
        if not place.is_file():
            return None
        facts = place.stat()
        with place.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
    return {"path": str(place), "size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": digest}


def has_changed(known: dict[str, Any] | None) -> bool:
    """Tell whether a file holds something else than it did; one that is gone has not changed."""
    if not known or not (path := known.get("path")):
        return False
    try:
        facts = Path(str(path)).stat()
    except (OSError, ValueError):
        return False
    if facts.st_size == known.get("size") and facts.st_mtime_ns == known.get("mtime_ns"):
        return False
    now = file_facts(path)
    return now is not None and now["sha256"] != known.get("sha256")
