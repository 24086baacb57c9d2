"""Hit rate: of the tokens that scoring with the whole context would keep, how many does the pot still hold?

Paper, figure 2. After every distillation, the same prompt is put behind a cache that holds everything read so far; the
tokens that it attends to most there, as many as the pot keeps, are what a method should have kept. Counted for each
layer and KV head, the prompt's prefix left out.
Shapes: `L` layers, `K` KV heads, `S` slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import BudgetError
from infinipot_llm.evaluation.arms import Arm
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.catalyst import importance
from infinipot_llm.pot.distill import Cycle
from infinipot_llm.pot.pot import PREFIX, Pot
from infinipot_llm.pot.reader import Reader


@dataclass(frozen=True, slots=True)
class Hits:
    """What a distillation left of what it should have left.

    Attributes:
        cycle: 1-based.
        tokens_read: Tokens of the context read when it happened.
        kept: Tokens of the context that each head keeps.
        rate: Share of the best `kept` tokens that are among them, mean over layers and KV heads.
        chance: The rate of a method that draws its tokens: kept / tokens_read.
    """

    cycle: int
    tokens_read: int
    kept: int
    rate: float
    chance: float


class WholeContext:
    """Everything read so far, for one context and prompt: what the prompt attends to, at any point of the reading."""

    def __init__(self, llm: InfiniPot, context: str, prompt: Prompt) -> None:
        """Read nothing yet.

        Raises:
            BudgetError: The context is longer than the model can read at once.
        """
        self.llm, self.prompt = llm, prompt
        self.text: TokenizedText = llm.form.codec.document([Document.from_text(context, name="context")])
        needed = len(prompt.before) + len(self.text) + len(prompt.behind)
        if needed > llm.adapter.window:
            raise BudgetError(
                f"scoring with the whole context needs {needed} positions, and the model was trained on "
                f"{llm.adapter.window}: choose shorter contexts."
            )
        self._pot = Pot(llm.adapter, needed)
        self._wanted: dict[int, Tensor] = {}
        self._read = 0

    def wanted(self, tokens_read: int) -> Tensor:
        """Return what the prompt attends to with so many tokens read, [L, K, tokens_read]; to be asked in order."""
        if tokens_read not in self._wanted:
            adapter, pot = self.llm.adapter, self._pot
            if tokens_read < self._read:
                raise ValueError(f"{self._read} tokens are read: what was wanted after {tokens_read} is gone")
            with adapter.lock:
                if not pot.length and self.prompt.before:
                    adapter.forward(torch.tensor(self.prompt.before, dtype=torch.long), pot.cache)
                    pot.record(torch.full((len(self.prompt.before),), PREFIX))
                while self._read < tokens_read:
                    end = min(self._read + self.llm.config.chunk, tokens_read)
                    ids = torch.from_numpy(self.text.ids[self._read : end].astype("int64"))
                    adapter.forward(ids, pot.cache)
                    pot.record(torch.arange(self._read, end))
                    self._read = end
                behind = torch.tensor(self.prompt.behind, dtype=torch.long)
                found = importance(adapter, pot, [behind], self.llm.config.catalyst_reduce)
            self._wanted[tokens_read] = found[:, :, len(self.prompt.before) :].cpu()
        return self._wanted[tokens_read]


def hit_rates(
    llm: InfiniPot, arms: Sequence[Arm], context: str, prompt: Prompt, reserve: int
) -> dict[str, list[Hits] | str]:
    """Read a context in the bounded loop of each arm, and compare what stays with what should.

    Args:
        llm: The model; its configuration says budget and knobs.
        arms: Policies inside the loop.
        context: What to read.
        prompt: What is asked; known while reading, and the judge of what is wanted.
        reserve: Slots left free for question and answer.

    Returns:
        For each arm's name one entry per distillation, or the sentence why it cannot be run with this budget.

    Raises:
        BudgetError: An arm is none of the loop, or the context is longer than the model can read at once.
    """
    for arm in arms:
        check_arm(arm)
    judge = WholeContext(llm, context, prompt)
    cycles: dict[str, list[Cycle]] = {}
    rates: dict[str, list[Hits] | str] = {}
    for arm in arms:
        try:
            cycles[arm.name] = _cycles(llm, arm, judge.text, prompt, reserve)
        except BudgetError as error:  # of this arm's own settings: the others can be counted
            rates[arm.name] = str(error)
    for at in sorted({cycle.tokens_read for of_arm in cycles.values() for cycle in of_arm}):
        judge.wanted(at)  # in order: the whole context is read only once
    for name, found in cycles.items():
        rates[name] = [_hits(cycle, judge.wanted(cycle.tokens_read)) for cycle in found]
    return {arm.name: rates[arm.name] for arm in arms}


def check_arm(arm: Arm) -> None:
    """Refuse an arm that is none of the bounded loop.

    Raises:
        BudgetError: It is not.
    """
    if arm.own is not None or arm.keeps_positions or arm.policy == "full" or arm.recalls:
        raise BudgetError(f"{arm.name} has no cycles to count hits in: choose policies inside the loop.")


def _cycles(llm: InfiniPot, arm: Arm, text: TokenizedText, prompt: Prompt, reserve: int) -> list[Cycle]:
    config: PotConfig = replace(llm.config, policy=arm.policy, **dict(arm.changes))
    cycles: list[Cycle] = []
    with llm.adapter.lock:
        Reader(llm.adapter, config, known=True).read(
            text, prompt.before, [prompt.behind], reserve, tracer=cycles.append
        )
    return cycles


def _hits(cycle: Cycle, wanted: Tensor) -> Hits:
    origin = cycle.before.to(torch.int64).gather(-1, cycle.kept)  # [L, K, kept]
    tokens = origin[0, 0].ge(0).sum().item()  # the prefix is pinned: the same number in every head
    held = torch.zeros(wanted.shape, dtype=torch.bool)
    L, K, N = wanted.shape
    document = origin >= 0
    layer = torch.arange(L)[:, None, None].expand_as(origin)[document]
    head = torch.arange(K)[None, :, None].expand_as(origin)[document]
    held[layer, head, origin[document]] = True
    best = wanted.topk(int(tokens), dim=-1).indices
    rate = held.gather(-1, best).to(torch.float32).mean().item()
    return Hits(cycle.number, cycle.tokens_read, int(tokens), rate, int(tokens) / N)
