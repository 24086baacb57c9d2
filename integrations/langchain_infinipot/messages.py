"""Messages in, a request out: who said what, the documents among it, and what is looked for in them.

system, human, AI and tool messages --> Message(role, text) ...   what is said, in order
                    their document blocks --> Document ...        before the conversation, each content once
                    the text of the last human message            the question
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from infinipot_llm.answering.prompt import Message
from infinipot_llm.documents import Document
from infinipot_llm.documents.document import each_once
from langchain_infinipot.blocks import DOCUMENT_BLOCKS, SILENT_BLOCKS, Limits, content_blocks, other_block, read_block
from langchain_infinipot.errors import InvalidRequestError

_ROLES = {"human": "user", "user": "user", "ai": "assistant", "assistant": "assistant", "model": "assistant"} | {
    "system": "system",
    "developer": "system",
}


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        messages: The conversation, oldest first; the last one is the user's.
        documents: What it is about, in order, each content once.
        question: What is asked, where that is not the last message as it stands.
    """

    messages: tuple[Message, ...]
    documents: tuple[Document, ...]
    question: str | None = None


def read_messages(
    messages: Sequence[BaseMessage], limits: Limits, bound: Sequence[Document] = (), *, ask: bool = True
) -> Request:
    """Take messages apart.

    Args:
        messages: As a chain gives them.
        limits: What blocks may hold.
        bound: Documents that were given beside the messages; they come first.
        ask: Whether there must be a question (there need not be one for counting).

    Raises:
        InvalidRequestError: There is no question, or a block or message cannot be taken.
        DocumentError: A document cannot be read.
    """
    said: list[Message] = []
    documents = list(bound)
    question: str | None = None
    asked_at = -1
    for message in messages:
        text, context = _read_one(message, documents, limits)
        role = _role(message)
        whole = f"{context}\n\n{text}" if context and text else text or context
        if not whole.strip():
            continue
        said.append(Message(role, whole))
        if isinstance(message, ToolMessage) or (isinstance(message, AIMessage) and message.tool_calls):
            continue  # a model called tools on the way to its answer: the question before is still open
        if role == "user":
            question, asked_at = text or None, len(said) - 1
        elif role == "assistant":
            question = None
    if not ask:
        return Request(tuple(said), each_once(documents))
    if question is None or not question.strip():
        raise InvalidRequestError("there is no question: let the messages end with a human message that holds text.")
    before = next((m.role for m in reversed(said[:asked_at]) if m.role != "system"), None)  # the model gets them as one
    exact = asked_at == len(said) - 1 and said[asked_at].text == question and before != "user"
    if asked_at != len(said) - 1:  # tool results, or instructions, behind it: the question still comes last
        said.append(said.pop(asked_at))
    return Request(tuple(said), each_once(documents), None if exact else question)


def holds_documents(messages: Sequence[BaseMessage]) -> bool:
    """Say whether a message holds anything but text."""
    return any(
        not isinstance(m.content, str) and any(b.get("type") != "text" for b in content_blocks(m)) for m in messages
    )


def _read_one(message: BaseMessage, documents: list[Document], limits: Limits) -> tuple[str, str]:
    """Return the text of a message, and what it says about its documents, which are added to the list."""
    texts: list[str] = []
    context: list[str] = []
    for block in content_blocks(message):
        kind = block.get("type")
        if kind == "text":
            texts.append(str(block.get("text", "")))
        elif kind in DOCUMENT_BLOCKS:
            document = read_block(block, len({d.id for d in documents}) + 1, limits)
            documents.append(document)
            if about := block.get("context") or (block.get("extras") or {}).get("context"):
                context.append(f"About {document.name}: {about}")
        elif isinstance(message, AIMessage) or kind in SILENT_BLOCKS:
            continue  # what another model said besides its answer
        else:
            raise other_block(block)
    if isinstance(message, AIMessage):
        calls = [f"[calls {call['name']} with {_short(call['args'])}]" for call in message.tool_calls]
        return "\n".join(part for part in ("".join(texts), *calls) if part), "\n".join(context)
    text = "\n\n".join(part for part in texts if part.strip())
    if isinstance(message, ToolMessage) and text:
        text = f"Result of {message.name or 'a tool'}:\n{text}"
    return text, "\n".join(context)


def _role(message: BaseMessage) -> Any:
    """Return who says it; the results of tools are told to the model by the user, since it has no role for them."""
    if isinstance(message, (HumanMessage, ToolMessage)):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return "system"
    role = _ROLES.get(message.role.lower() if isinstance(message, ChatMessage) else message.type)
    if role is None:
        said = message.role if isinstance(message, ChatMessage) else message.type
        raise InvalidRequestError(
            f"a message of role {said[:40]!r} cannot be taken: give system, human, AI and tool messages."
        )
    return role


def _short(args: Any) -> str:
    text = str(args)
    return text if len(text) <= 200 else f"{text[:200]}..."
