"""Ask questions of whole long documents with a local language model, through a KV cache that never grows.

Importing this package is light: torch and transformers are imported when a name that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from infinipot_llm.answering.answer import Answer, Citation
    from infinipot_llm.answering.prompt import Message
    from infinipot_llm.assistant import Assistant, Reply
    from infinipot_llm.config import PotConfig
    from infinipot_llm.documents import Document, Page, Span
    from infinipot_llm.engine import InfiniPot
    from infinipot_llm.errors import InfiniPotError
    from infinipot_llm.memory.chat import Chat
    from infinipot_llm.memory.memory import DocumentMemory
    from infinipot_llm.memory.store import MemoryStore

_HOME = {
    "Answer": "infinipot_llm.answering.answer",
    "Assistant": "infinipot_llm.assistant",
    "Chat": "infinipot_llm.memory.chat",
    "Citation": "infinipot_llm.answering.answer",
    "Document": "infinipot_llm.documents",
    "DocumentMemory": "infinipot_llm.memory.memory",
    "InfiniPot": "infinipot_llm.engine",
    "InfiniPotError": "infinipot_llm.errors",
    "MemoryStore": "infinipot_llm.memory.store",
    "Message": "infinipot_llm.answering.prompt",
    "Page": "infinipot_llm.documents",
    "PotConfig": "infinipot_llm.config",
    "Reply": "infinipot_llm.assistant",
    "Span": "infinipot_llm.documents",
}

__all__ = [
    "Answer",
    "Assistant",
    "Chat",
    "Citation",
    "Document",
    "DocumentMemory",
    "InfiniPot",
    "InfiniPotError",
    "MemoryStore",
    "Message",
    "Page",
    "PotConfig",
    "Reply",
    "Span",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use (PEP 562)."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
