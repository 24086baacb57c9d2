"""Loader, retriever and tool: metadata that people expect, passages as evidence, and a tool that opens no paths."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import LangChainException
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_infinipot import InfiniPotDocumentTool, InfiniPotLoader, InfiniPotRetriever
from langchain_infinipot.errors import InvalidRequestError
from lc_fakes import FakeAssistant, chat
from pydantic import ValidationError
from reportlab.pdfgen.canvas import Canvas

from infinipot_llm.assistant import Assistant
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import ModelNotFetchedError, QuestionError
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.store import MemoryStore

PDF = Path(__file__).resolve().parents[3] / "examples" / "documents" / "hollin_valley.pdf"
VTT = """WEBVTT

00:00:01.000 --> 00:00:04.000
<v Ann>Where is the key?

00:00:05.000 --> 00:00:09.000
<v Ben>It hangs behind the door.
"""
LONG = "\n\n".join(f"Paragraph {i} says that the lamp of room {i} is lit at dusk." for i in range(40))


def test_pages_of_a_pdf() -> None:
    pages = list(InfiniPotLoader(PDF).lazy_load())
    read = Document.from_file(PDF)
    assert len(pages) == read.page_count
    for page, ours in zip(pages, read.pages, strict=True):
        assert page.page_content == read.text[ours.start : ours.end]
        assert page.metadata == {
            "source": str(PDF),
            "total_pages": read.page_count,
            "document_id": read.id,
            "page": ours.number - 1,
            "page_label": ours.label or str(ours.number),
        }
    assert [p.metadata["page_label"] for p in pages][3:5] == [read.pages[3].label, read.pages[4].label]


def test_pages_that_could_not_be_read_are_named(tmp_path: Path) -> None:
    """Scans among the pages: a chain that answers "not mentioned" from the others has to be able to say so."""
    path = tmp_path / "scans.pdf"
    canvas = Canvas(str(path))
    canvas.drawString(72, 700, "The key hangs behind the door.")
    canvas.showPage()
    canvas.rect(72, 500, 200, 200, fill=1)
    canvas.showPage()
    canvas.save()
    (note,) = Document.from_file(path).notes
    assert "2" in note
    assert all(page.metadata["notes"] == [note] for page in InfiniPotLoader(path).load())
    fake = FakeAssistant("Behind the door.")
    said = chat(fake).bind(document=path).invoke("Where is the key?")
    assert [d["notes"] for d in said.response_metadata["infinipot"]["documents"]] == [[note]]


def test_a_pdf_in_one_piece() -> None:
    (whole,) = InfiniPotLoader(str(PDF), mode="single").load()
    assert whole.page_content == Document.from_file(PDF).text
    assert "page" not in whole.metadata
    assert whole.metadata["total_pages"] == Document.from_file(PDF).page_count


def test_turns_of_a_transcript(tmp_path: Path) -> None:
    path = tmp_path / "talk.vtt"
    path.write_text(VTT, encoding="utf-8")
    turns = InfiniPotLoader(path).load()
    assert [(t.metadata["speaker"], t.metadata["time"]) for t in turns] == [("Ann", 1.0), ("Ben", 5.0)]
    assert "behind the door" in turns[1].page_content


def test_a_loader_is_lazy_and_its_errors_are_langchains(tmp_path: Path) -> None:
    loader = InfiniPotLoader([PDF, tmp_path / "gone.pdf"])
    pages = loader.lazy_load()
    assert next(pages).metadata["page"] == 0
    with pytest.raises(LangChainException, match="does not exist"):
        list(pages)
    with pytest.raises(ValueError, match="mode is 'pages'"):
        InfiniPotLoader(PDF, mode="pages")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (b"%PDF", "raw bytes"),
        (None, "of type NoneType"),
        ("", "given ''"),
        ([PDF, 3], "of type int"),
        ("http://example.com/a.pdf", "nothing is fetched"),
    ],
)
def test_a_loader_refuses_what_is_no_path(wrong: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        InfiniPotLoader(wrong)


async def test_a_loader_loads_asynchronously() -> None:
    assert len(await InfiniPotLoader(PDF, mode="single").aload()) == 1


@pytest.fixture
def retriever(tiny_llm: InfiniPot) -> InfiniPotRetriever:
    document = Document.from_text(LONG, name="lamps.txt")
    return InfiniPotRetriever(assistant=Assistant(tiny_llm), document=document, k=3, recall=200)


def test_passages_have_their_place_and_come_best_first(retriever: InfiniPotRetriever) -> None:
    found = retriever.invoke("When is the lamp of room 7 lit?")
    assert len(found) == 3
    for passage in found:
        start = passage.metadata["start_index"]
        assert LONG[start : start + len(passage.page_content)] == passage.page_content
        assert passage.metadata["source"] == "lamps.txt"
        assert (passage.metadata["page"], passage.metadata["page_label"], passage.metadata["total_pages"]) == (
            0,
            "1",
            1,
        )
    scores = [p.metadata["score"] for p in found]
    assert scores == sorted(scores, reverse=True)
    assert [p.page_content for p in retriever.invoke("When is the lamp of room 7 lit?", k=1)] == [found[0].page_content]


@pytest.mark.parametrize(("own", "configured", "tokens"), [(None, None, 1024), (None, 300, 300), (200, 300, 200)])
def test_passages_are_taken_from_as_many_tokens_as_are_asked_for(
    tiny_llm: InfiniPot, monkeypatch: pytest.MonkeyPatch, own: int | None, configured: int | None, tokens: int
) -> None:
    """A small model is brought 256 tokens to answer from; another model may read what a retriever returns."""
    wanted: list[int] = []
    real = DocumentMemory.recall

    def recall(self: DocumentMemory, question: str, tokens: int | None = None) -> Any:
        wanted.append(tokens or 0)
        return real(self, question, tokens)

    monkeypatch.setattr(DocumentMemory, "recall", recall)
    llm = InfiniPot(tiny_llm.adapter, tiny_llm.form.codec, replace(tiny_llm.config, recall=configured))
    document = Document.from_text(LONG * 3, name="lamps.txt")
    InfiniPotRetriever(assistant=Assistant(llm), document=document, k=1, recall=own).invoke("When is the lamp lit?")
    assert wanted == [tokens]


async def test_passages_are_found_asynchronously(retriever: InfiniPotRetriever) -> None:
    assert len(await retriever.ainvoke("When is the lamp lit?", k=2)) == 2


async def test_cancelling_a_retriever_ends_the_reading(tiny_llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    real = InfiniPot.read

    def slow(self: InfiniPot, documents: Any, *, progress: Any, **options: Any) -> Any:
        def told(stats: Any) -> None:
            passes.append(stats.tokens_read)
            time.sleep(0.05)
            progress(stats)

        return real(self, documents, progress=told, **options)

    monkeypatch.setattr(InfiniPot, "read", slow)
    assistant = Assistant(tiny_llm)
    retriever = InfiniPotRetriever(assistant=assistant, document=Document.from_text(LONG * 3))
    task = asyncio.create_task(retriever.ainvoke("When is the lamp lit?"))
    while not passes:
        await asyncio.sleep(0.01)
    await cancelled(task, assistant)
    assert len(passes) < 60


async def test_cancelling_a_retriever_ends_its_waiting_for_another_process(tiny_llm: InfiniPot, tmp_path: Path) -> None:
    assistant, document = Assistant(tiny_llm, MemoryStore(tmp_path)), Document.from_text(LONG)
    retriever = InfiniPotRetriever(assistant=assistant, document=document)
    with MemoryStore(tmp_path).writing(tiny_llm.key([document])):  # this thread's, as another process's would be
        task = asyncio.create_task(retriever.ainvoke("When is the lamp lit?"))
        while not assistant.collection._reading.locked():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await cancelled(task, assistant)
    assert await retriever.ainvoke("When is the lamp lit?")


async def cancelled(task: asyncio.Task[Any], assistant: Assistant) -> None:
    """Cancel a call, and see that others can read soon after."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reading = assistant.collection._reading
    assert await asyncio.to_thread(reading.acquire, timeout=3)
    reading.release()


