"""InfiniPotLLM: the eight calls say the same, tell usage and events, and do not block the loop."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
import re
from itertools import pairwise
from typing import Any

import pytest
from li_helpers import LONG, listening, reads, tiny_engine, tiny_llm
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import ChatMessage, CustomLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.llms.infinipot import InfiniPotLLM
from llama_index.llms.infinipot.base import CONTEXT_WINDOW

from infinipot_llm.assistant import Assistant
from infinipot_llm.documents import Document
from infinipot_llm.errors import BudgetError, InfiniPotError, ModelError, QuestionError
from infinipot_llm.memory.store import MemoryStore

pytestmark = pytest.mark.usefixtures("closed_loop")

PROMPT = f"Context information is below.\n---------\n{LONG}\n---------\nQuery: When did the mill burn?\nAnswer: "


async def every_way(llm: InfiniPotLLM, prompt: str, **options: Any) -> dict[str, Any]:
    messages = [ChatMessage(content=prompt)]
    ways: dict[str, Any] = {
        "complete": llm.complete(prompt, **options),
        "chat": llm.chat(messages, **options),
        "acomplete": await llm.acomplete(prompt, **options),
        "achat": await llm.achat(messages, **options),
    }
    streams = {
        "stream_complete": list(llm.stream_complete(prompt, **options)),
        "stream_chat": list(llm.stream_chat(messages, **options)),
        "astream_complete": [r async for r in await llm.astream_complete(prompt, **options)],
        "astream_chat": [r async for r in await llm.astream_chat(messages, **options)],
    }
    for name, parts in streams.items():
        texts = [text_of(r) for r in parts]
        assert "".join(r.delta for r in parts) == texts[-1]
        assert all(b.startswith(a) for a, b in pairwise(texts))
        assert all(r.raw is None for r in parts[:-1])
        ways[name] = parts[-1]
    return ways


def text_of(response: Any) -> str:
    return response.message.content if hasattr(response, "message") else response.text


def test_base_classes() -> None:
    names = [c.__name__ for c in inspect.getmro(InfiniPotLLM)]
    assert BaseLLM.__name__ in names
    assert CustomLLM.__name__ in names


@pytest.mark.parametrize("prompt", ["  When did it burn? ", PROMPT], ids=["short", "stuffed"])
async def test_all_ways_say_the_same(prompt: str) -> None:
    llm = tiny_llm()
    llm.complete(prompt)  # what is long was read before, in all ways
    ways = await every_way(llm, prompt)
    assert len({text_of(r) for r in ways.values()}) == 1
    assert text_of(ways["chat"])
    for response in ways.values():
        usage = response.raw["usage"]
        assert usage == ways["complete"].raw["usage"]
        assert usage["completion_tokens"] == 12 == usage["total_tokens"] - usage["prompt_tokens"]
        told, first = (r.additional_kwargs["infinipot"] for r in (response, ways["complete"]))
        assert told["how"] == first["how"] == ("plain" if prompt != PROMPT else "recall")
        assert told["citations"] == first["citations"]
        json.dumps(told)


def test_a_stuffed_prompt_is_read_once_and_its_question_found(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = Assistant.respond

    def spy(self: Assistant, *args: Any, **options: Any) -> Any:
        asked.append(options["catalyst"] or options["asked"])
        return real(self, *args, **options)

    monkeypatch.setattr(Assistant, "respond", spy)
    read, llm = reads(monkeypatch), tiny_llm()
    llm.complete(PROMPT)
    llm.complete(PROMPT.replace("When did the mill burn?", "Of what is it?"))
    llm.complete(PROMPT, catalyst="stone")
    llm.chat([ChatMessage(role="system", content=LONG), ChatMessage(content="When?")])
    assert asked == ["When did the mill burn?", "Of what is it?", "stone", None]
    assert len(read) <= 2  # the context, as it stands in the prompt and in the system message


async def test_the_loop_is_not_blocked() -> None:
    llm = tiny_llm(budget=2000, max_new_tokens=200)
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.005)

    clock = asyncio.create_task(tick())
    await asyncio.sleep(0.02)
    for call in (llm.acomplete("Hello"), llm.achat([ChatMessage(content="Hello")])):
        begun = len(ticks)
        await call
        assert len(ticks) - begun >= 5
    begun, parts = len(ticks), 0
    async for _ in await llm.astream_chat([ChatMessage(content="Hello")]):
        parts += 1
    assert parts > 1
    assert len(ticks) - begun >= 5
    clock.cancel()


def test_leaving_a_stream_frees_the_model() -> None:
    llm = tiny_llm(budget=2000, max_new_tokens=1500)
    stream = llm.stream_complete("Hello")
    next(stream)
    stream.close()
    assert llm.assistant.llm.adapter.lock.acquire(timeout=5)
    llm.assistant.llm.adapter.lock.release()
    assert llm.complete("Hello", max_new_tokens=2).raw["usage"]["completion_tokens"] == 2


async def test_cancelling_ends_the_decoding() -> None:
    llm = tiny_llm(budget=3900, max_new_tokens=3600)
    task = asyncio.create_task(llm.acomplete("Hello"))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    response = await asyncio.wait_for(llm.acomplete("Hello", max_new_tokens=2), timeout=20)
    assert response.raw["usage"]["completion_tokens"] == 2


def test_usage_reaches_the_token_counter() -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = tiny_llm(options={"callback_manager": CallbackManager([counter])})
    responses = [
        llm.complete("Hello"),
        llm.chat([ChatMessage(content="Hello")]),
        list(llm.stream_complete("Hello"))[-1],
    ]
    assert counter.prompt_llm_token_count == sum(r.raw["usage"]["prompt_tokens"] for r in responses)
    assert counter.completion_llm_token_count == sum(r.raw["usage"]["completion_tokens"] for r in responses) > 0


async def test_events() -> None:
    llm = tiny_llm()
    with listening() as heard:
        llm.complete("Hello")
        list(llm.stream_chat([ChatMessage(content="Hello")]))
        await llm.achat([ChatMessage(content="Hello")])
    names = [type(e).__name__ for e in heard]
    assert names[:2] == ["LLMCompletionStartEvent", "LLMCompletionEndEvent"]
    assert names[2] == "LLMChatStartEvent"
    assert "LLMChatInProgressEvent" in names
    assert names[-2:] == ["LLMChatStartEvent", "LLMChatEndEvent"]
    assert heard[1].response.raw["usage"]["completion_tokens"] == 12
    assert heard[0].model_dict["class_name"] == "InfiniPotLLM"
    for event in heard:
        event.model_dump_json()


def test_options_of_a_call_and_of_the_class() -> None:
    llm = tiny_llm(options={"max_new_tokens": 5})
    assert llm.complete("Hello").raw["usage"]["completion_tokens"] == 5
    assert llm.complete("Hello", max_tokens=3).raw["usage"]["completion_tokens"] == 3
    assert llm.complete("Hello", max_new_tokens=4).raw["usage"]["completion_tokens"] == 4
    warm = [llm.complete("Hello", temperature=2.0, seed=seed).text for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    stop = llm.complete("Hello").text[1:3]
    assert stop not in llm.complete("Hello", stop=[stop]).text
    assert llm.metadata.num_output == 5
    with pytest.raises(QuestionError, match="no option 'temprature'"):
        llm.complete("Hello", temprature=1.0)
    with pytest.raises(QuestionError, match="temperature is -1"):
        llm.complete("Hello", temperature=-1.0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"buget": 4096}, "InfiniPotLLM has no option 'buget': did you mean budget?"),
        ({"settings": {"polcy": "x"}}, "no option 'polcy': did you mean policy?"),
        ({"max_tokens": 3}, "no option 'max_tokens': did you mean max_new_tokens?"),
        ({"zzz": 3}, "no option 'zzz': its fields and those of PotConfig can be set"),
    ],
)
def test_unknown_options_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(sentence)):
        InfiniPotLLM(**wrong)


@pytest.mark.parametrize("documents", ["report.pdf", ["some text"], [LlamaDocument(text="some text")], 3])
def test_documents_of_a_call_are_ours(documents: Any) -> None:
    with pytest.raises(QuestionError, match=r"documents takes a list of infinipot_llm\.Document.*from_file"):
        tiny_llm().complete("Hello", documents=documents)


def test_one_text_that_ends_answers() -> None:
    assert tiny_llm(options={"stop": "e"}).stop == ["e"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda llm: llm.model_copy(deep=True)])
def test_copies_share_the_weights(copied: Any) -> None:
    store = MemoryStore()
    llm = InfiniPotLLM(assistant=tiny_llm().assistant, store=store)
    other = copied(llm)
    assert other.assistant is llm.assistant
    assert other._store is store
    assert other._loading is not llm._loading
    other.stop.append("x")
    assert llm.stop == []
    assert copied(InfiniPotLLM("nothing-there")).model == "nothing-there"


def test_citations_can_be_left_out() -> None:
    llm = tiny_llm()
    asked = {"documents": [Document.from_text(LONG)]}
    with_them = llm.complete("When did it burn?", **asked).additional_kwargs["infinipot"]
    without = llm.complete("When did it burn?", citations=False, **asked).additional_kwargs["infinipot"]
    assert with_them["supported"] is not None
    assert (without["citations"], without["supported"]) == ([], None)


def test_system_prompt_and_wrappers() -> None:
    plain = tiny_llm()
    llm = tiny_llm(options={"system_prompt": "Be brief.", "query_wrapper_prompt": PromptTemplate("<<{query_str}>>")})
    said = llm.complete("Hello")
    expected = plain.chat([ChatMessage(role="system", content="Be brief."), ChatMessage(content="<<Hello>>")])
    assert said.text == expected.message.content
    assert said.raw["usage"] == expected.raw["usage"]
    assert llm.complete("Hello", formatted=True).text == plain.complete("Hello").text != said.text
    assert plain.predict(PromptTemplate("{a}"), a="Hello") == plain.chat([ChatMessage(content="Hello")]).message.content


def test_the_window_lets_a_whole_document_into_one_prompt() -> None:
    calls: list[Any] = []
    llm = tiny_llm()
    assert llm.metadata.context_window == CONTEXT_WINDOW
    assert llm.metadata.is_chat_model
    nodes = [NodeWithScore(node=TextNode(text=f"{i}: {LONG[:700]}")) for i in range(3)]
    for model in (llm, tiny_llm(options={"context_window": 1000, "max_new_tokens": 12})):
        with listening() as heard:
            get_response_synthesizer(llm=model).synthesize("When?", nodes)
        calls.append([type(e).__name__ for e in heard].count("LLMChatStartEvent"))
    assert calls[0] == 1
    chunks = PromptHelper.from_llm_metadata(llm.metadata).repack(PromptTemplate("{context_str}"), [LONG] * 50)
    assert len(chunks) == 1
    assert calls[1] > calls[0]


def test_serialisation_holds_settings_and_no_weights() -> None:
    llm = tiny_llm(options={"temperature": 0.5, "max_new_tokens": 7})
    llm.complete("Hello")
    text = llm.to_json()
    assert len(text) < 2000
    back = InfiniPotLLM.from_json(text)
    assert (back.temperature, back.max_new_tokens, back.budget) == (0.5, 7, 640)
    assert back._assistant is None
    knobs = InfiniPotLLM(model="m", recall=99, novelty_share=0.25)
    assert InfiniPotLLM.from_dict(knobs.to_dict()).settings == {"recall": 99, "novelty_share": 0.25}
    again = pickle.loads(pickle.dumps(knobs))
    assert again.settings == knobs.settings


def test_weights_are_shared_and_loaded_when_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    made: list[Any] = []

    def shared(model: str, *, store: Any = None, **settings: Any) -> Assistant:
        made.append((model, store, settings))
        return Assistant(tiny_engine(), store)

    monkeypatch.setattr(Assistant, "shared", shared)
    llm = InfiniPotLLM(model="m", budget=640, recall=100, device="cpu")
    assert (llm.metadata.model_name, made) == ("m", [])
    assert llm.tokenize("ab") == [97 - 33, 98 - 33]
    llm.complete("Hello")
    (model, store, settings), *more = made
    assert (model, more) == ("m", [])
    assert settings == {"recall": 100, "budget": 640, "device": "cpu", "dtype": "auto", "download": False}
    assert store.folder == MemoryStore().folder
    own = MemoryStore(tmp_path / "own")
    for named in (True, False, str(tmp_path), tmp_path, own):
        assert InfiniPotLLM(store=named).assistant
    stores = [store for _, store, _ in made[1:]]
    assert stores[0].folder == MemoryStore().folder
    assert stores[1] is None
    assert stores[2].folder == stores[3].folder == tmp_path
    assert stores[4] is own


def test_a_model_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(ModelError):
        InfiniPotLLM(model="/nowhere/model").complete("Hello")
    with pytest.raises(InfiniPotError):
        InfiniPotLLM(model="/nowhere/model", budget=1).complete("Hello")
