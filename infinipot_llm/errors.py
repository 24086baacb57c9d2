"""The errors a user can meet: each message is one sentence that names what is wrong and how to mend it."""

from __future__ import annotations


class InfiniPotError(Exception):
    """Base of every error this package raises on purpose; the command line prints it and exits with 2."""


class DocumentError(InfiniPotError):
    """A document cannot be read: missing, empty, encrypted, damaged, or without text."""


class ModelError(InfiniPotError):
    """A model cannot be used: unknown, not fetched, of an unsupported architecture, or failing its self-check."""


class ModelNotFetchedError(ModelError):
    """A model is known, but its files are not on this machine; the sentence names the command that fetches them."""


class BudgetError(InfiniPotError, ValueError):
    """A budget or another setting does not fit the model, the question or the answer."""


class QuestionError(InfiniPotError, ValueError):
    """A question cannot be asked: empty, or too long for the room that was kept for it."""


class QuestionTooLongError(QuestionError):
    """Question and answer do not fit into the budget, or into what the document leaves of it."""


class MemoryFileError(InfiniPotError):
    """A saved memory is damaged, of another version, or was made with another model, tokenizer or prompt."""


class StoreError(InfiniPotError):
    """The store of memories cannot be used: a folder that is not ours, a full disk, a remote that does not answer."""


class GoneError(Exception):
    """Whoever asked went away while they waited, or while something was read for the answer; no fault of theirs."""
