"""Structured output: answers held to a JSON schema while they are decoded, and parsed into what was asked for.

A JSON text can still be cut off by max_tokens. LangChain's parsers mend such a text silently; ours says so instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

if TYPE_CHECKING:
    from langchain_infinipot.chat_models import ChatInfiniPot

_NESTED = ("schema", "input_schema", "json_schema")
"""Where requests to hosted models have their schema."""

_KEYWORDS = {"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "items", "prefixItems"}
"""Of a JSON schema; one without any of them lets everything pass."""

_WANTED = "give a Pydantic class, a TypedDict, a JSON schema, or an OpenAI function."

METHODS = ("json_schema", "function_calling", "json_mode")


class _WholeJson(JsonOutputParser):
    """JSON that was not cut off."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _refuse_cut(result)
        return super().parse_result(result, partial=partial)


class _WholeObject(PydanticOutputParser[Any]):
    """An object of JSON that was not cut off."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _refuse_cut(result)
        return super().parse_result(result, partial=partial)


def structured(
    llm: ChatInfiniPot,
    schema: dict[str, Any] | type,
    *,
    include_raw: bool,
    method: str,
    strict: bool | None,
    **call: Any,
) -> Runnable[Any, Any]:
    """Return the runnable of ChatInfiniPot.with_structured_output."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: give one of {', '.join(METHODS)}.")
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    kind: Any = schema  # of version 1 or 2
    parser: Any = _WholeObject(pydantic_object=kind) if is_class else _WholeJson()
    llm.options(**call)  # an unknown keyword is refused here and not at the first question
    asked = llm.bind(
        json_schema=json_schema(schema),
        ls_structured_output_format={"kwargs": {"method": method, "strict": strict}, "schema": schema},
        **call,
    )
    if not include_raw:
        return asked | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=asked) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def json_schema(schema: dict[str, Any] | type) -> dict[str, Any]:
    """Return the JSON schema of what LangChain takes for a schema.

    Args:
        schema: A Pydantic class of version 1 or 2, a TypedDict, a JSON schema (or what holds one in "schema", as
            requests to hosted models do), or an OpenAI function or tool.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return dict(schema.model_json_schema() if issubclass(schema, BaseModel) else schema.schema())  # type: ignore[attr-defined]
    if isinstance(schema, Mapping) and not {"function", "parameters"} & set(schema):
        own = schema
        while nested := [own[name] for name in _NESTED if isinstance(own.get(name), Mapping)]:
            own = nested[0]
        if not _KEYWORDS & set(own):
            raise ValueError(f"the schema {str(dict(schema))[:100]!r} says nothing of what is wanted: {_WANTED}")
        return dict(own)
    try:
        return convert_to_json_schema(schema)
    except Exception as error:  # it takes whatever it was given apart
        raise ValueError(f"the schema is none: {_WANTED}") from error


def _refuse_cut(result: list[Generation]) -> None:
    """Refuse an answer that did not end by itself: what there is of it may parse, and would be half of the truth."""
    said = result[0]
    ended = said.message.response_metadata.get("finish_reason") if isinstance(said, ChatGeneration) else None
    if ended in ("length", "cancelled"):
        raise OutputParserException(
            "the answer was cut off before its JSON was complete: raise max_tokens, or ask for less.",
            llm_output=said.text,
        )
