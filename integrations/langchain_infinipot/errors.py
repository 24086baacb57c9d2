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


class InvalidDocumentError(InvalidRequestError, ours.DocumentError):
    """A document cannot be read."""


class InvalidQuestionError(InvalidRequestError, ours.QuestionError):
    """A question is empty, or an option of asking is out of range."""


class InvalidSettingError(InvalidRequestError, ours.BudgetError):
    """A setting of the pot is out of range, or the budget has no room."""


class ModelNotFetchedError(ModelUnavailableError, ours.ModelNotFetchedError):
    """The model is not on this machine."""


class MemoryFailedError(InfiniPotFailedError, ours.MemoryFileError):
    """A memory is missing, damaged or of something else."""


class StoreFailedError(InfiniPotFailedError, ours.StoreError):
    """The store or its disk cannot be used."""


_CLASSES = (
    (ours.QuestionTooLongError, QuestionTooLongError),
    (ours.QuestionError, InvalidQuestionError),
    (ours.DocumentError, InvalidDocumentError),
    (ours.BudgetError, InvalidSettingError),
    (ours.ModelNotFetchedError, ModelNotFetchedError),
    (ours.ModelError, ModelUnavailableError),
    (ours.MemoryFileError, MemoryFailedError),
    (ours.StoreError, StoreFailedError),
)
"""What ours become; the first that fits counts."""


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
    theirs = next((theirs for own, theirs in _CLASSES if isinstance(error, own)), InfiniPotFailedError)
    return theirs(str(error))
