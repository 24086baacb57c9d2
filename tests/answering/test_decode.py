"""Decoding over a pot: where an answer ends, what is streamed, what is refused, and that nothing else has a say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted import dictated
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from infinipot_llm.answering import decode as decode_module
from infinipot_llm.answering.decode import Decoded, Sampling, cut_at_stop, decode
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.errors import QuestionError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader

CODEC = TextCodec(byte_tokenizer())
END = CODEC.tokenizer.eos_token_id
QUESTION = CODEC.untrusted("? ")
FILL = CODEC.untrusted("z")[0]


@pytest.fixture(scope="module")
def filled() -> Iterator[tuple[Adapter, Pot]]:
    adapter = Adapter(tiny_model("llama", num_hidden_layers=1))
    text = CODEC.document([Document.from_text("The mill burned in 1903 and was rebuilt. " * 8)])
    pot, stats = Reader(adapter, PotConfig(budget=160)).read(text, [1, 2], [QUESTION], reserve=80)
    assert stats.cycles > 0
    yield adapter, pot
    adapter.close()


def say(
    filled: tuple[Adapter, Pot], script: str | list[int], limit: int = 40, **options: Any
) -> tuple[Decoded, list[str]]:
    """Decode a dictated text; the answer and the pieces that were streamed."""
    adapter, pot = filled
    ids = CODEC.untrusted(script) if isinstance(script, str) else script
    pieces: list[str] = []
    sampling = Sampling(max_new_tokens=limit, stop=tuple(options.pop("stop", ())), **options)
    with dictated(adapter, ids, then=FILL):
        said = decode(adapter, CODEC, pot, QUESTION, sampling, on_text=pieces.append)
    assert pot.cache.length == pot.length
    return said, pieces


def test_an_answer_ends_at_the_end_token(filled: tuple[Adapter, Pot]) -> None:
    for end in {END, filled[0].model.generation_config.eos_token_id}:
        said, pieces = say(filled, [*CODEC.untrusted(" It was 1903. "), end])
        assert said == Decoded((*CODEC.untrusted(" It was 1903. "), end), "It was 1903.", "stop")
        assert "".join(pieces) == " It was 1903. "


def sentencepiece_like() -> TextCodec:
    """A tokenizer as Llama 2 has: its decoder takes a blank away from the beginning of whatever it is given."""
    vocabulary = {"<unk>": 0, "</s>": 1, "▁": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(parts)
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>"))


@pytest.mark.parametrize("text", ["def f():\n    return 1\n\n  - a b", "東京は 日本", " one", "한\n 국 어", "x\n\n y "])
@pytest.mark.parametrize("stop", [(), ("return",)])
def test_pieces_are_the_answer_whatever_the_tokenizer_does_to_beginnings(text: str, stop: tuple[str, ...]) -> None:
    """Decoded line by line, as transformers streams, every line lost a blank of its indentation."""
    codec = sentencepiece_like()
    ids, pieces = codec.untrusted(text), list[str]()
    feed = decode_module._Feed(codec, pieces.append, stop)
    feed.put(torch.tensor([codec.untrusted("question")]))
    for token in ids:
        feed.put(torch.tensor([token]))
        assert codec.decode(ids).startswith("".join(pieces))
    feed.end()
    assert "".join(pieces) == cut_at_stop(codec.decode(ids), stop)[0]
    assert all("\ufffd" not in piece for piece in pieces)


def test_an_answer_ends_at_its_limit(filled: tuple[Adapter, Pot]) -> None:
    said, pieces = say(filled, "It was 1903.", limit=6)
    assert said == Decoded(tuple(CODEC.untrusted("It was")), "It was", "length")
    assert "".join(pieces) == "It was"


def test_an_end_token_at_the_limit_is_a_stop(filled: tuple[Adapter, Pot]) -> None:
    assert say(filled, [*CODEC.untrusted("It"), END], limit=3)[0].finish_reason == "stop"


def test_a_stop_string_ends_the_answer_at_once_and_is_no_part_of_it(filled: tuple[Adapter, Pot]) -> None:
    said, pieces = say(filled, "one two STOP three", stop=["STOP"])
    assert (said.text, said.finish_reason) == ("one two", "stop")
    assert "".join(pieces) == "one two "
    assert len(said.ids) == len("one two STOP")


def test_a_stop_string_outside_ascii(filled: tuple[Adapter, Pot]) -> None:
    """Its characters are several tokens each."""
    said, pieces = say(filled, "東京。京都", stop=["。"], limit=30)
    assert (said.text, said.finish_reason) == ("東京", "stop")
    assert "".join(pieces) == "東京"


def test_a_stop_string_is_looked_for_in_the_answer_only(filled: tuple[Adapter, Pot]) -> None:
    """The prompt ends with a blank or a line break: together with the answer's first token it may look like one."""
    said, pieces = say(filled, [*CODEC.untrusted("aha, yes"), END], stop=[" a"])
    assert (said.text, said.finish_reason) == ("aha, yes", "stop")
    assert "".join(pieces) == "aha, yes"


