"""Answers that are JSON of a given schema: before every token, what would break the schema is ruled out.

The grammar is llguidance's (the extra `structured`); this file fits it to a `TextCodec` and to `decode`. Measured, with
the libraries that were not taken: docs/structured.md.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from infinipot_llm.answering.decode import LogitsProcessor
from infinipot_llm.errors import QuestionError
from infinipot_llm.models.text import TextCodec

# One way to write a value, the one of `json.dumps`, which models have read most: no choice, so no endless blanks.
_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,
    "lenient": False,
}
# The library allows \u for control characters alone: a model that begins \u6771 would be led into one, so it has to
# write 東. Only where the schema itself has control characters, which the library would otherwise leave out, they stay.
_ESCAPES = 'nrbtf\\"'
_CONTROL = re.compile(r"\\u00|\x7f")

_REFERRING = {"$ref", "anyOf", "oneOf", "allOf"}
_BESIDE = {"title", "description", "default", "examples", "deprecated", "discriminator", "type", "$defs", "definitions"}
_BESIDE |= {"$schema", "$id", "$comment"}

_tables: WeakKeyDictionary[TextCodec, dict[tuple[int, ...], Any]] = WeakKeyDictionary()
_building = threading.Lock()


def json_schema(codec: TextCodec, schema: dict[str, Any], ends: Sequence[int]) -> JsonConstraint:
    """Make the constraint of one answer.

    Objects that name their properties get no others, unless the schema speaks of others (`additionalProperties`):
    a small model does not find an end. Properties come in the order of the schema.

    Args:
        codec: The model's tokenizer; its tables (about a second for 150,000 tokens) are kept as long as it lives.
        schema: JSON schema, as pydantic's `model_json_schema` gives it.
        ends: Tokens that end an answer, as `decode.end_ids` gives them.

    Raises:
        QuestionError: llguidance is not installed, or does not support something that the schema or tokenizer has.
    """
    try:
        import llguidance
    except ImportError:
        raise QuestionError('JSON of a schema needs llguidance: pip install "infinipot-llm[structured]"') from None
    if not isinstance(schema, dict):
        raise QuestionError(f"the schema is a {type(schema).__name__}: give a JSON schema as a dictionary.")
    if not ends:
        raise QuestionError("this model names no token that ends an answer, which JSON needs: choose another model.")
    schema = {key: value for key, value in schema.items() if key != "x-guidance"}  # the library's options are ours
    table = _table(codec, tuple(sorted({int(end) for end in ends if end < len(codec.tokenizer)})))
    matcher = _matcher(llguidance, table, schema)  # what was given decides what is supported
    closed = _closed(schema)
    if closed != schema:
        matcher = _matcher(llguidance, table, closed)
    return JsonConstraint(matcher, table.eos_tokens)


class JsonConstraint(LogitsProcessor):
    """Rules out, before each token of one answer, all tokens that lead to no JSON of the schema.

    Once the JSON is complete, only the tokens that end an answer are left.
    """

    def __init__(self, matcher: Any, ends: Sequence[int]) -> None:
        """Take an `LLMatcher` at its start, and the tokens that end an answer."""
        self._matcher = matcher
        self._ends = list(ends)
        self._length: int | None = None  # of prompt and answer when asked last; the first question shows the prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [1, V] with -inf for what is ruled out, given prompt and answer so far [1, Q + n].

        Raises:
            QuestionError: The schema is too complicated for the library's limits.
            RuntimeError: The constraint was used for a second answer.
        """
        length = input_ids.shape[1]
        if self._length is not None:
            if input_ids.shape[0] != 1 or length != self._length + 1:
                raise RuntimeError("a constraint follows one answer, token by token: make one for each answer")
            self._matcher.consume_token(int(input_ids[0, -1]))
        self._length = length
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        # The model's logits may be wider than the tokenizer (padding) or narrower (tokens it never learned).
        allowed = np.zeros(max(scores.shape[-1], 8 * len(bits)), dtype=bool)
        allowed[: 8 * len(bits)] = np.unpackbits(bits, bitorder="little")
        if not self._matcher.is_accepting():
            allowed[self._ends] = False  # the library's way out where nothing leads on: an answer cut off, as if whole
        allowed = allowed[: scores.shape[-1]]
        if self._matcher.is_error() or not allowed.any():
            why = _complaint(self._matcher) or "no text leads on"
            raise QuestionError(f"the schema cannot be followed to its end ({why}): simplify it.")
        return scores.masked_fill(torch.from_numpy(~allowed).to(scores.device), -torch.inf)


