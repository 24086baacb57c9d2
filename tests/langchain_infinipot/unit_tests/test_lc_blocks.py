"""Content blocks and messages: what is a document, what is the question, and what is refused in a sentence."""

from __future__ import annotations

import base64
import io
import logging
from typing import Any

import pytest
from langchain_core.exceptions import LangChainException
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_infinipot.blocks import Limits
from langchain_infinipot.errors import langchain_errors
from langchain_infinipot.messages import Request, holds_documents, read_messages
from lc_fakes import FakeAssistant, chat
from pypdf import PdfWriter
from reportlab.pdfgen.canvas import Canvas

from infinipot_llm.answering.prompt import Message
from infinipot_llm.documents import Document
from infinipot_llm.errors import InfiniPotError

TEXT = "The key hangs behind the door."
KNOWN = Document.from_text("It was read before.", name="old.txt")


def pdf(text: str = TEXT, password: str | None = None) -> bytes:
    out = io.BytesIO()
    canvas = Canvas(out)
    canvas.drawString(72, 700, text)
    canvas.save()
    if password is None:
        return out.getvalue()
    writer = PdfWriter(clone_from=io.BytesIO(out.getvalue()))
    writer.encrypt(password)
    locked = io.BytesIO()
    writer.write(locked)
    return locked.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def limits(**changes: Any) -> Limits:
    return Limits(**{"recognise": {KNOWN.id: KNOWN}.__getitem__, "max_bytes": 100_000, **changes})


def read(*messages: Any, bound: Any = (), **changes: Any) -> Request:
    with langchain_errors():
        return read_messages(messages, limits(**changes), bound)


def asked(*blocks: Any, question: str = "Where is the key?", **changes: Any) -> Request:
    return read(HumanMessage([*blocks, {"type": "text", "text": question}]), **changes)


PDF64 = b64(pdf())

SAME_PDF = {
    "standard": {"type": "file", "base64": PDF64, "mime_type": "application/pdf"},
    "wrapped lines": {"type": "file", "base64": "\n".join([PDF64[:60], PDF64[60:]]), "mime_type": "application/pdf"},
    "data address": {"type": "file", "base64": f"data:application/pdf;base64,{PDF64}", "mime_type": "application/pdf"},
    "openai": {
        "type": "file",
        "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF64}"},
    },
    "anthropic": {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": PDF64},
        "title": "a.pdf",
        "cache_control": {"type": "ephemeral"},
    },
    "langchain 0.3": {"type": "file", "source_type": "base64", "mime_type": "application/pdf", "data": PDF64},
}


@pytest.mark.parametrize("block", SAME_PDF.values(), ids=SAME_PDF)
def test_a_pdf_in_any_providers_block_is_the_same_document(block: dict[str, Any]) -> None:
    (document,) = asked(block).documents
    assert document.text.strip() == TEXT
    assert document.id == Document.from_bytes(pdf(), name="x.pdf").id


