"""`structured_predict`: what comes back follows a schema, by every call and over a memory."""

from __future__ import annotations

from typing import Literal

import pytest
from li_helpers import LONG, listening, tiny_llm
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate

from infinipot_llm.documents import Document
from infinipot_llm.errors import QuestionError

pytestmark = pytest.mark.usefixtures("closed_loop")


class Fire(BaseModel):
    year: int
    rebuilt: bool


@pytest.mark.filterwarnings("ignore:The `json` method is deprecated")  # LlamaIndex's own call, in as_structured_llm
async def test_structured_predict() -> None:
    llm = tiny_llm(max_new_tokens=120, budget=900)
    prompt = PromptTemplate("When and where did the {what} burn?")
    with listening() as heard:
        fire = llm.structured_predict(Fire, prompt, what="mill")
    assert isinstance(fire, Fire)
    names = [type(e).__name__ for e in heard]
    assert (names[0], names[-1]) == ("LLMStructuredPredictStartEvent", "LLMStructuredPredictEndEvent")
    assert await llm.astructured_predict(Fire, prompt, what="mill") == fire
    assert list(llm.stream_structured_predict(Fire, prompt, what="mill")) == [fire]
    assert [f async for f in await llm.astream_structured_predict(Fire, prompt, what="mill")] == [fire]
    asked = [ChatMessage(content="When and where did the mill burn?")]
    whole = llm.as_structured_llm(Fire)
    assert [r.raw for r in whole.stream_chat(asked)] == [fire]
    assert [r.raw async for r in await whole.astream_chat(asked)] == [fire]
    with pytest.raises(QuestionError, match="the answer is no Fire"):
        llm.structured_predict(Fire, prompt, llm_kwargs={"max_new_tokens": 3}, what="mill")


class Burned(BaseModel):
    year: Literal[1903, 1904]  # short, since random weights would count on for ever


@pytest.mark.parametrize("followup", ["recall", "reuse", "reread"])
@pytest.mark.parametrize("system", [None, "Be brief."])
async def test_structured_predict_over_a_memory(followup: str, system: str | None) -> None:
    llm = tiny_llm(max_new_tokens=40, budget=900, question_tokens=200)
    llm = llm.over(llm.assistant.remember([Document.from_text(LONG, name="mill")]), followup=followup)
    llm.system_prompt = system
    prompt = PromptTemplate("When and where did the {what} burn?")
    burned = llm.structured_predict(Burned, prompt, what="mill")
    assert isinstance(burned, Burned)
    assert await llm.astructured_predict(Burned, prompt, what="mill") == burned
    assert list(llm.stream_structured_predict(Burned, prompt, what="mill")) == [burned]