def test_a_retriever_refuses_what_cannot_be(retriever: InfiniPotRetriever) -> None:
    with pytest.raises(LangChainException, match="at least 1"):
        retriever.invoke("When?", k=0)
    with pytest.raises(LangChainException, match="k is '2'"):
        retriever.invoke("When?", k="2")
    with pytest.raises(LangChainException, match="unknown keyword 'kk': did you mean 'k'"):
        retriever.invoke("When?", kk=2)
    with pytest.raises(LangChainException, match="query is of type dict"):
        retriever.invoke({"q": 1})  # type: ignore[arg-type]
    with pytest.raises(LangChainException, match="empty"):
        retriever.invoke(" ")
    with pytest.raises(ValidationError, match="no document"):
        InfiniPotRetriever()
    with pytest.raises(ValidationError, match="did you mean 'document'"):
        InfiniPotRetriever(documnt="a.pdf")  # type: ignore[call-arg]


NOTES = Document.from_text("The key hangs behind the door.", name="notes.txt")


def tool(fake: FakeAssistant | None = None, **changes: Any) -> InfiniPotDocumentTool:
    return InfiniPotDocumentTool(**{"assistant": fake or FakeAssistant(), "document": NOTES, **changes})


def call(question: str = "Where is the key?") -> dict[str, Any]:
    return {"name": "ask_document", "args": {"question": question}, "id": "1", "type": "tool_call"}


