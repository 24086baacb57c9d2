"""Ways of getting from a context and a question to an answer, all with the same weights, prompt and greedy decoding.

An arm is named by what keeps the cache small:

    NAME        a policy of pot/policies/ inside the bounded loop (CCD): what `PotConfig(policy=NAME)` reads with
    own:NAME    the same policy as its authors run it: OWN says how
    full        everything stays in the cache, which may be as large as the trained window
    recall      the question is not known while reading, and answered from the shelf (DocumentMemory.ask)

Settings of PotConfig may follow, each behind a colon: infinipot:novelty_share=0:neighbours=8. The questions that stand
in for an unknown one stand between bars: infinipot:catalysts=Who?|When and where?. So may positions=kept follow:
slots that stay keep the positions that they were read at, as most methods do, instead of being counted anew.

Of the arms that run a policy as its authors do, own:snapkv, own:tova, own:h2o and own:expected-attention read
everything first, drop once, and keep positions too, as those authors' code does; the first three judge by the question
as well, where it is known. own:streaming, own:sirllm and own:keydiff drop as they read, and own:truncate cuts the text:
what they hold is counted anew, from 0 on.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch

from infinipot_llm.answering.answer import FinishReason
from infinipot_llm.answering.decode import Sampling, cut_at_stop, decode
from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.config import POLICIES, PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import BudgetError
from infinipot_llm.evaluation.absolute import absolute_pot, check_positions, hold_positions
from infinipot_llm.memory.asking import pot_for
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.resources import memory_taken
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.distill import select
from infinipot_llm.pot.plan import plan
from infinipot_llm.pot.policies import make_policy
from infinipot_llm.pot.policies.expected_attention import AHEAD
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader, ReadStats
from infinipot_llm.pot.score import Evidence, Policy, Scores

Own = Literal["cut", "rolling", "whole"]
OWN: dict[str, Own] = {
    "truncate": "cut",  # the middle of the text is cut out before it is read
    "streaming": "rolling",  # a little is dropped after every STEP tokens, instead of much when the pot is full
    "sirllm": "rolling",
    "keydiff": "rolling",
    "snapkv": "whole",  # everything is read first, the question too if it is known, and dropped once
    "tova": "whole",
    "h2o": "whole",
    "expected-attention": "whole",
}
"""How the authors of a policy run it; the others have no way but the loop."""

SETTINGS: dict[str, Callable[[str], Any]] = {
    "budget": int,
    "kept": float,
    "novelty_share": float,
    "agreement": float,
    "neighbours": int,
    "neighbour_weight": float,
    "sink_tokens": int,
    "catalyst_reduce": str,
    "catalysts": lambda questions: tuple(questions.split("|")),
    "chunk": int,
    "recall": int,
    "recall_order": str,
}
"""Settings of PotConfig that an arm may change, and what makes the value of each out of text."""

_OF_POLICIES = ("novelty_share", "agreement", "neighbours", "neighbour_weight", "catalyst_reduce", "catalysts")
"""Those that only some policies look at."""

STEP = 128
"""Most tokens between two evictions of a rolling arm; an eighth of what a small budget holds. Authors drop one token at
a time, which is the same for a score that does not change in between, and many times slower."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an arm made of a case.

    Attributes:
        text: The answer, with the white space around it: of code, that is part of what is scored.
        finish_reason: Why it ended.
        context_tokens: Tokens of the context, before anything was dropped or cut.
        slots: Slots per layer and KV head that were left of it when the question was put, the prompt's prefix included.
        cycles: Distillations while reading.
        read_seconds: What reading took, 0 where another case of the same context and arm had read it.
        answer_seconds: What question and answer took.
        answer_tokens: Tokens of the answer.
        memory_bytes: What reading and answering added at most to the memory that was taken before (of the process, or
            of a GPU); None where that is not known, or another case had it read.
    """

    text: str
    finish_reason: FinishReason
    context_tokens: int
    slots: int
    cycles: int
    read_seconds: float
    answer_seconds: float
    answer_tokens: int
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One way; see the top of this file for the names.

    Attributes:
        name: As given, for example "infinipot" or "own:snapkv".
        policy: Of the pot; "full" where everything stays, and for recall.
        own: How the policy's authors run it; None for the bounded loop.
        wants_question: Whether what is kept depends on the question, when it is known.
        changes: Settings that differ from the examinee's.
        keeps_positions: Whether slots keep the positions that they were read at.
    """

    name: str
    policy: str
    own: Own | None
    wants_question: bool
    changes: tuple[tuple[str, Any], ...] = ()
    keeps_positions: bool = False

    @property
    def recalls(self) -> bool:
        """Whether it answers from the shelf."""
        return self.name.partition(":")[0] == "recall"

    @property
    def reads_for_question(self) -> bool:
        """Whether a context is read again for every question that is known: what is read whole serves all of them."""
        return self.wants_question and self.own != "whole"


