"""What reading into memory and answering from it need, in one value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from infinipot_llm.answering.prompt import PromptForm
from infinipot_llm.config import RECALL, RECALL_SMALL, SMALL_MODEL, PotConfig
from infinipot_llm.errors import BudgetError, StoreError
from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.layout import Layout
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.pot.pot import PREFIX, Pot

GAP = "\n...\n"
"""What stands between two passages that do not follow one another."""


@dataclass(frozen=True)
class Setup:
    """A model and how it is to read and answer.

    Attributes:
        adapter: The model.
        form: Its prompt.
        heads: Its retrieval heads.
        config: How to read, and how to answer.
        model: What the model is called.
    """

    adapter: Adapter
    form: PromptForm
    heads: Heads
    config: PotConfig
    model: str = ""

    def __post_init__(self) -> None:
        """Refuse what this model cannot do.

        Raises:
            BudgetError: Passages are to be loaded, and some layers hold no slots.
        """
        if self.config.recalled == "load" and any(self.adapter.windows):
            raise BudgetError(
                "passages cannot be loaded for this model, whose sliding layers are not on the shelf: "
                "choose recalled='read'."
            )

    @cached_property
    def prefix(self) -> tuple[Tensor, Tensor]:
        """Un-rotated keys and values [L, K, tokens, D] of the prompt's prefix, sliding layers behind the others."""
        ids = self.form.prefix or (0,)  # no prefix: something must be forwarded to have tensors of the right shape
        with self.adapter.lock:
            pot = Pot(self.adapter, len(ids))
            self.adapter.forward(torch.tensor(ids, dtype=torch.long), pot.cache)
            pot.record(torch.full((len(ids),), PREFIX))
            keys, values = pot.newest(len(ids), sliding=True)
        count = len(self.form.prefix)
        return keys[:, :, :count], values[:, :, :count]

    @cached_property
    def gap(self) -> list[int]:
        """The tokens of GAP."""
        return self.form.codec.untrusted(GAP)

    @property
    def recall(self) -> int:
        """Tokens that a question brings back."""
        return self.config.recall or (RECALL_SMALL if self.adapter.parameters < SMALL_MODEL else RECALL)

    @property
    def query_heads(self) -> int:
        """H, query heads per layer."""
        return int(self.adapter.config.num_attention_heads)

    @property
    def layout(self) -> Layout:
        """How the shelf of this model is laid out.

        Raises:
            StoreError: The configuration has no shelf.
        """
        if self.config.shelf == "off":
            raise StoreError("the shelf is off: choose shelf='keys', 'int8' or 'int4'.")
        kv_heads = int(self.adapter.config.num_key_value_heads)
        return Layout(
            self.adapter.layers,
            kv_heads,
            int(self.adapter.attentions[0].head_dim),
            4 if self.config.shelf == "int4" else 8,
            self.heads.scoring_keys(self.query_heads, kv_heads),
            whole=self.config.shelf != "keys",
        )
