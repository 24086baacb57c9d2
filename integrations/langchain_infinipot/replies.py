"""A reply in LangChain's terms: message, usage, metadata, and citations as annotations of the answer's text block.

An answer's content stays a string. The citations lie in `response_metadata["infinipot"]`, and a translator, registered
for our provider name as LangChain has it, puts them onto the text block when somebody reads `message.content_blocks`
(or sets output_version="v1"); it works on streamed and on stored messages alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.block_translators import register_translator

if TYPE_CHECKING:
    from infinipot_llm.assistant import Reply

PROVIDER = "infinipot"


def usage(reply: Reply) -> UsageMetadata:
    """Return the tokens of a reply: of its documents, `cache_read` were remembered, `cache_creation` were read now."""
    output = reply.answer.usage.answer_tokens
    counted = UsageMetadata(
        input_tokens=reply.prompt_tokens, output_tokens=output, total_tokens=reply.prompt_tokens + output
    )
    if reply.documents:
        counted["input_token_details"] = {
            "cache_read": reply.remembered_tokens,
            "cache_creation": reply.read_tokens,
        }
    return counted


def metadata(reply: Reply, model: str) -> dict[str, Any]:
    """Return what is known of a reply besides its text, as plain JSON values."""
    answer = reply.answer
    ids = {d.name: d.id for d in reply.documents}
    return {
        "model_name": model,
        "model_provider": PROVIDER,
        "finish_reason": answer.finish_reason,
        "infinipot": {
            "how": reply.how,
            "documents": [
                {"id": d.id, "name": d.name, "pages": d.page_count, "notes": list(d.notes)} for d in reply.documents
            ],
            "document_ids": [d.id for d in reply.documents],
            "document_tokens": reply.read_tokens + reply.remembered_tokens,
            "read_tokens": reply.read_tokens,
            "remembered_tokens": reply.remembered_tokens,
            "recalled_tokens": answer.usage.recalled_tokens,
            "supported": answer.supported,
            "answerable": answer.answerable,
            "citations": [
                {
                    "document": c.document,
                    "document_id": ids.get(c.document),
                    "page": c.page,
                    "page_label": c.page_label,
                    "quote": c.quote,
                    "start": c.start,
                    "end": c.end,
                    "score": round(float(c.score), 4),
                    "speaker": c.speaker,
                    "time": c.time,
                }
                for c in answer.citations
            ],
            "characters": len(answer.text),
            "notes": list(answer.notes),
            "first_token_seconds": round(answer.usage.first_token_seconds, 3),
            "seconds": round(answer.usage.answer_seconds, 3),
        },
    }


def message(reply: Reply, model: str) -> AIMessage:
    """Return a whole answer as a message."""
    return AIMessage(content=reply.answer.text, usage_metadata=usage(reply), response_metadata=metadata(reply, model))


def last_chunk(reply: Reply, model: str, text: str = "") -> AIMessageChunk:
    """Return what closes a stream: usage, metadata and citations, which are known only at the end.

    Args:
        reply: The whole answer.
        model: What the model is called.
        text: What the chunks before it have not told of the answer.
    """
    return AIMessageChunk(
        content=text, usage_metadata=usage(reply), response_metadata=metadata(reply, model), chunk_position="last"
    )


def cited(details: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the citations of an answer in LangChain's standard form; each supports the answer as a whole.

    Args:
        details: `response_metadata["infinipot"]`.
    """
    extras = ("document_id", "page", "page_label", "start", "end", "score", "speaker", "time")
    return [
        {
            "type": "citation",
            "title": citation["document"],
            "cited_text": citation["quote"],
            "start_index": 0,
            "end_index": details.get("characters", 0),
            "extras": {name: citation[name] for name in extras if citation.get(name) is not None},
        }
        for citation in details.get("citations", [])
    ]


def _content_blocks(said: AIMessage) -> list[Any]:
    """Return the answer as one text block, with its citations on it."""
    if not isinstance(said.content, str):
        raise NotImplementedError  # LangChain then takes the blocks as they stand
    found = cited(said.response_metadata.get("infinipot") or {})
    if not said.content and not found:
        return []
    block: dict[str, Any] = {"type": "text", "text": said.content}
    if found:
        block["annotations"] = found
    return [block]


register_translator(PROVIDER, _content_blocks, _content_blocks)
