"""What is wrong with the use of an index, in one sentence; a ValueError too, as LlamaIndex raises in such places."""

from infinipot_llm.errors import InfiniPotError


class InfiniPotIndexError(InfiniPotError, ValueError):
    """An index cannot be used in this way, or was persisted with something else."""
