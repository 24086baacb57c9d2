"""Calibration: which heads find passages, on a tiny model whose heads are told what to find."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import DocumentError
from infinipot_llm.memory import recall
from infinipot_llm.memory.calibrate import HEADS, Labelled, all_heads, builtin, calibrate, labelled
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

TEXT = "\n\n".join(f"In {1900 + i} the mill number {i} burned. Its owner, Ada Krol {i}, moved away." for i in range(24))
DOCUMENT = Document.from_text(TEXT, name="mills")
QUESTIONS = [Labelled(f"When did mill number {i} burn?", at := TEXT.index(f"{1900 + i}"), at + 4) for i in range(24)]


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    config = PotConfig(budget=600, max_new_tokens=16, question_tokens=40, chunk=64)
    with InfiniPot(Adapter(tiny_model("llama")), TextCodec(byte_tokenizer()), config) as made:
        made.heads = all_heads(made.adapter.layers, made.setup.query_heads)
        yield made


def test_heads_that_find_the_answer_are_chosen_and_weighted(llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = llm.read(DOCUMENT)
    count, finder = len(llm.heads.heads), memory.finder
    good = {3: 6.0, 11: 3.0}  # head -> how far it lifts the span of the answer, in standard deviations of the noise
    asked: list[Labelled] = []

    def scores(*anything: object) -> torch.Tensor:
        one = QUESTIONS[len(asked)]
        asked.append(one)
        noise = torch.randn(count, len(finder.spans), generator=torch.Generator().manual_seed(len(asked)))
        a, _ = memory.text.tokens_in(0, one.start, one.end)
        span = int((torch.from_numpy(finder.spans.starts) <= a).sum()) - 1
        for head, lift in good.items():
            noise[head, span] += lift
        return noise

    monkeypatch.setattr(recall, "span_scores", scores)
    found = calibrate(memory, QUESTIONS)
    assert len(asked) == found.questions == len(QUESTIONS)
    assert len(found.heads.heads) == min(HEADS, count)
    assert found.heads.calibrated
    weight = dict(zip(found.heads.heads, found.heads.weights, strict=True))
    best = sorted(weight, key=lambda h: -weight[h])[:2]
    assert best == [llm.heads.heads[3], llm.heads.heads[11]]
    assert 0.9 <= found.found_after <= 1.0
    judge = found.heads.judge
    assert judge is not None
    assert judge.attention > 0, "what answers is attended to more than what is left when it is hidden"
    assert judge.words > 0, "each question names a number that stands in its own paragraph alone"


def test_a_real_pass_gives_a_list_that_can_be_used(llm: InfiniPot) -> None:
    told: list[int] = []
    found = calibrate(llm.read(DOCUMENT), QUESTIONS[:6], told.append)
    assert told == [1, 2, 3, 4, 5, 6]
    assert all(weight > 0 for weight in found.heads.weights)
    again = type(found.heads).from_dict(found.heads.to_dict(), llm.adapter.layers, llm.setup.query_heads)
    assert again == found.heads
    user = InfiniPot(llm.adapter, TextCodec(byte_tokenizer()), llm.config, found.heads)
    assert user.read(DOCUMENT).ask("When?").usage.recalled_tokens > 0


def test_answers_are_found_where_they_stand() -> None:
    lines = [json.dumps({"question": "Who?", "answers": ["nobody", "Ada Krol 3"], "page": 1}), *_rows(2)]
    first = labelled(DOCUMENT, lines)[0]
    assert TEXT[first.start : first.end] == "Ada Krol 3"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{}",
        '{"question": "a", "answers": ["b"], "page": 9}',
        '{"question": "a"}',
        "[" * 100_000,
        '{"question": "a", "answers": "Ada Krol"}',
        '{"question": "a", "answers": []}',  # letters are no answers
        '{"question": "a", "answers": [""]}',
        '{"question": "a", "answers": ["b"], "page": 0}',
        '{"question": "a", "answers": ["b"], "page": -1}',
        '{"question": 7, "answers": ["b"]}',
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str) -> None:
    with pytest.raises(DocumentError, match="line 2"):
        labelled(DOCUMENT, [_rows(1)[0], line])


def test_answers_that_stand_nowhere() -> None:
    with pytest.raises(DocumentError, match="fewer than two"):
        labelled(DOCUMENT, [json.dumps({"question": "Who?", "answers": ["nobody"]})])


def test_the_report_that_comes_along() -> None:
    document, asked = builtin()
    assert len(asked) >= 30
    assert all(document.text[a.start : a.end].strip() for a in asked)


def _rows(count: int) -> list[str]:
    return [json.dumps({"question": f"When {i}?", "answers": [str(1900 + i)]}) for i in range(count)]
