"""A local language model that reads documents of any length, as a LlamaIndex LLM."""

try:
    import llama_index.core  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError('LlamaIndex is not installed: pip install "infinipot-llm[llama-index]".') from error

from llama_index.llms.infinipot.base import InfiniPotLLM

__all__ = ["InfiniPotLLM"]
