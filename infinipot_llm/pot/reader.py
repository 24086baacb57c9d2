"""The reader: a text of any length through a pot of fixed size.

Paper, section 3 (CCD): fill the pot, distil, read on into the freed slots, distil old and new together, and so on.
Where the paper is silent: the part of the text behind the last distillation stays raw, and the last distillation
keeps just so much that the pot ends full; novelty is computed only for tokens that a distillation will look at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from infinipot_llm.config import PotConfig
from infinipot_llm.errors import BudgetError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.distill import Tracer, distill
from infinipot_llm.pot.novelty import surprise
from infinipot_llm.pot.plan import plan
from infinipot_llm.pot.policies import make_policy
from infinipot_llm.pot.pot import PREFIX, Pot
from infinipot_llm.pot.watch import Watch


@dataclass(frozen=True, slots=True)
class ReadStats:
    """What reading cost.

    Attributes:
        tokens_total: Tokens of the text.
        tokens_read: Of these, read so far.
        slots: Slots held per layer and KV head.
        budget: Slots that there are.
        cycles: Distillations so far.
        seconds: Wall-clock time.
    """

    tokens_total: int
    tokens_read: int = 0
    slots: int = 0
    budget: int = 0
    cycles: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Reading speed; 0 before anything was read."""
        return self.tokens_read / self.seconds if self.seconds > 0 else 0.0


Progress = Callable[[ReadStats], None]
"""Called after every forward pass; raise from it (KeyboardInterrupt, say) to stop the reading."""


