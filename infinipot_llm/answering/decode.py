"""Decoding over a filled pot with transformers' own `generate`: sampling, stop strings, limits and streaming are its.

The pot goes in as the cache it is; the question's tokens are the only new input. Afterwards the pot is as it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from infinipot_llm.answering.answer import FinishReason
from infinipot_llm.errors import QuestionError, QuestionTooLongError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.slots import SlotCache
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot

OnText = Callable[[str], None]

# Up to the last blank, or the last character of a script that has none.
_FINISHED = re.compile("(?s:.*)[\\s\u1100-\u11ff\u2e80-\ud7af\uf900-\ufaff\uff00-\uffef]")

LEAST_TEMPERATURE = 1e-4
"""Logits divided by less than that leave the range of their numbers."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode.

    Attributes:
        max_new_tokens: Limit of the answer.
        temperature: 0 for greedy decoding.
        top_p: Nucleus, used when the temperature is above 0.
        stop: Texts that end the answer; they are not part of it.
        seed: Of the sampling; None leaves torch's generator as it is.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be decoded with.

        Raises:
            QuestionError: A value is out of range; the sentence names it.
        """
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise QuestionError(f"max_new_tokens is {self.max_new_tokens!r}: give a whole number of at least 1.")
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), (int, float)):
                raise QuestionError(f"{name} is {getattr(self, name)!r}: give a number.")
        if not all(isinstance(s, str) for s in self.stop):
            raise QuestionError("stop holds something that is no text: give texts that end the answer.")
        if self.seed is not None and not (isinstance(self.seed, int) and abs(self.seed) < 2**63):
            raise QuestionError(f"seed is {self.seed!r}: give a whole number of less than 64 bits, or None.")
        if not 0.0 <= self.temperature < math.inf or 0.0 < self.temperature < LEAST_TEMPERATURE:
            raise QuestionError(
                f"the temperature is {self.temperature}: give 0 for greedy decoding, or at least {LEAST_TEMPERATURE}."
            )
        if not 0.0 < self.top_p <= 1.0:
            raise QuestionError(f"top_p is {self.top_p}: give a share above 0, up to 1.")


@dataclass(frozen=True, slots=True)
class Decoded:
    """Tokens and text of an answer, and why it ended."""

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


def decode(
    adapter: Adapter,
    codec: TextCodec,
    pot: Pot,
    question: Sequence[int],
    sampling: Sampling,
    *,
    on_text: OnText | None = None,
    cancelled: Callable[[], bool] | None = None,
    processors: Sequence[LogitsProcessor] = (),
) -> Decoded:
    """Answer a question over the pot, leaving the pot as it was.

    Args:
        adapter: The model.
        codec: Its tokenizer.
        pot: The document state.
        question: Tokens behind the document, up to the start of the answer.
        sampling: How to decode.
        on_text: Given the answer piece by piece, as it is decoded.
        cancelled: Asked after every token; True ends the answer.
        processors: Change the scores before each token is chosen, as those of `constrain` do; before the temperature.

    Raises:
        QuestionTooLongError: Question and answer do not fit into the free slots.
    """
    check_room(pot, question, sampling)
    ids = torch.tensor([list(question)], dtype=torch.long, device=adapter.device)  # [1, Q]
    feed = _Feed(codec, on_text, sampling.stop) if on_text is not None else None
    with adapter.lock, pot.scratch():
        said = generate(adapter, codec, pot.cache, ids, sampling, feed=feed, cancelled=cancelled, processors=processors)
    return said[0]


def check_room(pot: Pot, question: Sequence[int], sampling: Sampling) -> None:
    """Refuse a question that does not fit.

    Raises:
        QuestionTooLongError: Question and answer need more than the free slots.
    """
    free = pot.budget - pot.length
    if len(question) + sampling.max_new_tokens > free:
        raise QuestionTooLongError(
            f"question ({len(question)} tokens) and answer ({sampling.max_new_tokens}) need more than the {free} free "
            "slots: ask more briefly, lower max_new_tokens, or read again with this question or a larger budget."
        )


def generate(
    adapter: Adapter,
    codec: TextCodec,
    cache: SlotCache,
    ids: Tensor,
    sampling: Sampling,
    *,
    feed: BaseStreamer | None = None,
    cancelled: Callable[[], bool] | None = None,
    processors: Sequence[LogitsProcessor] = (),
) -> list[Decoded]:
    """Let the model write behind some tokens, in every row of a cache; the caller takes away what that leaves in it.

    Args:
        adapter: The model.
        codec: Its tokenizer.
        cache: What stands before the tokens, B rows.
        ids: [B, Q] int64.
        sampling: How to decode.
        feed: Given every token; of one row only.
        cancelled: As in `decode`.
        processors: As in `decode`.
    """
    adapter.check_open()
    rows, asked = ids.shape
    # Both before the model's own settings are put aside, where its ends may stand.
    ends, config = end_ids(adapter, codec), _generation_config(adapter, codec, sampling)
    gone = _Cancelled(cancelled or (lambda: False))
    stopped = _Stopped(codec, sampling.stop, rows, asked)
    devices = [adapter.device] if adapter.device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=sampling.seed is not None):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        own, adapter.model.generation_config = adapter.model.generation_config, GenerationConfig()
        try:
            out = adapter.model.generate(
                input_ids=ids,
                attention_mask=torch.ones((rows, cache.length + asked), dtype=torch.long, device=adapter.device),
                past_key_values=cache,
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                streamer=feed,
                stopping_criteria=StoppingCriteriaList([gone, stopped]),
            )
        finally:
            adapter.model.generation_config = own
    return [
        _decoded(codec, new[:end], sampling, ends, gone.fired)
        for new, end in zip(out[:, asked:].tolist(), stopped.ends, strict=True)
    ]


def _decoded(codec: TextCodec, new: list[int], sampling: Sampling, ends: Sequence[int], gone: bool) -> Decoded:
    """Say what a row's tokens are; behind the one that ends its answer stands padding, where other rows went on."""
    first = next((n for n, token in enumerate(new, 1) if token in ends), None)
    new = new[:first]
    text, stopped = cut_at_stop(codec.decode(new), sampling.stop)
    if stopped or first:
        reason: FinishReason = "stop"
    elif gone and len(new) < sampling.max_new_tokens:
        reason = "cancelled"
    else:
        reason = "length"
    return Decoded(tuple(new), text.strip(), reason)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop string, and whether there was one."""
    places = [place for place in (text.find(s) for s in stop if s) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


class _Feed(BaseStreamer):
    """Hands decoded text to a callback, word by word: at every moment the pieces are a beginning of the whole text.

    All tokens are decoded together each time, as the answer is: some tokenizers take a blank away from the beginning of
    whatever is decoded. What may still change is held back: a word that is not finished (in scripts without blanks,
    half a character), and what may be the start of a stop string.
    """

    def __init__(self, codec: TextCodec, on_text: OnText, stop: Sequence[str]) -> None:
        self.codec = codec
        self.on_text = on_text
        self.stop = stop
        self.ids: list[int] = []
        self.told = ""
        self.asked = False

    def put(self, value: Tensor) -> None:
        """Take a token; the first call brings the prompt."""
        if not self.asked:
            self.asked = True
            return
        self.ids += value.reshape(-1).tolist()
        self._tell(ended=False)

    def end(self) -> None:
        """Tell what was held back."""
        self._tell(ended=True)

    def _tell(self, *, ended: bool) -> None:
        text, stopped = cut_at_stop(self.codec.decode(self.ids), self.stop)
        if not stopped and not ended:
            finished = _FINISHED.match(text.rstrip("\ufffd"))
            text = finished.group() if finished else ""
            keep = max((n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
            text = text[: len(text) - keep]
        if len(text) > len(self.told) and text.startswith(self.told):
            piece, self.told = text[len(self.told) :], text
            self.on_text(piece)


class _Cancelled(StoppingCriteria):
    """Ends the answer when the caller says so."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self.cancelled = cancelled
        self.fired = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.fired = self.fired or self.cancelled()
        return torch.full((input_ids.shape[0],), self.fired, dtype=torch.bool, device=input_ids.device)


