"""Messages and documents in, an answer out: read as they are where they fit, from memory where they do not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from infinipot_llm import assistant as assistant_module
from infinipot_llm.answering.prompt import QUERY_TOKENS, Message
from infinipot_llm.assistant import Assistant, Reply
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document, Page
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import DocumentError, InfiniPotError, QuestionError, QuestionTooLongError
from infinipot_llm.memory.recall import Finder
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.models import load as load_module
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

CODEC = TextCodec(byte_tokenizer())
CONFIG = {"budget": 600, "max_new_tokens": 16, "question_tokens": 40, "chunk": 64, "recall": 120}
SHORT = Document.from_text("Mill 3 was sold in 1803 by its owner, who moved away.", name="short")
LONG = Document.from_text("\n\n".join(f"Ship {i} was launched in {1900 + i}." for i in range(60)), name="long")
EMPTY = Document("empty", "", (Page(1, None, 0, 0),))
OTHER = Document.from_text("\n\n".join(f"Mill {i} was sold in {1800 + i}." for i in range(60)), name="other")
ASK = [Message("system", "Be brief."), Message("user", "Who moved away?")]


@pytest.fixture(scope="module")
def adapter() -> Iterator[Adapter]:
    made = Adapter(tiny_model("llama"))
    yield made
    made.close()


def made(adapter: Adapter, store: MemoryStore | None = None, **changes: Any) -> Assistant:
    return Assistant(InfiniPot(adapter, CODEC, PotConfig(**{**CONFIG, **changes})), store)


@pytest.fixture
def assistant(adapter: Adapter) -> Assistant:
    return made(adapter)


def generated(adapter: Adapter, ids: list[int], tokens: int = 16) -> str:
    """What the plain model says, without any of our cache."""
    with adapter.lock:
        adapter.close()
        try:
            plain = tiny_model("llama")
            out = plain.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)
        finally:
            adapter.__init__(adapter.model)  # type: ignore[misc]
    return CODEC.decode(out[0, len(ids) :].tolist()).strip()


def templated(*messages: tuple[str, str]) -> list[int]:
    return list(
        CODEC.tokenizer.apply_chat_template(
            [{"role": r, "content": t} for r, t in messages], add_generation_prompt=True, return_dict=False
        )
    )


def test_without_a_document_the_answer_is_the_plain_models(assistant: Assistant, adapter: Adapter) -> None:
    reply = assistant.respond(ASK)
    ids = templated(("system", "Be brief."), ("user", "Who moved away?"))
    assert reply.answer.text == generated(adapter, ids)
    assert (reply.how, reply.prompt_tokens, reply.read_tokens, reply.remembered_tokens) == ("plain", len(ids), 0, 0)
    assert reply.documents == ()
    assert reply.answer.citations == ()


def test_a_document_that_fits_is_read_as_it_is_and_once(assistant: Assistant, adapter: Adapter) -> None:
    ids = templated(("system", "Be brief."), ("user", f"Document:\n{SHORT.text}\n\nWho moved away?"))
    first = assistant.respond(ASK, [SHORT])
    assert first.answer.text == generated(adapter, ids)
    size = len(SHORT.text)
    assert (first.how, first.prompt_tokens, first.read_tokens, first.remembered_tokens) == ("whole", len(ids), size, 0)
    again = assistant.respond(ASK, [SHORT])
    assert again.answer.text == first.answer.text
    assert (again.read_tokens, again.remembered_tokens) == (0, size)
    other = assistant.respond([Message("system", "Be long."), ASK[1]], [SHORT])  # another prompt before the document
    assert (other.read_tokens, other.remembered_tokens) == (size, 0)


def test_a_document_that_does_not_fit_is_read_once_and_recalled(assistant: Assistant) -> None:
    first = assistant.respond(ASK, [LONG])
    size = len(LONG.text)
    assert (first.how, first.read_tokens, first.remembered_tokens) == ("recall", size, 0)
    assert 0 < first.answer.usage.recalled_tokens <= 120
    assert first.prompt_tokens > size
    second = assistant.respond([Message("user", "Which ship was launched in 1930?")], [LONG])
    assert (second.read_tokens, second.remembered_tokens) == (0, size)
    assert assistant.respond(ASK, [LONG]).answer.text == first.answer.text


def test_the_callers_system_message_stands_before_what_was_recalled(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    true = assistant_module.DocumentMemory.answer

    def spy(self: Any, prompt: Any, *args: Any, **options: Any) -> Any:
        seen.append(prompt)
        return true(self, prompt, *args, **options)

    monkeypatch.setattr(assistant_module.DocumentMemory, "answer", spy)
    assistant.respond(ASK, [LONG])
    assert CODEC.tokenizer.decode(seen[0].before).endswith("Be brief.<|im_end|>\n<|im_start|>user\nDocument:\n")
    assistant.respond(ASK, [LONG], catalyst="Which ship?")
    assert (seen[1].question, seen[1].behind) == ("Which ship?", seen[0].behind)
    assert list(seen[1].query) == assistant.llm.form.question("Which ship?")
    talk = [Message("user", "Who built ship 7?"), Message("assistant", "A family."), Message("user", "When?")]
    assistant.respond(talk, [LONG])
    more = [*talk[:-1], Message("user", "When?\n\nAnswer with JSON.")]
    assistant.respond(more, [LONG], asked="When?")
    assert seen[3].query == seen[2].query  # earlier turns take part in looking, what else the message holds does not
    assert (seen[2].question, seen[3].question) == ("When?", "When?")
    assert "with JSON" in CODEC.tokenizer.decode(seen[3].behind)


def test_what_was_stuffed_into_a_message_is_a_document(assistant: Assistant) -> None:
    text = "\n\n".join([*(f"Ship {i} was launched in {1900 + i}, as all know." for i in range(60)), "Who moved away?"])
    reply = assistant.respond([Message("user", text)])
    assert (reply.how, [d.name for d in reply.documents]) == ("recall", ["prompt"])
    assert assistant.respond([Message("user", text)]).read_tokens == 0


def test_pieces_join_to_the_answer_and_the_reply_comes_last(assistant: Assistant) -> None:
    plain = assistant.respond(ASK, [LONG])
    *pieces, last = assistant.stream(ASK, [LONG])
    assert isinstance(last, Reply)
    assert last.answer.citations == plain.answer.citations
    assert "".join(p for p in pieces if isinstance(p, str)).strip() == plain.answer.text == last.answer.text

    async def both() -> tuple[Reply, list[str | Reply]]:
        return await assistant.arespond(ASK, [LONG]), [p async for p in assistant.astream(ASK, [LONG])]

    awaited, streamed = asyncio.run(both())
    assert awaited.answer.text == plain.answer.text
    assert [p for p in streamed if isinstance(p, str)] == pieces
    assert isinstance(streamed[-1], Reply)


def test_leaving_a_stream_frees_the_model(assistant: Assistant) -> None:
    stream = assistant.stream(ASK, [LONG], max_new_tokens=200)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert assistant.llm.adapter.lock.acquire(timeout=0)
    assistant.llm.adapter.lock.release()
    assert assistant.respond(ASK, [LONG]).answer.finish_reason != "cancelled"


def test_going_away_ends_the_reading_with_a_cancelled_answer(adapter: Adapter) -> None:
    for changes in ({}, {"shelf": "off"}):
        assistant = made(adapter, **changes)
        passes: list[Any] = []
        reply = assistant.respond(ASK, [LONG], progress=passes.append, cancelled=lambda seen=passes: len(seen) >= 2)
        assert reply.answer.finish_reason == "cancelled"
        assert reply.answer.text == ""
        assert len(passes) == 2
        assert assistant.respond(ASK, [LONG]).read_tokens == len(LONG.text)


def test_without_a_shelf_the_question_is_the_catalyst_every_time(adapter: Adapter) -> None:
    assistant = made(adapter, shelf="off")
    for _ in range(2):
        reply = assistant.respond(ASK, [LONG])
        assert (reply.how, reply.read_tokens, reply.remembered_tokens) == ("reread", len(LONG.text), 0)
        assert reply.answer.usage.read.cycles > 0
    reread = made(adapter, followup="reread").respond(ASK, [LONG])
    assert reread.how == "reread"
    assert reread.read_tokens == len(LONG.text)
    assert reread.answer.text == reply.answer.text


def test_reusing_the_pot_says_that_the_system_message_took_no_part(adapter: Adapter) -> None:
    reply = made(adapter, followup="reuse").respond(ASK, [LONG])
    assert reply.how == "reuse"
    assert "system message took no part" in reply.answer.notes[0]


def test_turns_that_do_not_fit_are_left_out_and_told(assistant: Assistant) -> None:
    turns = [Message(("user", "assistant")[i % 2], f"turn {i} " * 12) for i in range(12)]
    reply = assistant.respond([*turns, ASK[1]])
    assert reply.answer.notes
    assert "left out" in reply.answer.notes[0]
    assert reply.prompt_tokens + 16 <= 600


@pytest.mark.parametrize(
    ("messages", "documents", "options", "error", "words"),
    [
        ([], [], {}, QuestionError, "no question"),
        ([Message("user", "x" * 700)], [], {}, QuestionTooLongError, "question"),
        (ASK, [SHORT], {"max_new_tokens": 590}, QuestionTooLongError, "do not fit"),
        (ASK, [], {"max_new_tokens": 0}, QuestionError, "at least 1"),
        (ASK, [], {"temperature": -1}, QuestionError, "temperature"),
        (ASK, [EMPTY], {}, DocumentError, "no text"),
    ],
)
def test_bad_input_is_a_sentence(
    assistant: Assistant, messages: Any, documents: Any, options: Any, error: type[InfiniPotError], words: str
) -> None:
    with pytest.raises(error, match=words):
        assistant.respond(messages, documents, **options)


def test_a_misspelt_option_is_an_error(assistant: Assistant) -> None:
    with pytest.raises(TypeError, match="citatoins"):
        assistant.respond(ASK, citatoins=False)


def test_an_answer_can_follow_a_schema(assistant: Assistant) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"year": {"enum": [1801, 1802]}}, "required": ["year"]}
    for documents in ([], [SHORT], [LONG]):
        reply = assistant.respond(ASK, documents, schema=schema, max_new_tokens=24)
        assert json.loads(reply.answer.text)["year"] in (1801, 1802)


def test_a_long_conversation_is_rendered_a_few_times(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for every turn that is dropped took minutes."""
    rendered: list[int] = []
    real = assistant_module.prompt_of

    def counted(form: Any, messages: Any, **options: Any) -> Any:
        rendered.append(len(messages))
        return real(form, messages, **options)

    monkeypatch.setattr(assistant_module, "prompt_of", counted)
    talk = [Message("user" if i % 2 == 0 else "assistant", f"Words of turn {i}.") for i in range(201)]
    reply = assistant.respond(talk)
    assert len(rendered) < 12
    (note,) = reply.answer.notes
    dropped = int(note.split()[0])
    form, room = assistant.llm.form, CONFIG["budget"] - CONFIG["max_new_tokens"]
    fits = [len(p.before) + len(p.behind) <= room for p in
            (real(form, talk[2 * n :], document=False) for n in (dropped - 1, dropped))]  # fmt: skip
    assert fits == [False, True]