def parse_arm(name: str) -> Arm:
    """Return the arm of a name.

    Raises:
        BudgetError: There is no such arm or setting; the sentence lists what there is.
    """
    way, *settings = name.removeprefix("own:").split(":")
    own = name.startswith("own:")
    if (way != "recall" and way not in POLICIES) or (own and way not in OWN):
        known = ", ".join([*POLICIES, "recall", *(f"own:{p}" for p in OWN)])
        raise BudgetError(f"there is no arm {name!r}: choose among {known}.")
    changes = dict(_setting(name, text) for text in settings)
    keeps_positions = changes.pop("positions", "counted") == "kept"
    if keeps_positions and (own or way in ("full", "recall")):
        raise BudgetError(f"the arm {name!r} cannot be: positions=kept is for policies inside the loop.")
    policy = "infinipot" if way == "recall" else way
    config = PotConfig(policy=policy, **changes)  # refuses what can never be
    made = make_policy(config, known=True)
    used = {field.name for field in fields(made)}  # type: ignore[arg-type]
    used |= {"catalyst_reduce", "catalysts"} if made.needs.catalyst else set()
    if idle := [name for name in changes if (name in _OF_POLICIES and name not in used) or (own and name == "kept")]:
        raise BudgetError(f"the arm {name!r} has no use for {idle[0]}: leave it out.")
    needs = made.needs
    asks = needs.catalyst or (own and OWN[way] == "whole" and bool(needs.last_queries or needs.received))
    return Arm(
        name, policy, OWN[way] if own else None, asks and way != "recall", tuple(changes.items()), keeps_positions
    )


def _setting(arm: str, text: str) -> tuple[str, Any]:
    """Return name and value of a setting: of PotConfig, or `positions`.

    Raises:
        BudgetError: There is no such setting, or it has no such value.
    """
    name, _, value = text.partition("=")
    if name == "positions" and value in ("kept", "counted"):
        return name, value
    if name not in SETTINGS:
        raise BudgetError(
            f"the arm {arm!r} has a setting {text!r}: give one of {', '.join(SETTINGS)} or positions=kept."
        )
    try:
        return name, SETTINGS[name](value)
    except ValueError as error:
        raise BudgetError(f"the arm {arm!r} has a setting {text!r}: give it a number.") from error


@dataclass(frozen=True)
class _State:
    """What was read, and for which question, if the arm wanted one."""

    key: tuple[object, ...]
    pot: Pot
    stats: ReadStats
    memory: DocumentMemory | None = None