def test_a_tool_answers_with_quotes_and_pages() -> None:
    fake = FakeAssistant()
    said = tool(fake).invoke(call())
    assert isinstance(said, ToolMessage)
    assert said.content == f'{fake.text}\n- notes.txt, page 1: "The k"'
    assert said.artifact["answer"] == fake.text
    assert said.artifact["infinipot"]["citations"][0]["page"] == 1
    assert [(m.role, m.text) for m in fake.calls[0][0]] == [("user", "Where is the key?")]


def test_a_tool_takes_a_question_and_nothing_else() -> None:
    made = tool()
    assert list(made.args) == ["question"]
    assert made.name == "ask_document"
    assert "notes.txt" in made.description
    assert "/home" not in InfiniPotDocumentTool(document="/home/ann/report.pdf").description
    with pytest.raises(ValidationError, match="no document"):
        InfiniPotDocumentTool()


def test_what_the_calling_model_can_mend_is_told_to_it() -> None:
    fake = FakeAssistant()
    fake.error = QuestionError("the question is too long.")
    said = tool(fake).invoke(call())
    assert (said.content, said.status) == ("the question is too long.", "error")
    assert tool().invoke(call(" ")).status == "error"


def test_what_only_the_user_can_mend_is_raised(tmp_path: Path) -> None:
    with pytest.raises(LangChainException, match="does not exist"):
        tool(document=tmp_path / "gone.pdf").invoke(call())
    fake = FakeAssistant()
    fake.error = ModelNotFetchedError("run infinipot models get.")
    with pytest.raises(LangChainException, match="models get"):
        tool(fake).invoke(call())


async def test_a_tool_works_asynchronously() -> None:
    fake = FakeAssistant()
    assert (await tool(fake).ainvoke(call())).artifact["answer"] == fake.text
    assert len(fake.loop_threads) == 1


class CallsOnce(GenericFakeChatModel):
    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self


def test_an_agent_of_another_model_asks_the_document() -> None:
    fake = FakeAssistant()
    model = CallsOnce(messages=iter([AIMessage("", tool_calls=[call()]), AIMessage("Behind the door.")]))
    done = create_agent(model, tools=[tool(fake)]).invoke({"messages": [("user", "Where is the key?")]})
    kinds = [type(m).__name__ for m in done["messages"]]
    assert kinds == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    assert fake.text in done["messages"][2].content
