"""What reading a document would cost, without reading it: for `infinipot info`.

Only a model's configuration and tokenizer are loaded, no weights.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.documents.clean import one_line
from infinipot_llm.errors import BudgetError, ModelError, ModelNotFetchedError

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
    usual = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", usual))
    try:  # an empty name switches tiktoken's cache off, and it would download
        on_disk = folder != "" and _sha256(Path(folder) / _HOSTED_FILE) == _HOSTED_SHA256
    except OSError:
        on_disk = False
    if not on_disk:
        return estimate_tokens(documents), False
    import tiktoken

    encoding = tiktoken.get_encoding(HOSTED_ENCODING)
    return sum(len(encoding.encode(d.text, disallowed_special=())) for d in documents), True


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def reading_cost(model_config: Any, config: PotConfig, size: int, tokens: int, prefix: int, asked: int) -> Cost:
    """Work out bytes and operations from a model's configuration.

    Args:
        model_config: The model's (text) configuration, as transformers reads it.
        config: How the text would be read.
        size: Bytes of a number, in the dtype that the model would run in.
        tokens: Tokens of the text.
        prefix: Tokens of the prompt before it.
        asked: Tokens of the question and the prompt around it; they are also the catalyst.

    Raises:
        ModelError: The configuration is not that of a decoder.
        BudgetError: The budget does not fit the model, or has no room for prompt, question and answer.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from infinipot_llm.pot.plan import plan
    from infinipot_llm.pot.policies import make_policy

    try:
        heads, layers = int(model_config.num_attention_heads), int(model_config.num_hidden_layers)
        kv_heads = int(getattr(model_config, "num_key_value_heads", None) or heads)
        head_dim = int(getattr(model_config, "head_dim", None) or model_config.hidden_size // heads)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config)
    except (AttributeError, ValueError) as error:
        raise ModelError("this model's configuration is not that of a decoder: choose another model.") from error
    outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    body = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    head = int(model_config.hidden_size) * int(model_config.vocab_size)

    window, sliding, reach = _positions(model_config)
    if config.budget > window:
        raise BudgetError(f"a budget of {config.budget} is beyond the {window} positions this model was trained on.")
    policy = make_policy(config)
    catalyst = asked if policy.needs.catalyst else 0
    divided = plan(config, window, tokens, prefix, catalyst, asked + config.left_for_answer)
    cycles = divided.cycles(prefix, tokens)
    row = 2 * kv_heads * head_dim * size  # a key and a value
    slot = (layers - sliding) * row
    pair = 4 * layers * heads * head_dim  # operations per query token and slot it sees
    full = 2.0 * body * tokens + pair * tokens * tokens / 2
    pot = full
    if cycles:
        pot = 2.0 * body * tokens + pair * tokens * (divided.room + divided.kept) / 2
        pot += cycles * (2.0 * body * catalyst + pair * catalyst * divided.room)
        pot += 2.0 * head * tokens if policy.needs.novelty else 0.0
    windows = sliding * 2 * reach * row  # buffers of twice the window
    return Cost(config.budget, config.budget * slot * 3 // 2 + windows, tokens * slot + windows, pot, full, cycles)


def _positions(model_config: Any) -> tuple[int, int, int]:
    """Return the most slots of a pot, how many layers slide and hold none, and how many tokens those see."""
    window = int(getattr(model_config, "max_position_embeddings", 0) or sys.maxsize)
    sliding = list(getattr(model_config, "layer_types", None) or ()).count("sliding_attention")
    reach = int(getattr(model_config, "sliding_window", None) or 0)
    if not 0 < sliding < int(model_config.num_hidden_layers) or not 0 < reach < window:
        sliding = reach = 0  # all layers hold slots
    return window - max(0, reach - 1), sliding, reach  # sliding layers need positions of their own


def gather(
    documents: Sequence[Document],
    config: PotConfig,
    model: str,
    device: str,
    dtype: str,
    price: float | None,
    *,
    lowered: bool = False,
) -> dict[str, Any]:
    """Collect what `infinipot info` says, as plain JSON values.

    Args:
        documents: The documents.
        config: How they would be read.
        model: Name of the model whose tokenizer counts; when it is not on this machine, tokens are estimated and the
            values say so.
        device: Where the model would run.
        dtype: In what.
        price: Of a hosted model, per million input tokens; None shows no cost.
        lowered: Lower the budget to the model's window, as reading does with one that nobody asked for.
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
    from infinipot_llm.answering.prompt import PromptForm
    from infinipot_llm.models.device import choose_device, choose_dtype
    from infinipot_llm.models.load import load_facts
    from infinipot_llm.models.text import TextCodec

    size = choose_dtype(dtype, choose_device(device)).itemsize
    try:
        model_config, tokenizer = load_facts(model)
    except ModelNotFetchedError as error:
        return {**values, "tokens": estimate_tokens(documents), "tokens_counted": False, "model_note": str(error)}
    if lowered:
        config = replace(config, budget=min(config.budget, _positions(model_config)[0]))
    codec = TextCodec(tokenizer)
    form = PromptForm.for_tokenizer(codec)
    tokens = len(codec.document(documents))
    asked = len(form.question("?")) + config.question_tokens
    cost = reading_cost(model_config, config, size, tokens, len(form.prefix), asked)
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