class SpanSink(Protocol):
    """Where everything that was read goes, beside the pot: the shelf, for one."""

    def take(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Accept what the tokens first .. first + C - 1 left behind.

        Args:
            first: Index of the first token in the text; calls come in order, without gaps.
            keys: [L, K, C, D], un-rotated.
            values: [L, K, C, D].
        """

    def distilled(self, origin: Tensor) -> None:
        """Take note of a distillation: origin [L, K, S] int32, the token of each slot that is left, or PREFIX."""


class Reader:
    """Reads texts into pots, with one model and one configuration.

    `known` says that the catalyst is the very question that will be asked, and no stand-in for questions to come.
    """

    def __init__(self, adapter: Adapter, config: PotConfig, *, known: bool = False) -> None:
        self.adapter = adapter
        self.config = config
        self.policy = make_policy(config, known=known)

    def read(
        self,
        text: TokenizedText,
        prefix: Sequence[int],
        catalysts: Sequence[Sequence[int]],
        reserve: int,
        *,
        sink: SpanSink | None = None,
        pot: Pot | None = None,
        start: int = 0,
        progress: Progress | None = None,
        tracer: Tracer | None = None,
    ) -> tuple[Pot, ReadStats]:
        """Read a whole text.

        Args:
            text: What to read.
            prefix: Tokens before it (system prompt, start of the user's turn); always kept whole.
            catalysts: Tokens of one or several prompts that score the slots when the pot is full.
            reserve: Slots left free behind the text for a question and its answer.
            sink: Given the un-rotated keys and values of every token, chunk by chunk.
            pot: A pot that was filled from the tokens before `start` of this text, with the same prefix, to read on
                with; or an empty one, to begin with. It is changed. None: a new one.
            start: The first token to read.
            progress: Told after every forward pass.
            tracer: Told about every distillation.

        Returns:
            The filled pot, with at least `reserve` free slots, and what it cost.

        Raises:
            BudgetError: The budget has no room for prefix, catalyst, question and answer.
        """
        adapter, config = self.adapter, self.config
        device = adapter.device
        prompts = [torch.tensor(list(c), dtype=torch.long, device=device) for c in catalysts]
        prompts = prompts if self.policy.needs.catalyst else []
        longest = max((len(p) for p in prompts), default=0)
        adapter.check_budget(config.budget)
        divided = plan(config, adapter.window, len(text), len(prefix), longest, reserve)
        room, kept, pinned = divided.room, divided.kept, divided.pinned
        started = time.perf_counter()
        every = torch.from_numpy(text.ids.astype("int64")).to(device)  # once: each copy would make a GPU wait
        pot = Pot(adapter, config.budget) if pot is None else pot
        fresh = not pot.length
        if (needs := self.policy.needs).watching:
            if start:
                raise BudgetError(
                    f"the policy {config.policy!r} judges by what it saw while reading, which no memory keeps: "
                    "read the document anew, whole."
                )
            pot.watch = Watch(needs.last_queries, needs.received, needs.moments)
        stats = ReadStats(len(text), tokens_read=start, slots=pot.length, budget=config.budget)

        carry: Tensor | None = None  # hidden state before the next token, [1, E]
        if prefix and fresh:
            pot.cache.observer = pot.watch
            carry = adapter.forward(torch.tensor(list(prefix), dtype=torch.long), pot.cache)[-1:]
            pot.record(torch.full((len(prefix),), PREFIX, device=device))
        if not fresh and needs.novelty and len(text) - start > room - pot.length:
            carry = self._judge_tail(pot, every[:start])
        while stats.tokens_read < len(text):
            if pot.length >= room:
                left = len(text) - stats.tokens_read
                keep = max(kept, room - left)  # the last distillation leaves the pot just full
                pot.pinned = pinned
                number = stats.cycles + 1
                free = config.budget - pot.length  # a pot to read on with may be fuller than `room`
                distill(
                    adapter, pot, self.policy, config, [p[-free:] for p in prompts], keep,
                    number=number, tokens_read=stats.tokens_read, tracer=tracer,
                )  # fmt: skip
                stats = replace(stats, cycles=number)
                if sink is not None:
                    sink.distilled(pot.origin)
            take = min(config.chunk, room - pot.length, len(text) - stats.tokens_read)
            window = slice(stats.tokens_read, stats.tokens_read + take)
            ids = every[window]
            pot.cache.observer = pot.watch
            hidden = adapter.forward(ids, pot.cache)  # [take, E]
            pot.record(torch.arange(window.start, window.stop, device=device))
            if sink is not None:
                sink.take(window.start, *pot.newest(take))
            left = len(text) - window.stop
            if self.policy.needs.novelty and left > room - pot.length:  # a distillation will look at these tokens
                before = torch.cat([carry, hidden[:-1]]) if carry is not None else hidden[:-1]
                told = surprise(adapter, before, ids[len(ids) - len(before) :])
                pot.record_novelty(told if carry is not None else torch.cat([told.new_zeros(1), told]))
            carry = hidden[-1:]
            stats = replace(stats, tokens_read=window.stop, slots=pot.length, seconds=time.perf_counter() - started)
            if progress is not None:
                progress(stats)
        pot.pinned = min(pinned, pot.length)
        pot.cache.observer = None
        return pot, stats

    def _judge_tail(self, pot: Pot, ids: Tensor) -> Tensor | None:
        """Compute what a reading left out, since no distillation was to follow: the novelty of its last tokens.

        They are read once more, over what the pot holds before them (layers that slide begin anew with them).

        Args:
            pot: As that reading left it; gets their novelty.
            ids: [N] the tokens that it read.

        Returns:
            The hidden state of the last token, [1, E]; None where nothing was left out.
        """
        held = pot.origin.flatten(0, 1)  # [L * K, S]
        last = torch.arange(len(ids) - held.shape[1], len(ids), device=held.device)  # where a raw slot's token stood
        raw = (held == last).all(dim=0) & (pot.novelty.flatten(0, 1) == 0).all(dim=0) & (last >= 0)
        tail = int(raw.flip(0).cumprod(dim=0).sum())
        if not tail:
            return None
        over = Pot(self.adapter, pot.budget)
        keys, values = pot.newest(pot.length)
        before = pot.length - tail
        over.place(keys[:, :, :before], values[:, :, :before], pot.origin[:, :, :before])
        carry: Tensor | None = None
        told = []
        for part in ids[len(ids) - tail :].split(self.config.chunk):
            hidden = self.adapter.forward(part, over.cache)
            states = torch.cat([carry, hidden[:-1]]) if carry is not None else hidden[:-1]
            told.append(surprise(self.adapter, states, part[len(part) - len(states) :]))
            carry = hidden[-1:]
        novelty = torch.cat(told)
        pot.record_novelty(torch.cat([novelty.new_zeros(tail - len(novelty)), novelty]))
        return carry
