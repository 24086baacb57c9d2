"""Several answers decoded side by side: each is what it is alone, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
import torch
from conftest import FAMILIES, byte_tokenizer, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from infinipot_llm.answering.decode import Decoded, Sampling, decode
from infinipot_llm.answering.together import decode_together, fits_together
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.errors import ModelError, QuestionError, QuestionTooLongError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader

CODEC = TextCodec(byte_tokenizer())
END = CODEC.tokenizer.eos_token_id
PAD = CODEC.tokenizer.pad_token_id
TEXTS = ["The mill burned in 1903 and was rebuilt. " * n for n in (1, 9, 2)]
QUESTIONS = [CODEC.untrusted(q) for q in ("When? ", "What burned in that year, and who rebuilt it? ", "? ")]


def filled(adapter: Adapter, text: str, budget: int = 200) -> Pot:
    config = PotConfig(budget=budget, chunk=64)
    return Reader(adapter, config).read(CODEC.document([Document.from_text(text)]), [1, 2], [[1]], reserve=100)[0]


@pytest.fixture(scope="module", params=[*FAMILIES, "smollm3", "phi"])
def asked(request: pytest.FixtureRequest) -> Iterator[tuple[Adapter, list[Pot]]]:
    adapter = Adapter(tiny_model(request.param, num_hidden_layers=2))
    yield adapter, [filled(adapter, text) for text in TEXTS]
    adapter.close()


@contextmanager
def scripts(adapter: Adapter, rows: Sequence[Sequence[int]]) -> Iterator[None]:
    """Make the output head dictate each row its own tokens."""
    steps = 0

    def dictate(module: nn.Module, given: object, out: Tensor) -> Tensor:
        nonlocal steps
        forced = torch.zeros_like(out)
        for row, ids in enumerate(rows):
            forced[row, ..., ids[steps] if steps < len(ids) else ord("z")] = 50.0
        steps += 1
        return forced

    handle = adapter.head.register_forward_hook(dictate)
    try:
        yield
    finally:
        handle.remove()


def test_answers_are_those_of_one_after_another(asked: tuple[Adapter, list[Pot]]) -> None:
    adapter, pots = asked
    assert len({pot.length for pot in pots}) == len(pots)
    alone = [decode(adapter, CODEC, pot, q, Sampling(24)) for pot, q in zip(pots, QUESTIONS, strict=True)]
    assert decode_together(adapter, CODEC, pots, QUESTIONS, Sampling(24)) == alone
    assert len({said.ids for said in alone}) > 1


def test_pots_are_as_they_were(asked: tuple[Adapter, list[Pot]]) -> None:
    adapter, pots = asked
    before = [pot.state() for pot in pots]
    decode_together(adapter, CODEC, pots, QUESTIONS, Sampling(8))
    for pot, state in zip(pots, before, strict=True):
        assert pot.cache.length == pot.length
        assert pot.cache.vacant is None
        after = pot.state()
        assert all(torch.equal(after[name], value) for name, value in state.items())


def test_the_next_token_is_as_likely_as_alone(asked: tuple[Adapter, list[Pot]]) -> None:
    """More than the winner: all logits, of the longest row (whose slots did not move) and of those that were moved."""
    adapter, pots = asked
    alone = []
    with ExitStack() as scratched:
        for pot, question in zip(pots, QUESTIONS, strict=True):
            with pot.scratch():
                alone.append(adapter.logits(adapter.forward(torch.tensor(question), pot.cache)[-1:]))
            scratched.enter_context(pot.scratch())
            adapter.forward(torch.tensor(question[:-1]), pot.cache)
        cache = adapter.new_cache(200)
        cache.fill_rows([pot.cache for pot in pots])
    last = torch.tensor([[question[-1]] for question in QUESTIONS])
    with torch.no_grad():
        hidden = adapter.backbone(input_ids=last, past_key_values=cache, use_cache=True).last_hidden_state
    torch.testing.assert_close(adapter.logits(hidden[:, -1]), torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def llama() -> Iterator[tuple[Adapter, list[Pot]]]:
    adapter = Adapter(tiny_model("llama", num_hidden_layers=1))
    yield adapter, [filled(adapter, text) for text in TEXTS]
    adapter.close()


def test_each_answer_ends_where_it_ends(llama: tuple[Adapter, list[Pot]]) -> None:
    """At its own end token, its own stop string, or the limit; what others say behind that is no part of it."""
    adapter, pots = llama
    rows = [[*CODEC.untrusted("It was"), END], CODEC.untrusted("one STOP two"), CODEC.untrusted("x" * 20)]
    with scripts(adapter, rows):
        said = decode_together(adapter, CODEC, pots, QUESTIONS, Sampling(20, stop=("STOP",)))
    assert said == [
        Decoded((*CODEC.untrusted("It was"), END), "It was", "stop"),
        Decoded(tuple(CODEC.untrusted("one STOP")), "one", "stop"),
        Decoded(tuple(CODEC.untrusted("x" * 20)), "x" * 20, "length"),
    ]


def test_an_answer_may_say_the_padding_token(llama: tuple[Adapter, list[Pot]]) -> None:
    adapter, pots = llama
    rows = [[*CODEC.untrusted("ab"), PAD, *CODEC.untrusted("cd"), END], CODEC.untrusted("e" * 9), [END]]
    with scripts(adapter, rows):
        said = decode_together(adapter, CODEC, pots, QUESTIONS, Sampling(9))
    assert [one.ids for one in said] == [tuple(rows[0]), tuple(rows[1]), (END,)]


def test_cancelling_ends_all(llama: tuple[Adapter, list[Pot]]) -> None:
    adapter, pots = llama
    calls = iter([False, False, True, True, True, True])
    rows = [[CODEC.untrusted("a")[0], END], CODEC.untrusted("b" * 20), CODEC.untrusted("c" * 20)]
    with scripts(adapter, rows):
        said = decode_together(adapter, CODEC, pots, QUESTIONS, Sampling(20), cancelled=lambda: next(calls))
    assert [(one.text, one.finish_reason) for one in said] == [
        ("a", "stop"),
        ("bbb", "cancelled"),
        ("ccc", "cancelled"),
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 30)), min_size=1, max_size=5))
def test_any_mixture_of_lengths(llama: tuple[Adapter, list[Pot]], lengths: list[tuple[int, int]]) -> None:
    adapter, _ = llama
    pots = [filled(adapter, ("Ottilie Crane, aged nine. " * 12)[:text]) for text, _ in lengths]
    questions = [CODEC.untrusted("What is the name of the girl?"[:n]) for _, n in lengths]
    alone = [decode(adapter, CODEC, pot, q, Sampling(6)) for pot, q in zip(pots, questions, strict=True)]
    assert decode_together(adapter, CODEC, pots, questions, Sampling(6)) == alone


def test_what_does_not_fit_is_refused_before_anything_is_read(llama: tuple[Adapter, list[Pot]]) -> None:
    adapter, pots = llama
    with pytest.raises(QuestionTooLongError, match="free slots"):
        decode_together(adapter, CODEC, pots, [*QUESTIONS[:2], [7] * 190], Sampling(24))
    assert [pot.cache.length for pot in pots] == [pot.length for pot in pots]


def test_models_with_sliding_layers_are_refused() -> None:
    adapter = Adapter(tiny_model("gemma3"))
    assert any(adapter.windows)
    assert not fits_together(adapter)
    pots = [filled(adapter, text, budget=150) for text in TEXTS[:2]]
    with pytest.raises(QuestionError, match="one question after another"):
        decode_together(adapter, CODEC, pots, QUESTIONS[:2], Sampling(4))
    adapter.close()


def test_rows_take_one_token_at_a_time(llama: tuple[Adapter, list[Pot]]) -> None:
    """More at once would need a mask that nobody makes: that is said, and nothing is answered wrongly."""
    adapter, pots = llama
    cache = adapter.new_cache(200)
    cache.fill_rows([pot.cache for pot in pots])
    with pytest.raises(ModelError, match="one token at a time"), torch.no_grad():
        adapter.backbone(input_ids=torch.ones((3, 2), dtype=torch.long), past_key_values=cache, use_cache=True)
