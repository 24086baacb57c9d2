"""What reading a document would cost, without reading it: for `infinipot info`.

Only a model's configuration and tokenizer are loaded, no weights.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.documents.clean import one_line
from infinipot_llm.errors import ModelError

HOSTED_ENCODING = "o200k_base"
_HOSTED_FILE = "fb374d419588a4632f3f557e76b4b70aebbca790"  # the name under which tiktoken keeps this encoding
_HOSTED_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"  # tiktoken's own pin of its content
BYTES_PER_TOKEN = 4.0
"""For estimates: English text has about 4 bytes of UTF-8 per token."""


@dataclass(frozen=True)
class Cost:
    """Reading through a pot beside reading with a full cache.

    Attributes:
        budget: Slots of the pot.
        pot_bytes: Keys, values and the rotated working copy of the pot's slots.
        full_bytes: Keys and values of the whole text in a plain cache.
        pot_flops: Floating-point operations of reading through the pot, catalyst and novelty included.
        full_flops: Of reading with a full cache.
        cycles: Distillations that reading will take.
    """

    budget: int
    pot_bytes: int
    full_bytes: int
    pot_flops: float
    full_flops: float
    cycles: int


def estimate_tokens(documents: Sequence[Document]) -> int:
    """Estimate the number of tokens from the bytes of the text."""
    return round(sum(len(d.text.encode()) for d in documents) / BYTES_PER_TOKEN)


def hosted_tokens(documents: Sequence[Document]) -> tuple[int, bool]:
    """Return the tokens that a hosted model would count, and whether they were counted rather than estimated.

    They are counted with tiktoken when its encoding is on this machine; nothing is downloaded for it.
    """
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    file = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache") / _HOSTED_FILE
    try:
        on_disk = hashlib.sha256(file.read_bytes()).hexdigest() == _HOSTED_SHA256
    except OSError:
        on_disk = False
    if not on_disk:
        return estimate_tokens(documents), False
    import tiktoken

    encoding = tiktoken.get_encoding(HOSTED_ENCODING)
    return sum(len(encoding.encode(d.text, disallowed_special=())) for d in documents), True


def reading_cost(config: Any, tokens: int, budget: int, kept: float, catalyst: int, reserve: int) -> Cost:
    """Work out bytes and operations from a model's configuration.

    Args:
        config: The model's (text) configuration, as transformers reads it.
        tokens: Tokens of the text.
        budget: Slots of the pot.
        kept: Share of the slots kept at a distillation.
        catalyst: Tokens of all catalysts together.
        reserve: Slots left free for question and answer.

    Raises:
        ModelError: The configuration lacks the sizes of a decoder.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        heads, layers = int(config.num_attention_heads), int(config.num_hidden_layers)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    except AttributeError as error:
        raise ModelError("this model's configuration is not that of a decoder: choose another model.") from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    body = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    head = int(config.hidden_size) * int(config.vocab_size)

    size = (config.dtype or torch.float32).itemsize
    slot = 2 * layers * kv_heads * head_dim * size
    pair = 4 * layers * heads * head_dim  # operations per query token and slot it sees

    def dense(n: float) -> float:
        return 2.0 * body * n

    full = dense(tokens) + pair * tokens * tokens / 2
    room = budget - reserve
    if tokens <= room:
        return Cost(budget, budget * slot * 3 // 2, tokens * slot, full, full, 0)
    freed = max(1, room - int(kept * room))
    cycles = -(-(tokens - room) // freed)
    seen = room * (1 + kept) / 2  # slots that an average token sees
    pot = dense(tokens) + pair * tokens * seen + 2.0 * head * tokens  # the last: novelty's logits
    pot += cycles * (dense(catalyst) + pair * catalyst * room)
    return Cost(budget, budget * slot * 3 // 2, tokens * slot, pot, full, cycles)


def gather(documents: Sequence[Document], config: PotConfig, model: str, price: float | None) -> dict[str, Any]:
    """Collect what `infinipot info` says, as plain JSON values.

    Args:
        documents: The documents.
        config: How they would be read.
        model: Name of the model whose tokenizer counts; when it is not on this machine, tokens are estimated and the
            values say so.
        price: Of a hosted model, per million input tokens; None shows no cost.
    """
    hosted, counted = hosted_tokens(documents)
    values: dict[str, Any] = {
        "documents": [
            {
                "name": d.name,
                "pages": d.page_count,
                "empty_pages": list(d.empty_pages),
                "characters": len(d.text),
                "sha256": d.content_hash,
                "notes": list(d.notes),
            }
            for d in documents
        ],
        "hosted_tokens": hosted,
        "hosted_tokens_counted": counted,
    }
    if price is not None:
        values["hosted_cost_per_question"] = round(hosted * price / 1e6, 6)
    from infinipot_llm.models.load import load_facts
    from infinipot_llm.models.text import TextCodec

    try:
        model_config, tokenizer = load_facts(model)
    except ModelError as error:
        return {**values, "tokens": estimate_tokens(documents), "tokens_counted": False, "model_note": str(error)}
    tokens = len(TextCodec(tokenizer).document(documents))
    budget = min(config.budget, int(getattr(model_config, "max_position_embeddings", 0) or config.budget))
    reserve = config.question_tokens + config.max_new_tokens
    cost = reading_cost(model_config, tokens, budget, config.kept, config.question_tokens, reserve)
    reading = {
        "budget": cost.budget,
        "cycles": cost.cycles,
        "pot_bytes": cost.pot_bytes,
        "full_cache_bytes": cost.full_bytes,
        "pot_flops": cost.pot_flops,
        "full_cache_flops": cost.full_flops,
    }
    return {**values, "model": model, "tokens": tokens, "tokens_counted": True, "reading": reading}


def render(values: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of `infinipot info` for a terminal."""
    for d in values["documents"]:
        empty = d["empty_pages"]
        listed = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        yield one_line(d["name"])
        yield f"  pages         {d['pages']}"
        yield f"  empty pages   {len(empty)}" + (f" ({listed}): they hold no text, perhaps scans" if empty else "")
        yield f"  characters    {d['characters']:,}"
    if values["tokens_counted"]:
        yield f"  tokens        {values['tokens']:,} ({values['model']})"
    else:
        yield f"  tokens        about {values['tokens']:,} (estimated: {values['model_note']})"
    if "reading" in values:
        r = values["reading"]
        yield f"  reading       {r['cycles']} cycles through a pot of {r['budget']:,} slots"
        yield f"  KV memory     pot {_si(r['pot_bytes'])}B, full cache {_si(r['full_cache_bytes'])}B"
        yield f"  operations    pot {_si(r['pot_flops'])}FLOP, full cache {_si(r['full_cache_flops'])}FLOP"
    how = "counted with tiktoken, o200k_base" if values["hosted_tokens_counted"] else "estimated: 4 bytes a token"
    cost = values.get("hosted_cost_per_question")
    price = f", {cost:.4f} per question at the given price" if cost is not None else ""
    yield f"  hosted model  {values['hosted_tokens']:,} tokens ({how}){price}"


def _si(value: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} E"
