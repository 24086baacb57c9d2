"""Errors as LangChain has them: its own classes, so that its retries and fallbacks act on them, with our sentences.

Each is also the error of infinipot_llm that it was, so that code that catches that one goes on working.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import ContextOverflowError, LangChainException

from infinipot_llm import errors as ours

try:
    from langchain_core.exceptions import ModelError, ModelInvalidRequestError, ModelNotFoundError
except ImportError:  # langchain-core before these were added
    ModelError = ModelInvalidRequestError = ModelNotFoundError = LangChainException  # type: ignore[assignment,misc]


class InvalidRequestError(ModelInvalidRequestError, ours.InfiniPotError, ValueError):
    """What was asked cannot be answered: a bad block or document, no question, an unknown or wrong option."""


class QuestionTooLongError(ContextOverflowError, ours.QuestionTooLongError):
    """The messages, without the documents, do not fit into the budget."""


class ModelUnavailableError(ModelNotFoundError, ours.ModelError):
    """The model cannot be used: unknown, not fetched, of an architecture that does not work."""


class InfiniPotFailedError(ModelError, ours.InfiniPotError):
    """Something around the model failed: the store, its disk, a damaged memory."""


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Turn errors of infinipot_llm, raised within, into LangChain's classes; their sentences stay as they are."""
    try:
        yield
    except LangChainException:
        raise
    except ours.InfiniPotError as error:
        raise _translated(error) from error


def _translated(error: ours.InfiniPotError) -> Exception:
    """Return LangChain's error for one of ours."""
    sentence = str(error)
    if isinstance(error, ours.QuestionTooLongError):
        return QuestionTooLongError(sentence)
    if isinstance(error, ours.ModelError):
        return ModelUnavailableError(sentence)
    if isinstance(error, (ours.QuestionError, ours.DocumentError, ours.BudgetError)):
        return InvalidRequestError(sentence)
    return InfiniPotFailedError(sentence)
