"""ChatInfiniPot's settings, options of a call and errors: refused in a sentence, of LangChain's classes."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ContextOverflowError, LangChainException
from langchain_core.runnables import ConfigurableField
from langchain_infinipot import ChatInfiniPot, settings
from lc_fakes import DOC, QUESTION, FakeAssistant, Sure, chat
from pydantic import ValidationError

from infinipot_llm import InfiniPot
from infinipot_llm.assistant import Assistant
from infinipot_llm.documents import Document
from infinipot_llm.errors import DocumentError, ModelNotFetchedError, QuestionTooLongError, StoreError
from infinipot_llm.models.adapter import Adapter


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
        assert isinstance(caught.value, type(ours))
        assert pickle.loads(pickle.dumps(caught.value)).args == ours.args
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


def test_a_response_cache_tells_ready_models_of_one_name_apart(tiny_llm: InfiniPot) -> None:
    def key(model: InfiniPot) -> str:
        return ChatInfiniPot(assistant=Assistant(model))._get_llm_string()

    with InfiniPot(Adapter(tiny_model("llama", seed=1)), tiny_llm.form.codec, tiny_llm.config) as other:
        assert repr(other) == repr(tiny_llm)
        assert key(other) != key(tiny_llm)
    with InfiniPot(Adapter(tiny_model("llama")), tiny_llm.form.codec, tiny_llm.config) as same:
        assert key(same) == key(tiny_llm)


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


def test_a_setting_that_may_be_configured_leaves_streaming_on() -> None:
    plain = chat(FakeAssistant())
    made = plain.configurable_fields(temperature=ConfigurableField(id="t"))
    configured = made.with_config(configurable={"t": 0.5})
    assert len(list(configured.stream("Where?"))) == len(list(plain.stream("Where?"))) > 2


def test_the_last_of_several_human_messages_is_the_question() -> None:
    fake = FakeAssistant()
    chat(fake).invoke(
        [("human", "I live in Leeds."), ("system", "Be brief."), ("human", "Who signed it?")], document=DOC
    )
    assert fake.calls[-1][2]["asked"] == "Who signed it?"
    chat(fake).invoke([("human", "Hello"), ("ai", "Hello."), ("human", "Who signed it?")], document=DOC)
    assert fake.calls[-1][2]["asked"] is None


def test_a_model_that_is_ready_answers_while_another_one_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def load(name: str, **_: Any) -> FakeAssistant:
        if name == "slow":
            entered.set()
            assert go_on.wait(20)
        return FakeAssistant()

    monkeypatch.setattr(settings, "_assistants", {})
    monkeypatch.setattr(Assistant, "shared", load)
    fast, slow = (ChatInfiniPot(model=name, store=False) for name in ("fast", "slow"))
    ready = fast.engine()
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(slow.engine)
        assert entered.wait(20)
        try:
            assert pool.submit(fast.engine).result(20) is ready
        finally:
            go_on.set()
        assert loading.result(20) is slow.engine()
