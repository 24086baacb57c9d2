"""Content blocks: documents and cache points are honoured, others refused, and nothing is opened unasked."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from li_helpers import reads, tiny_llm
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    CitableBlock,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms import ChatMessage, TextBlock
from llama_index.llms.infinipot.blocks import document_of, given

from infinipot_llm.answering.prompt import Message
from infinipot_llm.errors import DocumentError, QuestionError

TEXT = "The mill burned in 1903. It was rebuilt in 1904, of stone this time.\n\n"
POINT = CachePoint(cache_control=CacheControl(type="ephemeral"))


def user(*blocks: ContentBlock) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, blocks=list(blocks))


def block(text: str = TEXT, title: str = "mill.txt") -> DocumentBlock:
    return DocumentBlock(data=text.encode(), title=title)


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was opened or fetched."""
    opened: list[str] = []

    def resolve(self: DocumentBlock) -> Any:
        opened.append(str(self.path or self.url))
        return BytesIO(b"Fetched text.")

    monkeypatch.setattr(DocumentBlock, "resolve_document", resolve)
    return opened


def test_roles_and_text() -> None:
    roles = ("system", "developer", "user", "assistant", "chatbot", "model", "tool")
    messages = [ChatMessage(role=role, content=role) for role in roles]
    said = [(m.role, m.text) for m in given(messages).messages]
    assert said == [
        ("system", "system"), ("system", "developer"), ("user", "user"), ("assistant", "assistant"),
        ("assistant", "chatbot"), ("assistant", "model"), ("user", "tool"),
    ]  # fmt: skip
    assert given([user(TextBlock(text="a"), TextBlock(text="b"))]).messages == (Message("user", "a\nb"),)


def test_documents_stay_in_order_and_keep_their_names() -> None:
    there = given([user(block("One.", "a"), TextBlock(text="?"), block("Two.", "b")), user(block("Three.", "c"))])
    assert [(d.name, d.text) for d in there.documents] == [("a", "One."), ("b", "Two."), ("c", "Three.")]
    assert there.messages[0].text == "?"
    assert there.remembered == 0


def test_kinds_of_data() -> None:
    assert document_of(block("Ärger.", "")).name == "document"
    assert document_of(block("Ärger.")).text == "Ärger."
    assert document_of(DocumentBlock(data=BytesIO(TEXT.encode()), title="a")).text.startswith("The mill")
    assert document_of(DocumentBlock(url="data:text/plain;base64,VGhlIG1pbGwu", title="a")).text == "The mill."
    citable = CitableBlock(title="a", source="b", content=[TextBlock(text="One."), block("Two.", "c")])
    assert [d.name for d in given([user(citable)]).documents] == ["a", "c"]


def test_paths_and_addresses_are_neither_opened_nor_fetched(unopened: list[str], tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("Secret.")
    for bad in (
        DocumentBlock(path=str(secret)),
        DocumentBlock(url=f"file://{secret}"),
        DocumentBlock(url="https://example.com/report.pdf"),
        DocumentBlock(url="http://169.254.169.254/latest"),
        DocumentBlock(url="ftp://example.com/a"),
    ):
        with pytest.raises(QuestionError, match=r"not opened.*allow_paths|not fetched.*allow_urls"):
            tiny_llm().chat([user(bad, TextBlock(text="What?"))])
    with pytest.raises(QuestionError, match="not fetched"):
        given([user(DocumentBlock(url="https://example.com/a"))], paths=True)
    with pytest.raises(QuestionError, match="not opened"):
        given([user(DocumentBlock(path=str(secret)))], urls=True)
    assert unopened == []


def test_what_was_allowed_is_opened(unopened: list[str], tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text("Secret.")
    (inside / "link.txt").symlink_to(tmp_path / "b.txt")
    for path in (inside / "a.txt", f"{inside}/../in/a.txt"):
        assert given([user(DocumentBlock(path=str(path)))], paths=[str(inside)]).documents[0].name == "a.txt"
    for path in (tmp_path / "b.txt", f"{inside}/../b.txt", inside / "link.txt", "a.txt"):
        with pytest.raises(QuestionError, match="not opened"):
            given([user(DocumentBlock(path=str(path)))], paths=[str(inside)])
    assert given([user(DocumentBlock(path=str(tmp_path / "b.txt")))], paths=True).documents[0].text == "Secret."
    fetched = given([user(DocumentBlock(url="https://example.com/news/a.txt"))], urls=True).documents[0]
    assert (fetched.name, fetched.text) == ("a.txt", "Fetched text.")
    assert unopened == ["https://example.com/news/a.txt"]


def test_what_cannot_be_fetched_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: DocumentBlock) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(DocumentBlock, "resolve_document", fails)
    with pytest.raises(DocumentError, match=r"https://example\.com/a cannot be read: no route to host"):
        given([user(DocumentBlock(url="https://example.com/a"))], urls=True)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(QuestionError, match="no block of type 'image'"):
        given([user(ImageBlock(image=b"\x89PNG"), TextBlock(text="What is this?"))])
    with pytest.raises(DocumentError, match="is empty: give it data"):
        given([user(DocumentBlock(title="a"))])
    thought = ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), TextBlock(text="Yes.")])
    assert given([thought]).messages == (Message("assistant", "Yes."),)


def test_a_document_block_is_what_the_answer_comes_from() -> None:
    llm = tiny_llm()
    with_it = llm.chat([user(block(), TextBlock(text="When did it burn?"))])
    told = with_it.additional_kwargs["infinipot"]
    assert told["how"] == "whole"
    assert [d["name"] for d in told["documents"]] == ["mill.txt"]
    assert with_it.raw["usage"]["prompt_tokens"] > len(TEXT)  # one token per byte
    without = llm.chat([user(TextBlock(text="When did it burn?"))])
    assert without.additional_kwargs["infinipot"]["how"] == "plain"
    assert without.message.content != with_it.message.content


def test_a_long_document_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, llm = reads(monkeypatch), tiny_llm()
    asked = [user(block(TEXT * 20), TextBlock(text="When did it burn?"))]
    first = llm.chat(asked).additional_kwargs["infinipot"]
    again = llm.chat([*asked, ChatMessage(role="assistant", content="1903"), user(TextBlock(text="And then?"))])
    assert (first["how"], first["remembered_tokens"]) == ("recall", 0)
    assert first["read_tokens"] > 1000
    assert again.additional_kwargs["infinipot"]["read_tokens"] == 0
    assert again.additional_kwargs["infinipot"]["remembered_tokens"] == first["read_tokens"]
    assert read == ["mill.txt"]


def test_a_cache_point_keeps_the_documents_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read = reads(monkeypatch)
    llm = tiny_llm()
    small = [
        user(block("Small. One.", "a"), block("Small. Two.", "b"), POINT, block("Three.", "c"), TextBlock(text="?"))
    ]
    assert given(small).remembered == 2
    llm.chat(small[:1])
    assert read == ["a", "b"]
    llm.chat(small)
    assert read == ["a", "b"]
    read.clear()
    tiny_llm().chat([user(block("Small. One.", "a"), TextBlock(text="?"))])
    assert read == []


def test_tools_that_another_model_called_are_told() -> None:
    block = ToolCallBlock(tool_name="search", tool_kwargs={"query": "mill"})
    message = ChatMessage(role="assistant", blocks=[TextBlock(text="Let me look."), block])
    assert given([message]).messages[0].text == "Let me look.\n[calls search with {'query': 'mill'}]"
