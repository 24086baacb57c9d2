"""Documents: plain text with page borders, read from PDFs, captions, text files or strings."""

from __future__ import annotations

from infinipot_llm.documents.document import Document, Page, Span, Turn

__all__ = ["Document", "Page", "Span", "Turn"]
