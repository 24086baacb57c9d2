"""Gemma 3 270M with its own weights: 15 of its 18 layers slide. Skipped where nobody converted them.

`python benchmarks/families.py --convert GEMMA.gguf FOLDER` makes the folder; docs/models.md has longer measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.load import load_model
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.reader import Reader

pytestmark = pytest.mark.weights
FOLDER = Path.home() / ".cache" / "infinipot-dev-models" / "gemma3-270m"
FILLER = "The surveyor walked on. The river was low, and nobody at the inn had any news of the barge. "
NEEDLE = "The signal code of the lighthouse at Brannock Point is 48213. "
ASKED = "\n\nWhat is the signal code of the lighthouse? The signal code of the lighthouse at Brannock Point is"


@pytest.fixture(scope="module")
def gemma() -> Iterator[tuple[Adapter, TextCodec]]:
    if not (FOLDER / "model.safetensors").is_file():
        pytest.skip("the weights of Gemma 3 270M are not here: see benchmarks/families.py --convert")
    adapter, codec = load_model(str(FOLDER), dtype="float32")  # the self-check runs here
    yield adapter, codec
    adapter.close()


def test_logits_beyond_the_window_are_the_plain_models(gemma: tuple[Adapter, TextCodec]) -> None:
    adapter, codec = gemma
    assert adapter.layers == 3
    assert {w for w in adapter.windows if w} == {512}
    ids = torch.tensor([2, *codec.untrusted(FILLER * 14 + NEEDLE + FILLER * 14)])[:600]
    assert len(ids) == 600
    adapter.close()
    with torch.no_grad():
        plain = adapter.backbone(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    adapter.open()
    cache = adapter.new_cache(600)
    ours = torch.cat([adapter.forward(part, cache) for part in ids.split(130)])
    first, second = (adapter.logits(states[-40:]) for states in (plain, ours))  # a quarter of a million columns
    assert (first - second).abs().max() <= 2e-5 * first.abs().max()


def test_a_needle_that_left_the_window_and_went_through_cycles_is_found(gemma: tuple[Adapter, TextCodec]) -> None:
    adapter, codec = gemma
    text = codec.document([Document.from_text(FILLER * 6 + NEEDLE + FILLER * 38)])
    assert 900 < len(text) < 1100
    asked = codec.untrusted(ASKED)
    config = PotConfig(budget=300, novelty_share=0.0)
    pot, stats = Reader(adapter, config).read(text, [2], [asked], len(asked) + 6)
    assert stats.cycles >= 4
    said: list[int] = []
    with pot.scratch():
        states = adapter.forward(torch.tensor(asked), pot.cache)
        for _ in range(6):
            said.append(int(adapter.logits(states[-1:]).argmax()))
            states = adapter.forward(torch.tensor(said[-1:]), pot.cache)
    assert "48213" in codec.decode(said)