def _table(codec: TextCodec, ends: tuple[int, ...]) -> Any:
    """Return the library's view of a tokenizer, built once; threads that need it meanwhile wait."""
    from llguidance import LLTokenizer

    with _building:
        known = _tables.setdefault(codec, {})
        if ends not in known:
            try:
                known[ends] = LLTokenizer(
                    _without_control_tokens(codec.tokenizer.backend_tokenizer.to_str()),
                    eos_token=list(ends),
                    slices=LLTokenizer.json_slices(),
                )
            except Exception as error:  # whatever is raised for a tokenizer that cannot be read
                raise QuestionError(
                    f"this model's tokenizer cannot be held to a schema ({error}): choose another model."
                ) from error
        return known[ends]


def _without_control_tokens(tokenizer: str) -> str:
    """Return a tokenizer.json whose added tokens spell nothing that JSON can hold; all ids stay as they are.

    Where only one text can follow, the library asks for the tokens that this text becomes. An enum with "<|im_end|>" in
    it would thereby end the answer inside a string.
    """
    file = json.loads(tokenizer)
    file["padding"] = file["truncation"] = None  # of the last batch that somebody tokenised
    names = {}
    for token in file["added_tokens"]:
        names[token["content"]] = token["content"] = f"\0{token['id']}"
        token["special"] = True
    model = file["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): place for text, place in model["vocab"].items()}
    else:  # Unigram: text and score
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    return json.dumps(file)


def _matcher(llguidance: Any, table: Any, schema: dict[str, Any]) -> Any:
    """Compile a schema.

    Raises:
        QuestionError: The library does not support something in it, or nothing can satisfy it.
    """
    try:
        text = json.dumps(schema, ensure_ascii=False)
        options = {**_OPTIONS, "json_allowed_escapes": _ESCAPES + "u" * bool(_CONTROL.search(text))}
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=options)
    except (TypeError, ValueError) as error:
        raise QuestionError(f"the schema is not JSON ({error}): give plain dictionaries, lists and values.") from error
    matcher = llguidance.LLMatcher(table, grammar, log_level=0)
    if matcher.is_error():
        raise QuestionError(f"the schema cannot be followed ({_complaint(matcher)}): rewrite it without that.")
    return matcher


def _complaint(matcher: Any) -> str:
    """Return what the library says is wrong, in one line, without the answer so far, which is not for logs."""
    return " ".join(str(matcher.get_error()).split("<state>")[0].split())[:300]


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with `additionalProperties: false` wherever an object names properties and leaves it open.

    Left as it is where schemas are intersected: each of two closed objects forbids what the other one names.
    """
    copy: dict[str, Any] = json.loads(json.dumps(schema))
    nodes = list(_subschemas(copy))
    for node in nodes:
        referring = _REFERRING & set(node)
        intersected = len(referring) > 1 or set(node) - referring - _BESIDE
        if referring and (intersected or len(node.get("allOf", [])) > 1):
            return schema
    for node in nodes:
        named = node.get("properties")
        if (
            isinstance(named, dict)
            and "patternProperties" not in node
            and set(node.get("required", ())) <= set(named)
            and node.get("minProperties", 0) <= len(named)
        ):
            node.setdefault("additionalProperties", False)
    return copy


def _subschemas(node: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas in it; values such as `default` and `enum` are not searched."""
    if not isinstance(node, dict):
        return
    yield node
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        inner = node.get(key)
        for one in inner.values() if isinstance(inner, dict) else ():
            yield from _subschemas(one)
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        inner = node.get(key)
        for one in inner if isinstance(inner, list) else ():
            yield from _subschemas(one)
    for key in ("items", "additionalProperties"):
        yield from _subschemas(node.get(key))
