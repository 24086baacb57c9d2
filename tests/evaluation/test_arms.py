"""Arms: each reads as it says, and answers as plain decoding over what it kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from infinipot_llm import Document, InfiniPot, PotConfig
from infinipot_llm.answering.decode import Decoded, decode
from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.config import POLICIES
from infinipot_llm.errors import BudgetError
from infinipot_llm.evaluation import arms
from infinipot_llm.evaluation.arms import OWN, Examinee, Outcome, cut_middle, parse_arm
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.slots import Attending
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader

TEXT = " ".join(f"The mill at Weir {n} ground {7 * n % 61} sacks." for n in range(20))  # about 700 tokens
LOOP = [p for p in POLICIES if p != "full"]


@pytest.fixture(scope="module")
def llm() -> Iterator[InfiniPot]:
    config = PotConfig(budget=480, max_new_tokens=8, question_tokens=160, chunk=64, shelf="keys", recall=60)
    with InfiniPot(Adapter(tiny_model("llama")), TextCodec(byte_tokenizer()), config) as made:
        yield made


def prompt(llm: InfiniPot, question: str = "Which mill?") -> Prompt:
    asked = tuple(llm.form.question(question))
    return Prompt(llm.form.prefix, asked, asked, question)


@pytest.mark.parametrize("name", [*LOOP, "full", "recall", *(f"own:{p}" for p in OWN)])
def test_every_arm_reads_within_its_bounds_and_answers(llm: InfiniPot, name: str) -> None:
    arm, asked = parse_arm(name), prompt(llm)
    examinee = Examinee(llm)
    outcome = examinee.answer(arm, TEXT, asked, max_new_tokens=8)
    N, reserve = outcome.context_tokens, max(160, len(asked.behind)) + 8
    assert len(llm.form.codec.untrusted(TEXT)) == N
    if name == "full":
        assert (outcome.slots, outcome.cycles) == (len(asked.before) + N, 0)
    elif name == "own:truncate":
        assert (outcome.slots, outcome.cycles) == (480 - reserve, 0)
    elif name == "recall":
        assert len(asked.before) < outcome.slots <= len(asked.before) + 60 + 20  # and marks between passages
    else:
        assert outcome.slots == 480 - reserve  # the last distillation leaves just the room that is needed
        assert outcome.cycles > 0
    assert 0 < outcome.answer_tokens <= 8
    assert outcome.read_seconds > 0
    again = examinee.answer(arm, TEXT, asked, max_new_tokens=8)
    assert again.text == outcome.text
    assert again.read_seconds == 0  # the same question of the same context is not read for twice


def test_the_plain_policy_is_what_reading_with_that_configuration_gives(llm: InfiniPot) -> None:
    asked = prompt(llm)
    for name in LOOP:
        examinee = Examinee(llm)
        examinee.answer(parse_arm(name), TEXT, asked, max_new_tokens=8)
        config = replace(llm.config, policy=name, shelf="off", max_new_tokens=8)
        text = llm.form.codec.document([Document.from_text(TEXT, name="x")])
        reserve = max(160, len(asked.behind)) + 8
        pot, stats = Reader(llm.adapter, config, known=True).read(text, asked.before, [asked.behind], reserve)
        assert examinee._state is not None
        assert stats.cycles == examinee._state.stats.cycles > 0
        held, expected = examinee._state.pot.state(), pot.state()
        assert all(torch.equal(held[part], expected[part]) for part in expected), name


def test_full_answers_as_the_plain_model_does(llm: InfiniPot) -> None:
    asked = prompt(llm)
    outcome = Examinee(llm).answer(parse_arm("full"), TEXT, asked, max_new_tokens=8)
    ids = [*asked.before, *llm.form.codec.untrusted(TEXT), *asked.behind]
    llm.adapter.close()
    out = llm.adapter.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
    llm.adapter.open()
    assert outcome.text == llm.form.codec.decode(out[0, len(ids) :].tolist())


@pytest.mark.parametrize(("stop", "text"), [((), "\n    return x\n "), (("x",), "\n    return ")])
def test_the_white_space_around_an_answer_is_part_of_it(
    llm: InfiniPot, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...], text: str
) -> None:
    """A line of code is scored with its indentation."""
    ids = tuple(llm.form.codec.untrusted("\n    return x\n "))
    monkeypatch.setattr(arms, "decode", lambda *_: Decoded(ids, "return x", "stop"))
    assert Examinee(llm).answer(parse_arm("streaming"), TEXT, prompt(llm), max_new_tokens=8, stop=stop).text == text


def test_which_arms_recall() -> None:
    names = ("recall", "recall:recall=512", "infinipot", "full", "infinipot:recall=512", "own:snapkv")
    assert [parse_arm(name).recalls for name in names] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("name", "readings"),
    [
        *(("infinipot", 3), ("own:snapkv", 1), ("own:tova", 1), ("own:h2o", 1)),
        *(("snapkv", 1), ("own:expected-attention", 1), ("streaming", 1), ("full", 1), ("recall", 1)),
    ],
)
def test_a_context_is_read_once_unless_the_question_decides(llm: InfiniPot, name: str, readings: int) -> None:
    arm, examinee = parse_arm(name), Examinee(llm)
    asked = [prompt(llm, q) for q in ("Which mill?", "How many sacks?", "Who?")]
    said = [examinee.answer(arm, TEXT, p, max_new_tokens=4) for p in asked]
    known = [outcome.read_seconds > 0 for outcome in said]
    assert sum(known) == readings
    if sys.platform == "linux":
        assert [outcome.memory_bytes is not None for outcome in said] == known
    assert arm.reads_for_question == (readings == 3)
    assert arm.wants_question == (name in ("infinipot", "own:snapkv", "own:tova", "own:h2o"))
    hidden = [examinee.answer(arm, TEXT, p, max_new_tokens=4, hidden=True).read_seconds > 0 for p in asked]
    assert sum(hidden) == (1 if readings == 3 else 0)
    other = examinee.answer(arm, TEXT + " End.", asked[0], max_new_tokens=4, hidden=True)
    assert other.read_seconds > 0


def test_a_question_that_is_known_decides_what_stays(llm: InfiniPot) -> None:
    for name in ("infinipot", "own:snapkv", "own:tova", "own:h2o"):
        examinee = Examinee(llm)
        held = []
        for question in ("Which mill?", "Ground sacks? 60 60 60 60"):
            pot, _ = answered_from(examinee, name, prompt(llm, question))
            held.append(pot.origin.clone())
        assert held[0].shape == held[1].shape
        assert not torch.equal(held[0], held[1])


def test_settings_behind_a_name_are_used(llm: InfiniPot) -> None:
    asked = prompt(llm)
    small = Examinee(llm).answer(parse_arm("infinipot:budget=380"), TEXT, asked, max_new_tokens=8)
    assert small.slots == Examinee(llm).answer(parse_arm("infinipot"), TEXT, asked, max_new_tokens=8).slots - 100
    few = Examinee(llm).answer(parse_arm("streaming:kept=0.9"), TEXT, asked, max_new_tokens=8)
    assert few.cycles > Examinee(llm).answer(parse_arm("streaming:kept=0.2"), TEXT, asked, max_new_tokens=8).cycles


def test_questions_behind_a_name_stand_in_for_the_unknown_one(llm: InfiniPot) -> None:
    """The same pot as a configuration with these questions makes, and another one than the built-in set makes."""
    asked, arm = prompt(llm), parse_arm("infinipot:catalysts=Which mill?|60 60 60 60")
    assert dict(arm.changes) == {"catalysts": ("Which mill?", "60 60 60 60")}
    configured = InfiniPot(llm.adapter, llm.form.codec, replace(llm.config, catalysts=("Which mill?", "60 60 60 60")))
    held = []
    for engine, one in ((llm, arm), (configured, parse_arm("infinipot")), (llm, parse_arm("infinipot"))):
        examinee = Examinee(engine)
        examinee.answer(one, TEXT, asked, max_new_tokens=4, hidden=True)
        assert examinee._state is not None
        held.append(examinee._state.pot.origin.clone())
    assert torch.equal(held[0], held[1])
    assert not torch.equal(held[0], held[2])


def test_rolling_drops_little_and_often(llm: InfiniPot) -> None:
    long = TEXT * 2
    asked = prompt(llm)
    rolling = Examinee(llm).answer(parse_arm("own:streaming"), long, asked, max_new_tokens=8)
    loop = Examinee(llm).answer(parse_arm("streaming:kept=0.2"), long, asked, max_new_tokens=8)
    assert rolling.cycles > loop.cycles
    examinee = Examinee(llm)
    examinee.answer(parse_arm("own:streaming"), long, asked, max_new_tokens=8)
    assert examinee._state is not None
    origin = examinee._state.pot.origin[0, 0, len(asked.before) :]
    assert torch.equal(origin, torch.arange(rolling.context_tokens - len(origin), rolling.context_tokens))


def test_rolling_holds_on_to_most_of_a_small_budget(llm: InfiniPot) -> None:
    """Whatever is dropped at a time, it is little of what is held."""
    asked = prompt(llm)
    for free in (150, 60, 9):
        budget = len(asked.before) + max(160, len(asked.behind)) + 8 + free
        pot, outcome = read_by(llm, f"own:streaming:budget={budget}")
        assert outcome.cycles > 1
        assert free - max(1, free // 8) <= outcome.slots - len(asked.before) <= free
        assert pot.origin[0, 0, -1] == outcome.context_tokens - 1


def test_positions_that_are_kept_are_those_of_the_plain_model(llm: InfiniPot) -> None:
    """Without a distillation nothing differs; after one, keys stand where they were read, as in the plain model."""
    asked = prompt(llm)
    wide = "infinipot:budget=2000"
    plain = Examinee(llm).answer(parse_arm(wide), TEXT, asked, max_new_tokens=8)
    assert Examinee(llm).answer(parse_arm(f"{wide}:positions=kept"), TEXT, asked, max_new_tokens=8).text == plain.text

    examinee = Examinee(llm)
    first: list[list[float]] = []
    for arm in ("infinipot:novelty_share=1:agreement=0", "infinipot:novelty_share=1:agreement=0:positions=kept"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pot, "record_novelty", lambda self, novelty: first.append(novelty[:2].tolist()))
            Examinee(llm).answer(parse_arm(arm), TEXT, asked, max_new_tokens=8)
    assert first[0] == pytest.approx(first[len(first) // 2])
    assert first[0][0] > 0, "the first token's novelty is that behind the prompt"
    kept = examinee.answer(parse_arm("streaming:positions=kept"), TEXT, asked, max_new_tokens=8)
    assert kept.cycles > 1
    assert examinee._state is not None
    pot = examinee._state.pot
    layer = pot.cache.pots[0]
    place = pot.origin[0, 0] + len(asked.before)
    place[: len(asked.before)] = torch.arange(len(asked.before))
    tables = llm.adapter.rotations(2000)[0]
    for slot in (0, len(asked.before) + 3, pot.length - 1):
        expected = tables(layer.raw_keys[:, :1, slot : slot + 1], int(place[slot]))
        assert (layer.rotated_keys[:, :1, slot : slot + 1] - expected).abs().max() < 1e-5
    seen: list[torch.Tensor] = []
    with pot.scratch():
        pot.cache.observer = lambda a: seen.extend([a.raw_query, a.query]) if a.layer == 0 else None
        llm.adapter.forward(torch.tensor(asked.behind), pot.cache)
    assert (tables(seen[0], len(asked.before) + kept.context_tokens) - seen[1]).abs().max() < 1e-5


WHOLE = ["own:snapkv", "own:tova", "own:h2o", "own:expected-attention"]


def read_by(llm: InfiniPot, name: str, text: str = TEXT, hidden: bool = False) -> tuple[Pot, Outcome]:
    """The pot that an arm answers from, and its outcome."""
    return answered_from(Examinee(llm), name, prompt(llm), text, hidden)


def answered_from(
    examinee: Examinee, name: str, asked: Prompt, text: str = TEXT, hidden: bool = False
) -> tuple[Pot, Outcome]:
    pots: list[Pot] = []

    def decoded(adapter: Adapter, codec: TextCodec, pot: Pot, *rest: Any) -> Decoded:
        pots.append(pot)
        return decode(adapter, codec, pot, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "decode", decoded)
        outcome = examinee.answer(parse_arm(name), text, asked, max_new_tokens=8, hidden=hidden)
    return pots[0], outcome


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("policy", ["snapkv", "tova", "h2o"])
def test_what_is_read_whole_is_judged_by_the_whole_prompt(llm: InfiniPot, policy: str, hidden: bool) -> None:
    """Against the attention of one forward of everything: the question is in it where it is known."""
    asked, (pot, outcome) = prompt(llm), read_by(llm, f"own:{policy}", hidden=hidden)
    P, N = len(asked.before), outcome.context_tokens
    ids = [*asked.before, *llm.form.codec.untrusted(TEXT), *(() if hidden else asked.behind)]
    seen: list[Attending] = []
    cache = llm.adapter.new_cache(len(ids))
    cache.observer = seen.append
    llm.adapter.forward(torch.tensor(ids), cache)
    for layer, (_, _, query, key, scaling) in enumerate(seen):
        heads = key[0].double().repeat_interleave(3, dim=0)  # [H, T, D]
        logits = query[0].double() @ heads.transpose(1, 2) * scaling
        future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
        weights = torch.softmax(logits.masked_fill(future, float("-inf")), -1)  # [H, T, T]
        inside = max(0, 32 - (len(ids) - P - N))  # tokens of the text in SnapKV's window
        stay = {"snapkv": inside, "tova": int(hidden), "h2o": (outcome.slots - P) // 2}[policy]
        paid = {"snapkv": weights[:, -32:], "tova": weights[:, -1:], "h2o": weights}[policy].sum(1)[:, : P + N - stay]
        if policy == "snapkv":
            paid = torch.nn.functional.max_pool1d(paid, 7, 1, 3)
        paid = paid.mean(0).expand(2, -1) if policy == "tova" else paid.reshape(2, 3, -1).mean(1)
        least = paid[:, P:].topk(outcome.slots - P - stay, dim=-1).values[:, -1]
        for head in range(2):
            held = (pot.origin[layer, head, P:] + P).tolist()
            latest = set(range(P + N - stay, P + N))
            assert latest <= set(held)
            assert paid[head, [s for s in held if s not in latest]].min() >= 0.9999 * least[head]  # pooling makes ties


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_read_whole_serves_every_question_as_if_it_were_the_first(
    llm: InfiniPot, name: str, hidden: bool
) -> None:
    examinee = Examinee(llm)
    for number, question in enumerate(("Which mill?", "Ground sacks? 60 60 60 60", "Which mill?")):
        asked = prompt(llm, question)
        pot, outcome = answered_from(examinee, name, asked, hidden=hidden)
        alone, expected = answered_from(Examinee(llm), name, asked, hidden=hidden)
        assert outcome.text == expected.text
        assert (outcome.read_seconds == 0) == (number > 0)
        held, first = pot.state(), alone.state()
        assert all(torch.equal(held[part], first[part]) for part in first)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_read_whole_keeps_its_positions(llm: InfiniPot, name: str) -> None:
    asked, (pot, outcome) = prompt(llm), read_by(llm, name)
    P, tables = len(asked.before), llm.adapter.rotations(2000)[0]
    layer = pot.cache.pots[0]
    assert outcome.cycles == 1
    for head in range(2):
        place = (pot.origin[0, head] + P).tolist()
        assert place[P:] != list(range(P, len(place)))
        for slot in range(P, len(place)):
            one = layer.raw_keys[:, head : head + 1, slot : slot + 1]
            found = layer.rotated_keys[:, head : head + 1, slot : slot + 1]
            assert (found - tables(one, place[slot])).abs().max() < 1e-5
    seen: list[torch.Tensor] = []
    with pot.scratch():
        pot.cache.observer = lambda a: seen.extend([a.raw_query, a.query]) if a.layer == 0 else None
        llm.adapter.forward(torch.tensor(asked.behind), pot.cache)
    assert (tables(seen[0], P + outcome.context_tokens) - seen[1]).abs().max() < 1e-5


@pytest.mark.parametrize("name", [*WHOLE, "streaming:positions=kept"])
def test_positions_cannot_be_kept_beside_sliding_layers(name: str) -> None:
    """A row says so, and the run goes on."""
    config = PotConfig(budget=480, max_new_tokens=8, question_tokens=160, chunk=64, shelf="off")
    with (
        InfiniPot(Adapter(tiny_model("olmo3")), TextCodec(byte_tokenizer()), config) as sliding,
        pytest.raises(BudgetError, match="only in a model without sliding layers: choose an arm"),
    ):
        Examinee(sliding).answer(parse_arm(name), TEXT, prompt(sliding), max_new_tokens=8)


@pytest.mark.parametrize("name", WHOLE)
def test_a_budget_without_room_is_refused_before_reading(llm: InfiniPot, name: str) -> None:
    """In the sentence of the loop; and where there is just room, the prefix stays whole."""
    asked = prompt(llm)
    least = len(asked.before) + max(160, len(asked.behind)) + 8 + 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "read", None)
        with pytest.raises(BudgetError, match=f"has no room for prompt .*at least {least}, or"):
            read_by(llm, f"{name}:budget={least - 1}")
    for hidden in (False, True):
        pot, outcome = read_by(llm, f"{name}:budget={least}", hidden=hidden)
        assert outcome.slots == len(asked.before) + 3
        assert (pot.origin[:, :, : len(asked.before)] == -1).all()
        assert (pot.origin[:, :, len(asked.before) :] >= 0).all()


def test_expected_attention_looks_ahead_as_far_as_the_window_reaches(llm: InfiniPot) -> None:
    ends = []
    for text in (TEXT, TEXT * 5):
        pot, outcome = read_by(llm, "own:expected-attention", text)
        ends.append((pot.cache.pots[0].slots, len(prompt(llm).before) + outcome.context_tokens))
    (near, read), (far, read_far) = ends
    assert near == read + 512
    assert (far, far - read_far < 512) == (4096, True)


def test_the_clock_is_read_when_the_device_is_done(llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU still computes when Python goes on."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    read_by(llm, "streaming")
    assert waited == [], "a CPU is waited for anyway"
    arms._wait_for(torch.device("cuda", 0))
    assert waited == [torch.device("cuda", 0)]
    order: list[str] = []
    clock = arms.time.perf_counter
    monkeypatch.setattr(arms, "_wait_for", lambda device: order.append("wait"))
    monkeypatch.setattr(arms.time, "perf_counter", lambda: (order.append("clock"), clock())[1])
    Examinee(llm).answer(parse_arm("full"), "Short.", prompt(llm), max_new_tokens=1)
    at = order.index("wait")
    assert "clock" in order[:at]
    assert order[at + 1] == "clock"


def test_the_middle_is_cut_out(llm: InfiniPot) -> None:
    text = llm.form.codec.document([Document.from_text(TEXT, name="x")])
    cut = cut_middle(text, 101)
    assert cut.ids.tolist() == [*text.ids[:50].tolist(), *text.ids[-51:].tolist()]
    assert cut_middle(text, len(text)) is text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("oracle", "no arm 'oracle': choose among infinipot, full"),
        ("own:infinipot", "no arm 'own:infinipot'"),
        ("own:full", "no arm"),
        ("infinipot:alpha=1", "has a setting 'alpha=1': give one of budget"),
        ("infinipot:kept=much", "give it a number"),
        ("infinipot:kept=2", "kept is 2.0: give a share"),
        ("infinipot:positions=odd", "has a setting 'positions=odd'"),
        ("full:positions=kept", "is for policies inside the loop"),
        ("infinipot:catalyst_reduce=mean", "give 'sum' or 'max'"),
        ("infinipot:catalysts=Who?|", "catalysts holds an empty question"),
        ("streaming:neighbours=3", "has no use for neighbours: leave it out"),
        ("snapkv:catalysts=Who?", "has no use for catalysts"),
        ("infinipot:novelty_share=1:agreement=0:catalyst_reduce=max", "has no use for catalyst_reduce"),
        ("own:keydiff:kept=0.9", "has no use for kept"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(BudgetError, match=sentence):
        parse_arm(name)


def test_a_context_beyond_the_window_is_refused_where_all_of_it_is_needed(llm: InfiniPot) -> None:
    long = TEXT * 7
    for name in ("full", "own:snapkv"):
        with pytest.raises(BudgetError, match="trained on 4096: choose a shorter context"):
            Examinee(llm).answer(parse_arm(name), long, prompt(llm), max_new_tokens=8)
    none = InfiniPot(llm.adapter, llm.form.codec, replace(llm.config, shelf="off"))
    with pytest.raises(BudgetError, match="shelf"):
        Examinee(none).answer(parse_arm("recall"), TEXT, prompt(llm), max_new_tokens=8)
