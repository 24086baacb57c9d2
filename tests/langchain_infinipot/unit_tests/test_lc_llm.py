"""InfiniPotLLM: string in, string out; documents bound, stuffed, or in a chat prompt."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document as Page
from langchain_core.exceptions import ContextOverflowError, LangChainException
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_infinipot import InfiniPotLLM, llms
from lc_fakes import FakeAssistant

from infinipot_llm.assistant import Assistant
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot

DOC = Document.from_text("The key hangs behind the door.", name="notes.txt")
BLOCK = {"type": "text-plain", "text": DOC.text, "mime_type": "text/plain", "title": "notes.txt"}
LONG = "\n\n".join(f"Paragraph {i} says that the lamp of room {i} is lit at dusk." for i in range(20))


def llm(fake: Any = None, **changes: Any) -> InfiniPotLLM:
    return InfiniPotLLM(model="fake", assistant=fake or FakeAssistant(), **changes)


def test_string_in_string_out_about_a_bound_document(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text(DOC.text, encoding="utf-8")
    fake = FakeAssistant()
    chain = PromptTemplate.from_template("{question}") | llm(fake, document=path) | StrOutputParser()
    assert chain.invoke({"question": "Where is the key?"}) == fake.text
    messages, documents, options = fake.calls[0]
    assert [(m.role, m.text) for m in messages] == [("user", "Where is the key?")]
    assert [d.text for d in documents] == [DOC.text]
    assert options["catalyst"] is None


def test_a_document_is_bound_in_three_ways() -> None:
    for make in (
        lambda f: llm(f, document=DOC).invoke("Where?"),
        lambda f: llm(f).bind(document=DOC).invoke("Where?"),
        lambda f: llm(f).invoke("Where?", document=DOC),
    ):
        fake = FakeAssistant()
        make(fake)
        assert fake.calls[0][1] == [DOC]


class Started(BaseCallbackHandler):
    def __init__(self) -> None:
        self.params: list[Any] = []

    def on_llm_start(self, serialized: Any, prompts: Any, **told: Any) -> None:
        self.params.append((serialized, prompts, told["invocation_params"]))


async def test_traces_hold_the_id_of_a_bound_document_and_not_its_text() -> None:
    heard = Started()
    bound = llm().bind(document=DOC)
    bound.invoke("Where?", config={"callbacks": [heard]})
    list(bound.stream("Where?", config={"callbacks": [heard]}))
    _ = [piece async for piece in bound.astream("Where?", config={"callbacks": [heard]})]
    assert len(heard.params) == 3
    for told in heard.params:
        assert told[2]["document"] == [DOC.id]
        assert DOC.text not in json.dumps(told)


def test_a_chat_prompt_with_documents_is_routed_and_not_dropped() -> None:
    fake = FakeAssistant()
    prompt = ChatPromptTemplate([("system", "Be brief."), ("human", [BLOCK, {"type": "text", "text": "{question}"}])])
    chain = prompt | llm(fake)
    assert chain.invoke({"question": "Where?"}) == fake.text
    assert "".join(chain.stream({"question": "Where?"})) == fake.text
    assert chain.batch([{"question": "Where?"}]) == [fake.text]
    llm(fake).generate_prompt([prompt.format_prompt(question="Where?")])
    assert len(fake.calls) == 4
    for messages, documents, _ in fake.calls:
        assert [(m.role, m.text) for m in messages] == [("system", "Be brief."), ("user", "Where?")]
        assert [d.text for d in documents] == [DOC.text]


async def test_async_chat_prompts_are_routed_as_well() -> None:
    fake = FakeAssistant()
    prompt = ChatPromptTemplate([("human", [BLOCK, {"type": "text", "text": "{question}"}])])
    chain = prompt | llm(fake)
    assert await chain.ainvoke({"question": "Where?"}) == fake.text
    assert "".join([piece async for piece in chain.astream({"question": "Where?"})]) == fake.text
    assert await chain.abatch([{"question": "Where?"}]) == [fake.text]
    assert [[d.text for d in documents] for _, documents, _ in fake.calls] == [[DOC.text]] * 3


async def test_documents_in_chat_prompts_are_opened_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    opened_in: list[int] = []
    real = llms.read_messages

    def noted(*args: Any, **options: Any) -> Any:
        opened_in.append(threading.get_ident())
        return real(*args, **options)

    monkeypatch.setattr(llms, "read_messages", noted)
    asked = [HumanMessage([BLOCK, {"type": "text", "text": "Where?"}])]
    model = llm()
    await model.ainvoke(asked)
    await model.abatch([asked])
    _ = [piece async for piece in model.astream(asked)]
    assert len(opened_in) == 3
    assert threading.get_ident() not in opened_in


async def test_streamed_text_is_the_text_of_invoke_whatever_white_space_is_around_it() -> None:
    fake = FakeAssistant("It hangs \nthere.")
    fake.pieces = ["\n", " It", " hangs ", "\n", "there", ".", "\n"]
    model = llm(fake)
    assert "".join(model.stream("Where?")) == model.invoke("Where?") == fake.text
    assert "".join([piece async for piece in model.astream("Where?")]) == fake.text


def test_a_response_cache_tells_documents_apart_however_they_came() -> None:
    fake = FakeAssistant()
    cached = llm(fake, cache=InMemoryCache())
    other = Document.from_text("Another text.", name=DOC.name)
    cached.bind(document=DOC).invoke("Where?")
    cached.bind(document=other).invoke("Where?")
    assert len(fake.calls) == 2
    cached.bind(document=DOC).invoke("Where?")
    assert len(fake.calls) == 2
    cached.invoke([HumanMessage([BLOCK, {"type": "text", "text": "Where?"}])])
    cached.invoke([HumanMessage([{**BLOCK, "text": other.text}, {"type": "text", "text": "Where?"}])])
    assert len(fake.calls) == 4
    cached.invoke("Where?", max_tokens=3)
    cached.invoke("Where?", catalyst="key")
    assert len(fake.calls) == 6


def test_generation_info_and_token_usage() -> None:
    result = llm(document=DOC).generate(["Where?", "And the lamp?"])
    assert [g[0].generation_info["finish_reason"] for g in result.generations] == ["stop", "stop"]
    assert result.generations[1][0].generation_info["usage_metadata"]["input_token_details"]["cache_read"] == len(
        DOC.text
    )
    assert result.llm_output == {
        "model_name": "fake",
        "token_usage": {"prompt_tokens": 74, "completion_tokens": 10, "total_tokens": 84},
    }


def test_catalyst_and_options_of_a_call() -> None:
    fake = FakeAssistant()
    llm(fake, max_tokens=9, stop="\n").invoke("Where?", catalyst="key", temperature=0.3)
    options = fake.calls[0][2]
    assert options["catalyst"] == "key"
    assert options["max_new_tokens"] == 9
    assert options["temperature"] == 0.3
    assert options["stop"] == ("\n",)
    llm(fake).invoke("Where?", stop=["a", "b"])
    assert fake.calls[1][2]["stop"] == ("a", "b")


def test_a_misspelt_keyword_is_an_error() -> None:
    with pytest.raises(ValueError, match="did you mean 'budget'"):
        InfiniPotLLM(buget=4096)  # type: ignore[call-arg]
    with pytest.raises(LangChainException, match="did you mean 'document'"):
        llm().invoke("Where?", documnt=DOC)
    with pytest.raises(LangChainException, match="did you mean 'document'"):
        list(llm().stream("Where?", documnt=DOC))


def test_a_stream_that_is_left_ends_the_decoding() -> None:
    fake = FakeAssistant()
    stream = llm(fake).stream("Where?")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert fake.closed.is_set()


def real(tiny: InfiniPot, **changes: Any) -> tuple[InfiniPotLLM, list[Any]]:
    """Return a model of random weights, and the replies it gives."""
    assistant = Assistant(tiny)
    replies: list[Any] = []
    respond = assistant.respond

    def noted(*args: Any, **options: Any) -> Any:
        replies.append(respond(*args, **options))
        return replies[-1]

    assistant.respond = noted  # type: ignore[method-assign]
    return InfiniPotLLM(model="tiny", assistant=assistant, max_tokens=4, citations=False, **changes), replies


def test_a_batch_of_questions_reads_a_document_once(tiny_llm: InfiniPot) -> None:
    model, replies = real(tiny_llm, document=Document.from_text(LONG))
    said = model.batch(["Where is the key?", "When is the lamp lit?", "Who reads?"])
    assert len(said) == 3
    assert [r.how for r in replies] == ["recall"] * 3
    assert [r.read_tokens for r in replies] == [len(LONG), 0, 0]
    assert [r.remembered_tokens for r in replies] == [0, len(LONG), len(LONG)]


def test_a_prompt_above_the_budget_is_a_document_and_its_last_paragraph(tiny_llm: InfiniPot) -> None:
    model, replies = real(tiny_llm)
    model.invoke(f"{LONG}\n\nWhen is the lamp of room 7 lit?")
    (document,) = replies[0].documents
    assert replies[0].how == "recall"
    assert "room 7 is" in document.text
    assert "When is the lamp" not in document.text


@pytest.mark.parametrize(
    ("tail", "asked"),
    [
        ("", "When is the lamp of room 7 lit?"),
        (
            "\n\nQuestion: When is the lamp of room 7 lit?\nAnswer:",
            "Question: When is the lamp of room 7 lit?\nAnswer:",
        ),
    ],
    ids=["the text alone", "with its template"],
)
def test_a_catalyst_is_the_question_of_a_stuffed_prompt(tiny_llm: InfiniPot, tail: str, asked: str) -> None:
    model, replies = real(tiny_llm)
    said: list[Any] = []
    respond = model.assistant.respond
    model.assistant.respond = lambda *a, **o: (said.append((a, o)), respond(*a, **o))[1]
    model.invoke(LONG + tail, catalyst="When is the lamp of room 7 lit?")
    ((messages, documents), options) = said[0]
    assert [m.text for m in messages] == [asked]
    assert [d.text.strip() for d in documents] == [LONG]
    assert options["catalyst"] == "When is the lamp of room 7 lit?"
    assert replies[0].how == "recall"


def test_the_stuff_chain_of_langchain_with_pages_of_a_loader(tiny_llm: InfiniPot) -> None:
    model, replies = real(tiny_llm)
    prompt = PromptTemplate.from_template("Answer from this context:\n\n{context}\n\nQuestion: {question}\nAnswer:")
    chain = create_stuff_documents_chain(model, prompt)
    pages = [Page(page_content=part) for part in LONG.split("\n\n")]
    chain.invoke({"context": pages, "question": "When is the lamp of room 7 lit?"})
    (document,) = replies[0].documents
    assert replies[0].how == "recall"
    assert document.text.strip() == LONG
    chain.invoke({"context": pages, "question": "When is the lamp of room 8 lit?"})
    assert replies[1].read_tokens == 0


def test_a_question_longer_than_the_budget_is_langchains_own_error(tiny_llm: InfiniPot) -> None:
    model, _ = real(tiny_llm, document=Document.from_text(LONG))
    with pytest.raises(ContextOverflowError, match="budget"):
        model.invoke("why " * 40, max_tokens=400)
    with pytest.raises(ContextOverflowError):
        model.invoke("why?" * 400)


async def test_the_model_of_a_call_opens_the_documents_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As streams do: another model knows other documents, and the first may not even be here."""
    fakes = {"A": FakeAssistant(), "B": FakeAssistant("By B.")}
    fakes["B"].known[DOC.id] = DOC
    monkeypatch.setattr(InfiniPotLLM, "engine", lambda self, model=None: fakes[model or self.model])
    bound = InfiniPotLLM(model="A", store=False).bind(model="B")
    asked = [HumanMessage([{"type": "file", "file_id": DOC.id}, {"type": "text", "text": "Where?"}])]
    assert bound.invoke(asked) == await bound.ainvoke(asked) == "".join(bound.stream(asked)) == "By B."
    assert not fakes["A"].calls
