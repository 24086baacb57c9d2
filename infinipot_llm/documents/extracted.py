"""What a reader of one file format hands to the loader: texts of pages, not yet cleaned or joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infinipot_llm.documents.clean import clean
from infinipot_llm.documents.document import Turn


@dataclass(frozen=True, slots=True)
class Extracted:
    """The raw pages of a file.

    Attributes:
        texts: Text of each page, in order, as the file has it.
        labels: Printed label of each page, or None; as many as there are texts.
        notes: Sentences on what could not be read as it should.
        turns: Who speaks when, as offsets in the text of the only page, which must be clean then.
    """

    texts: Sequence[str]
    labels: Sequence[str | None]
    notes: Sequence[str] = ()
    turns: Sequence[Turn] = ()

    @property
    def has_text(self) -> bool:
        """Whether any page holds something visible."""
        return any(clean(text).strip() for text in self.texts)
