"""A million tokens, shelf included: slots and positions stay in the budget, memory stays flat, disk grows evenly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from spies import watched_lengths
from torch import Tensor

from infinipot_llm import Document, DocumentMemory, InfiniPot, PotConfig
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.rotation import Rotation
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.reader import ReadStats

STATUS = Path("/proc/self/status")
TOKENS, FEWER = 1_000_000, 50_000
BUDGET = TRAINED = 2048
MB = 1_000_000


@dataclass
class Readings:
    """What was seen while a text was read.

    Attributes:
        memory: What the reading left behind.
        anonymous: Tokens read and RssAnon in bytes, after every forward.
        before: RssAnon before the text was tokenised.
        after: RssAnon when the memory was there.
        most_slots: The most slots that any layer held.
        last_position: The largest position that any query or key was rotated to.
    """

    memory: DocumentMemory
    anonymous: list[tuple[int, int]]
    before: int
    after: int
    most_slots: int
    last_position: int


def anonymous_bytes() -> int:
    return next(int(x.split()[1]) * 1024 for x in STATUS.read_text().splitlines() if x.startswith("RssAnon:"))


@contextmanager
def watched_positions() -> Iterator[list[int]]:
    """Observe the last position of everything that is rotated."""
    last, true_rotation = [0], Rotation.__call__

    def rotate(rotation: Rotation, states: Tensor, start: int) -> Tensor:
        last[0] = max(last[0], start + states.shape[2] - 1)
        return true_rotation(rotation, states, start)

    with patch.object(Rotation, "__call__", rotate):
        yield last


def read(llm: InfiniPot, tokens: int) -> Readings:
    lines = "".join(f"Line {i}: the mill at Arden was sold for {i % 1999} crowns.\n" for i in range(tokens // 40 + 1))
    document = Document.from_text(lines[:tokens])
    anonymous: list[tuple[int, int]] = []

    def told(stats: ReadStats) -> None:
        anonymous.append((stats.tokens_read, anonymous_bytes()))

    before = anonymous_bytes()
    with watched_lengths() as lengths, watched_positions() as last:
        memory = llm.read(document, progress=told)
    return Readings(memory, anonymous, before, anonymous_bytes(), lengths.most, last[0])


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    sizes: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": TRAINED,
    }  # fmt: skip
    torch.set_num_threads(1)
    config = PotConfig(budget=BUDGET, chunk=1024, catalysts=("Who?",), max_new_tokens=16, question_tokens=16)
    with InfiniPot(Adapter(tiny_model("llama", **sizes)), TextCodec(byte_tokenizer()), config) as made:
        yield made


@pytest.fixture(scope="module")
def fewer(llm: InfiniPot) -> Readings:
    if not STATUS.exists():
        pytest.skip("RssAnon is Linux's")
    return read(llm, FEWER)


@pytest.fixture(scope="module")
def million(llm: InfiniPot, fewer: Readings) -> Readings:
    return read(llm, TOKENS)


def test_slots_and_positions_stay_within_the_budget(million: Readings) -> None:
    assert million.memory.stats.tokens_read == len(million.memory.text) > TOKENS * 0.95
    assert million.memory.stats.cycles > 900
    assert BUDGET // 2 < million.most_slots <= BUDGET
    assert million.most_slots - 1 <= million.last_position < TRAINED


def test_memory_does_not_grow_while_a_million_tokens_are_read(million: Readings) -> None:
    """A plain cache of this model would take 64 bytes a token: 58 MB over nine tenths of the text."""
    settled = next(held for tokens, held in million.anonymous if tokens > TOKENS // 10)
    assert max(held for _, held in million.anonymous) - settled < 4 * MB


def test_a_text_takes_few_bytes_of_memory_per_token(million: Readings) -> None:
    """Tokens, where they stand, their rows on the shelf, scores of nothing: no keys, no values, no Python objects."""
    text = million.memory.text
    assert text.ids.nbytes + text.starts.nbytes + text.ends.nbytes == 12 * len(text)
    assert million.after - million.before < 100 * TOKENS
    assert max(held for _, held in million.anonymous) - million.before < 50 * TOKENS


def test_the_file_grows_evenly_with_the_text(fewer: Readings, million: Readings, llm: InfiniPot) -> None:
    few, many = len(fewer.memory.text), len(million.memory.text)
    per_token = (million.memory.nbytes - fewer.memory.nbytes) / (many - few)
    fixed = fewer.memory.nbytes - per_token * few
    assert llm.setup.layout.token_bytes <= per_token < llm.setup.layout.token_bytes + 24
    assert 0 < fixed < MB / 2


def test_the_memory_of_a_million_tokens_answers(million: Readings) -> None:
    answer = million.memory.ask("What was the mill at Arden sold for?", max_new_tokens=4, citations=False)
    assert 0 < answer.usage.answer_tokens <= 4
