"""Answers held to a JSON schema, token by token: ends, marks of the chat, control characters, tokenizers."""

from __future__ import annotations

import gc
import re
import sys
import threading

import pytest
import torch
from babbling import SCHEMAS, Model, check, merged_tokenizer, say
from babbling import babbler as babbler
from babbling import other as other
from conftest import byte_tokenizer
from scripted import dictated

from infinipot_llm.answering import constrain
from infinipot_llm.answering.constrain import json_schema
from infinipot_llm.answering.decode import end_ids
from infinipot_llm.errors import QuestionError
from infinipot_llm.models.text import TextCodec

pytest.importorskip("llguidance")


def test_the_model_ends_by_each_of_its_end_tokens_and_only_when_the_json_is_whole(other: Model) -> None:
    adapter, codec, _ = other
    ends = end_ids(adapter, codec)
    assert len(ends) == 2
    seen = set()
    for seed in range(12):
        said = say(other, {"type": "boolean"}, seed=seed, temperature=5.0)
        assert [i in ends for i in said.ids] == [False] * (len(said.ids) - 1) + [True]
        assert said.text in {"true", "false"}
        seen.add(said.ids[-1])
    assert seen == set(ends)


@pytest.mark.parametrize("mark", ["<tool_call>", "<|im_end|>", "<|im_start|>", "<|end|>", "<|pad|>", "<pad>"])
def test_marks_of_the_chat_are_only_text_inside(babbler: Model, other: Model, mark: str) -> None:
    """An enum leaves one way on, and the library would write it with the control token of that name."""
    for model in (babbler, other):
        schema = {"type": "object", "properties": {mark: {"const": f"a{mark}b"}}, "required": [mark]}
        said = say(model, schema)
        assert check(said, schema) == {mark: f"a{mark}b"}
        added = set(model[1].tokenizer.get_added_vocab().values())
        assert [i in added for i in said.ids] == [False] * (len(said.ids) - 1) + [True]


def test_a_model_that_insists_on_a_control_token_or_blanks_is_not_followed(babbler: Model) -> None:
    adapter, codec, _ = babbler
    schema = {"type": "array", "items": {"enum": ["x"]}, "minItems": 2, "maxItems": 2}
    for insisted in (*codec.tokenizer.get_added_vocab().values(), *codec.untrusted(" \n\t"), 261):
        with dictated(adapter, [], then=insisted):
            said = say(babbler, schema, temperature=0.0)
        assert (said.text, said.finish_reason) == ('["x", "x"]', "stop")


def test_tables_are_built_once_for_a_tokenizer_and_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    original = constrain._without_control_tokens
    monkeypatch.setattr(constrain, "_without_control_tokens", lambda text: built.append(1) or original(text))
    first, second = TextCodec(byte_tokenizer()), TextCodec(merged_tokenizer())
    threads = [threading.Thread(target=json_schema, args=(first, {}, [256])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json_schema(second, {}, [330])
    json_schema(first, SCHEMAS["date"], [256, 999_999])
    assert len(built) == 2
    json_schema(first, {}, [256, 257])
    assert len(built) == 3
    gc.collect()  # tokenizers of tests before
    held = len(constrain._tables)
    del first, second, threads, thread
    gc.collect()
    assert len(constrain._tables) == held - 2


def test_a_prompt_that_looks_like_json_is_not_part_of_the_answer(babbler: Model) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert check(say(babbler, schema, question='{"a": 1}{"a": '), schema) == {"a": 1}


def test_scores_narrower_than_the_tokenizer(babbler: Model) -> None:
    _, codec, _ = babbler
    wide = json_schema(codec, {"type": "null"}, [256])(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 999))
    narrow = json_schema(codec, {"type": "null"}, [256])(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 200))
    assert wide[0].isfinite().nonzero().flatten().tolist() == codec.untrusted("n")
    assert torch.equal(wide[:, :200], narrow)


def test_control_characters_come_only_from_the_schema(babbler: Model) -> None:
    schema = {"type": "object", "properties": {"\x01": {"enum": ["a\x00b"]}}, "required": ["\x01"]}
    assert check(say(babbler, schema), schema) == {"\x01": "a\x00b"}
    codec = babbler[1]
    constraint = json_schema(codec, {"type": "string"}, [256])
    ids = [3]
    for letter in codec.untrusted('"\\'):
        constraint(torch.tensor([ids]), torch.zeros(1, 264))
        ids.append(letter)
    left = constraint(torch.tensor([ids]), torch.zeros(1, 264))[0].isfinite().nonzero().flatten().tolist()
    assert sorted(codec.decode(left)) == sorted('nrbtf\\"')


def test_without_the_library_a_sentence_names_the_extra(codec: TextCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(QuestionError, match=re.escape('pip install "infinipot-llm[structured]"')):
        json_schema(codec, {}, [256])


def test_a_model_without_an_end(codec: TextCodec) -> None:
    with pytest.raises(QuestionError, match="ends an answer"):
        json_schema(codec, {}, [])


def test_a_tokenizer_that_the_library_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrain, "_without_control_tokens", lambda text: "{}")
    with pytest.raises(QuestionError, match="choose another model"):
        json_schema(TextCodec(byte_tokenizer()), {}, [256])