def simulated(text: str, stop: tuple[str, ...], limit: int) -> tuple[str, str]:
    """The answer that a letter-by-letter reading gives, and why it ends (ASCII stop strings)."""
    text = text[:limit]
    for end in range(1, len(text) + 1):
        if any(s in text[:end] for s in stop):
            return text[: min(text[:end].find(s) for s in stop if s in text[:end])], "stop"
    return text, "length"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    text=st.text("ab \n", min_size=1, max_size=16),
    stop=st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=3),
)
@example(text="ab ab abab b", stop=["abab"])
@example(text="aab aaab", stop=["aaab"])
@example(text="a b\na b\n\n", stop=["\n\n"])
@example(text="abb ba", stop=["abba", "bb "])
@example(text="ab ab ab", stop=["b a"])
@example(text="b a b aa", stop=["b a b b", "a b aa"])
def test_streaming_and_stopping_as_read_letter_by_letter(
    filled: tuple[Adapter, Pot], text: str, stop: list[str]
) -> None:
    # A stop string with a blank in front may begin in the question: see the test above.
    stops = tuple(s for s in stop if s[0] != " " and s.strip("\n "))
    said, pieces = say(filled, text, limit=len(text), stop=stops)
    expected, reason = simulated(text, stops, len(text))
    assert (said.text, said.finish_reason) == (expected.strip(), reason)
    assert "".join(pieces) == expected
    assert all(pieces)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("aé東 \n😀."), min_size=1, max_size=8), cut=st.integers(0, 3))
def test_streamed_pieces_are_the_answer_in_any_script(filled: tuple[Adapter, Pot], text: str, cut: int) -> None:
    limit = max(1, len(CODEC.untrusted(text)) - cut)  # may end within a character
    said, pieces = say(filled, text, limit=limit, stop=["."])
    assert "".join(pieces).strip() == said.text
    assert said.text == CODEC.decode(CODEC.untrusted(text)[:limit]).split(".")[0].strip()


def test_text_comes_while_it_is_decoded_not_at_the_end(filled: tuple[Adapter, Pot]) -> None:
    adapter, pot = filled
    seen: list[tuple[int, str]] = []
    with dictated(adapter, CODEC.untrusted("one two three"), then=END) as script:
        decode(adapter, CODEC, pot, QUESTION, Sampling(20), on_text=lambda t: seen.append((script.steps, t)))
    assert seen == [(4, "one "), (8, "two "), (14, "three")]


def test_cut_at_stop() -> None:
    assert cut_at_stop("abc", []) == ("abc", False)
    assert cut_at_stop("abcb", ["x", "b"]) == ("a", True)
    assert cut_at_stop("abc", ["bc", "ab"]) == ("", True)
    assert cut_at_stop("abc", [""]) == ("abc", False)


def test_cancelled(filled: tuple[Adapter, Pot]) -> None:
    adapter, pot = filled
    before = pot.state()
    with dictated(adapter, CODEC.untrusted("one two three four")) as script:
        said = decode(
            adapter, CODEC, pot, QUESTION, Sampling(40), on_text=lambda _: None, cancelled=lambda: script.steps >= 5
        )
        assert script.steps == 5
    assert (said.text, said.finish_reason) == ("one t", "cancelled")
    after = pot.state()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_answer_that_ended_by_itself_was_not_cancelled(filled: tuple[Adapter, Pot]) -> None:
    """Someone who leaves after the last token has cancelled nothing."""
    adapter, pot = filled
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4  # true only when asked once more than there are tokens

    with dictated(adapter, CODEC.untrusted("four")):
        said = decode(adapter, CODEC, pot, QUESTION, Sampling(4), cancelled=cancelled)
    assert said.finish_reason == "length"


