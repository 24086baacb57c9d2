"""An index without embeddings and without chunks: the ordered documents, and their memories.

Importing this module lets `load_index_from_storage` open such an index.
"""

try:
    import llama_index.core  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError('LlamaIndex is not installed: pip install "infinipot-llm[llama-index]".') from error

from llama_index.indices.managed.infinipot.base import InfiniPotIndex
from llama_index.indices.managed.infinipot.chat_engine import InfiniPotChatEngine
from llama_index.indices.managed.infinipot.errors import InfiniPotIndexError
from llama_index.indices.managed.infinipot.query_engine import InfiniPotQueryEngine
from llama_index.indices.managed.infinipot.retriever import InfiniPotRetriever

__all__ = [
    "InfiniPotChatEngine",
    "InfiniPotIndex",
    "InfiniPotIndexError",
    "InfiniPotQueryEngine",
    "InfiniPotRetriever",
]
