r"""Text that was stuffed into a message: what is too long for the prompt is taken out of it as a document.

Chains put their context where their template has a place for it:

    "Use the context to answer.\n\n" + CONTEXT + "\n\nQuestion: how high is it?\nAnswer:"

The template's first and last paragraph stay in the prompt, and what stands between them is the document; in a text
without paragraphs, its last line, and its first where that asks. The document's notes say what stayed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from infinipot_llm.answering.prompt import Message
from infinipot_llm.documents import Document
from infinipot_llm.documents.clean import one_line
from infinipot_llm.errors import DocumentError, QuestionTooLongError

MOST_FRAME_TOKENS = 256
"""A first or last paragraph longer than this belongs to the document, not to the template around it."""

_BORDER = re.compile(r"\n[^\S\n]*\n\s*|\n[-=*#_]{4,}[^\S\n]*\n")
"""Between two paragraphs: a blank line, or a line drawn across."""

_LAST_BORDER = re.compile(r"\n[-=*#_]{4,}[^\S\n]*\n\Z")

_QUESTION = re.compile(
    r"^[^\S\n]*(?:question|query|user question|user|human|input|q)[^\S\n]*:", re.IGNORECASE | re.MULTILINE
)
"""How templates announce the question."""

_ANSWERED = re.compile(r"^[^\S\n]*(?:answer|a)[^\S\n]*:[^\S\n]*\S.*\n\s*\S", re.IGNORECASE | re.MULTILINE)
"""An answer that is there, and more behind it: the questions before it belong to the text."""

_ANNOUNCED = re.compile(
    r"^[^\S\n]*(?:(?:user |original )?(?:query|question)|the original query is as follows)[^\S\n]*:",
    re.IGNORECASE | re.MULTILINE,
)
"""The same, of templates that take nothing else for one."""

_ANSWER = re.compile(r"^[^\S\n]*(?:[a-z]+ ){0,2}answer[^\S\n]*:|^we have provided an existing answer", re.I | re.M)
"""What stands behind the question."""

_LONGEST_QUESTION = 2000

_ASKS = re.compile(r"[:：?？؟]\s*\Z")
"""How a first line ends that says what to do with the lines behind it."""

_SHOWN_CHARACTERS = 200


def unstuffed(
    messages: Sequence[Message], count: Callable[[str], int], room: int
) -> tuple[list[Message], list[Document]]:
    """Take documents out of messages until what is left fits, or no long message is left.

    What the model itself said is no document: such turns are left out, oldest first, where they do not fit.

    Args:
        messages: The conversation; its last message is the user's.
        count: Returns the tokens of a text.
        room: Tokens that all messages together may have.

    Returns:
        The messages with the template's own words left in them, and the documents, in order of messages.

    Raises:
        QuestionTooLongError: The last message is too long, and no question can be told apart at its end.
    """
    left = list(messages)
    sizes = [count(m.text) for m in left]
    found: dict[int, Document] = {}
    while sum(sizes) > room:
        given = [i for i, m in enumerate(left) if i not in found and m.role != "assistant"]
        rules = [i for i in given if left[i].role == "system"]
        if sum(sizes[i] for i in {*rules, len(left) - 1}) <= room:  # earlier turns give way before rules
            given = [i for i in given if i not in rules]
        longest = max(given, key=lambda i: sizes[i], default=-1)
        if longest < 0 or sizes[longest] <= 2 * MOST_FRAME_TOKENS:
            break
        text = left[longest].text
        start, end = _middle(text, count)
        try:
            if longest == len(left) - 1 and end == len(text):
                if sizes[longest] <= room:  # earlier turns can give way to it
                    break
                raise DocumentError("no question")
            taken = Document.from_text(_LAST_BORDER.sub("", text[start:end]).strip(), name="prompt")
        except DocumentError:
            raise QuestionTooLongError(
                f"the last message has {sizes[longest]} tokens, and no question of at most {MOST_FRAME_TOKENS} stands "
                "at its end: put the question into a paragraph of its own, behind the text."
            ) from None
        frame = "\n\n".join(part for part in (text[:start].strip(), text[end:].strip()) if part)
        shown = one_line(frame)
        shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"...{shown[-_SHOWN_CHARACTERS:]}"
        note = f"taken out of a message of {sizes[longest]} tokens, in which there stayed: {shown!r}"
        found[longest] = replace(taken, notes=(*taken.notes, note))
        left[longest] = Message(left[longest].role, frame)
        sizes[longest] = count(frame)
    names = [f"prompt, part {n}" if len(found) > 1 else "prompt" for n in range(1, len(found) + 1)]
    return left, [replace(found[i], name=name) for i, name in zip(sorted(found), names, strict=True)]


def question_in(text: str) -> str | None:
    """Find the question that a template put among its own words; None where there is none to be told."""
    announced = [match.end() for match in _ANNOUNCED.finditer(text)][-1:]  # the last: a document may ask as well
    if announced and _ANSWERED.search(text, announced[0]):  # it is a question of the context
        return None
    question = _ANSWER.split(text[announced[0] :], maxsplit=1)[0].strip() if announced else ""
    return question if 0 < len(question) <= _LONGEST_QUESTION else None


def _middle(text: str, count: Callable[[str], int]) -> tuple[int, int]:
    """Return where, between a template's own first and last words, the text lies that was put there.

    The last words begin with the paragraph, or else the line, that announces a question, or else with the last
    paragraph, or else the last line: whichever is first short enough. A question that is followed by its answer, and
    by more, is not taken for one that is announced. The first words are the first paragraph, or, of a text without
    paragraphs, a first line that ends as `_ASKS` says.
    """
    body = text.rstrip()
    starts = [s for s in (0, *(m.end() for m in _BORDER.finditer(text))) if s < len(body)]
    answered = max((m.start() for m in _ANSWERED.finditer(body)), default=0)
    announced = [m.start() for m in _QUESTION.finditer(body, answered)][-1:]
    ends = [max(s for s in starts if s <= a) for a in announced] + announced + [starts[-1], body.rfind("\n") + 1]
    end = next((e for e in ends if e > 0 and count(body[e:]) <= MOST_FRAME_TOKENS), len(text))
    first_line = body.find("\n") + 1
    start = starts[1] if len(starts) > 1 else first_line if _ASKS.search(body[:first_line]) else 0
    if start >= end or count(text[:start]) > MOST_FRAME_TOKENS:
        start = 0
    return start, end