def test_a_question_without_room_is_refused_before_anything_runs(filled: tuple[Adapter, Pot]) -> None:
    adapter, pot = filled
    before = pot.state()
    runs: list[int] = []
    handle = adapter.backbone.register_forward_hook(lambda *_: runs.append(1))
    free = pot.budget - pot.length
    try:
        for question, limit in ((QUESTION, free - len(QUESTION) + 1), (QUESTION * free, 1), (QUESTION, 10**9)):
            with pytest.raises(QuestionError, match=rf"question \({len(question)} tokens\).*\({limit}\).*{free} free"):
                decode(adapter, CODEC, pot, question, Sampling(limit))
    finally:
        handle.remove()
    assert not runs
    assert all(torch.equal(before[name], value) for name, value in pot.state().items())


def test_the_last_free_slot_can_be_used(filled: tuple[Adapter, Pot]) -> None:
    adapter, pot = filled
    limit = pot.budget - pot.length - len(QUESTION)
    with dictated(adapter, [], then=FILL):
        said = decode(adapter, CODEC, pot, QUESTION, Sampling(limit))
    assert len(said.ids) == limit


DEFAULTS: list[dict[str, Any]] = [
    {"do_sample": True, "temperature": 0.1, "repetition_penalty": 5.0},
    {"do_sample": True, "top_k": 1, "top_p": 0.01, "min_p": 0.9},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 20},
    {"max_length": 3},
    {"max_new_tokens": 3},
    {"suppress_tokens": list(range(0, 256, 2))},
    {"forced_eos_token_id": 5},
    {"max_time": 0.0},
    {"num_beams": 3},
    {"guidance_scale": 3.0},
    {"use_cache": False},
    {"return_dict_in_generate": True},
    {"stop_strings": ["a", "e"]},
]


@pytest.mark.parametrize("defaults", DEFAULTS, ids=lambda d: "-".join(d))
def test_a_models_own_sampling_defaults_have_no_say(filled: tuple[Adapter, Pot], defaults: dict[str, Any]) -> None:
    adapter, pot = filled
    own = adapter.model.generation_config
    question = CODEC.untrusted("What happened in 1903? ")
    expected = decode(adapter, CODEC, pot, question, Sampling(16))
    before = {name: getattr(own, name, None) for name in defaults}
    try:
        for name, value in defaults.items():
            setattr(own, name, value)
        assert decode(adapter, CODEC, pot, question, Sampling(16)) == expected
    finally:
        for name, value in before.items():
            setattr(own, name, value)


def test_an_end_token_of_the_models_own_settings_ends_an_answer(filled: tuple[Adapter, Pot]) -> None:
    own = filled[0].model.generation_config
    before = own.eos_token_id
    try:
        for listed in (None, [7, 9], 9):
            own.eos_token_id = listed
            assert say(filled, [*CODEC.untrusted("ab"), END])[0].finish_reason == "stop"
            said, pieces = say(filled, [*CODEC.untrusted("ab"), 9, *CODEC.untrusted("cd")], limit=5)
            assert said.finish_reason == ("stop" if listed else "length")
            assert ("cd" in "".join(pieces)) is not bool(listed)  # nothing behind the end is decoded and streamed
    finally:
        own.eos_token_id = before


def test_sampling_depends_on_the_seed_alone(filled: tuple[Adapter, Pot]) -> None:
    adapter, pot = filled

    def sample(seed: int) -> tuple[int, ...]:
        return decode(adapter, CODEC, pot, QUESTION, Sampling(20, temperature=1.5, seed=seed)).ids

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_a_narrow_nucleus_is_greedy(filled: tuple[Adapter, Pot]) -> None:
    adapter, pot = filled
    greedy = decode(adapter, CODEC, pot, QUESTION, Sampling(16))
    assert decode(adapter, CODEC, pot, QUESTION, Sampling(16, temperature=2.0, top_p=1e-6, seed=1)) == greedy


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"max_new_tokens": "a"}, "whole number"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": None}, "top_p is None"),
        ({"stop": (3,)}, "no text"),
        ({"seed": "x"}, "seed is 'x'"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_a_sentence(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(QuestionError, match=words):
        Sampling(**setting)
