"""How a budget is divided among prompt, text, catalyst, question and answer; everything is counted."""

from __future__ import annotations

from dataclasses import dataclass

from infinipot_llm.config import PotConfig
from infinipot_llm.errors import BudgetError


@dataclass(frozen=True, slots=True)
class Plan:
    """How a budget is divided.

    Attributes:
        room: Slots for prefix and text.
        kept: Slots that a distillation keeps, the pinned ones included.
        pinned: The first slots, never dropped.
    """

    room: int
    kept: int
    pinned: int

    def cycles(self, prefix: int, tokens: int) -> int:
        """Return how many distillations a text of `tokens` tokens takes."""
        return max(0, -(-(prefix + tokens - self.room) // (self.room - self.kept))) if self.room > self.kept else 0


def plan(config: PotConfig, window: int, tokens: int, prefix: int, catalyst: int, reserve: int) -> Plan:
    """Divide the budget.

    A text that fits whole needs no room for a catalyst, since no distillation happens.

    Args:
        config: Budget, kept share and sinks.
        window: Trained context window of the model.
        tokens: Tokens of the text.
        prefix: Tokens before it.
        catalyst: Tokens of the longest catalyst.
        reserve: Slots left free for question and answer.

    Raises:
        BudgetError: The budget has no room for all that; the sentence names the least that has.
    """
    budget = config.budget
    if prefix + tokens + reserve <= budget:
        return Plan(budget - reserve, budget - reserve, prefix)
    room = budget - max(reserve, catalyst)
    pinned = max(prefix, min(config.sink_tokens, room // 4))
    if room - pinned >= 3:
        return Plan(room, min(room - 1, pinned + max(1, int(config.kept * (room - pinned)))), pinned)
    least = max(reserve, catalyst) + prefix + 3
    remedy = (
        f"choose a budget of at least {least}, or a smaller max_new_tokens"
        if least <= window
        else f"choose a smaller max_new_tokens, since the model has only {window} positions"
    )
    raise BudgetError(
        f"a budget of {budget} has no room for prompt ({prefix}), catalyst ({catalyst}), question and answer "
        f"({reserve}): {remedy}."
    )