class _Stopped(StoppingCriteria):
    """Ends the answer of a row at a stop string; the prompt is not looked at.

    Attributes:
        ends: Of each row: how many tokens its answer has up to the stop string; None without.
    """

    def __init__(self, codec: TextCodec, stop: Sequence[str], rows: int, skip: int) -> None:
        self.codec, self.stop, self.skip = codec, stop, skip
        self.ends: list[int | None] = [None] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if not self.stop:
            return torch.zeros(len(self.ends), dtype=torch.bool, device=input_ids.device)
        for row, new in enumerate(input_ids[:, self.skip :].tolist()):
            if self.ends[row] is None and cut_at_stop(self.codec.decode(new), self.stop)[1]:
                self.ends[row] = len(new)
        return torch.tensor([end is not None for end in self.ends], device=input_ids.device)


def end_ids(adapter: Adapter, codec: TextCodec) -> list[int]:
    """Return every token that ends an answer, by the model's own generation settings and its tokenizer.

    Hold the adapter's lock: while somebody decodes, the model's own settings are put aside.
    """
    listed = adapter.model.generation_config.eos_token_id
    found = list(listed) if isinstance(listed, (list, tuple)) else [listed]
    return sorted({int(i) for i in [*found, codec.tokenizer.eos_token_id] if i is not None})


def _generation_config(adapter: Adapter, codec: TextCodec, sampling: Sampling) -> GenerationConfig:
    """Say everything that matters: what is left open, `generate` takes from the model's own defaults."""
    ends = end_ids(adapter, codec)
    greedy = sampling.temperature == 0.0
    own: dict[str, Any] = {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=ends or None,
        pad_token_id=codec.tokenizer.pad_token_id if codec.tokenizer.pad_token_id is not None else (ends or [0])[0],
        **own,
    )