def test_weights_are_loaded_once_per_process(adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    monkeypatch.setattr(load_module, "find_folder", lambda name, download: tmp_path / name)
    monkeypatch.setattr(load_module, "load_model", lambda name, **options: loads.append(name) or (adapter, CODEC))
    monkeypatch.setattr(load_module, "_loaded", {})
    one, two = (Assistant.shared("tiny", budget=b, max_new_tokens=16, question_tokens=32) for b in (400, 500))
    assert one.llm.adapter is two.llm.adapter
    assert (one.llm.config.budget, two.llm.config.budget) == (400, 500)
    Assistant.shared("another", budget=400, max_new_tokens=16, question_tokens=32)
    assert loads == ["tiny", "another"]


def test_the_callers_system_message_counts_where_passages_are_loaded_too(adapter: Adapter) -> None:
    assistant = made(adapter, shelf="int8", recalled="load")
    replies = [assistant.respond([Message("system", s), ASK[1]], [LONG]) for s in ("Be brief.", "XXXXXXXX", "12 345 6")]
    assert replies[0].how == "recall"
    assert len({r.answer.text for r in replies}) > 1


def test_passages_are_shortened_and_never_left_out_altogether(adapter: Adapter) -> None:
    """Names of documents take room as well."""
    names = [f"the {n} report of the harbour master of the year" for n in ("first", "second")]
    texts = ["Ship 1 was launched in 1901. " * 4, "Mill 2 was sold in 1802. " * 4]
    documents = [Document.from_text(t, name=n) for t, n in zip(texts, names, strict=True)]
    assistant = made(adapter, recall=230)
    for length in (240, 280, 320):
        reply = assistant.respond([Message("user", "Who moved away?".rjust(length, "y"))], documents)
        assert reply.how == "recall"
        assert reply.answer.usage.recalled_tokens > 100
    endless = [Document.from_text(t, name="n" * 700 + str(i)) for i, t in enumerate([LONG.text, OTHER.text])]
    with pytest.raises(QuestionTooLongError, match="no passage"):
        assistant.respond(ASK, endless)


def test_reading_again_can_be_ended_and_reads_once(adapter: Adapter) -> None:
    assistant = made(adapter, followup="reread", chunk=16)
    passes: list[Any] = []
    reply = assistant.respond(ASK, [LONG], progress=passes.append, cancelled=lambda: len(passes) >= 3)
    assert (reply.answer.finish_reason, len(passes)) == ("cancelled", 3)
    both = assistant.respond(ASK, [LONG, OTHER])
    assert both.answer.text == made(adapter, shelf="off", chunk=16).respond(ASK, [LONG, OTHER]).answer.text


def test_reading_what_fits_can_be_ended(adapter: Adapter) -> None:
    asked: list[int] = []
    reply = made(adapter, chunk=1).respond(ASK, [SHORT], cancelled=lambda: asked.append(1) or len(asked) > 5)  # type: ignore[func-returns-value]
    assert reply.answer.finish_reason == "cancelled"
    assert len(asked) < 12


@pytest.mark.parametrize("shelf", ["keys", "off"])
def test_what_is_looked_for_may_differ_from_what_is_asked(adapter: Adapter, shelf: str) -> None:
    assistant = made(adapter, shelf=shelf)
    catalysts = ["Ship 3", "the year 1930, launched", "zzzz zzzz", "9"]
    assert len({assistant.respond(ASK, [LONG], catalyst=c).answer.text for c in catalysts}) > 1


def test_what_is_looked_for_needs_no_turns_however_long(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    attention = Finder.attention
    monkeypatch.setattr(Finder, "attention", lambda self, asked: looked.append(len(asked)) or attention(self, asked))
    turns = [Message("user", "Where?"), Message("assistant", "There."), *ASK]
    made(adapter).respond(turns, [LONG], catalyst="Which ship sank? " * 200)
    assert looked == [QUERY_TOKENS]


def test_what_is_looked_for_is_judged_in_conversations_too(adapter: Adapter) -> None:
    turns = [Message("user", "Where?"), Message("assistant", "There."), *ASK[1:]]
    assistant, wanted = made(adapter), "Which ship was launched?"
    first, later = (assistant.respond(m, [LONG], catalyst=wanted).answer.answerable for m in (ASK[1:], turns))
    assert first is not None
    assert later == first
    assert assistant.respond(turns, [LONG]).answer.answerable is None


def test_the_last_message_may_be_the_longest_of_a_long_conversation(adapter: Adapter) -> None:
    turns = [Message(("user", "assistant")[i % 2], f"turn {i} " * 22) for i in range(12)]
    question = Message("user", "word " * 110 + "who moved away?")
    reply = made(adapter, budget=1400).respond([*turns, question])
    assert reply.answer.notes == ("4 earlier turns no longer fit and were left out.",)


def test_what_a_filled_pot_leaves_is_enough(adapter: Adapter) -> None:
    big = Document.from_text(f"{LONG.text}\n\n{OTHER.text}")
    assert made(adapter, budget=1200, max_new_tokens=400, followup="reuse").respond([ASK[1]], [big]).how == "reuse"
    turns = [Message(("user", "assistant")[i % 2], f"turn {i} " * 2) for i in range(6)]
    reply = made(adapter, followup="reuse").respond([*turns, ASK[1]], [LONG])
    assert "left out" in reply.answer.notes[0]
    with pytest.raises(QuestionError, match="one document"):
        made(adapter, followup="reuse").respond(ASK, [LONG, OTHER])


def test_the_callers_own_wishes_count_in_streams_too(assistant: Assistant) -> None:
    got: list[str] = []
    *_, last = assistant.stream(ASK, [SHORT], on_text=got.append)
    assert isinstance(last, Reply)
    assert "".join(got).strip() == last.answer.text
    *_, last = assistant.stream(ASK, [SHORT], cancelled=lambda: True)
    assert isinstance(last, Reply)
    assert last.answer.finish_reason == "cancelled"
    reply = asyncio.run(assistant.arespond(ASK, [SHORT], cancelled=lambda: True))
    assert reply.answer.finish_reason == "cancelled"


def test_a_document_keeps_its_name_and_a_stuffed_copy_of_it_does_not_count(assistant: Assistant) -> None:
    reply = assistant.respond([Message("user", f"Use this.\n\n{LONG.text}\n\nWho moved away?")], [LONG])
    assert [d.name for d in reply.documents] == ["long"]


def test_half_a_surrogate_pair_is_no_reason_to_fail(assistant: Assistant) -> None:
    assert assistant.respond([Message("user", "hi \ud800 there")]).how == "plain"
    with pytest.raises(QuestionError, match="'tool' is unknown"):
        assistant.respond([Message("tool", "x"), ASK[1]])  # type: ignore[arg-type]
