"""What was stuffed into a message is told apart from the template around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinipot_llm.answering.prompt import Message
from infinipot_llm.errors import QuestionTooLongError
from infinipot_llm.stuffed import MOST_FRAME_TOKENS, question_in, unstuffed

CONTEXT = "\n\n".join(f"Mill number {i} stood by the river and was owned by a family." for i in range(300))


def words(text: str) -> int:
    return len(text.split())


def test_a_stuffed_chain() -> None:
    prompt = f"Use the context to answer.\n\n{CONTEXT}\n\nQuestion: Who owned mill 7?\nHelpful Answer:"
    left, documents = unstuffed([Message("user", prompt)], words, 500)
    assert left == [Message("user", "Use the context to answer.\n\nQuestion: Who owned mill 7?\nHelpful Answer:")]
    assert [d.text for d in documents] == [CONTEXT]
    assert documents[0].name == "prompt"


def test_a_query_behind_a_drawn_line() -> None:
    prompt = (
        f"Context information is below.\n---------------------\n{CONTEXT}\n---------------------\nGiven the context "
        "information and not prior knowledge, answer the query.\nQuery: Who owned mill 7?\nAnswer: "
    )
    left, documents = unstuffed([Message("user", prompt)], words, 500)
    assert left[0].text.startswith("Context information is below.")
    assert left[0].text.endswith("Given the context information and not prior knowledge, answer the query.\n"
                                 "Query: Who owned mill 7?\nAnswer:")  # fmt: skip
    assert "Mill number 0 " in documents[0].text
    assert "Mill number 299 " in documents[0].text
    assert documents[0].text == CONTEXT


def test_a_system_message_with_the_context_in_it() -> None:
    talk = [Message("system", f"Answer from this.\n\n{CONTEXT}\n\nAnswer in French."), Message("user", "Who?")]
    left, documents = unstuffed(talk, words, 500)
    assert left == [Message("system", "Answer from this.\n\nAnswer in French."), Message("user", "Who?")]
    assert documents[0].text == CONTEXT


def test_the_question_may_stand_in_the_last_line() -> None:
    one_paragraph = CONTEXT.replace("\n\n", "\n")
    left, documents = unstuffed([Message("user", f"{one_paragraph}\nWho owned mill 7?")], words, 500)
    assert left[0].text == "Who owned mill 7?"
    assert documents[0].text == one_paragraph


def test_an_answer_line_alone_is_not_the_question() -> None:
    left, _ = unstuffed([Message("user", f"{CONTEXT}\n\nQuestion: Who?\n\nThink.\n\nAnswer:")], words, 500)
    assert left[0].text.endswith("Question: Who?\n\nThink.\n\nAnswer:")


def test_questions_within_the_context_stay_there() -> None:
    faq = "\n\n".join(f"Question: What is item {i}?\nAnswer: it is thing {i} of the long list." for i in range(99))
    left, documents = unstuffed([Message("user", f"{faq}\n\n{CONTEXT}\n\nWho owned mill 7?")], words, 500)
    assert left[0].text.endswith("Who owned mill 7?")
    assert documents[0].text.startswith("Question: What is item 1?")
    assert "item 98" in documents[0].text


def test_an_instruction_in_the_first_line_stays_in_the_prompt() -> None:
    """Minutes in single lines: nothing tells the last line from the others, so both ends stay, and the note says so."""
    lines = "\n".join(f"Line {i} of the minutes says that the mill stays open." for i in range(200))
    left, (document,) = unstuffed([Message("user", f"Summarise the decisions on safety:\n{lines}")], words, 500)
    assert left[0].text.startswith("Summarise the decisions on safety:\n\nLine 199 ")
    assert document.text.startswith("Line 0 ")
    assert document.text.endswith("Line 198 of the minutes says that the mill stays open.")
    assert "there stayed: 'Summarise the decisions on safety: Line 199" in document.notes[0]


def test_an_answered_question_is_the_texts() -> None:
    faq = "\n\n".join(f"Question: What is item {i}?\nAnswer: it is thing {i} of the list." for i in range(99))
    left, (document,) = unstuffed([Message("user", f"{faq}\n\nWho wrote this FAQ?")], words, 500)
    assert left[0].text == "Question: What is item 0?\nAnswer: it is thing 0 of the list.\n\nWho wrote this FAQ?"
    assert document.text.endswith("item 98?\nAnswer: it is thing 98 of the list.")
    left, _ = unstuffed([Message("user", f"{faq}\n\nQuestion: Who wrote it?\nAnswer: in one word")], words, 500)
    assert left[0].text.endswith("Question: Who wrote it?\nAnswer: in one word")


def test_two_stuffed_messages_are_two_documents() -> None:
    talk = [Message("user", f"First.\n\n{CONTEXT}\n\nRemember."), Message("assistant", "Yes."),
            Message("user", f"Second.\n\n{CONTEXT} More.\n\nWho?")]  # fmt: skip
    left, documents = unstuffed(talk, words, 500)
    assert [m.text for m in left] == ["First.\n\nRemember.", "Yes.", "Second.\n\nWho?"]
    assert [d.name for d in documents] == ["prompt, part 1", "prompt, part 2"]
    assert documents[1].text.endswith("More.")


def test_what_fits_is_left_alone() -> None:
    talk = [Message("system", "Be brief."), Message("user", CONTEXT + "\n\nWho?")]
    assert unstuffed(talk, words, 10_000) == (talk, [])
    many = [Message("user", "word " * 100)] * 50  # long together, none of them long
    assert unstuffed(many, words, 500) == (many, [])


@pytest.mark.parametrize("text", ["word " * 5000, ("word " * 2000 + "\n\n") * 3, "word " * 3000 + "\n" + "word " * 300])
def test_a_long_message_without_a_question_at_its_end_is_refused(text: str) -> None:
    with pytest.raises(QuestionTooLongError, match="paragraph of its own"):
        unstuffed([Message("user", text)], words, 500)


@given(st.lists(st.sampled_from(["one two. ", "\n", "\n\n", "----\n", "Query: ", "x" * 50 + " "]), max_size=900))
def test_no_word_is_lost(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        left, documents = unstuffed([Message("user", text), Message("user", "Who?")], words, 600)
    except QuestionTooLongError:
        return
    kept = " ".join([left[0].text, *(d.text for d in documents)])
    lines = {"----"}  # borders that were drawn may go with the cut
    assert sorted(w for w in kept.split() if w not in lines) == sorted(w for w in text.split() if w not in lines)
    if documents:
        assert words(left[0].text) <= 2 * MOST_FRAME_TOKENS


def test_what_the_model_said_is_no_document() -> None:
    talk = [Message("user", "Tell me."), Message("assistant", CONTEXT), Message("user", "Who owned mill 7?")]
    assert unstuffed(talk, words, 500) == (talk, [])
    talk[0] = Message("user", f"Tell me of this.\n\n{CONTEXT}\n\nQuestion: what?")
    left, (document,) = unstuffed(talk, words, 500)
    assert document.text == CONTEXT
    assert left[1:] == talk[1:]


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("Context information is below.\n---\nQuery: no\n---\nQuery: How high is it?\nAnswer: ", "How high is it?"),
        ("Context:\ntext\n\nQuestion: How high?\n", "How high?"),
        ("Question:   two\nlines?  \nHelpful Answer:", "two\nlines?"),
        ("The original query is as follows: How high?\nWe have provided an existing answer: 3 m", "How high?"),
        ("Query: How high?\nOriginal Answer: 3 m\nNew Answer: ", "How high?"),
        ("How high is it?", None),
        ("In question: nothing.", None),
        ("Question:", None),
        ("Question: " + "long " * 500, None),
    ],
)
def test_the_question_in_other_people_s_prompts(prompt: str, question: str | None) -> None:
    assert question_in(prompt) == question


def test_the_callers_rules_stay_where_earlier_turns_can_give_way() -> None:
    rules = Message("system", "\n\n".join(f"Rule {i}: never say {i} twice, and be brief." for i in range(80)))
    turns = [Message(("user", "assistant")[i % 2], "Some words that were said. " * 10) for i in range(20)]
    asked = Message("user", "Who moved away?")
    assert words(rules.text) > 2 * MOST_FRAME_TOKENS
    room = words(rules.text) + words(asked.text) + 50
    left, found = unstuffed([rules, *turns, asked], words, room)
    assert (left[0], left[-1], found) == (rules, asked, [])
    left, found = unstuffed([rules, *turns, asked], words, room - 100)  # too long by themselves: text that was stuffed
    assert len(found) == 1
