"""`llm.over(memory)`: a memory that is asked through LlamaIndex's interface answers as it does by itself."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from li_helpers import LONG, tiny_llm
from llama_index.core.llms import ChatMessage
from llama_index.llms.infinipot import InfiniPotLLM

from infinipot_llm.documents import Document
from infinipot_llm.errors import BudgetError, QuestionError
from infinipot_llm.memory.recall import Passage

pytestmark = pytest.mark.usefixtures("closed_loop")


def test_over_a_memory() -> None:
    llm = tiny_llm()
    memory = llm.assistant.remember([Document.from_text(LONG, name="mill")])
    over = llm.over(memory)
    direct = memory.ask("When did it burn?")
    response = over.complete("When did it burn?")
    assert response.text == direct.text
    told = response.additional_kwargs["infinipot"]
    assert (told["how"], told["recalled_tokens"]) == ("recall", direct.usage.recalled_tokens)
    assert [c["quote"] for c in told["citations"]] == [c.quote for c in direct.citations]
    history = [ChatMessage(content="When?"), ChatMessage(role="assistant", content="1903"), ChatMessage(content="And?")]
    assert over.chat(history).message.content == memory.ask("And?", history=[("When?", "1903")]).text
    assert llm.over(memory, followup="reuse").complete("When?").text == memory.ask("When?", followup="reuse").text
    assert llm.over(memory, followup="reread").complete("When?").text == memory.ask("When?", followup="reread").text
    with pytest.raises(QuestionError, match="leave documents out"):
        over.complete("When?", documents=[Document.from_text("x")])


def test_over_a_memory_what_is_looked_for_may_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny_llm()
    memory = llm.assistant.remember([Document.from_text(LONG, name="mill")])
    asked: list[tuple[str, bool]] = []
    real = type(memory).answer

    def spy(self: Any, prompt: Any, *args: Any, **options: Any) -> Any:
        asked.append((prompt.question, prompt.alone))
        return real(self, prompt, *args, **options)

    monkeypatch.setattr(type(memory), "answer", spy)
    over = llm.over(memory)
    over.complete("Say it in one word.", catalyst="When did it burn?")
    over.complete("Answer briefly.\nQuery: Who owned it?\nAnswer: ")
    over.chat([ChatMessage(role="system", content="Be brief."), ChatMessage(content="Query: Who moved?\nAnswer:")])
    over.complete("When?")
    assert asked == [("When did it burn?", True), ("Who owned it?", True), ("Who moved?", True), ("When?", True)]
    turns = [ChatMessage(content="What burned?"), ChatMessage(role="assistant", content="The mill.")]
    over.chat([*turns, ChatMessage(content="Query: When was it?\nAnswer:")])
    over.chat([*turns, ChatMessage(content="In one word.")], catalyst="When did it burn?")
    assert asked[4:] == [("When was it?", False), ("When did it burn?", True)]


def test_over_a_memory_refuses_what_it_would_ignore() -> None:
    llm = tiny_llm()
    memory = llm.assistant.remember([Document.from_text(LONG, name="mill")])
    with pytest.raises(BudgetError, match="no option 'recal'"):
        llm.over(memory, recal=500)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(llm.over(memory))
    assert pickle.loads(pickle.dumps(InfiniPotLLM(model="some"))).model == "some"


def test_passages_that_were_found_fit_beside_a_long_conversation() -> None:
    """What stands between them takes room as well, which turns must leave."""
    llm = tiny_llm(budget=1200, question_tokens=300)
    memory = llm.assistant.remember([Document.from_text(LONG, name="mill")])
    said = [m for i in range(40) for m in (ChatMessage(content=f"{i}?"), ChatMessage(role="assistant", content="No."))]
    messages = [ChatMessage(role="system", content="Be brief."), *said, ChatMessage(content="When did it burn?")]
    passages = [Passage(start, start + 5, 1.0) for start in range(0, 300, 15)]
    response = llm.over(memory, passages=passages, recall=100).chat(messages)
    assert any("left out" in note for note in response.additional_kwargs["infinipot"]["notes"])
    assert response.additional_kwargs["infinipot"]["recalled_tokens"] == 100


@pytest.mark.parametrize("followup", ["recall", "reuse", "reread"])
@pytest.mark.parametrize("turns", [0, 3, 40])
def test_over_a_memory_leaves_out_what_the_memory_leaves_out(followup: str, turns: int) -> None:
    llm = tiny_llm(budget=1200, question_tokens=300)
    memory = llm.assistant.remember([Document.from_text(LONG, name="mill")])
    history = [(f"Question number {i}?", f"Answer {i}.") for i in range(turns)]
    said = [m for q, a in history for m in (ChatMessage(content=q), ChatMessage(role="assistant", content=a))]
    direct = memory.ask("When did it burn?", history=history, followup=followup)
    response = llm.over(memory, followup=followup).chat([*said, ChatMessage(content="When did it burn?")])
    assert response.message.content == direct.text
    assert response.additional_kwargs["infinipot"]["notes"] == list(direct.notes)
    if turns != 3:  # of a pot, how many fit depends on what reading left free
        assert bool(direct.notes) == (turns == 40)


def test_a_system_prompt_over_a_memory_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny_llm(budget=1200)
    memory = llm.assistant.remember([Document.from_text(LONG, name="mill")])
    prompts: list[Any] = []
    real = type(memory).answer

    def spy(self: Any, prompt: Any, *args: Any, **options: Any) -> Any:
        prompts.append(llm.assistant.llm.form.codec.tokenizer.decode([*prompt.before, *prompt.behind]))
        return real(self, prompt, *args, **options)

    monkeypatch.setattr(type(memory), "answer", spy)
    asked = ChatMessage(content="When did it burn?")
    llm.over(memory).chat([asked])
    llm.over(memory).chat([ChatMessage(role="system", content="Be rude."), asked])
    assert "Be rude." not in prompts[0]
    assert "<|im_start|>system\nBe rude.<|im_end|>" in prompts[1]
    assert all("When did it burn?" in prompt for prompt in prompts)
