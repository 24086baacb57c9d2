"""An answer as HTML, for notebooks: text, where in its documents it comes from, quotes. No script and no style sheet.

Viewers of notebooks strip both; what remains readable everywhere is plain markup and characters.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infinipot_llm.answering.answer import Answer, Citation

CELLS = 60
"""Characters of the strip that stands for a document."""


def answer_html(answer: Answer) -> str:
    """Return an answer as HTML; every piece of text in it is escaped."""
    parts = [f"<p><b>{_lines(answer.text) or '(no answer)'}</b></p>"]
    if answer.notes:  # beside what they are about: an invented answer should not stand alone
        parts.append(f"<p><i>{'<br>'.join(map(escape, answer.notes))}</i></p>")
    for name in dict.fromkeys(c.document for c in answer.citations):
        cited = [c for c in answer.citations if c.document == name]
        parts.append(f"<p>{escape(name)} <code>{strip(cited)}</code></p>")
    if answer.citations:
        items = (f"<li>{place(c)}: <q>{_lines(c.quote)}</q></li>" for c in answer.citations)
        parts.append(f"<ol>{''.join(items)}</ol>")
    usage = answer.usage
    facts = [f"{usage.read.tokens_total:,} tokens read", f"{usage.recalled_tokens:,} recalled"]
    facts += [f"{usage.answer_seconds:.1f} s"] + (["cut at max_new_tokens"] if answer.finish_reason == "length" else [])
    return "".join(parts) + f"<p><small>{', '.join(facts)}</small></p>"


def strip(citations: list[Citation]) -> str:
    """Return a line that stands for one document from start to end, with a block where each passage is."""
    cells = ["·"] * CELLS
    for c in citations:
        if c.length > 0:
            first, last = (min(CELLS - 1, CELLS * at // c.length) for at in (c.start, max(c.start, c.end - 1)))
            cells[first : last + 1] = "█" * (last + 1 - first)
    return "".join(cells)


def place(citation: Citation) -> str:
    """Return page, speaker and time of a passage, as far as they are known."""
    label = citation.page_label
    page = f"p. {citation.page}" if label in (None, str(citation.page)) else f"p. {label} (page {citation.page})"
    parts = [page] if citation.time is None and citation.speaker is None else []
    parts += [citation.speaker] if citation.speaker else []
    if citation.time is not None:
        minutes, seconds = divmod(int(citation.time), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02}")
    return escape(", ".join(parts))


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")
