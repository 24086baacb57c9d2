"""Full cache: nothing is dropped, so a text that does not fit is refused. The yardstick of all policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from infinipot_llm.config import PotConfig
from infinipot_llm.errors import BudgetError
from infinipot_llm.pot.score import Evidence, Needs, Scores


@dataclass(frozen=True, slots=True)
class FullPolicy:
    """Refuse to choose."""

    needs: ClassVar[Needs] = Needs()

    @classmethod
    def from_config(cls, config: PotConfig) -> FullPolicy:
        """Take nothing."""
        return cls()

    def score(self, evidence: Evidence) -> Scores:
        """Raise: a distillation would have to drop something.

        Raises:
            BudgetError: Always.
        """
        raise BudgetError(
            f"the policy 'full' keeps everything, and {evidence.origin.shape[-1]} slots are full before the text is "
            "read: raise the budget, or choose another policy."
        )
