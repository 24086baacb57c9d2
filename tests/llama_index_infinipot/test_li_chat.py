"""InfiniPotChatEngine: follow-ups with their own passages, a Memory, streams that end up in it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from li_helpers import listening, mill_pages, reads, river, tiny_llm
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.chat_engine import CondenseQuestionChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.indices.managed.infinipot import InfiniPotChatEngine, InfiniPotIndex
from llama_index.indices.managed.infinipot.nodes import passages_in

from infinipot_llm.memory.memory import DocumentMemory

pytestmark = pytest.mark.usefixtures("closed_loop")


@pytest.fixture(scope="module")
def index() -> InfiniPotIndex:
    return InfiniPotIndex.from_documents([*mill_pages(), river()], llm=tiny_llm(budget=1200))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts behind the document, as text."""
    prompts: list[str] = []
    real = DocumentMemory.answer

    def spy(self: DocumentMemory, prompt: Any, *args: Any, **options: Any) -> Any:
        prompts.append(self.setup.form.codec.tokenizer.decode([*prompt.before, *prompt.behind]))
        return real(self, prompt, *args, **options)

    monkeypatch.setattr(DocumentMemory, "answer", spy)
    return prompts


def said(history: list[ChatMessage]) -> list[tuple[str, str]]:
    return [(m.role.value, m.content or "") for m in history]


def test_base_class() -> None:
    assert BaseChatEngine in inspect.getmro(InfiniPotChatEngine)


