"""Answers held to a JSON schema: a random model babbles, so JSON that fits proves the constraint."""

from __future__ import annotations

import gc
import json
import re
import sys
import threading
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import torch
from conftest import byte_tokenizer, fetched_model, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from scripted import dictated
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from infinipot_llm.answering import constrain
from infinipot_llm.answering.constrain import json_schema
from infinipot_llm.answering.decode import Decoded, Sampling, decode, end_ids
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import QuestionError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader

pytest.importorskip("llguidance")

Model = tuple[Adapter, TextCodec, Pot]
ROOM = 400


def merged_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges, as the catalogue's models have: tokens such as `"},` cross JSON's borders."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    lines = [
        '{"name": "Ann", "tags": ["a", "b"], "n": {"x": 12, "y": null}}',
        '[{"a": true}, {"b": -1.5}]',
        "東京 élan",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    core.train_from_iterator(lines * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.add_tokens(["<tool_call>", '": "'])  # not special, and one of them is what JSON is made of
    return tokenizer


def ready(adapter: Adapter, codec: TextCodec) -> Model:
    text = codec.document([Document.from_text("The mill burned in 1903. " * 4)])
    pot, _ = Reader(adapter, PotConfig(budget=ROOM + 260)).read(
        text, [1, 2], [codec.untrusted("? ")], reserve=ROOM + 60
    )
    return adapter, codec, pot


@pytest.fixture(scope="module")
def babbler() -> Iterator[Model]:
    """One token per byte; the model's logits are wider than the tokenizer."""
    adapter = Adapter(tiny_model("llama", num_hidden_layers=1))
    yield ready(adapter, TextCodec(byte_tokenizer()))
    adapter.close()


@pytest.fixture(scope="module")
def other() -> Iterator[Model]:
    """Another family with another tokenizer, and two tokens that end an answer."""
    codec = TextCodec(merged_tokenizer())
    model = tiny_model("qwen2", seed=3, num_hidden_layers=1, vocab_size=448)
    model.generation_config.eos_token_id = [codec.tokenizer.eos_token_id, codec.tokenizer.pad_token_id]
    adapter = Adapter(model)
    yield ready(adapter, codec)
    adapter.close()


def say(
    model: Model, schema: dict[str, Any] | None, question: str = "? ", limit: int = ROOM, **options: Any
) -> Decoded:
    adapter, codec, pot = model
    own = [] if schema is None else [json_schema(codec, schema, end_ids(adapter, codec))]
    return decode(
        adapter,
        codec,
        pot,
        codec.untrusted(question),
        Sampling(max_new_tokens=limit, **{"temperature": 1.0, "seed": 0, **options}),
        processors=own,
    )


def check(said: Decoded, schema: dict[str, Any]) -> Any:
    """What ended by itself is JSON of the schema, written in one way, on one line."""
    assert said.finish_reason == "stop"
    value = json.loads(said.text)
    jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
    # Outside of strings and numbers, whose spelling is free, there is one way to write it.
    atom = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][-+.eE0-9]*')
    assert atom.sub("#", said.text) == atom.sub("#", json.dumps(value))
    return value


class Address(BaseModel):
    street: str = Field(max_length=8)
    number: int = Field(ge=1, le=99)


class Person(BaseModel):
    """As LangChain would hand it over."""

    name: str = Field(max_length=6)
    role: Literal["miller", "漁師", "clerk"]
    address: Address
    second: Address | None = None
    tags: list[Literal["a", "b"]] = Field(min_length=1, max_length=3)


class Tree(BaseModel):
    leaf: bool
    left: Tree | None = None


def string(most: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": most}


SCHEMAS: dict[str, dict[str, Any]] = {
    "pydantic": Person.model_json_schema(),
    "recursive": Tree.model_json_schema(),
    "nested": {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": string(3)}, "required": ["b"]}, "c": string(4)},
        "required": ["a", "c"],
    },
    "optional": {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}},
    "enum": {"enum": ["red", 7, None, "東京", "<tool_call>", [1, "x"]]},
    "bounds": {
        "type": "array",
        "items": {"type": "integer", "minimum": -3, "maximum": 12},
        "minItems": 2,
        "maxItems": 4,
    },
    "unicode": {
        "type": "array",
        "items": {"type": "string", "minLength": 3, "maxLength": 9},
        "minItems": 3,
        "maxItems": 3,
    },
    "numbers": {"type": "array", "items": {"type": "number", "minimum": 0.5, "maximum": 2.25}, "maxItems": 2},
    "anyOf": {"anyOf": [string(5), {"type": "boolean"}, {"type": "object", "properties": {"k": {"const": 1}}}]},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 2},
    "allOf": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"], "maxProperties": 2},
        ]
    },
    "date": {"type": "string", "format": "date"},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_babbling_model_says_json_of_the_schema(babbler: Model, other: Model, name: str) -> None:
    ended = 0
    for model in (babbler, other):
        for seed, temperature in ((0, 0.0), (1, 1.0), (2, 1.0), (3, 2.0)):
            said = say(model, SCHEMAS[name], seed=seed, temperature=temperature)
            if said.finish_reason == "stop":
                check(said, SCHEMAS[name])
                ended += 1
    assert ended >= 4


