"""ChatInfiniPot: what reaches the assistant, and what of its reply reaches the chain."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document as Page
from langchain_core.exceptions import ContextOverflowError, LangChainException, OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, messages_from_dict, messages_to_dict
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_infinipot import ChatInfiniPot, file_block, settings
from langchain_infinipot.errors import InvalidRequestError
from lc_fakes import FakeAssistant
from pydantic import BaseModel, ValidationError

from infinipot_llm.assistant import Assistant
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import DocumentError, ModelNotFetchedError, QuestionTooLongError, StoreError

DOC = Document.from_text("The key hangs behind the door.", name="notes.txt")
BLOCK = {"type": "text-plain", "text": DOC.text, "mime_type": "text/plain", "title": "notes.txt"}
QUESTION = [HumanMessage([BLOCK, {"type": "text", "text": "Where is the key?"}])]


def chat(fake: FakeAssistant | None = None, **changes: Any) -> ChatInfiniPot:
    return ChatInfiniPot(model="fake", assistant=fake or FakeAssistant(), **changes)


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


def check_citations(blocks: Any, text: str) -> None:
    (block,) = blocks
    assert block["text"] == text
    (cited,) = block["annotations"]
    assert (cited["type"], cited["title"], cited["cited_text"]) == ("citation", "notes.txt", "The k")
    assert text[cited["start_index"] : cited["end_index"]] == text
    assert cited["extras"]["page"] == 1
    assert cited["extras"]["document_id"] == DOC.id


def streamed(llm: ChatInfiniPot, **options: Any) -> AIMessageChunk:
    full: Any = None
    for chunk in llm.stream(QUESTION, **options):
        full = chunk if full is None else full + chunk
    assert isinstance(full, AIMessageChunk)
    return full


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


def test_a_stream_is_the_answer_and_its_last_chunk_the_rest() -> None:
    fake = FakeAssistant()
    chunks = list(chat(fake).stream(QUESTION))
    assert "".join(str(c.content) for c in chunks) == fake.text
    assert len(chunks) > 3
    assert [c.chunk_position for c in chunks] == [None] * (len(chunks) - 1) + ["last"]
    assert not any(c.usage_metadata or c.response_metadata for c in chunks[:-1])
    assert chunks[-1].usage_metadata is not None
    assert chunks[-1].response_metadata["finish_reason"] == "stop"


def test_a_stream_that_is_left_ends_the_decoding() -> None:
    fake = FakeAssistant()
    stream = chat(fake).stream(QUESTION)
    next(stream)
    assert not fake.closed.is_set()
    stream.close()  # type: ignore[attr-defined]
    assert fake.closed.is_set()


PIECES = ["\n", " It", " hangs ", "\n", "", "behind", " the door.", "\n\n", " "]


async def test_streamed_text_is_the_text_of_invoke_whatever_white_space_is_around_it() -> None:
    fake = FakeAssistant("".join(PIECES).strip())
    fake.pieces = PIECES
    llm = chat(fake)
    said = llm.invoke(QUESTION)
    full = streamed(llm)
    assert full.content == said.content == fake.text
    check_citations(full.content_blocks, fake.text)
    assert "".join([str(c.content) async for c in llm.astream(QUESTION)]) == fake.text
    assert chat(fake, streaming=True).invoke(QUESTION).content == fake.text


def test_the_last_chunk_carries_what_the_pieces_left_out() -> None:
    fake = FakeAssistant("It hangs there.")
    fake.pieces = ["It", " hangs"]
    assert streamed(chat(fake)).content == "It hangs there."


@pytest.mark.parametrize("stop", [None, ["e", "a"], [" "]])
def test_streams_of_a_real_decoder_are_its_answers(tiny_llm: InfiniPot, stop: list[str] | None) -> None:
    llm = ChatInfiniPot(model="tiny", assistant=Assistant(tiny_llm), max_tokens=12, citations=False)
    for i in range(8):
        said = llm.invoke(f"question {i}", stop=stop).content
        assert "".join(str(c.content) for c in llm.stream(f"question {i}", stop=stop)) == said


async def test_async_calls_use_the_assistants_own_way() -> None:
    fake = FakeAssistant()
    llm = chat(fake)
    said = await llm.ainvoke(QUESTION)
    assert said.content == fake.text
    pieces = [c async for c in llm.astream(QUESTION)]
    assert "".join(str(c.content) for c in pieces) == fake.text
    assert fake.loop_threads == [threading.get_ident()] * 2  # not by way of an executor


async def test_an_async_stream_that_is_left_ends_the_decoding() -> None:
    fake = FakeAssistant()
    stream = chat(fake).astream(QUESTION)
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert fake.closed.is_set()


async def test_opening_documents_does_not_block_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    opened_in: list[int] = []
    real = settings.read_messages

    def slow(*args: Any, **kwargs: Any) -> Any:
        opened_in.append(threading.get_ident())
        return real(*args, **kwargs)

    monkeypatch.setattr(settings, "read_messages", slow)
    await asyncio.gather(chat().ainvoke(QUESTION), chat().ainvoke(QUESTION))
    assert threading.get_ident() not in opened_in


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.seen.append(token)


def test_callbacks_hear_every_token_once() -> None:
    fake = FakeAssistant()
    heard = Tokens()
    list(chat(fake).stream(QUESTION, config={"callbacks": [heard]}))
    assert "".join(heard.seen) == fake.text
    heard = Tokens()
    chat(fake, streaming=True).invoke(QUESTION, config={"callbacks": [heard]})
    assert "".join(heard.seen) == fake.text


class Started(BaseCallbackHandler):
    def __init__(self) -> None:
        self.params: list[Any] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **told: Any) -> None:
        self.params.append((serialized, told["invocation_params"], told["options"]))


def test_traces_hold_the_id_of_a_bound_document_and_not_its_text() -> None:
    heard = Started()
    bound = [chat(document=DOC), chat().bind(document=DOC)]
    for llm in bound:
        llm.invoke("Where?", config={"callbacks": [heard]})
        list(llm.stream("Where?", config={"callbacks": [heard]}))
    assert len(heard.params) == 4
    for told in heard.params:
        assert told[1]["document"] == [DOC.id]
        assert DOC.text not in json.dumps(told[:2])
        assert DOC.text not in repr(told[2])  # before langchain-core 1.7 the options of a stream are the call's own


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
        "schema": None,
    }


def test_documents_are_bound_by_the_constructor_or_by_bind(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("First.", encoding="utf-8")
    fake = FakeAssistant()
    chat(fake, document=path).invoke("Where?")
    assert [(d.name, d.text) for d in fake.calls[-1][1]] == [("report.txt", "First.")]
    path.write_text("It has changed.", encoding="utf-8")
    chat(fake, document=str(path)).invoke("Where?")
    assert [d.text for d in fake.calls[-1][1]] == ["It has changed."]
    chat(fake, document=path).bind(document=DOC).invoke("Where?")
    chat(fake, document=path).bind(document=[DOC.id, DOC]).invoke("Where?")
    assert fake.calls[-1][1] == [DOC]
    with pytest.raises(LangChainException, match="does not exist"):
        chat(fake, document=tmp_path / "gone.pdf").invoke("Where?")
    with pytest.raises(LangChainException, match="document holds int"):
        chat(fake).invoke("Where?", document=7)
    with pytest.raises(LangChainException, match="address"):
        chat(fake, document="https://example.com/a.pdf").invoke("Where?")


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


def test_a_setting_is_given_once_and_an_assistant_is_one() -> None:
    with pytest.raises(ValidationError, match="budget is given twice"):
        chat(budget=1024, knobs={"budget": 64})
    assert chat(knobs={"budget": 64, "followup": "reread"})._pot() == {"budget": 64, "followup": "reread"}
    with pytest.raises(ValidationError, match="assistant is of type int"):
        ChatInfiniPot(assistant=3)


def test_a_path_in_a_message_is_text() -> None:
    fake = FakeAssistant()
    chat(fake).invoke("/etc/passwd")
    assert fake.calls[-1][1] == []


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


@pytest.mark.parametrize(
    "wrong", [{"budget": 3}, {"temperature": -1}, {"max_tokens": 0}, {"top_p": 0}, {"document": 7}, {"store": 7}]
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatInfiniPot(**wrong)


def test_an_error_about_settings_does_not_show_documents() -> None:
    with pytest.raises(ValidationError) as caught:
        ChatInfiniPot(document={"text": DOC.text})
    assert DOC.text not in str(caught.value)


def test_network_settings_are_accepted_and_ignored() -> None:
    ChatInfiniPot(timeout=60, max_retries=2, api_key="x")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            QuestionTooLongError("question and answer do not fit into a budget of 64."),
            ContextOverflowError,
        ),
        (DocumentError("the document has no text."), LangChainException),
        (ModelNotFetchedError("run infinipot models get."), LangChainException),
        (StoreError("the disk is full."), LangChainException),
    ],
)
async def test_errors_have_langchains_class_our_class_and_our_sentence(ours: Exception, theirs: type) -> None:
    fake = FakeAssistant()
    fake.error = ours
    llm = chat(fake)
    for call in (llm.invoke, lambda m: list(llm.stream(m))):
        with pytest.raises(theirs) as caught:
            call(QUESTION)
        assert str(caught.value) == str(ours)
        assert isinstance(
            caught.value, type(ours).__mro__[1] if type(ours) is ModelNotFetchedError else type(ours).__base__
        )
    with pytest.raises(theirs):
        await llm.ainvoke(QUESTION)
    with pytest.raises(theirs):
        _ = [c async for c in llm.astream(QUESTION)]


def test_an_unknown_model_says_how_to_get_one() -> None:
    with pytest.raises(LangChainException, match="choose one of"):
        ChatInfiniPot(model="no-such-model", store=False).invoke("Hello")


def test_a_response_cache_tells_documents_of_one_name_apart() -> None:
    fake = FakeAssistant()
    llm = chat(fake, cache=InMemoryCache())
    other = Document.from_text("Another text.", name=DOC.name)
    llm.invoke("Where?", document=DOC)
    llm.invoke("Where?", document=other)
    assert len(fake.calls) == 2
    llm.invoke("Where?", document=DOC)
    assert len(fake.calls) == 2
    chat(fake, cache=llm.cache, document=other).invoke("Where?")  # the same document, bound in another way
    assert len(fake.calls) == 2
    chat(fake, cache=llm.cache, max_tokens=3).invoke("Where?", document=DOC)
    assert len(fake.calls) == 3


def test_what_changes_an_answer_is_in_the_identifying_params() -> None:
    plain = ChatInfiniPot()._identifying_params
    for change in (
        {"model": "a"},
        {"budget": 1024},
        {"followup": "reread"},
        {"recall": 7},
        {"knobs": {"novelty_share": 0.1}},
        {"temperature": 1.0},
        {"max_tokens": 2},
        {"stop": ["a"]},
        {"seed": 1},
        {"document": DOC},
        {"dtype": "float16"},
    ):
        assert ChatInfiniPot(**change)._identifying_params != plain, change


def test_fields_can_be_made_configurable() -> None:
    fake = FakeAssistant()
    llm = chat(fake).configurable_fields(max_tokens=ConfigurableField(id="limit"))
    llm.invoke(QUESTION, config={"configurable": {"limit": 3}})
    assert fake.calls[-1][2]["max_new_tokens"] == 3


def test_tools_are_refused_with_what_to_do_instead() -> None:
    with pytest.raises(NotImplementedError, match="InfiniPotDocumentTool"):
        chat().bind_tools([])
    wanted = {"type": "json_schema", "json_schema": {"name": "Sure", "schema": Sure.model_json_schema()}}
    with pytest.raises(NotImplementedError, match="InfiniPotDocumentTool"):
        chat().bind_tools([{"name": "look"}], response_format=wanted)


class Sure(BaseModel):
    """Whether it is so."""

    ok: bool


@pytest.mark.parametrize("wanted", [Sure, ProviderStrategy(Sure), ProviderStrategy(Sure, strict=True)])
def test_an_agent_gets_its_response_format_by_constrained_decoding(wanted: Any, tiny_llm: InfiniPot) -> None:
    pytest.importorskip("llguidance")
    llm = ChatInfiniPot(model="tiny", assistant=Assistant(tiny_llm), max_tokens=40, citations=False)
    done = create_agent(llm, tools=[], response_format=wanted).invoke({"messages": [("user", "Is it?")]})
    assert isinstance(done["structured_response"], Sure)


def test_tokens_are_counted_by_the_model_and_documents_by_their_text() -> None:
    llm = chat()
    assert llm.get_num_tokens("abc") == 3
    assert llm.get_num_tokens_from_messages(QUESTION) == len("Where is the key?") + len(DOC.text)
    assert llm.get_num_tokens_from_messages([HumanMessage([BLOCK])]) == len(DOC.text)


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
    assert messages[-1].text.startswith("Where is the key?\n\nAnswer with JSON")  # the model sees what is wanted,
    assert options["catalyst"] == "Where is the key?"  # and it is not looked for in the document


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
    with pytest.raises(LangChainException, match="unknown keyword 'max_tokn'"):
        chat().with_structured_output(Place, max_tokn=3)
