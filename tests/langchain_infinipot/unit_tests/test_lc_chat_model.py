"""ChatInfiniPot: what reaches the assistant, and what of its reply reaches the chain."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.documents import Document as Page
from langchain_core.exceptions import LangChainException
from langchain_core.messages import AIMessage, HumanMessage, messages_from_dict, messages_to_dict
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_infinipot import ChatInfiniPot, file_block
from langchain_infinipot.errors import InvalidRequestError
from lc_fakes import BLOCK, DOC, QUESTION, FakeAssistant, chat, check_citations, streamed
from pydantic import ValidationError

from infinipot_llm.assistant import Assistant
from infinipot_llm.engine import InfiniPot


def test_the_prompt_of_the_issue() -> None:
    fake = FakeAssistant()
    prompt = ChatPromptTemplate(
        [
            ("system", "Answer from the document."),
            (
                "human",
                [
                    {"type": "file", "base64": "{data}", "mime_type": "text/plain"},
                    {"type": "text", "text": "{question}"},
                ],
            ),
        ]
    )
    import base64

    data = base64.b64encode(b"Braces {stay} as they are.").decode()
    said = (prompt | chat(fake) | StrOutputParser()).invoke({"data": data, "question": "What stays?"})
    assert said == fake.text
    (messages, documents, options) = fake.calls[0]
    assert [(m.role, m.text) for m in messages] == [("system", "Answer from the document."), ("user", "What stays?")]
    assert [d.text for d in documents] == ["Braces {stay} as they are."]
    assert options["catalyst"] is None
    assert options["citations"] is True


def test_a_later_turn_reads_nothing_again() -> None:
    llm = chat()
    first = llm.invoke(QUESTION)
    again = llm.invoke([*QUESTION, first, HumanMessage("And the lamp?")])
    size = len(DOC.text)
    assert first.usage_metadata == {
        "input_tokens": size + 7,
        "output_tokens": 5,
        "total_tokens": size + 12,
        "input_token_details": {"cache_read": 0, "cache_creation": size},
    }
    assert again.usage_metadata is not None
    assert again.usage_metadata["input_token_details"] == {"cache_read": size, "cache_creation": 0}


def test_without_documents_there_are_no_cache_details() -> None:
    said = chat().invoke("Hello")
    assert said.usage_metadata is not None
    assert "input_token_details" not in said.usage_metadata


def test_metadata_are_plain_json_and_say_what_happened() -> None:
    said = chat().invoke(QUESTION)
    assert json.loads(json.dumps(said.response_metadata)) == said.response_metadata
    assert said.response_metadata["model_name"] == "fake"
    assert said.response_metadata["model_provider"] == "infinipot"
    assert said.response_metadata["finish_reason"] == "stop"
    details = said.response_metadata["infinipot"]
    assert details["document_ids"] == [DOC.id]
    assert details["how"] == "recall"
    assert details["notes"] == ["a note"]
    assert details["recalled_tokens"] == 3
    assert DOC.text not in json.dumps({**details, "citations": []})


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_citations_are_annotations_of_the_answers_text_block(version: str) -> None:
    fake = FakeAssistant()
    llm = chat(fake, output_version=version)
    said = llm.invoke(QUESTION)
    check_citations(said.content_blocks, fake.text)
    check_citations(streamed(llm).content_blocks, fake.text)
    assert isinstance(said.content, list) is (version == "v1")
    (stored,) = messages_from_dict(messages_to_dict([said]))  # as histories keep it
    assert isinstance(stored, AIMessage)
    check_citations(stored.content_blocks, fake.text)


def test_options_of_a_call_come_before_those_of_the_model() -> None:
    fake = FakeAssistant()
    llm = chat(fake, temperature=0.5, max_tokens=9, stop=["."], seed=3, citations=False, top_p=0.9)
    llm.invoke(QUESTION)
    given = fake.calls[-1][2]
    assert given == {
        "temperature": 0.5,
        "max_new_tokens": 9,
        "stop": (".",),
        "seed": 3,
        "citations": False,
        "top_p": 0.9,
        "catalyst": None,
        "asked": None,
        "schema": None,
    }
    llm.invoke(QUESTION, temperature=0.0, max_tokens=2, stop=["!"], seed=4, citations=True, top_p=1.0, catalyst="key")
    assert fake.calls[-1][2] == {
        "temperature": 0.0,
        "max_new_tokens": 2,
        "stop": ("!",),
        "seed": 4,
        "citations": True,
        "top_p": 1.0,
        "catalyst": "key",
        "asked": None,
        "schema": None,
    }


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (b"%PDF", "raw bytes"),
        ([b"%PDF"], "raw bytes"),
        ([Page(page_content="x")], r"langchain_core\.documents\.base\.Document"),
        ("", "names no document"),
        (["a.pdf", " "], "names no document"),
    ],
)
def test_what_names_no_document_is_refused_in_one_sentence(wrong: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        chat().invoke("Where?", document=wrong)
    with pytest.raises(InvalidRequestError, match=sentence):
        chat().read(wrong)
    with pytest.raises(ValidationError, match=sentence):
        chat(document=wrong)


def test_a_text_that_was_bound_as_a_path_is_not_in_the_error() -> None:
    with pytest.raises(InvalidRequestError, match="does not exist") as caught:
        chat().invoke("Where?", document="secret text\n" * 1000)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_file_block_takes_a_document() -> None:
    with pytest.raises(InvalidRequestError, match="file_block was given something of type str"):
        file_block("notes.txt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"catalyst": 3}, "catalyst is of type int"),
        ({"stop": [3]}, "stop holds"),
        ({"stop": 3}, "stop holds"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"seed": "x"}, "seed is 'x'"),
    ],
)
def test_options_of_a_wrong_kind_are_refused(wrong: dict[str, Any], sentence: str, tiny_llm: InfiniPot) -> None:
    llm = ChatInfiniPot(model="tiny", assistant=Assistant(tiny_llm), max_tokens=2)
    with pytest.raises(InvalidRequestError, match=sentence):
        llm.invoke("Hello", **wrong)
    with pytest.raises(InvalidRequestError, match=sentence):
        list(llm.stream("Hello", **wrong))


def test_read_gives_the_block_that_stands_for_a_document() -> None:
    fake = FakeAssistant()
    block = chat(fake).read(DOC)
    assert block == {"type": "file", "file_id": DOC.id}
    with pytest.raises(LangChainException, match="one document at a time"):
        chat(fake).read([DOC, DOC])
    chat(fake).invoke([HumanMessage([block, {"type": "text", "text": "Where?"}])])
    assert fake.calls[-1][1] == [DOC]


def test_a_misspelt_setting_is_an_error() -> None:
    with pytest.raises(ValidationError, match="unknown keyword 'buget': did you mean 'budget'"):
        ChatInfiniPot(buget=4096)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="unknown keyword 'shelv'"):
        ChatInfiniPot(knobs={"shelv": "off"})
    with pytest.raises(LangChainException, match="unknown keyword 'max_token': did you mean 'max_tokens'"):
        chat().invoke("Hello", max_token=3)
    with pytest.raises(LangChainException, match="calls no tools"):
        chat().invoke("Hello", tools=[])


def test_tokens_are_counted_by_the_model_and_documents_by_their_text() -> None:
    llm = chat()
    assert llm.get_num_tokens("abc") == 3
    assert llm.get_num_tokens_from_messages(QUESTION) == len("Where is the key?") + len(DOC.text)
    assert llm.get_num_tokens_from_messages([HumanMessage([BLOCK])]) == len(DOC.text)
