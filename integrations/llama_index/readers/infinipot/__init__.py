"""PDFs as LlamaIndex documents, one per page, with the page labels that the PDF defines."""

try:
    import llama_index.core  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError('LlamaIndex is not installed: pip install "infinipot-llm[llama-index]".') from error

from llama_index.readers.infinipot.base import InfiniPotPDFReader

__all__ = ["InfiniPotPDFReader"]
