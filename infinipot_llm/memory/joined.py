"""Several memories as one: their passages are found together, and share what a question brings back.

Keys on the shelf are un-rotated, and a recalled passage is read again behind those before it, so that it does not
matter that the documents were read apart from one another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infinipot_llm.errors import MemoryFileError, QuestionError
from infinipot_llm.memory.memory import DocumentMemory, Shelved
from infinipot_llm.memory.scoring import NO_CONTENT, null_scores
from infinipot_llm.memory.shelf import Shelf
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import ReadStats


def joined(memories: Sequence[DocumentMemory]) -> DocumentMemory:
    """Return one memory of the documents of several; nothing is read again, and they stay as they are.

    It answers by recall or by reading again. There is no pot of all documents, so `followup="reuse"` and `save` are
    refused.

    Args:
        memories: Read by one model with the same shelf, in the order in which passages are to stand.

    Raises:
        QuestionError: None was given, or one has no shelf.
        MemoryFileError: They were read by different models or with different shelves.
    """
    if not memories:
        raise QuestionError("no memory was given: name at least one.")
    first = memories[0]
    if len(memories) == 1:
        return first
    for memory in memories:
        same = memory.setup.adapter is first.setup.adapter and memory.setup.heads.heads == first.setup.heads.heads
        if not same or memory.config.shelf != first.config.shelf:
            raise MemoryFileError(
                "these memories were read by different models, or with different shelves: read them with one."
            )
    segments = []
    begin = 0
    for memory in memories:
        if memory.shelved is None:
            raise QuestionError("a memory was read without a shelf, and cannot be joined: read with shelf='keys'.")
        segments += [segment.moved(begin) for segment in memory.shelved.shelf.segments]
        begin += len(memory.text)
    shelf = Shelf(segments)
    setup = first.setup
    with setup.adapter.lock:  # what every question attends to depends on everything there is to look at
        nothing = [setup.form.question(q) for q in NO_CONTENT]
        null = null_scores(setup.adapter, setup.prefix, nothing, shelf, setup.heads)
    text = _one_behind_another([m.text for m in memories])
    stats = ReadStats(
        tokens_total=sum(m.stats.tokens_total for m in memories),
        tokens_read=sum(m.stats.tokens_read for m in memories),
        budget=setup.config.budget,
        cycles=sum(m.stats.cycles for m in memories),
        seconds=sum(m.stats.seconds for m in memories),
    )
    return DocumentMemory(setup, text, stats, pot=_no_pot, shelved=Shelved(shelf, null))


def _no_pot() -> Pot:
    raise QuestionError(
        "several memories were joined, there is no one pot of them: ask with followup='recall' or 'reread', and save "
        "them one by one."
    )


def _one_behind_another(texts: Sequence[TokenizedText]) -> TokenizedText:
    """Return the tokens of several texts as one."""
    first = [np.zeros(1, dtype=np.int64)]
    for text in texts:
        first.append(first[-1][-1] + text.first[1:])
    return TokenizedText(
        documents=tuple(document for text in texts for document in text.documents),
        ids=np.concatenate([text.ids for text in texts]),
        starts=np.concatenate([text.starts for text in texts]),
        ends=np.concatenate([text.ends for text in texts]),
        first=np.concatenate(first),
    )
