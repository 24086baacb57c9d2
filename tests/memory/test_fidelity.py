"""A budget that holds everything changes nothing: the answers are those of the plain model on the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import FAMILIES, byte_tokenizer, tiny_model
from torch import Tensor

from infinipot_llm.answering import compose as compose_module
from infinipot_llm.answering.decode import Decoded, Sampling, decode
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot

CODEC = TextCodec(byte_tokenizer())
DOCUMENT = Document.from_text("The mill burned in 1903. It was rebuilt for 68,211 crowns; élan! 東京 <|im_end|>")
QUESTION = "When did it burn?"
LIMIT = 24
ENDS = [CODEC.tokenizer.eos_token_id, 258]  # the tokenizer's, and that of the tiny models' settings


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Iterator[Adapter]:
    adapter = Adapter(tiny_model(request.param, seed=0))
    yield adapter
    adapter.close()


def engine(adapter: Adapter, chunk: int, spare: int = 0) -> InfiniPot:
    """An engine whose budget is exactly prefix + document + question + answer, and `spare` more."""
    form = InfiniPot(adapter, CODEC, PotConfig()).form
    need = len(form.prefix) + len(CODEC.document([DOCUMENT])) + len(form.question(QUESTION)) + LIMIT
    config = PotConfig(
        budget=need + spare, max_new_tokens=LIMIT, chunk=chunk, followup="reuse", shelf="int8", recalled="load"
    )
    return InfiniPot(adapter, CODEC, config)


def whole_ids(llm: InfiniPot) -> list[int]:
    return [*llm.form.prefix, *CODEC.document([DOCUMENT]).ids.tolist(), *llm.form.question(QUESTION)]


def plainly(adapter: Adapter, ids: list[int], **options: Any) -> tuple[tuple[int, ...], Tensor]:
    """The plain model's own answer, and its logits on the prompt."""
    adapter.close()
    try:
        prompt = torch.tensor([ids])
        with torch.no_grad():
            logits = adapter.model(input_ids=prompt, use_cache=False).logits[0]
        out = adapter.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=LIMIT,
            eos_token_id=ENDS,
            pad_token_id=CODEC.tokenizer.pad_token_id,
            **{"do_sample": False, **options},
        )
    finally:
        adapter.open()
    return tuple(out[0, len(ids) :].tolist()), logits


@pytest.mark.parametrize("chunk", [1, 2, 13, 64, 4096])
def test_greedy_answers_are_the_plain_models(model: Adapter, chunk: int) -> None:
    llm = engine(model, chunk)
    ids = whole_ids(llm)
    expected, logits = plainly(model, ids)
    assert len(set(expected)) > 3

    memory = llm.read(DOCUMENT, question=QUESTION)
    assert memory.stats.cycles == 0
    assert memory.pot.budget - memory.pot.length == len(llm.form.question(QUESTION)) + LIMIT
    asked = llm.form.question(QUESTION)
    assert decode(model, CODEC, memory.pot, asked, Sampling(LIMIT)).ids == expected
    answer = memory.ask(QUESTION)
    assert answer.text == CODEC.decode(expected).strip()
    assert answer.usage.answer_tokens == len(expected)
    assert answer.usage.question_tokens == len(asked)
    assert engine(model, chunk, spare=400).ask(DOCUMENT, QUESTION).text == answer.text
    assert "".join(memory.stream(QUESTION)).strip() == answer.text

    with memory.pot.scratch():
        ours = model.logits(model.forward(torch.tensor(asked), memory.pot.cache))
    assert (ours - logits[-len(asked) :]).abs().max() <= 2e-5 * logits.abs().max()


def test_sampled_answers_are_the_plain_models_at_the_same_seed(model: Adapter) -> None:
    llm = engine(model, 50, spare=7)
    memory = llm.read(DOCUMENT, question=QUESTION)
    answers = set()
    for seed, temperature, top_p in ((1, 1.0, 1.0), (2, 0.7, 0.9), (3, 3.0, 0.8)):
        torch.manual_seed(seed)
        expected, _ = plainly(model, whole_ids(llm), do_sample=True, temperature=temperature, top_p=top_p, top_k=0)
        sampling = Sampling(LIMIT, temperature, top_p, seed=seed)
        assert decode(model, CODEC, memory.pot, llm.form.question(QUESTION), sampling).ids == expected
        answer = memory.ask(QUESTION, temperature=temperature, top_p=top_p, seed=seed)
        assert answer.text == CODEC.decode(expected).strip()
        answers.add(expected)
    assert len(answers) == 3


def test_one_slot_less_and_the_document_is_distilled(model: Adapter) -> None:
    llm = engine(model, 64, spare=-1)
    memory = llm.read(DOCUMENT, question=QUESTION)
    assert memory.stats.cycles == 1
    assert memory.ask(QUESTION).usage.question_tokens + LIMIT <= memory.pot.budget - memory.pot.length


def test_reading_without_a_question_changes_nothing_either(model: Adapter) -> None:
    llm = engine(model, 64, spare=400)
    memory = llm.read(DOCUMENT)
    assert memory.stats.cycles == 0
    assert memory.ask(QUESTION).text == CODEC.decode(plainly(model, whole_ids(llm))[0]).strip()


def test_recalling_everything_is_the_plain_model_but_for_packing(
    model: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget being exactly what is needed, nothing stays away; 8 bits per number cost about a hundredth."""
    llm = engine(model, 13)
    ids = whole_ids(llm)
    asked = llm.form.question(QUESTION)
    _, logits = plainly(model, ids)
    memory = llm.read(DOCUMENT, question=QUESTION)
    pots: list[Pot] = []
    true_decode = compose_module.decode

    def spy(adapter: Adapter, codec: TextCodec, pot: Pot, *args: Any, **kwargs: Any) -> Decoded:
        pots.append(pot)
        return true_decode(adapter, codec, pot, *args, **kwargs)

    monkeypatch.setattr(compose_module, "decode", spy)
    answer = memory.ask(QUESTION, followup="recall")
    assert answer.usage.recalled_tokens == len(memory.text)
    assert answer.usage.question_tokens == len(asked)
    (pot,) = pots
    assert pot is not memory.pot
    assert pot.budget == llm.config.budget == pot.length + len(asked) + LIMIT
    with pot.scratch():
        ours = model.logits(model.forward(torch.tensor(asked), pot.cache))
    assert (ours - logits[-len(asked) :]).abs().max() <= 2e-2 * logits.abs().max()
    assert "".join(memory.stream(QUESTION, followup="recall")).strip() == answer.text
