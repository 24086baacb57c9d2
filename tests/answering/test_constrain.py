"""Answers held to a JSON schema: a random model babbles, so JSON that fits proves the constraint."""

from __future__ import annotations

import json
import re
import threading
from typing import Annotated, Any, Literal

import pytest
import torch
from babbling import ROOM, SCHEMAS, Model, check, say
from babbling import babbler as babbler
from babbling import other as other
from conftest import fetched_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from infinipot_llm.answering import constrain
from infinipot_llm.answering.constrain import json_schema
from infinipot_llm.answering.decode import Decoded, Sampling, decode, end_ids
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import QuestionError
from infinipot_llm.models.text import TextCodec

pytest.importorskip("llguidance")


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


def test_options_of_the_library_cannot_be_smuggled_in(babbler: Model) -> None:
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}
    assert say(babbler, {**schema, "x-guidance": {"whitespace_pattern": "[ ]{5}"}}).text == "[1, 1]"


@pytest.mark.weights
def test_a_real_model_fills_in_what_the_text_says() -> None:
    class Bridge(BaseModel):
        name: str
        year: int

    schema = Bridge.model_json_schema()
    name = fetched_model("qwen2.5-coder-0.5b")
    with InfiniPot.from_pretrained(name, budget=512, device="cpu", dtype="float32") as llm:
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
