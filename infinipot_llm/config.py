"""PotConfig: every knob of reading, keeping and recalling in one frozen, versioned dataclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from infinipot_llm.errors import BudgetError

VERSION = 2
"""Raised when a field changes its meaning; a saved configuration of another version is refused."""

POLICIES = (
    "infinipot", "full", "truncate", "random", "streaming", "snapkv", "tova", "sirllm", "h2o", "keydiff",
    "expected-attention",
)  # fmt: skip
"""Names of the scoring rules in pot/policies/."""

FOLLOWUPS = ("recall", "reuse", "reread")


RESERVED_FOR_ANSWER = 256
"""Most slots that a reading without a question leaves for an answer from the pot; an eighth of a small budget."""

SMALL_MODEL = 900_000_000
"""A model of fewer parameters is easily led astray: what it answers from is kept short. Those called "1B" have more."""

RECALL, RECALL_SMALL = 1024, 256
"""Tokens that a question brings back, where nobody says: for a large model and for a small one (docs/recall.md)."""


@dataclass(frozen=True, slots=True)
class PotConfig:
    """How much is kept while reading, and by which rule. `budget` alone is enough to start.

    "Paper" is InfiniPot (Kim et al., EMNLP 2024, arXiv 2410.01518). Where a default is not the paper's, or the paper
    does not say, the line says so; docs/method.md has the reasons, docs/evaluation.md ("Defaults") what was measured.

    Attributes:
        budget: Slots per layer and KV head, in tokens: the paper's |M|. Everything is counted in it: prefix, document,
            catalyst, question and answer. Paper's main setting: 4,096.
        kept: Share of the document's slots that survive a distillation (the paper's |C| / |M|). Paper: not given.
        novelty_share: alpha, the share of the kept slots given to novelty (NuC), the rest going to the catalyst (CaP).
            Paper, section 4: 0.5.
        agreement: Share of the kept slots given to the tokens that the catalyst attends to most in all heads together,
            so that every head keeps them; taken from the catalyst's part. None: 0.25 when the question is known while
            reading, else 0: what all heads make of a generic question is worth less. Paper: none.
        neighbours: How many document tokens on each side a high score also lifts, as far as all between are still
            held, so that names and figures are kept whole. Paper: none (lone tokens).
        neighbour_weight: What share of its score a token lends to those neighbours. Paper: none.
        sink_tokens: The first tokens of the sequence that are never dropped; the chat prefix counts towards them and is
            always kept whole. Paper: not given.
        catalyst_reduce: How the attention of the catalyst's tokens on a slot becomes one number: "sum" (paper, section
            3.1) or "max".
        catalysts: Questions that stand in for the unknown ones when a document is read without a question. None: the
            built-in set in the language of the document. Paper: one generic instruction.
        chunk: Tokens per forward pass while reading. Changes speed and memory; the result but for rounding. Paper: the
            whole room.
        max_new_tokens: Default limit of an answer; so much is left for it inside the budget when the question is known
            while reading.
        question_tokens: Tokens reserved inside the budget for a question that is not known while reading.
        shelf: What is kept on disk of every token for later questions: "keys" (those that find passages, and the text),
            "int8" or "int4" (all keys and values in so many bits, so that passages can be loaded too), or "off": then
            the pot alone answers. Ours, not the paper's; so are the next four.
        shelf_bytes: Most bytes that a reading adds to the shelf; beyond them the spans that are least novel and least
            attended give way. None: everything stays.
        recall: Tokens that a question brings back. None: 256 for a model of less than about a billion parameters, which
            finds fewer answers among more text (docs/recall.md), and 1,024 for a larger one.
        recalled: How they come into the question's pot: "read" again as text, or "load"ed from the shelf as they were
            when the document was read (quicker, but a patchwork of contexts).
        recall_order: In which order recalled passages are read: "best" first, or as in the "text". Read best first, the
            default model finds more answers in the same passages (docs/recall.md); a larger one may not care.
        followup: How a question is answered: "recall" (from the shelf), "reuse" (from the pot as it is), "reread" (the
            document is read again, with the question as catalyst).
        policy: Name of the scoring rule in infinipot_llm/pot/policies/.
        version: Format version of this dataclass.
    """

    budget: int = 4096
    kept: float = 0.5
    novelty_share: float = 0.5
    agreement: float | None = None
    neighbours: int = 8
    neighbour_weight: float = 0.9
    sink_tokens: int = 4
    catalyst_reduce: Literal["sum", "max"] = "sum"
    catalysts: tuple[str, ...] | None = None
    chunk: int = 512
    max_new_tokens: int = 256
    question_tokens: int = 128
    shelf: Literal["keys", "int8", "int4", "off"] = "keys"
    shelf_bytes: int | None = None
    recall: int | None = None
    recalled: Literal["read", "load"] = "read"
    recall_order: Literal["best", "text"] = "best"
    followup: Literal["recall", "reuse", "reread"] = "recall"
    policy: str = "infinipot"
    version: int = VERSION

    def __post_init__(self) -> None:
        """Refuse values that can never work, whatever the model.

        Raises:
            BudgetError: A field is outside its range; the sentence names field, value and range.
        """
        at_least = {
            "budget": 8,
            "chunk": 1,
            "max_new_tokens": 1,
            "question_tokens": 1,
            "neighbours": 0,
            "sink_tokens": 0,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BudgetError(f"{name} is {value!r}: give a whole number of at least {least}.")
        shares = ["novelty_share", "neighbour_weight", *(["agreement"] if self.agreement is not None else [])]
        for name in ("kept", *shares):
            if not isinstance(getattr(self, name), (int, float)):
                raise BudgetError(f"{name} is {getattr(self, name)!r}: give a number.")
        if self.recall is not None and (
            not isinstance(self.recall, int) or isinstance(self.recall, bool) or self.recall < 1
        ):
            raise BudgetError(f"recall is {self.recall!r}: give a whole number of at least 1, or None.")
        if self.catalysts is not None and not (
            isinstance(self.catalysts, tuple) and all(isinstance(c, str) for c in self.catalysts)
        ):
            raise BudgetError(
                f"catalysts is {self.catalysts!r}: give a tuple of questions, or None for the built-in set."
            )
        if not 0.0 < self.kept < 1.0:
            raise BudgetError(f"kept is {self.kept!r}: give a share between 0 and 1, for example 0.5.")
        for name in shares:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BudgetError(f"{name} is {getattr(self, name)!r}: give a share from 0 to 1.")
        if self.catalyst_reduce not in ("sum", "max"):
            raise BudgetError(f"catalyst_reduce is {self.catalyst_reduce!r}: give 'sum' or 'max'.")
        if self.shelf not in ("keys", "int8", "int4", "off"):
            raise BudgetError(f"shelf is {self.shelf!r}: give 'keys', 'int8', 'int4' or 'off'.")
        if self.recalled not in ("read", "load"):
            raise BudgetError(f"recalled is {self.recalled!r}: give 'read' or 'load'.")
        if self.recall_order not in ("best", "text"):
            raise BudgetError(f"recall_order is {self.recall_order!r}: give 'best' or 'text'.")
        if self.recalled == "load" and self.shelf == "keys":
            raise BudgetError("recalled='load' needs all keys and values: choose shelf='int8' or 'int4' with it.")
        if self.policy not in POLICIES:
            raise BudgetError(f"policy is {self.policy!r}: give one of {', '.join(POLICIES)}.")
        if self.followup not in FOLLOWUPS:
            raise BudgetError(f"followup is {self.followup!r}: give one of {', '.join(FOLLOWUPS)}.")
        if self.shelf_bytes is not None and (
            not isinstance(self.shelf_bytes, int) or isinstance(self.shelf_bytes, bool) or self.shelf_bytes < 1
        ):
            raise BudgetError(f"shelf_bytes is {self.shelf_bytes!r}: give a whole number of bytes, or None.")
        if self.catalysts is not None and (not self.catalysts or not all(c.strip() for c in self.catalysts)):
            raise BudgetError("catalysts holds an empty question: give at least one, or None for the built-in set.")
        if self.version != VERSION:
            raise BudgetError(f"this PotConfig has version {self.version}, and this release reads version {VERSION}.")

    def agreed(self, known: bool) -> float:
        """Return `agreement` as it is for a question that is known while reading, or not."""
        if self.agreement is not None:
            return self.agreement
        return 0.25 if known else 0.0

    @property
    def left_for_answer(self) -> int:
        """Slots that a reading without a question leaves for an answer from the pot.

        They do not depend on max_new_tokens: a memory is the same however long an answer somebody wants later.
        """
        return max(1, min(RESERVED_FOR_ANSWER, self.budget // 8))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PotConfig:
        """Rebuild a configuration from `to_dict` (tuples may have become lists on the way through JSON).

        Raises:
            BudgetError: A field is unknown, or a value is out of range or of another version.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise BudgetError(f"unknown PotConfig field {unknown[0]!r}: it was written by another release.")
        catalysts = values.get("catalysts")
        return cls(**{**values, "catalysts": None if catalysts is None else tuple(catalysts)})
