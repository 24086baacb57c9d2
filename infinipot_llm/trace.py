"""A reading, replayed token by token: which slots each distillation kept, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from infinipot_llm.documents.clean import printable
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.distill import Cycle
from infinipot_llm.pot.score import Reason

BAR = 20


@dataclass
class Trace:
    """Collects what distillations did, aggregated over all layers and heads. Call it as the reader's tracer."""

    cycles: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, cycle: Cycle) -> None:
        """Aggregate one distillation to one row per document token that was in the pot."""
        heads = cycle.before.shape[0] * cycle.before.shape[1]
        origins = cycle.before.reshape(heads, -1).to(torch.int64)
        kept = origins.gather(1, cycle.kept.reshape(heads, -1))
        reasons = cycle.reasons.reshape(heads, -1)
        tokens = origins[origins >= 0].unique()  # sorted

        def per_token(where: torch.Tensor) -> list[int]:
            return torch.bincount(torch.searchsorted(tokens, where), minlength=len(tokens)).tolist()

        document = kept >= 0
        held_by, kept_by = per_token(origins[origins >= 0]), per_token(kept[document])
        why = {r.name.lower(): per_token(kept[document & (reasons == r)]) for r in Reason}
        rows = [
            {
                "token": token,
                "held_by": held_by[n],
                "kept_by": kept_by[n],
                "why": {name: counts[n] for name, counts in why.items() if counts[n]},
            }
            for n, token in enumerate(tokens.tolist())
        ]
        self.cycles.append(
            {
                "cycle": cycle.number,
                "tokens_read": cycle.tokens_read,
                "heads": heads,
                "slots_before": origins.shape[1],
                "slots_after": kept.shape[1],
                "pinned": int((reasons == Reason.PINNED).sum()) // heads,
                "tokens": rows,
            }
        )

    def with_text(self, memory: DocumentMemory, codec: TextCodec) -> list[dict[str, Any]]:
        """Return the cycles as plain JSON values, each token with its text and page."""
        named = []
        for cycle in self.cycles:
            rows = []
            for row in cycle["tokens"]:
                span = memory.text.span(row["token"])
                rows.append({**row, "text": codec.piece(int(memory.text.ids[row["token"]])), "page": span.page})
            named.append({**cycle, "tokens": rows})
        return named


def render(cycles: list[dict[str, Any]], top: int) -> Iterator[str]:
    """Yield lines for a terminal: per cycle the tokens held, the share of heads that keeps each, and why.

    Args:
        cycles: From Trace.with_text.
        top: Most tokens to list per cycle, those kept by most heads.
    """
    for cycle in cycles:
        heads = cycle["heads"]
        yield (
            f"cycle {cycle['cycle']}: {cycle['tokens_read']} tokens read; {cycle['slots_before']} slots in each of "
            f"{heads} heads, {cycle['slots_after']} kept, {cycle['pinned']} of them pinned (the prompt)"
        )
        rows = cycle["tokens"]
        listed = sorted(sorted(rows, key=lambda r: (-r["kept_by"], r["token"]))[:top], key=lambda r: r["token"])
        for row in listed:
            share = row["kept_by"] / heads
            why = ", ".join(f"{name} {n / heads:.0%}" for name, n in sorted(row["why"].items(), key=lambda x: -x[1]))
            text = printable(repr(row["text"])[1:-1])
            yield f"  {row['token']:>7}  {text:<18} {'█' * round(BAR * share):<{BAR}} {share:>4.0%}  {why or 'dropped'}"
        if len(rows) > len(listed):
            yield f"  ... and {len(rows) - len(listed)} more tokens, kept by fewer heads (--top lists more)"
        yield ""
    if not cycles:
        yield "no cycle was needed: everything fits into the pot (choose a smaller --budget, or --slots)"