def test_without_the_constraint_the_same_models_say_no_json(babbler: Model, other: Model) -> None:
    for model in (babbler, other):
        for seed in range(4):
            with pytest.raises(ValueError, match=r"Expecting|Extra data|Unterminated"):
                json.loads(say(model, None, seed=seed, limit=60).text)


def test_an_answer_that_does_not_fit_is_cut_off_and_says_so(babbler: Model) -> None:
    said = say(babbler, SCHEMAS["pydantic"], limit=9)
    assert (said.finish_reason, len(said.ids)) == ("length", 9)
    assert said.text == '{"name":'


def test_the_same_seed_says_the_same_and_another_one_something_else(babbler: Model) -> None:
    texts = [say(babbler, SCHEMAS["unicode"], seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_nucleus_smaller_than_what_is_allowed(babbler: Model) -> None:
    """The constraint comes before the nucleus: after it, nothing might be left."""
    check(say(babbler, SCHEMAS["bounds"], top_p=0.01), SCHEMAS["bounds"])


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


def test_no_properties_but_those_of_the_schema_unless_it_says_so(babbler: Model) -> None:
    named = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
    assert {say(babbler, named, seed=seed).text for seed in range(3)} == {'{"a": null}'}
    nested = {"anyOf": [{"$ref": "#/$defs/n"}, named], "$defs": {"n": named}}
    assert {say(babbler, nested, seed=seed).text for seed in range(3)} == {'{"a": null}'}
    more = {**named, "additionalProperties": {"type": "null"}, "maxProperties": 2}
    assert len({say(babbler, more, seed=seed, limit=60).text for seed in range(3)}) > 1


CLOSED = {"type": "object", "properties": {"a": {}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [CLOSED, {"type": "object", "properties": {"b": {}}}]},
        {"$ref": "#/$defs/x", "required": ["z"], "$defs": {"x": CLOSED}},
        {"anyOf": [CLOSED], "properties": {"b": {}}},
        {**CLOSED, "required": ["z"]},
        {**CLOSED, "additionalProperties": True},
        {**CLOSED, "patternProperties": {"^b": {}}},
        {**CLOSED, "minProperties": 2},
        {"default": CLOSED, "enum": [CLOSED]},
        {"type": "object", "properties": {}, "additionalProperties": {"type": "null"}},
    ],
)
def test_what_must_stay_open_stays_open(schema: dict[str, Any]) -> None:
    before = json.dumps(schema)
    assert constrain._closed(schema) == schema
    assert json.dumps(schema) == before


def test_a_discriminated_union(babbler: Model) -> None:
    class Cat(BaseModel):
        kind: Literal["cat"]
        lives: int = Field(ge=1, le=9)

    class Dog(BaseModel):
        kind: Literal["dog"]

    class Pet(BaseModel):
        pet: Annotated[Cat | Dog, Field(discriminator="kind")]

    schema = Pet.model_json_schema()
    assert "oneOf" in schema["properties"]["pet"]
    kinds = {Pet.model_validate(check(say(babbler, schema, seed=seed), schema)).pet.kind for seed in range(6)}
    assert kinds == {"cat", "dog"}


names = st.text('ab é"\\', min_size=1, max_size=4)
leaves = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}, {"const": "<|im_end|>"}]),
    st.tuples(st.integers(-50, 50), st.integers(0, 60)).map(
        lambda p: {"type": "integer", "minimum": p[0], "maximum": p[0] + p[1]}
    ),
    st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
        lambda p: {"type": "string", "minLength": p[0], "maxLength": p[0] + p[1]}
    ),
    st.lists(st.one_of(names, st.integers(-9, 9), st.none()), min_size=1, max_size=3).map(lambda v: {"enum": v}),
)


