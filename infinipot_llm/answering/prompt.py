"""The prompt around a document: prefix before it, question behind it; trusted pieces and untrusted text never mix.

    prefix (always kept)             | document (distilled) | question and start of the answer (never distilled)
    system prompt, start of the turn |  ... page 1 ... n     | "Question: ..." + end of turn + assistant header

The part behind the document is also the catalyst: the paper's CaP when it holds the user's question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infinipot_llm.documents.clean import clean, describe
from infinipot_llm.errors import ModelError, QuestionError
from infinipot_llm.models.text import TextCodec

SYSTEM = "You answer questions about a document."
BEFORE_DOCUMENT = "Document:\n"
INSTRUCTION = "Using only the document above, answer in a few words: "
BEFORE_QUESTION = f"\n\n{INSTRUCTION}"

QUERY_TOKENS = 512
"""Earlier turns take part in looking for passages as long as they fit into this, with the question."""

_DOCUMENT = "<<document 5f0c>>"
_QUESTION = "<<question 5f0c>>"
_ANSWER = "<<answer 5f0c>>"
_NEXT = "<<next 5f0c>>"

GENERIC = {
    "en": (
        "Who did what, when and where?",
        "How much, how many, at what cost?",
        "What are the key points, decisions and results?",
        "Which names, dates, numbers and terms are defined here?",
    ),
    "ko": (
        "누가, 언제, 어디서, 무엇을 했습니까?",
        "얼마나, 몇 개, 비용은 얼마입니까?",
        "핵심 내용과 결정, 결과는 무엇입니까?",
        "어떤 이름, 날짜, 숫자, 용어가 나옵니까?",
    ),
    "ja": (
        "誰が、いつ、どこで、何をしましたか。",
        "いくつ、いくら、費用はどれだけですか。",
        "要点、決定、結果は何ですか。",
        "どのような名前、日付、数字、用語が出てきますか。",
    ),
    "zh": (
        "谁在什么时候、什么地方做了什么?",
        "多少、多大、费用是多少?",
        "要点、决定和结果是什么?",
        "出现了哪些名称、日期、数字和术语?",
    ),
    "ar": (
        "من فعل ماذا ومتى وأين؟",
        "كم العدد وكم المبلغ وكم التكلفة؟",
        "ما هي النقاط والقرارات والنتائج الرئيسية؟",
        "ما هي الأسماء والتواريخ والأرقام والمصطلحات المذكورة؟",
    ),
}
"""Questions that stand in for the unknown ones, per language of the document (models/text never translates)."""


DATE = "26 Jul 2024"
"""What chat templates that ask for it are told to be today: the date that Llama's have where they cannot ask."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who says it.
        text: What is said; it never becomes control tokens.
    """

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked of a document, as token ids.

    Attributes:
        before: Tokens before the document.
        behind: Tokens from the document's end to the start of the answer.
        query: What passages are looked for with: the question in the form that the retrieval heads were measured on,
            behind earlier turns.
        question: Its words.
        alone: Whether they say all that is asked, no earlier turns explaining them. Where they do not, passages are
            looked for with the question by itself as well, and whether they answer it is not judged.
    """

    before: tuple[int, ...]
    behind: tuple[int, ...]
    query: tuple[int, ...]
    question: str
    alone: bool = True


