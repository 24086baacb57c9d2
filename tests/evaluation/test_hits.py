"""Hit rates: against a count by hand, and where they are known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from infinipot_llm import InfiniPot, PotConfig
from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.cli.comparing import Bench
from infinipot_llm.errors import BudgetError
from infinipot_llm.evaluation.arms import parse_arm
from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.hits import WholeContext, hit_rates
from infinipot_llm.evaluation.rows import Rows
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.catalyst import attention_received

TEXT = " ".join(f"The mill at Weir {n} ground {7 * n % 61} sacks." for n in range(24))
RESERVE = 150


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    config = PotConfig(budget=400, max_new_tokens=8, question_tokens=80, chunk=64, shelf="off")
    with InfiniPot(Adapter(tiny_model("qwen2")), TextCodec(byte_tokenizer()), config) as made:
        yield made


@pytest.fixture(scope="module")
def prompt(llm: InfiniPot) -> Prompt:
    asked = tuple(llm.form.question("Which mill?"))
    return Prompt(llm.form.prefix, asked, asked, "Which mill?")


def test_the_first_distillation_by_the_prompt_alone_hits_everything(llm: InfiniPot, prompt: Prompt) -> None:
    """Nothing was dropped before it, so the pot is the whole context; later ones have lost something."""
    exact = "infinipot:novelty_share=0:agreement=0:neighbours=0"
    found = hit_rates(llm, [parse_arm(exact)], TEXT, prompt, RESERVE)[exact]
    assert isinstance(found, list)
    assert len(found) > 2
    assert found[0].rate == 1.0
    assert all(0.0 < hits.rate < 1.0 for hits in found[1:])
    assert [hits.cycle for hits in found] == list(range(1, len(found) + 1))


def test_what_is_wanted_is_the_attention_over_everything_read(llm: InfiniPot, prompt: Prompt) -> None:
    """Asked at several points of one reading, against a forward of everything at once."""
    judge = WholeContext(llm, TEXT, prompt)
    for tokens in (100, 101, 333):
        ids = [*prompt.before, *judge.text.ids[:tokens].tolist(), *prompt.behind]
        cache = llm.adapter.new_cache(len(ids))
        scores = {}

        def observe(seen: object, scores: dict[int, torch.Tensor] = scores, tokens: int = tokens) -> None:
            held = len(prompt.before) + tokens
            query = seen.query[:, :, held:]  # type: ignore[attr-defined]
            key = seen.key[:, :, :held]  # type: ignore[attr-defined]
            scores[seen.layer] = attention_received(query, key, seen.scaling, "sum")  # type: ignore[attr-defined]

        cache.observer = observe
        llm.adapter.forward(torch.tensor(ids), cache)
        expected = torch.stack([scores[n] for n in range(3)])[:, :, len(prompt.before) :] / len(prompt.behind)
        assert (judge.wanted(tokens) - expected).abs().max() < 1e-5


def test_streaming_hits_what_is_wanted_of_the_latest_tokens(llm: InfiniPot, prompt: Prompt) -> None:
    found = hit_rates(llm, [parse_arm("streaming"), parse_arm("random")], TEXT, prompt, RESERVE)
    judge = WholeContext(llm, TEXT, prompt)
    assert isinstance(found["streaming"], list)
    assert isinstance(found["random"], list)
    for hits in found["streaming"]:
        wanted = judge.wanted(hits.tokens_read)
        rates = []
        for head in wanted.flatten(0, 1):
            best = set(head.topk(hits.kept).indices.tolist())
            latest = set(range(hits.tokens_read - hits.kept, hits.tokens_read))
            rates.append(len(best & latest) / hits.kept)
        assert hits.rate == pytest.approx(sum(rates) / len(rates), abs=1e-6)
    for hits in found["random"]:
        assert hits.rate == pytest.approx(hits.chance, abs=0.12)


def test_an_arm_without_room_spoils_no_other(llm: InfiniPot, prompt: Prompt) -> None:
    names = ["streaming", "streaming:budget=160", "random"]
    found = hit_rates(llm, [parse_arm(name) for name in names], TEXT, prompt, RESERVE)
    assert list(found) == names
    assert str(found[names[1]]).startswith("a budget of 160 has no room for prompt")
    for name in ("streaming", "random"):
        assert len(found[name]) > 2
        assert found[name] == hit_rates(llm, [parse_arm(name)], TEXT, prompt, RESERVE)[name]
    whole = hit_rates(llm, [parse_arm("streaming:budget=2000")], TEXT, prompt, RESERVE)
    assert whole == {"streaming:budget=2000": []}  # nothing had to go


def test_the_row_of_an_arm_without_room_says_why(llm: InfiniPot, prompt: Prompt, tmp_path: Path) -> None:
    arms = [parse_arm("streaming"), parse_arm("streaming:budget=90")]
    with Rows(tmp_path / "hit-rate.jsonl") as rows:
        bench = Bench(llm, arms, rows, {"model": "tiny", "hidden": False, "out": tmp_path})
        case = Case("one", TEXT, "Which mill?", ("none",), "qa", "source")
        counted, refused = bench.count_hits([case], lambda case: prompt)
    assert len(counted["hits"]) > 2
    assert "refused" not in counted
    assert refused["refused"].startswith("a budget of 90 has no room")


def test_what_has_no_cycles_or_is_too_long_is_refused(llm: InfiniPot, prompt: Prompt) -> None:
    for name in ("full", "own:snapkv", "recall", "streaming:positions=kept"):
        with pytest.raises(BudgetError, match="has no cycles"):
            hit_rates(llm, [parse_arm(name)], TEXT, prompt, RESERVE)
    with pytest.raises(BudgetError, match="choose shorter contexts"):
        hit_rates(llm, [parse_arm("infinipot")], TEXT * 6, prompt, RESERVE)
