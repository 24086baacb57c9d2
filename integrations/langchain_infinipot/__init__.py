"""LangChain: whole long documents read by a local model through a cache of fixed size, asked again and again.

`ChatInfiniPot` is the chat model; documents come as content blocks in its messages. `InfiniPotLLM` takes and gives
strings. `InfiniPotLoader` loads PDFs and transcripts, `InfiniPotRetriever` shows what a question brings back, and
`InfiniPotDocumentTool` lets any tool-calling model ask a document.
"""

from __future__ import annotations

from importlib import metadata

try:
    import langchain_core as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        'langchain_infinipot needs langchain-core: pip install "infinipot-llm[langchain]" brings it.'
    ) from error

from langchain_infinipot.chat_models import ChatInfiniPot
from langchain_infinipot.document_loaders import InfiniPotLoader
from langchain_infinipot.llms import InfiniPotLLM
from langchain_infinipot.retrievers import InfiniPotRetriever
from langchain_infinipot.sources import file_block
from langchain_infinipot.tools import InfiniPotDocumentTool

try:
    __version__ = metadata.version("infinipot-llm")
except metadata.PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0"

__all__ = [
    "ChatInfiniPot",
    "InfiniPotDocumentTool",
    "InfiniPotLLM",
    "InfiniPotLoader",
    "InfiniPotRetriever",
    "__version__",
    "file_block",
]
