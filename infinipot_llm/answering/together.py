"""Decoding several answers at once, each over a pot of its own.

A model on a CPU, or alone on a GPU, reads all its weights for every token that it writes: rows side by side share that
reading. The questions are read one after another (that is computation, which a batch does not save), and then the slots
of all pots are laid into one cache of as many rows, aligned at their ends, so that the next token is the same slot in
every row. A row with fewer slots begins behind some that nothing attends to; its keys are rotated to where they stand,
which leaves all distances as they were.
Shapes: `B` pots, `L` layers, `K` KV heads, `S` slots of the fullest pot with its question, `D` head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from infinipot_llm.answering.decode import Decoded, Sampling, check_room, generate
from infinipot_llm.errors import QuestionError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot


def decode_together(
    adapter: Adapter,
    codec: TextCodec,
    pots: Sequence[Pot],
    questions: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    cancelled: Callable[[], bool] | None = None,
) -> list[Decoded]:
    """Answer one question over each pot, leaving the pots as they were.

    Answers are those of `decode` up to rounding: sums of another order may tip a near tie between two tokens.

    Args:
        adapter: The model; all of its layers hold slots.
        codec: Its tokenizer.
        pots: The document states.
        questions: Of each pot: tokens behind the document, up to the start of the answer.
        sampling: How to decode, all of them.
        cancelled: Asked after every token; True ends all answers.

    Raises:
        QuestionError: The model has sliding layers, whose windows cannot stand side by side.
        QuestionTooLongError: A question and its answer do not fit into the free slots of its pot.
    """
    if not fits_together(adapter):
        raise QuestionError("a model with sliding layers answers one question after another: use ask.")
    with adapter.lock, ExitStack() as scratched:
        for pot, question in zip(pots, questions, strict=True):
            check_room(pot, question, sampling)
            scratched.enter_context(pot.scratch())
            if len(question) > 1:
                adapter.forward(torch.tensor(list(question[:-1]), dtype=torch.long), pot.cache)
        cache = adapter.new_cache(max(pot.cache.length for pot in pots) + sampling.max_new_tokens)
        cache.fill_rows([pot.cache for pot in pots])
        last = torch.tensor([[question[-1]] for question in questions], dtype=torch.long, device=adapter.device)
        return generate(adapter, codec, cache, last, sampling, cancelled=cancelled)


def fits_together(adapter: Adapter) -> bool:
    """Tell whether a model's answers can be decoded side by side: windows of sliding layers cannot be aligned."""
    return not any(adapter.windows)