def grown(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    objects = st.dictionaries(names, inner, max_size=3).flatmap(
        lambda named: st.sets(st.sampled_from(sorted(named)) if named else st.nothing()).map(
            lambda needed: {"type": "object", "properties": named, "required": sorted(needed)}
        )
    )
    arrays = st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[1] + t[2]}
    )
    return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each}))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=st.recursive(leaves, grown, max_leaves=6), seed=st.integers(0, 99))
def test_any_small_schema(babbler: Model, other: Model, schema: dict[str, Any], seed: int) -> None:
    for model in (babbler, other):
        said = say(model, schema, seed=seed)
        if said.finish_reason == "stop":
            check(said, schema)
        else:
            assert (said.finish_reason, len(said.ids)) == ("length", ROOM)


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
    held = len(constrain._tables)
    del first, second, threads, thread
    gc.collect()
    assert len(constrain._tables) == held - 2


def test_threads_with_a_schema_each(babbler: Model) -> None:
    said: dict[int, Decoded] = {}

    def ask(number: int) -> None:
        said[number] = say(babbler, {"const": f"no. {number}"}, seed=None)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: json.loads(one.text) for number, one in said.items()} == {n: f"no. {n}" for n in range(4)}


def test_a_prompt_that_looks_like_json_is_not_part_of_the_answer(babbler: Model) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert check(say(babbler, schema, question='{"a": 1}{"a": '), schema) == {"a": 1}


def test_scores_narrower_than_the_tokenizer(babbler: Model) -> None:
    _, codec, _ = babbler
    wide = json_schema(codec, {"type": "null"}, [256])(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 999))
    narrow = json_schema(codec, {"type": "null"}, [256])(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 200))
    assert wide[0].isfinite().nonzero().flatten().tolist() == codec.untrusted("n")
    assert torch.equal(wide[:, :200], narrow)


def test_a_constraint_is_for_one_answer(babbler: Model) -> None:
    _, codec, _ = babbler
    ids, scores = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 264)
    constraint = json_schema(codec, {"type": "null"}, [256])
    constraint(ids, scores)
    with pytest.raises(RuntimeError, match="one answer"):
        constraint(ids, scores)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "not": {"const": "x"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "colour"}, "colour"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
        ({"type": "frob"}, "frob"),
        ({"enum": {1, 2}}, "not JSON"),
        ("string", "str"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_a_sentence(codec: TextCodec, schema: Any, named: str) -> None:
    with pytest.raises(QuestionError, match=re.escape(named)) as caught:
        json_schema(codec, schema, [256])
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_way_that_ends_nowhere_is_an_error_and_not_an_answer(babbler: Model) -> None:
    """The library would end the answer there; and the error does not tell what was answered."""
    schema = {
        "type": "array",
        "prefixItems": [{"const": "ab"}, {"type": "string", "pattern": r"^\x01$"}],
        "minItems": 2,
    }
    with pytest.raises(QuestionError, match="to its end") as caught:
        say(babbler, schema)
    assert "ab" not in str(caught.value)
    pot = babbler[2]
    assert pot.cache.length == pot.length  # as it was


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


def test_options_of_the_library_cannot_be_smuggled_in(babbler: Model) -> None:
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}
    assert say(babbler, {**schema, "x-guidance": {"whitespace_pattern": "[ ]{5}"}}).text == "[1, 1]"


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


@pytest.mark.weights
def test_a_real_model_fills_in_what_the_text_says() -> None:
    class Bridge(BaseModel):
        name: str
        year: int

    schema = Bridge.model_json_schema()
    with InfiniPot.from_pretrained(fetched_model("qwen2.5-coder-0.5b"), budget=512, device="cpu") as llm:
        document = Document.from_text(
            "The ferry was given up when the Colmere Bridge was opened, in the spring of 1887."
        )
        memory = llm.read(document)
        codec, adapter = llm.form.codec, llm.adapter
        said = decode(
            adapter,
            codec,
            memory.pot,
            llm.form.question("Which bridge was opened, and in which year? Answer as JSON with name and year."),
            Sampling(max_new_tokens=60),
            processors=[json_schema(codec, schema, end_ids(adapter, codec))],
        )
    found = Bridge.model_validate(check(said, schema))
    assert "Colmere" in found.name
    assert found.year == 1887