def test_a_follow_up_is_the_memory_s_follow_up(index: InfiniPotIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reads(monkeypatch)
    chat = index.as_chat_engine()
    assert isinstance(chat, InfiniPotChatEngine)
    memory, _ = index.memory_and_sources()
    first, second = "When did mill number 4 burn?", "And how far did the river rise?"
    a = chat.chat(first)
    b = chat.chat(second)
    assert a.response == memory.ask(first).text
    direct = memory.ask(second, history=[(first, a.response)])
    assert b.response == direct.text
    assert b.metadata is not None
    assert b.metadata["infinipot"]["recalled_tokens"] == direct.usage.recalled_tokens
    assert said(chat.chat_history) == [
        ("user", first), ("assistant", a.response), ("user", second), ("assistant", b.response)
    ]  # fmt: skip
    texts = " ".join(n.node.text for n in b.source_nodes)
    assert "river rose" in texts
    assert 0.9 * direct.usage.recalled_tokens <= sum(len(n.node.text) for n in b.source_nodes)
    assert b.sources[0].raw_output == b.source_nodes
    assert read == []


def test_earlier_turns_take_part_in_looking(index: InfiniPotIndex) -> None:
    memory, _ = index.memory_and_sources()
    history = [ChatMessage(content="Mill number 5?"), ChatMessage(role="assistant", content="In 1905.")]
    read = passages_in(index.as_chat_engine(recall=100, chat_history=history).chat("And the owner?").source_nodes)
    assert read == memory.passages("And the owner?", history=[("Mill number 5?", "In 1905.")], recall=100)
    assert read != memory.passages("And the owner?", recall=100)


def test_reset(index: InfiniPotIndex, asked: list[str]) -> None:
    chat = index.as_chat_engine()
    chat.chat("Which mill?")
    chat.reset()
    assert chat.chat_history == []
    chat.chat("Which river?")
    assert "Which mill?" not in asked[-1]


def test_a_history_of_the_caller(index: InfiniPotIndex, asked: list[str]) -> None:
    chat = index.as_chat_engine()
    chat.chat("Forgotten?")
    chat.chat("And now?", chat_history=[ChatMessage(content="Kept?"), ChatMessage(role="assistant", content="Yes.")])
    assert "Kept?" in asked[-1]
    assert "Forgotten?" not in asked[-1]
    assert said(chat.chat_history)[0] == ("user", "Kept?")


@pytest.mark.parametrize("kind", [Memory, ChatMemoryBuffer])
def test_a_memory_of_the_caller(index: InfiniPotIndex, kind: Any) -> None:
    memory = kind.from_defaults(token_limit=2000, tokenizer_fn=list)
    chat = index.as_chat_engine(memory=memory)
    answer = chat.chat("Which mill?")
    assert said(memory.get_all()) == [("user", "Which mill?"), ("assistant", answer.response)]


def test_system_prompt_and_prefix_messages(index: InfiniPotIndex, asked: list[str]) -> None:
    chat = index.as_chat_engine(
        system_prompt="Be brief.",
        prefix_messages=[ChatMessage(content="Hello?"), ChatMessage(role=MessageRole.ASSISTANT, content="Hello.")],
    )
    chat.chat("Which mill?")
    assert "<|im_start|>system\nBe brief.<|im_end|>" in asked[-1]
    assert asked[-1].index("Hello?") < asked[-1].index("Hello.") < asked[-1].index("Which mill?")
    assert len(chat.chat_history) == 2


def test_turns_that_no_longer_fit_are_left_out_and_told(index: InfiniPotIndex) -> None:
    history = [
        ChatMessage(role=role, content=f"{role} says number {i} at some length, to fill the prompt")
        for i in range(20)
        for role in ("user", "assistant")
    ]
    memory = ChatMemoryBuffer.from_defaults(token_limit=100_000, tokenizer_fn=list)
    answer = index.as_chat_engine(memory=memory).chat("And now?", chat_history=history)
    assert answer.metadata is not None
    (note,) = answer.metadata["infinipot"]["notes"]
    assert "earlier turns no longer fit and were left out" in note
    assert len(memory.get_all()) == 42


def test_the_default_memory_holds_no_more_than_the_budget(index: InfiniPotIndex) -> None:
    chat = index.as_chat_engine()
    assert isinstance(chat, InfiniPotChatEngine)
    assert isinstance(chat._memory, Memory)
    assert chat._memory.token_limit == 1200
    assert chat._memory.tokenizer_fn("abc") == index.llm.tokenize("abc")


async def test_async_and_streams_end_up_in_the_history(index: InfiniPotIndex) -> None:
    chats: list[Any] = [index.as_chat_engine() for _ in range(4)]
    for question in ("When did mill number 4 burn?", "And the owner?"):
        whole = chats[0].chat(question)
        answers = [whole.response, (await chats[1].achat(question)).response]
        streamed = chats[2].stream_chat(question)
        answers.append("".join(streamed.response_gen))
        stream = await chats[3].astream_chat(question)
        answers.append("".join([piece async for piece in stream.async_response_gen()]))
        assert len(set(answers)) == 1
        for answer in (streamed, stream):
            assert answer.metadata["infinipot"]["notes"] == whole.metadata["infinipot"]["notes"]
            assert answer.metadata["infinipot"]["citations"] == whole.metadata["infinipot"]["citations"]
    histories = [said(chat.chat_history) for chat in chats]
    assert all(history == histories[0] for history in histories)
    assert len(histories[0]) == 4


def test_events_of_a_stream(index: InfiniPotIndex) -> None:
    with listening() as heard:
        "".join(index.as_chat_engine().stream_chat("Which mill?").response_gen)
    names = [type(e).__name__ for e in heard]
    for name in (
        "RetrievalStartEvent",
        "SynthesizeStartEvent",
        "StreamChatStartEvent",
        "LLMChatEndEvent",
        "StreamChatEndEvent",
    ):
        assert names.count(name) == 1, name


async def test_an_error_reaches_whoever_reads(index: InfiniPotIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, *_: Any, **__: Any) -> Any:
        raise ValueError("the model fell over")

    monkeypatch.setattr(DocumentMemory, "answer", fails)
    chat = index.as_chat_engine()
    with pytest.raises(ValueError, match="fell over"):
        chat.chat("Which mill?")
    assert chat.chat_history == []
    with pytest.raises(ValueError, match="fell over"):
        "".join(chat.stream_chat("Which mill?").response_gen)
    stream = await chat.astream_chat("Which mill?")
    with pytest.raises(ValueError, match="fell over"):
        _ = [piece async for piece in stream.async_response_gen()]


@pytest.mark.parametrize("followup", ["reuse", "reread"])
def test_other_followups(followup: str) -> None:
    index = InfiniPotIndex.from_documents([river()], llm=tiny_llm(budget=1200))
    chat = index.as_chat_engine(followup=followup)
    memory, _ = index.memory_and_sources()
    first = chat.chat("How far did it rise?").response
    assert first == memory.ask("How far did it rise?", followup=followup).text
    assert chat.chat("And then?").response == memory.ask(
        "And then?", followup=followup, history=[("How far did it rise?", first)]
    ).text  # fmt: skip


def test_the_other_modes_are_llama_index_s_own(index: InfiniPotIndex) -> None:
    assert isinstance(index.as_chat_engine(ChatMode.CONTEXT), InfiniPotChatEngine)
    assert isinstance(index.as_chat_engine(ChatMode.SIMPLE), SimpleChatEngine)
    condensed = index.as_chat_engine(ChatMode.CONDENSE_QUESTION)
    assert isinstance(condensed, CondenseQuestionChatEngine)
    assert condensed.chat("Which mill?").response
    history = [ChatMessage(content="Hello"), ChatMessage(role="assistant", content="Hello.")]
    condensed = index.as_chat_engine(ChatMode.CONDENSE_QUESTION, chat_history=history, followup="recall", recall=60)
    assert condensed.chat_history == history
    kept = ChatMemoryBuffer.from_defaults(token_limit=500)
    both = index.as_chat_engine(
        ChatMode.CONDENSE_PLUS_CONTEXT, memory=kept, system_prompt="Be brief.", similarity_top_k=2
    )
    assert both.chat("Which mill?").response
    simple = index.as_chat_engine(ChatMode.SIMPLE, system_prompt="Be brief.")
    assert simple._prefix_messages[0].content == "Be brief."
