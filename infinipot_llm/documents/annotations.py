"""What was typed into a PDF: the values of form fields and the text boxes on a page, which are no part of its text.

They are annotations (PDF 2.0, 12.5 and 12.7), drawn over the page by a viewer. Everything here runs in the process that
parses, on objects of pypdf.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from infinipot_llm.documents.clean import one_line

_MOST_PARENTS = 32
_MOST_ANNOTATIONS = 10_000
_UNSEEN = 2 | 32
"""Flags "hidden" and "no view": what a reader of the page does not see, the model is not told."""


def typed_text(page: Any) -> str:
    """Return what was typed on a page, a paragraph each: "name: value" of every field, and the text of boxes."""
    lines: dict[str, None] = {}  # a field may have several places on the page
    with suppress(Exception):  # what is damaged here is not shown by a viewer either
        for reference in list(page.get("/Annots") or ())[:_MOST_ANNOTATIONS]:
            with suppress(Exception):
                lines.update(dict.fromkeys(_said(reference.get_object())))
    return "\n\n".join(lines)


def _said(annotation: Any) -> Iterator[str]:
    """Yield the line that an annotation adds, if it is one that says something."""
    if int(annotation.get("/F", 0)) & _UNSEEN:
        return
    kind = annotation.get("/Subtype")
    if kind == "/FreeText":
        if text := str(annotation.get("/Contents") or "").strip():
            yield text
    elif kind == "/Widget":
        chain = list(_with_parents(annotation))
        value = next((field["/V"].get_object() for field in chain if "/V" in field), None)
        if text := _value(value):
            names = [one_line(str(field["/T"])) for field in reversed(chain) if "/T" in field]
            told = next((one_line(str(field["/TU"])) for field in chain if field.get("/TU")), "")
            yield f"{told or '.'.join(names)}: {text}".removeprefix(": ")


def _with_parents(field: Any) -> Iterator[Any]:
    """Yield a field and what it is a part of, from the inside out."""
    seen: list[Any] = []
    while len(seen) < _MOST_PARENTS and not any(field is one for one in seen):
        yield field
        seen.append(field)
        if "/Parent" not in field:
            return
        field = field["/Parent"].get_object()


def _value(value: Any) -> str:
    """Return a field's value as text; "" for none, for a box that is not ticked, and for a signature."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_value, value)))
    if hasattr(value, "get_data"):  # long texts may be streams
        value = value.get_data().decode("utf-8", "replace")
    if not isinstance(value, str):
        return ""
    text = str(value).strip()
    return "" if text == "/Off" else text.removeprefix("/")
