"""Replies of ours as responses of LlamaIndex: text, deltas, token usage in `raw`, the rest in `additional_kwargs`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole

if TYPE_CHECKING:
    from infinipot_llm.assistant import Reply

EXTRA = "infinipot"
"""The key under which responses carry what only we know."""


def extra(reply: Reply) -> dict[str, Any]:
    """Return what a reply tells beside its text, as plain JSON values."""
    answer = reply.answer
    return {
        "how": reply.how,
        "finish_reason": answer.finish_reason,
        "citations": [asdict(citation) for citation in answer.citations],
        "supported": answer.supported,
        "answerable": answer.answerable,
        "notes": list(answer.notes),
        "documents": [{"name": d.name, "id": d.id, "pages": d.page_count} for d in reply.documents],
        "read_tokens": reply.read_tokens,
        "remembered_tokens": reply.remembered_tokens,
        "recalled_tokens": answer.usage.recalled_tokens,
        "first_token_seconds": round(answer.usage.first_token_seconds, 3),
        "answer_seconds": round(answer.usage.answer_seconds, 3),
    }


def told(reply: Reply | None, model: str) -> dict[str, Any]:
    """Return the arguments that every kind of response takes from a reply; nothing before it is there."""
    if reply is None:
        return {}
    counted = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.answer.usage.answer_tokens}
    usage = {**counted, "total_tokens": sum(counted.values())}
    raw = {"model": model, "finish_reason": reply.answer.finish_reason, "usage": usage}
    return {"raw": raw, "additional_kwargs": {EXTRA: extra(reply)}}


def completion(text: str, reply: Reply | None, model: str, delta: str | None = None) -> CompletionResponse:
    """Make the response to a prompt."""
    return CompletionResponse(text=text, delta=delta, **told(reply, model))


def chat(text: str, reply: Reply | None, model: str, delta: str | None = None) -> ChatResponse:
    """Make the response to a conversation."""
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta, **told(reply, model))
