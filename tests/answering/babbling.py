"""A random model that babbles, asked through a JSON schema: for tests of constrained answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import pytest
from conftest import byte_tokenizer, tiny_model
from pydantic import BaseModel, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from infinipot_llm.answering.constrain import json_schema
from infinipot_llm.answering.decode import Decoded, Sampling, decode, end_ids
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader

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