class Examinee:
    """A model, a budget, and everything that the arms share."""

    def __init__(self, llm: InfiniPot) -> None:
        """Take a loaded model; its configuration says budget, chunk and the knobs of the policies."""
        self.llm = llm
        self._state: _State | None = None
        self._tokenized: tuple[str, TokenizedText] | None = None

    def forget(self) -> None:
        """Let go of what was read last."""
        self._state = None
        gc.collect()
        if self.llm.adapter.device.type == "cuda":
            torch.cuda.empty_cache()

    def answer(
        self,
        arm: Arm,
        context: str,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        hidden: bool = False,
    ) -> Outcome:
        """Read a context and answer a prompt about it, greedily.

        What was read last is kept for the next call with the same arm and context, unless the arm reads for a question.

        Args:
            arm: The way.
            context: What to read.
            prompt: Tokens before and behind the context (tasks.py makes them).
            max_new_tokens: Longest answer.
            stop: Texts that end the answer.
            hidden: The question is not known while reading: generic questions stand in for it.

        Raises:
            BudgetError: The arm cannot be run with this context and budget (a full cache beyond the trained window).
            QuestionError: The question does not fit into what the budget reserves for it.
        """
        text = self._text(context)
        config = replace(self.llm.config, policy=arm.policy, **dict(arm.changes))
        reserve = max(config.question_tokens, len(prompt.behind)) + max_new_tokens  # alike for most questions
        asked = prompt.behind if arm.reads_for_question and not hidden else None
        key = (arm, config, context, prompt.before, reserve, asked)
        sampling = Sampling(max_new_tokens, stop=stop)
        if self._state is not None and self._state.key == key:
            return self._say(self._state, arm, config, len(text), prompt, reserve, sampling, hidden)
        self._state = None  # never two of them in memory
        with memory_taken(self.llm.adapter.device) as taken:
            started = time.perf_counter()
            self._state = self._read(key, arm, config, text, prompt, reserve, asked is not None)
            _wait_for(self.llm.adapter.device)
            seconds = time.perf_counter() - started
            said = self._say(self._state, arm, config, len(text), prompt, reserve, sampling, hidden)
        return replace(said, read_seconds=seconds, memory_bytes=taken.added)

    def _say(
        self,
        state: _State,
        arm: Arm,
        config: PotConfig,
        tokens: int,
        prompt: Prompt,
        reserve: int,
        sampling: Sampling,
        hidden: bool,
    ) -> Outcome:
        """Answer a prompt about what was read of a context of so many tokens."""
        started = time.perf_counter()
        pot, cycles = state.pot, state.stats.cycles
        if state.memory is not None:
            pot = pot_for(state.memory, "recall", prompt, sampling.max_new_tokens).pot
        elif arm.own == "whole":
            behind = list(prompt.behind) if arm.wants_question and not hidden else None
            pot = self._dropped_once(pot, config, tokens, len(prompt.before), reserve, behind)
            cycles = int(pot is not state.pot)
        slots = pot.length
        said = decode(self.llm.adapter, self.llm.form.codec, pot, prompt.behind, sampling)
        whole, _ = cut_at_stop(self.llm.form.codec.decode(said.ids), sampling.stop)  # `said.text` is stripped
        seconds = time.perf_counter() - started
        return Outcome(whole, said.finish_reason, tokens, slots, cycles, 0.0, seconds, len(said.ids))

    def _text(self, context: str) -> TokenizedText:
        if self._tokenized is None or self._tokenized[0] != context:
            document = Document.from_text(context, name="context")
            self._tokenized = context, self.llm.form.codec.document([document])
        return self._tokenized[1]

    def _read(
        self,
        key: tuple[object, ...],
        arm: Arm,
        config: PotConfig,
        text: TokenizedText,
        prompt: Prompt,
        reserve: int,
        known: bool,
    ) -> _State:
        """Read a context the way of an arm."""
        adapter, prefix = self.llm.adapter, list(prompt.before)
        if arm.recalls:
            if config.shelf == "off":
                raise BudgetError("the arm recall answers from the shelf: give shelf='keys', not 'off'.")
            memory = InfiniPot(adapter, self.llm.form.codec, config, self.llm.heads).read(text.documents)
            return _State(key, memory.pot, memory.stats, memory)
        if arm.policy == "full" or arm.own == "whole":
            return self._read_whole(key, arm, config, text, prefix, reserve)
        catalysts = [list(prompt.behind)]
        if not known:
            questions = config.catalysts or self.llm.generic_questions(text.documents)
            catalysts = [self.llm.form.question(q) for q in questions]
        if arm.own == "cut":
            text = cut_middle(text, config.budget - reserve - len(prefix))
        if arm.own == "rolling":
            divided = plan(config, adapter.window, len(text), len(prefix), 0, reserve)
            free = divided.room - divided.pinned
            step = max(1, min(STEP, free // 8))
            config = replace(config, kept=max(1, free - step) / free, chunk=min(config.chunk, step))
        with adapter.lock:
            pot = absolute_pot(adapter, config.budget, len(prefix) + len(text)) if arm.keeps_positions else None
            pot, stats = Reader(adapter, config, known=known).read(text, prefix, catalysts, reserve, pot=pot)
        return _State(key, pot, stats)

    def _read_whole(
        self,
        key: tuple[object, ...],
        arm: Arm,
        config: PotConfig,
        text: TokenizedText,
        prefix: list[int],
        reserve: int,
    ) -> _State:
        """Read everything into a large cache.

        Raises:
            BudgetError: The context is beyond the trained window; or, but for `full`, the budget has no room for
                prompt, question and answer, or the model has sliding layers.
        """
        adapter, needed = self.llm.adapter, len(prefix) + len(text) + reserve
        if needed > adapter.window:
            raise BudgetError(
                f"{arm.name} needs {needed} slots for this context, and the model was trained on {adapter.window}: "
                "choose a shorter context, or an arm that drops while reading."
            )
        big = replace(config, budget=max(needed, config.budget))
        if arm.own == "whole":
            check_positions(adapter)
            plan(config, adapter.window, len(text), len(prefix), 0, reserve)  # refused before it is read
            if make_policy(config).needs.moments:  # they are turned to positions to come, which must be there
                ahead = min(len(prefix) + len(text) + AHEAD, adapter.window)
                big = replace(big, budget=max(big.budget, ahead))
        with adapter.lock:
            pot, stats = Reader(adapter, big).read(text, prefix, [], reserve)
        return _State(key, pot, stats)

    def _dropped_once(
        self, whole: Pot, config: PotConfig, tokens: int, prefix: int, reserve: int, behind: list[int] | None
    ) -> Pot:
        """Return what the budget has room for of a pot that holds everything, which stays as it is for other questions.

        Args:
            whole: What was read.
            config: Of the arm.
            tokens: Of the context.
            prefix: Of the prompt before it.
            reserve: Slots for question and answer.
            behind: Tokens of the question, if what is kept depends on it.
        """
        adapter = self.llm.adapter
        divided = plan(config, adapter.window, tokens, prefix, 0, reserve)
        if whole.length <= divided.room:
            return whole
        pot = copy.deepcopy(whole)
        hold_positions(pot)
        with adapter.lock:
            scored = _score_whole(adapter, make_policy(config), pot, divided.pinned, divided.room, behind)
            pot.keep(select(scored, divided.pinned, divided.room))
        return pot


def _score_whole(
    adapter: Adapter, policy: Policy, pot: Pot, pinned: int, keep: int, behind: list[int] | None
) -> Scores:
    """Score what was read whole, the question behind it where it is known; the pot stays as it is."""
    evidence = Evidence(None, pot.novelty, pot.origin, pinned, keep, pot.cache.pots, pot.watch)
    if behind is None or pot.watch is None:
        return policy.score(evidence)
    with pot.scratch():
        pot.cache.observer = pot.watch
        adapter.forward(torch.tensor(behind, dtype=torch.long), pot.cache)
        pot.watch.behind = len(behind)
        return policy.score(evidence)


def _wait_for(device: torch.device) -> None:
    """Return when a device has done what it was given: a GPU is given work, and computes it while the clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cut_middle(text: TokenizedText, tokens: int) -> TokenizedText:
    """Return the first and the last half of so many tokens, as LongBench cuts a prompt that is too long.

    What stands in the result is for reading alone: the places of its tokens are still those of the whole text.
    """
    if len(text) <= tokens:
        return text
    first = tokens // 2
    chosen = np.r_[0:first, len(text) - (tokens - first) : len(text)]
    ids, starts, ends = text.ids[chosen], text.starts[chosen], text.ends[chosen]
    return TokenizedText(text.documents, ids, starts, ends, np.asarray([0, tokens], np.int64))