SAME_TEXT = {
    "standard": {"type": "text-plain", "text": TEXT, "mime_type": "text/plain"},
    "base64": {"type": "text-plain", "base64": b64(TEXT.encode()), "mime_type": "text/plain"},
    "as a file": {"type": "file", "base64": b64(TEXT.encode()), "mime_type": "text/plain"},
    "anthropic": {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": TEXT}},
    "langchain 0.3": {"type": "file", "source_type": "text", "mime_type": "text/plain", "text": TEXT},
}


@pytest.mark.parametrize("block", SAME_TEXT.values(), ids=SAME_TEXT)
def test_a_text_in_any_providers_block_is_the_same_document(block: dict[str, Any]) -> None:
    (document,) = asked(block).documents
    assert document.id == Document.from_text(TEXT).id


@pytest.mark.parametrize(
    "block",
    [
        {"type": "file", "file_id": KNOWN.id},
        {"type": "text-plain", "file_id": KNOWN.id, "mime_type": "text/plain"},
        {"type": "file", "file": {"file_id": KNOWN.id}},
        {"type": "document", "source": {"type": "file", "file_id": KNOWN.id}},
    ],
    ids=["standard", "text-plain", "openai", "anthropic"],
)
def test_a_file_id_stands_for_a_document_read_before(block: dict[str, Any]) -> None:
    assert asked(block).documents == (KNOWN,)


@pytest.mark.parametrize(
    "file_id",
    [
        "/etc/passwd",
        "ipd_../../etc/passwd",
        f"ipd_{'0' * 63}",
        f"ipd_{'A' * 64}",
        f"ipd_{'0' * 64}\n",
        "a.pdf",
        7,
        "",
    ],
)
def test_a_file_id_is_nothing_but_an_id(file_id: Any) -> None:
    def never(_: str) -> Document:
        raise AssertionError("looked up")

    with pytest.raises(LangChainException, match=r"file_id|holds nothing"):
        asked({"type": "file", "file_id": file_id}, recognise=never)


@pytest.mark.parametrize("url", ["https://example.com/a.pdf", "file:///etc/passwd", "/etc/passwd"])
def test_an_address_is_refused_unless_somebody_opted_in(url: str) -> None:
    block = {"type": "file", "url": url, "mime_type": "text/plain"}
    with pytest.raises(LangChainException, match="fetch_url"):
        asked(block)
    asked_for: list[str] = []

    def fetch(address: str) -> bytes:
        asked_for.append(address)
        return TEXT.encode()

    assert asked(block, fetch_url=fetch).documents[0].text == TEXT
    assert asked_for == [url]
    with pytest.raises(LangChainException, match="max_block_bytes"):
        asked(block, fetch_url=fetch, max_bytes=5)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "file", "base64": "A" * 2000, "mime_type": "application/pdf"},
        {**SAME_TEXT["standard"], "text": "a" * 1500},
    ],
)
def test_a_large_block_is_refused_before_it_is_decoded(block: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *a, **k: pytest.fail("decoded"))
    with pytest.raises(LangChainException, match="max_block_bytes"):
        asked(block, max_bytes=1000)


BAD = {
    "encrypted": ({"type": "file", "base64": b64(pdf(password="secret"))}, "password|encrypted"),
    "damaged": ({"type": "file", "base64": b64(b"%PDF-1.7\n" + b"\x00\xff" * 60)}, "cannot|damaged|PDF"),
    "no PDF": ({"type": "file", "base64": b64(b"<html>"), "mime_type": "application/pdf"}, "document 1.pdf is named"),
    "no PDF, named": (
        {"type": "file", "base64": b64(b"<html>"), "mime_type": "application/pdf", "filename": "report"},
        "report is given as application/pdf but is not a PDF",
    ),
    "binary": ({"type": "file", "base64": b64(bytes(range(256)) * 4)}, "text|binary"),
    "empty": ({"type": "file", "base64": ""}, "empty"),
    "blank text": ({"type": "text-plain", "text": " \n", "mime_type": "text/plain"}, "no text"),
    "no base64": ({"type": "file", "base64": "this is no base64!"}, "not base64"),
    "nothing in it": ({"type": "file", "mime_type": "application/pdf"}, "holds nothing"),
    "a picture": ({"type": "image", "base64": b64(b"png"), "mime_type": "image/png"}, "'image'"),
    "unknown": ({"type": "hologram", "value": 1}, "'hologram'"),
    "malformed": ({"type": "file", "file": {"file_data": None}}, "malformed|cannot be read|holds nothing"),
    "malformed 0.3": ({"type": "file", "source_type": "base64"}, "malformed"),
}


@pytest.mark.parametrize(("block", "says"), BAD.values(), ids=BAD)
def test_a_bad_block_is_one_sentence_in_langchains_own_class(block: dict[str, Any], says: str) -> None:
    with pytest.raises(LangChainException, match=says) as caught:
        asked(block)
    assert isinstance(caught.value, InfiniPotError)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).endswith(".")


def test_the_text_of_the_last_human_message_is_what_is_looked_for() -> None:
    request = read(
        SystemMessage("Answer from the document."),
        HumanMessage([SAME_TEXT["standard"], {"type": "text", "text": "Where is the key?"}]),
        AIMessage("Behind the door."),
        HumanMessage("And the lamp?"),
    )
    assert request.messages == (
        Message("system", "Answer from the document."),
        Message("user", "Where is the key?"),
        Message("assistant", "Behind the door."),
        Message("user", "And the lamp?"),
    )
    assert request.question is None  # the last message itself
    assert len(request.documents) == 1


