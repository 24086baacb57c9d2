"""ChatInfiniPot with a schema: structured output, agents, and tools that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.exceptions import LangChainException, OutputParserException
from langchain_infinipot import ChatInfiniPot
from lc_fakes import QUESTION, FakeAssistant, Sure, chat
from pydantic import BaseModel

from infinipot_llm.assistant import Assistant
from infinipot_llm.engine import InfiniPot


@pytest.mark.parametrize("wanted", [Sure, ProviderStrategy(Sure), ProviderStrategy(Sure, strict=True)])
def test_an_agent_gets_its_response_format_by_constrained_decoding(wanted: Any, tiny_llm: InfiniPot) -> None:
    pytest.importorskip("llguidance")
    llm = ChatInfiniPot(model="tiny", assistant=Assistant(tiny_llm), max_tokens=40, citations=False)
    done = create_agent(llm, tools=[], response_format=wanted).invoke({"messages": [("user", "Is it?")]})
    assert isinstance(done["structured_response"], Sure)


class Place(BaseModel):
    """Where something is."""

    where: str


@pytest.mark.parametrize("schema", [Place, Place.model_json_schema()], ids=["class", "json"])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output_gives_the_schema_and_parses(schema: Any, method: Any) -> None:
    fake = FakeAssistant('{"where": "behind the door"}')
    said = chat(fake).with_structured_output(schema, method=method).invoke(QUESTION)
    assert said == (Place(where="behind the door") if schema is Place else {"where": "behind the door"})
    messages, _, options = fake.calls[-1]
    assert options["schema"] == Place.model_json_schema()
    assert messages[-1].text == "Where is the key?"  # the assistant tells the model what is wanted
    assert (options["catalyst"], options["asked"]) == (None, None)


def test_structured_output_keeps_nested_definitions() -> None:
    class Key(BaseModel):
        places: list[Place]

    fake = FakeAssistant('{"places": [{"where": "a"}]}')
    assert chat(fake).with_structured_output(Key).invoke("Where?") == Key(places=[Place(where="a")])
    assert "$defs" in fake.calls[-1][2]["schema"]


def test_an_answer_that_was_cut_off_is_an_error_even_where_it_parses() -> None:
    fake = FakeAssistant('{"where": "behind the', finish="length")
    chain = chat(fake).with_structured_output(Place.model_json_schema(), max_tokens=4)
    with pytest.raises(OutputParserException, match="max_tokens"):
        chain.invoke(QUESTION)
    assert fake.calls[-1][2]["max_new_tokens"] == 4
    with pytest.raises(OutputParserException, match="max_tokens"):
        list(chain.stream(QUESTION))
    said = chat(fake).with_structured_output(Place, include_raw=True).invoke(QUESTION)
    assert said["parsed"] is None
    assert "max_tokens" in str(said["parsing_error"])
    assert said["raw"].content == '{"where": "behind the'


def test_structured_output_refuses_what_is_no_schema() -> None:
    with pytest.raises(ValueError, match="method is 'guess'"):
        chat().with_structured_output(Place, method="guess")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schema is none"):
        chat().with_structured_output(7)  # type: ignore[arg-type]
    for empty in ({}, {"title": "Place", "description": "Where."}, {"name": "Place", "schema": {"title": "Place"}}):
        with pytest.raises(ValueError, match="says nothing of what is wanted"):
            chat().with_structured_output(empty)
    with pytest.raises(LangChainException, match="unknown keyword 'max_tokn'"):
        chat().with_structured_output(Place, max_tokn=3)


def test_a_schema_is_found_where_requests_to_hosted_models_have_it() -> None:
    own = Place.model_json_schema()
    for wanted in (
        {"name": "place", "strict": True, "schema": own},
        {"type": "json_schema", "json_schema": {"name": "place", "schema": own}},
        {"name": "place", "description": "Where something is.", "input_schema": own},
    ):
        fake = FakeAssistant('{"where": "here"}')
        assert chat(fake).with_structured_output(wanted).invoke(QUESTION) == {"where": "here"}
        assert fake.calls[-1][2]["schema"] == own