@dataclass(frozen=True)
class PromptForm:
    """A model's way of putting document and question, as token ids.

    Attributes:
        codec: The tokenizer.
        prefix: Tokens before the document.
        before_question: Tokens between document and question.
        after_question: Tokens from the question's end to the start of the answer.
        between: Tokens from the end of an answer to the next question of a conversation.
        chat: Whether the tokenizer's chat template is used.
    """

    codec: TextCodec
    prefix: tuple[int, ...]
    before_question: tuple[int, ...]
    after_question: tuple[int, ...]
    between: tuple[int, ...]
    chat: bool

    @classmethod
    def for_tokenizer(cls, codec: TextCodec, system: str = SYSTEM) -> PromptForm:
        """Build the form from the tokenizer's chat template, or the plain form where it has none.

        Raises:
            ModelError: The chat template changes the text of a user's turn, so that it cannot be split safely.
        """
        tokenizer = codec.tokenizer
        turn = f"{BEFORE_DOCUMENT}{_DOCUMENT}{BEFORE_QUESTION}{_QUESTION}"
        follow = f"{INSTRUCTION}{_NEXT}"
        if getattr(tokenizer, "chat_template", None):
            whole = _render(tokenizer, system, turn)
            talk = _render(tokenizer, system, turn, _ANSWER, follow)
            bos: tuple[int, ...] = ()  # the template writes it, where there is one
        else:
            whole = f"{system}\n\n{turn}\nAnswer:"
            talk = f"{whole} {_ANSWER}\n\n{follow}\nAnswer:"
            bos = tuple(leading_ids(tokenizer))
        pieces = whole.replace(_QUESTION, _DOCUMENT).split(_DOCUMENT)
        between = talk.replace(_NEXT, _ANSWER).split(_ANSWER)
        if len(pieces) != 3 or len(between) != 3:
            raise ModelError(
                "this model's chat template does not keep the user's text as it is: it cannot be used here."
            )
        first, middle, last = (tuple(codec.trusted(piece)) for piece in pieces)
        chat = bool(getattr(tokenizer, "chat_template", None))
        return cls(codec, bos + first, middle, last, tuple(codec.trusted(between[1])), chat)

    def question(self, question: str) -> list[int]:
        """Return the tokens behind the document for this question.

        Raises:
            QuestionError: The question is empty.
        """
        question = clean(question).strip()  # as documents are, whose words it is to match
        if not question:
            raise QuestionError("the question is empty: ask something about the document.")
        return [*self.before_question, *self.codec.untrusted(question), *self.after_question]

    def conversation(self, turns: Sequence[tuple[str, str]], question: str) -> list[int]:
        """Return the tokens behind the document for a question that follows others.

        Args:
            turns: Question and answer of each turn so far, oldest first.
            question: What is asked now.

        Raises:
            QuestionError: The question is empty.
        """
        return self.latest(turns, question, None)[1]

    def latest(
        self, turns: Sequence[tuple[str, str]], question: str, most: int | None
    ) -> tuple[list[tuple[str, str]], list[int]]:
        """Return the last turns that fit in front of a question, and the tokens of them all behind the document.

        Args:
            turns: As in `conversation`.
            question: As in `conversation`.
            most: Tokens that turns and question may take; the question is there even where it takes more. None: any.

        Raises:
            QuestionError: The question is empty.
        """
        asked = self.question(question)
        kept: list[list[int]] = []  # newest first
        left = None if most is None else most - len(asked)
        for said, answer in ((clean(said).strip(), clean(answer).strip()) for said, answer in reversed(turns)):
            ids = [*self.codec.untrusted(said), *self.after_question]
            ids += [*self.codec.untrusted(answer if self.chat else f" {answer}"), *self.between]
            if left is not None and (left := left - len(ids)) < 0:
                break
            kept.append(ids)
        ids = [i for turn in reversed(kept) for i in turn]
        return list(turns[len(turns) - len(kept) :]), [*self.before_question, *ids, *asked[len(self.before_question) :]]

    def looked_for(self, turns: Sequence[tuple[str, str]], question: str) -> list[int]:
        """Return what passages are looked for with: the question behind as many of the turns before it as fit.

        Turns are whole: where the last one and the question have more than QUERY_TOKENS, there is none. Of a question
        that is longer by itself the end counts, which is where long ones ask.

        Args:
            turns: As in `conversation`.
            question: As in `conversation`.

        Raises:
            QuestionError: The question is empty.
        """
        ids = self.latest(turns, question, QUERY_TOKENS)[1]
        begin = list(self.before_question)
        return ids if len(ids) <= QUERY_TOKENS else begin + ids[len(begin) - QUERY_TOKENS :]


def _render(tokenizer: Any, system: str, *turns: str) -> str:
    """Apply the chat template to turns of user and assistant; where it knows no system role, that opens the first.

    Raises:
        ModelError: The template takes neither.
    """
    said = [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]
    try:
        whole = rendered(tokenizer, [{"role": "system", "content": system}, *said])
        if system in whole:
            return whole
    except Exception:  # noqa: S110 - templates raise whatever their author chose when a role is not supported
        pass
    said[0]["content"] = f"{system}\n\n{turns[0]}"
    try:
        return rendered(tokenizer, said)
    except Exception as error:
        raise ModelError(f"this model's chat template cannot be used: {describe(error)}.") from error


def rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Apply the chat template to messages, up to the start of the answer.

    Templates that write today's date (Llama 3.2, SmolLM3) are told the same one every day: the prompt stands before
    the document, and what was read behind another one could not be asked tomorrow.
    """
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = f"{{%- macro strftime_now(format) -%}}{DATE}{{%- endmacro -%}}{template}"
    settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    return str(tokenizer.apply_chat_template(messages, chat_template=template, **settings))


def leading_ids(tokenizer: Any) -> list[int]:
    """Return what the tokenizer itself puts before a text (a beginning-of-sequence token, mostly)."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    return list(full[: max(0, len(full) - len(bare))]) if full[-len(bare) :] == bare else []