def test_the_same_document_in_two_messages_counts_once_whatever_its_block_is_called() -> None:
    block = SAME_TEXT["standard"]
    request = read(
        HumanMessage([{**block, "id": "lc_1"}, {"type": "text", "text": "a?"}]),
        AIMessage("b"),
        HumanMessage([{**block, "id": "lc_2", "title": "other.txt"}, {"type": "text", "text": "c?"}]),
    )
    assert [d.name for d in request.documents] == ["document 1.txt"]


def test_two_documents_in_one_message_are_both_there_and_told_apart() -> None:
    named = {"type": "text-plain", "mime_type": "text/plain", "title": "a.txt"}
    request = asked({**named, "text": "One."}, {**named, "text": "Two."})
    assert [(d.name, d.text) for d in request.documents] == [("a.txt", "One."), ("a.txt (2)", "Two.")]


def test_bound_documents_come_first() -> None:
    request = asked(SAME_TEXT["standard"], bound=[KNOWN])
    assert [d.name for d in request.documents] == ["old.txt", "document 2.txt"]


def test_context_of_a_block_is_told_and_not_looked_for() -> None:
    request = asked({**SAME_TEXT["standard"], "title": "a.txt", "context": "Minutes of the board."})
    assert request.messages[-1].text == "About a.txt: Minutes of the board.\n\nWhere is the key?"
    assert request.question == "Where is the key?"


def test_results_of_tools_are_told_and_the_question_still_comes_last() -> None:
    call = {"name": "weather", "args": {"city": "Hollin"}, "id": "1", "type": "tool_call"}
    request = read(
        HumanMessage("Is it dry?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage([{"type": "text", "text": "No rain."}, SAME_PDF["standard"]], tool_call_id="1", name="weather"),
    )
    assert [m.role for m in request.messages] == ["assistant", "user", "user"]
    assert request.messages[1].text == "Result of weather:\nNo rain."
    assert request.messages[-1].text == "Is it dry?"
    assert len(request.documents) == 1


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [SystemMessage("Answer.")],
        [HumanMessage([SAME_TEXT["standard"]])],
        [HumanMessage("a?"), AIMessage("b")],
        [HumanMessage("a?"), AIMessage("b"), HumanMessage([SAME_TEXT["standard"]])],
        [HumanMessage("  ")],
    ],
)
def test_no_question_is_an_error(messages: list[Any]) -> None:
    with pytest.raises(LangChainException, match="there is no question"):
        read(*messages)


def test_a_document_may_stand_in_a_message_of_its_own() -> None:
    request = read(HumanMessage([SAME_TEXT["standard"]]), HumanMessage("Where is the key?"))
    assert request.messages == (Message("user", "Where is the key?"),)
    assert len(request.documents) == 1


def test_roles_of_generic_messages() -> None:
    request = read(ChatMessage("Be brief.", role="developer"), ChatMessage("Where?", role="User"))
    assert [m.role for m in request.messages] == ["system", "user"]
    with pytest.raises(LangChainException, match="'oracle'"):
        read(ChatMessage("Where?", role="oracle"))


def test_what_another_model_thought_is_left_out() -> None:
    said = AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Yes."}])
    assert read(HumanMessage("a?"), said, HumanMessage("b?")).messages[1] == Message("assistant", "Yes.")


def test_messages_keep_their_text_as_it_is() -> None:
    assert read(HumanMessage(" Where?\n")).messages == (Message("user", " Where?\n"),)


def test_holds_documents() -> None:
    assert holds_documents([HumanMessage([SAME_TEXT["standard"]])])
    assert not holds_documents([HumanMessage([{"type": "text", "text": "a"}]), SystemMessage("b")])


def test_document_text_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        asked(*SAME_PDF.values(), *SAME_TEXT.values())
    assert TEXT not in caplog.text


def test_the_text_of_a_pdf_keeps_its_name() -> None:
    fake = FakeAssistant()
    block = {"type": "text-plain", "text": "The mill burned.", "title": "report.pdf", "mime_type": "text/plain"}
    chat(fake).invoke([("human", [block, {"type": "text", "text": "When?"}])])
    assert [(d.name, d.text) for d in fake.calls[-1][1]] == [("report.pdf", "The mill burned.")]
