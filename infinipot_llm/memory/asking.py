"""From a question to the pot that answers it: what the prompt holds, how much is recalled, how long the answer may get.

Everything that an answer needs is counted in one budget:

    before | recalled passages | behind: earlier turns and the question | answer
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infinipot_llm.answering.compose import Ready
from infinipot_llm.answering.decode import Sampling
from infinipot_llm.answering.prompt import Prompt, PromptForm
from infinipot_llm.config import FOLLOWUPS
from infinipot_llm.documents.clean import clean
from infinipot_llm.errors import GoneError, QuestionError, QuestionTooLongError
from infinipot_llm.memory.recall import Found, Passage, in_order, pot_of_text, question_pot, text_slots
from infinipot_llm.memory.shelf import SPAN
from infinipot_llm.pot.reader import Reader, ReadStats

if TYPE_CHECKING:
    from infinipot_llm.memory.chat import Turns
    from infinipot_llm.memory.memory import DocumentMemory


def usual_prompt(
    memory: DocumentMemory, how: str, question: str, history: Turns, max_new_tokens: int | None, recall: int | None
) -> tuple[Prompt, int, list[str]]:
    """Return the usual prompt of a question, how long its answer may get, and sentences on what was left out of it.

    Args:
        memory: What is asked.
        how: "recall", "reuse" or "reread".
        question: What to ask.
        history: Questions and answers that came before, oldest first; the oldest that do not fit are left out.
        max_new_tokens: Limit of the answer; None: as the configuration says, or what a long question leaves.
        recall: Tokens to bring back; None: as the configuration says.
    """
    check_recall(recall)
    if max_new_tokens is not None:
        Sampling(max_new_tokens)  # refused before it is counted with
    config, form = memory.config, memory.setup.form
    question = clean(question)
    filled = memory.pot.length if how == "reuse" else len(form.prefix)
    room = config.budget - filled - (max_new_tokens or config.max_new_tokens)
    if how != "reuse":
        room -= min(recall or memory.setup.recall, room // 2)
    turns, asked = form.latest(list(history), question, room)
    dropped = len(history) - len(turns)
    left_out = "turn no longer fits and was" if dropped == 1 else "turns no longer fit and were"
    notes = [f"{dropped} earlier {left_out} left out."] if dropped else []
    if max_new_tokens is None:
        free = config.budget - len(asked) - (filled if how == "reuse" else filled + SPAN)
        max_new_tokens = max(1, min(config.max_new_tokens, free))
        if max_new_tokens < config.max_new_tokens:
            notes.append(f"the limit of the answer is lowered to {max_new_tokens} tokens, which the question leaves.")
    if how == "recall" and recall is not None:
        left = config.budget - len(form.prefix) - len(asked) - max_new_tokens
        if left < min(recall, len(memory.text)):
            notes.append(f"at most {left} tokens are recalled: the budget of {config.budget} has no room for {recall}.")
    query = form.looked_for(turns, question)
    return Prompt(form.prefix, tuple(asked), tuple(query), question, alone=not history), max_new_tokens, notes


def pot_for(
    memory: DocumentMemory,
    how: str,
    prompt: Prompt,
    limit: int,
    recall: int | None = None,
    passages: Sequence[Passage] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Ready:
    """Return the pot to decode over, how many tokens were recalled for it, and how well they match.

    Args:
        memory: What is asked.
        how: "recall", "reuse" or "reread".
        prompt: What is asked of it.
        limit: Tokens that the answer may take.
        recall: Tokens to bring back; None: as the configuration says.
        passages: What to answer from; None: what is found.
        cancelled: Asked after every forward pass.

    Raises:
        GoneError: `cancelled` said so.
        QuestionTooLongError: Prompt, passages and answer do not fit into the budget.
    """
    if how == "reuse":
        return Ready(memory.pot)

    def told(stats: ReadStats | None = None) -> None:
        if cancelled is not None and cancelled():
            raise GoneError

    setup, text = memory.setup, memory.text
    behind = len(prompt.behind) + limit
    if how == "reread":
        reader = Reader(setup.adapter, memory.config, known=True)
        return Ready(reader.read(text, prompt.before, [prompt.behind], behind, progress=told)[0])
    given = passages is not None
    found = passages_for(memory, prompt, limit, recall) if passages is None else _given(memory, prompt, passages)
    passages = found.passages
    read = in_order(text, passages, memory.config.recall_order)
    slots = text_slots(setup, text, read)
    if given and slots > (room := room_for(memory, prompt, limit)):
        raise QuestionTooLongError(f"these passages need more than the {room} free slots: answer from fewer.")
    if memory.config.recalled == "read":
        pot = pot_of_text(setup, text, read, len(prompt.before) + slots + behind, prompt.before, told)
        return Ready(pot, sum(p.end - p.start for p in passages), found.answerable)
    shelf = memory.finder.shelf
    rows = (shelf.rows_of(p.start, p.end) for p in passages)  # a bounded shelf holds parts of spans
    tokens = sum(b - a for a, b in rows)
    pot = question_pot(setup, shelf, passages, len(prompt.before) + tokens + behind, prompt.before)
    return Ready(pot, tokens, found.answerable)


def passages_for(memory: DocumentMemory, prompt: Prompt, limit: int, recall: int | None) -> Found:
    """Return the passages for a prompt, in document order, and whether they may answer it.

    Raises:
        QuestionTooLongError: Prompt and answer leave no room for any.
    """
    room, finder = room_for(memory, prompt, limit), memory.finder
    budget = min(recall or memory.setup.recall, room)
    if memory.config.recalled == "load":
        return finder.find(prompt.query, prompt.question, budget, alone=prompt.alone)

    def fits(passages: Sequence[Passage]) -> bool:
        return slots_read(memory, passages) <= room

    found = finder.find(prompt.query, prompt.question, budget, fits, alone=prompt.alone)
    if not found.passages and finder.tokens:
        raise QuestionTooLongError(
            f"the {room} slots that question and answer leave hold no passage: ask more briefly, lower max_new_tokens, "
            "or raise the budget."
        )
    return found


def _given(memory: DocumentMemory, prompt: Prompt, passages: Sequence[Passage]) -> Found:
    """Return passages that somebody has chosen, and whether the documents that they are a part of answer the prompt."""
    part = memory.shelved is not None and sum(p.end - p.start for p in passages) < len(memory.finder.shelf)
    judged = part and prompt.alone
    return Found(list(passages), memory.finder.look(prompt.query, prompt.question)[1] if judged else None)


def slots_read(memory: DocumentMemory, passages: Sequence[Passage]) -> int:
    """Return the slots that passages take when they are read in the order of the configuration."""
    return text_slots(memory.setup, memory.text, in_order(memory.text, passages, memory.config.recall_order))


def check_recall(tokens: int | None) -> None:
    """Refuse to recall less than a token.

    Raises:
        QuestionError: It is less.
    """
    if tokens is not None and (not isinstance(tokens, int) or tokens < 1):
        raise QuestionError(f"{tokens!r} tokens cannot be recalled: give recall a whole number of at least 1.")


def check_passages(passages: Sequence[Passage] | None, how: str, tokens: int) -> None:
    """Refuse passages that cannot be answered from.

    Args:
        passages: What was given.
        how: "recall", "reuse" or "reread".
        tokens: Of the text.

    Raises:
        QuestionError: There is none, one is not of the text, or the answer does not come from passages.
    """
    if passages is None:
        return
    if how != "recall":
        raise QuestionError(
            f"passages were given, and followup={how!r} answers from something else: leave passages out, or ask a "
            "memory with a shelf by recall."
        )
    if not passages:
        raise QuestionError("no passage was given to answer from: leave passages out to have them looked for.")
    for passage in passages:
        if not 0 <= passage.start < passage.end <= tokens:
            raise QuestionError(
                f"[{passage.start}, {passage.end}) is no passage of this text of {tokens} tokens: give what "
                "`memory.passages` returns."
            )


def check_asked(form: PromptForm, budget: int, question: str, options: Mapping[str, Any]) -> None:
    """Refuse a question that `DocumentMemory.ask` would refuse, before documents are read for nothing.

    Args:
        form: The model's way of putting questions.
        budget: Slots for everything.
        question: What is asked.
        options: Options of `DocumentMemory.ask`.

    Raises:
        QuestionError: The question is empty, or an option is out of range.
        QuestionTooLongError: The question leaves no room for any of a document.
        TypeError: There is no such option.
    """
    from infinipot_llm.memory.memory import DocumentMemory

    inspect.signature(DocumentMemory.ask).bind(None, question, **options)
    asked = len(form.prefix) + len(form.question(question))
    check_recall(options.get("recall"))
    check_followup(options.get("followup"))
    stop = options.get("stop", ())
    limit = options.get("max_new_tokens")
    Sampling(
        1 if limit is None else limit,
        options.get("temperature", 0.0),
        options.get("top_p", 1.0),
        (stop,) if isinstance(stop, str) else tuple(stop),
        options.get("seed"),
    )
    _free(budget, asked, 1 if limit is None else limit)  # a limit that is not given is lowered to what fits


def check_followup(followup: str | None) -> None:
    """Refuse a way of answering that there is none of.

    Raises:
        QuestionError: It is none.
    """
    if followup is not None and followup not in FOLLOWUPS:
        raise QuestionError(f"followup is {followup!r}: give one of {', '.join(FOLLOWUPS)}.")


def room_for(memory: DocumentMemory, prompt: Prompt, limit: int) -> int:
    """Return the slots that prompt and answer leave for what is recalled.

    Raises:
        QuestionTooLongError: They leave none.
    """
    return _free(memory.config.budget, len(prompt.before) + len(prompt.behind), limit)


def _free(budget: int, asked: int, limit: int) -> int:
    room = budget - asked - limit
    if room < 1:
        raise QuestionTooLongError(
            f"question ({asked} tokens with the prompt around it) and answer ({limit}) leave no room for the document "
            f"in a budget of {budget}: ask more briefly, lower max_new_tokens, or raise the budget to at "
            f"least {asked + limit + 1}."
        )
    return room
