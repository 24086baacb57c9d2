"""ChatInfiniPot on a real Assistant with random weights: long documents, follow-ups, stops, plain transformers."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from langchain_core.exceptions import LangChainException
from langchain_core.messages import AIMessage, HumanMessage
from langchain_infinipot import ChatInfiniPot

from infinipot_llm.answering.messages import prompt_of, tidied
from infinipot_llm.answering.prompt import Message
from infinipot_llm.assistant import Assistant
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

PARAGRAPHS = [f"Paragraph {i} says that the lamp of room {i} is lit at dusk." for i in range(400)]
LONG = "\n\n".join(PARAGRAPHS)[:20_000]
SHORT = "\n\n".join(PARAGRAPHS[:3])


def block(text: str) -> dict[str, Any]:
    return {"type": "text-plain", "text": text, "mime_type": "text/plain", "title": "lamps.txt"}


def asking(text: str, question: str) -> HumanMessage:
    return HumanMessage([block(text), {"type": "text", "text": question}])


def chat(llm: InfiniPot, **changes: Any) -> ChatInfiniPot:
    return ChatInfiniPot(model="tiny", assistant=Assistant(llm), **{"max_tokens": 4, "citations": False, **changes})


def test_a_second_question_over_20_000_tokens_reads_none_of_them(codec: TextCodec) -> None:
    adapter = Adapter(tiny_model("llama"))
    with InfiniPot(adapter, codec, PotConfig(budget=512, max_new_tokens=16, question_tokens=32)) as llm:
        model = chat(llm)
        first = model.invoke([asking(LONG, "When is the lamp of room 7 lit?")])
        forwarded = 0
        real = adapter.forward

        def counted(ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
            nonlocal forwarded
            forwarded += ids.numel()
            return real(ids, *rest, **options)

        adapter.forward = counted  # type: ignore[method-assign]
        again = model.invoke(
            [asking(LONG, "When is the lamp of room 7 lit?"), first, HumanMessage("And that of room 8?")]
        )
    assert first.usage_metadata is not None
    assert again.usage_metadata is not None
    assert first.usage_metadata["input_token_details"] == {"cache_read": 0, "cache_creation": 20_000}
    assert again.usage_metadata["input_token_details"] == {"cache_read": 20_000, "cache_creation": 0}
    assert again.response_metadata["infinipot"]["how"] == "recall"
    recalled = again.response_metadata["infinipot"]["recalled_tokens"]
    assert recalled <= forwarded <= 3 * 512  # the passages, and the question that looks for them


def test_two_documents_are_both_read_and_can_both_be_cited(tiny_llm: InfiniPot) -> None:
    one, two = LONG[:700], LONG[700:1400]
    said = chat(tiny_llm, citations=True).invoke(
        [HumanMessage([block(one), block(two), {"type": "text", "text": "When is the lamp of room 7 lit?"}])]
    )
    assert said.usage_metadata is not None
    assert said.usage_metadata["input_token_details"]["cache_creation"] == 1400
    documents = said.response_metadata["infinipot"]["documents"]
    assert [d["name"] for d in documents] == ["lamps.txt", "lamps.txt (2)"]
    assert [d["notes"] for d in documents] == [[], []]
    texts = dict(zip([d["name"] for d in documents], (one, two), strict=True))
    for citation in said.response_metadata["infinipot"]["citations"]:
        assert texts[citation["document"]][citation["start"] : citation["end"]] == citation["quote"]


def test_the_same_tokens_give_the_same_answer_as_plain_transformers(codec: TextCodec) -> None:
    """Langchain-huggingface hands its prompt to `generate` of transformers, with which this compares."""
    plain = tiny_model("llama")
    with InfiniPot(Adapter(tiny_model("llama")), codec, PotConfig(budget=512, max_new_tokens=16)) as llm:
        said = chat(llm, max_tokens=16).invoke([("system", "Be brief."), asking(SHORT, "When is it lit?")])
        assert said.response_metadata["infinipot"]["how"] == "whole"
        talk = tidied([Message("system", "Be brief."), Message("user", "When is it lit?")])
        prompt = prompt_of(llm.form, talk, document=True)
        read = codec.document((Document.from_text(SHORT),))
        ids = [*prompt.before, *read.ids.tolist(), *prompt.behind]
    out = plain.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=16, do_sample=False
    )
    assert said.usage_metadata is not None
    assert said.usage_metadata["input_tokens"] == len(ids)
    assert said.text == codec.decode(out[0, len(ids) :].tolist())


def test_beyond_the_window_the_question_is_cut_off_there_and_answered_here(codec: TextCodec) -> None:
    """A pipeline of transformers, as langchain-huggingface makes it, truncates what does not fit; we do not."""
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 1024
    whole = f"{LONG[:3000]}\n\nWhen is the lamp of room 7 lit?"
    left = tokenizer(whole, truncation=True)["input_ids"]
    assert len(left) == 1024
    assert "When is" not in tokenizer.decode(left)
    small = Adapter(tiny_model("llama", max_position_embeddings=1024))
    with InfiniPot(small, codec, PotConfig(budget=512, max_new_tokens=16, question_tokens=32)) as llm:
        said = chat(llm).invoke(whole)
    assert said.response_metadata["finish_reason"] in ("stop", "length")
    assert said.response_metadata["infinipot"]["document_tokens"] > 2900  # the first paragraph stays in the prompt


def test_a_stop_string_ends_the_answer_across_the_borders_of_tokens_and_chunks(tiny_llm: InfiniPot) -> None:
    model = chat(tiny_llm, max_tokens=24)
    whole = model.invoke("Hello").text
    assert len(whole) > 8
    stop = whole[4:7]  # every character of it is a token of its own, at least
    expected = whole[: whole.index(stop)]
    assert model.invoke("Hello", stop=[stop]).text == expected
    assert "".join(str(c.content) for c in model.stream("Hello", stop=[stop])) == expected
    assert chat(tiny_llm, max_tokens=24, stop=stop).invoke("Hello").response_metadata["finish_reason"] == "stop"


def test_a_stream_that_is_left_frees_the_model(tiny_llm: InfiniPot) -> None:
    model = chat(tiny_llm, max_tokens=200)
    stream = model.stream("Hello")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert tiny_llm.adapter.lock.acquire(timeout=5)
    tiny_llm.adapter.lock.release()
    assert model.invoke("Hello", max_tokens=2).usage_metadata is not None


async def test_the_loop_goes_on_while_the_model_answers(tiny_llm: InfiniPot) -> None:
    model = chat(tiny_llm, max_tokens=60)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1

    heart = asyncio.create_task(beat())
    await model.ainvoke("Hello")
    heart.cancel()
    assert beats >= 3


async def test_a_cancelled_call_ends_the_decoding(tiny_llm: InfiniPot) -> None:
    model = chat(tiny_llm, max_tokens=400)
    task = asyncio.create_task(model.ainvoke("Hello"))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tiny_llm.adapter.lock.acquire(timeout=5)
    tiny_llm.adapter.lock.release()


def test_threads_share_one_model(tiny_llm: InfiniPot) -> None:
    model = chat(tiny_llm)
    alone = model.invoke([asking(LONG[:1500], "When?")]).text
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda: said.append(model.invoke([asking(LONG[:1500], "When?")]).text))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [alone] * 4


def test_weights_are_loaded_once_for_the_same_settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    settings: dict[str, Any] = {"model": str(tmp_path), "budget": 512, "store": False, "max_tokens": 2}
    engines = [ChatInfiniPot(**settings).engine() for _ in range(2)]
    assert engines[0] is engines[1]
    other = ChatInfiniPot(**{**settings, "budget": 1024}).engine()
    assert other is not engines[0]
    assert other.llm.adapter is engines[0].llm.adapter
    said = ChatInfiniPot(**settings).invoke("Hello", model=str(tmp_path))
    assert said.response_metadata["model_name"] == str(tmp_path)


def test_a_memory_of_the_store_answers_for_a_file_id(tiny_llm: InfiniPot, tmp_path: Any) -> None:
    from infinipot_llm import MemoryStore

    store = MemoryStore(tmp_path)
    wrote = ChatInfiniPot(model="tiny", assistant=Assistant(tiny_llm, store), max_tokens=2)
    reference = wrote.read(Document.from_text(LONG[:1500], name="lamps.txt"))
    fresh = ChatInfiniPot(model="tiny", assistant=Assistant(tiny_llm, MemoryStore(tmp_path)), max_tokens=2)
    said = fresh.invoke([HumanMessage([reference, {"type": "text", "text": "When?"}])])
    assert isinstance(said, AIMessage)
    assert said.usage_metadata is not None
    assert said.usage_metadata["input_token_details"] == {"cache_read": 1500, "cache_creation": 0}
    with pytest.raises(LangChainException, match="no memory"):
        fresh.invoke([HumanMessage([{"type": "file", "file_id": f"ipd_{'0' * 64}"}, {"type": "text", "text": "?"}])])
